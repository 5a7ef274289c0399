"""Decoding real image files of many kinds, and damaged ones."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, ImageOps
from torchvision import transforms as tv

from actors.decode import Decoder, decode
from actors.preprocessing import split_transform
from core.errors import UnreadableImage

RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
RAMP = np.stack(np.broadcast_arrays(*np.ogrid[0:120:2, 0:200:2], 90), axis=-1).astype(np.uint8)


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def reason_of(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(data)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_come_back_to_the_last_bit(kind: str) -> None:
    np.testing.assert_array_equal(pixels(file_of(Image.fromarray(NOISE), kind)), NOISE)


def test_lossless_webp_comes_back_to_the_last_bit() -> None:
    data = file_of(Image.fromarray(NOISE), "WEBP", lossless=True)
    np.testing.assert_array_equal(pixels(data), NOISE)


def test_jpeg_is_decoded_as_pillow_decodes_it() -> None:
    data = file_of(Image.fromarray(RAMP), "JPEG", quality=90)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data))))


def test_grey_images_have_three_equal_channels() -> None:
    grey = NOISE[:, :, 0]
    found = pixels(file_of(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(found, np.stack([grey] * 3, axis=-1))


def test_black_and_white_images_are_black_and_white() -> None:
    bits = NOISE[:, :, 0] > 127
    found = pixels(file_of(Image.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(found[:, :, 1], np.where(bits, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_the_high_byte(kind: str) -> None:
    deep = RNG.integers(0, 1 << 16, (20, 30), dtype=np.uint16)
    found = pixels(file_of(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(found[:, :, 0], deep // 256)


def test_palette_images_show_their_colours() -> None:
    palette = Image.fromarray(NOISE).quantize(16)
    np.testing.assert_array_equal(
        pixels(file_of(palette, "PNG")), np.asarray(palette.convert("RGB"))
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_lie_on_white(mode: str) -> None:
    alpha = RNG.integers(0, 256, NOISE.shape[:2], dtype=np.uint8)
    colour = Image.fromarray(NOISE).convert(mode)
    colour.putalpha(Image.fromarray(alpha))
    ground = np.asarray(Image.fromarray(NOISE).convert(mode[:-1]).convert("RGB")).astype(float)
    share = alpha[:, :, None] / 255
    expected = share * ground + (1 - share) * 255
    found = pixels(file_of(colour, "PNG")).astype(float)
    assert np.abs(found - expected).max() <= 1.0


def test_transparent_palette_entries_lie_on_white() -> None:
    indices = (NOISE[:, :, 0] // 86).astype(np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    found = pixels(file_of(image, "PNG", transparency=bytes([0, 255, 128])))
    np.testing.assert_array_equal(np.unique(found[indices == 0], axis=0), [[255, 255, 255]])
    np.testing.assert_array_equal(np.unique(found[indices == 1], axis=0), [[200, 0, 0]])
    half = np.unique(found[indices == 2], axis=0)[0].astype(int)
    assert np.abs(half - [127, 127, 252]).max() <= 1


def test_a_transparent_colour_of_a_png_lies_on_white() -> None:
    image = NOISE.copy()
    image[:10] = (1, 2, 3)
    found = pixels(file_of(Image.fromarray(image), "PNG", transparency=(1, 2, 3)))
    assert (found[:10] == 255).all()
    np.testing.assert_array_equal(found[10:], image[10:])


def test_cmyk_inks_are_subtracted_from_white() -> None:
    inks = np.zeros((32, 64, 4), dtype=np.uint8)
    inks[:, :16, 0], inks[:, 16:32, 1], inks[:, 32:48, 2], inks[:, 48:, 3] = 255, 255, 255, 255
    found = pixels(file_of(Image.fromarray(inks, mode="CMYK"), "JPEG", quality=100))
    centres = found[16, [8, 24, 40, 56]].astype(int)
    expected = [[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]]
    assert np.abs(centres - expected).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"exif": exif} | ({"lossless": True} if kind == "WEBP" else {})
    data = file_of(Image.fromarray(RAMP), kind, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels(data), np.asarray(expected))
    if orientation == 6:  # the camera's top is at the right: turn clockwise
        np.testing.assert_array_equal(pixels(data), np.rot90(RAMP, -1))


def test_broken_exif_data_does_not_cost_the_image_nor_warn() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(40))
    data = file_of(Image.fromarray(RAMP), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(data).shape == RAMP.shape


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == (255, 0, 0)).all()


def test_an_empty_file_is_called_so() -> None:
    assert reason_of(b"") == "empty file"


@pytest.mark.parametrize("data", [b"\0" * 4096, b"<html>404</html>", b"\xff\xd8", b"\x89PNG\r\n"])
def test_other_files_are_not_images(data: bytes) -> None:
    assert reason_of(data) == "not an image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_file_cut_short_is_never_filled_up_with_grey(kind: str, share: float) -> None:
    data = file_of(Image.fromarray(NOISE), kind)
    cut = data[: int(len(data) * share)]
    assert reason_of(cut) in {"truncated", "damaged", "not an image"}
    if kind in {"JPEG", "PNG"}:
        assert reason_of(cut) == "truncated"


def test_leniency_that_another_package_set_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = file_of(Image.fromarray(NOISE), "JPEG")
    assert reason_of(data[: len(data) // 2]) == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def png_of_zeros(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(1024))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [13_500, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(side: int) -> None:
    assert reason_of(png_of_zeros(side, side)) == "too many pixels"


def test_a_format_without_a_meaning_in_rgb_is_named() -> None:
    image = Image.fromarray(RNG.normal(size=(8, 8)).astype(np.float32))
    assert reason_of(file_of(image, "TIFF")) == "unsupported pixel format F"


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]),
    position=st.floats(0, 1),
    junk=st.binary(min_size=1, max_size=30),
)
def test_damage_anywhere_gives_an_image_or_a_reason(
    kind: str, position: float, junk: bytes
) -> None:
    data = bytearray(file_of(Image.fromarray(RAMP[:16, :16]), kind))
    start = int(position * (len(data) - 1))
    data[start : start + len(junk)] = junk
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            mode = decode(bytes(data)).mode
        except UnreadableImage as error:
            mode = "RGB" if error.reason else "no reason"
    assert mode == "RGB"


def test_a_decoder_keeps_the_order_and_says_why_each_bad_image_is_bad() -> None:
    good = file_of(Image.fromarray(NOISE), "PNG")
    strip = file_of(Image.new("RGB", (40_000, 1)), "PNG")
    files = {
        "a": good,
        "b": b"",
        "c": good[:200],
        "e": strip,
        "f": file_of(Image.fromarray(RAMP), "PNG"),
    }

    def fetch(row: dict[str, Any]) -> bytes:
        if row["path"] not in files:
            raise FileNotFoundError(row["path"])
        return files[row["path"]]

    def preprocess(size: int) -> Any:
        steps = [tv.Resize(size), tv.CenterCrop(size), tv.ToTensor()]
        return split_transform(tv.Compose(steps)).view

    views = {view.key: view for view in (preprocess(32), preprocess(48))}
    answers = Decoder(views, fetch)([{"path": name} for name in "abcdef"])
    reasons = [reason for reason, _ in answers]
    assert reasons == [
        None,
        "empty file",
        "truncated",
        "cannot be read: FileNotFoundError",
        "too elongated",
        None,
    ]
    for reason, arrays in answers:
        assert sorted(arrays) == (sorted(views) if reason is None else [])
    for position, original in ((0, NOISE), (5, RAMP)):
        for key, view in views.items():
            expected = view.apply(Image.fromarray(original))
            np.testing.assert_array_equal(answers[position][1][key], expected)


def test_a_fault_of_the_program_is_not_taken_for_a_bad_image() -> None:
    def fetch(_row: dict[str, Any]) -> bytes:
        raise KeyError("no such column")

    with pytest.raises(KeyError):
        Decoder({}, fetch)([{}])
