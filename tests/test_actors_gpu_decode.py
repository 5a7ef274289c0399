"""Decoding JPEG files on a device against Pillow: the same code on a CPU, and on a GPU where there is one."""

from __future__ import annotations

import io
import struct
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_zoo import bad, good
from PIL import ExifTags, Image
from torch import Tensor, nn
from torchvision import transforms as tv

from actors import gpu_decode
from actors.decode import MAX_PIXELS, Decoder, decode
from actors.gpu_decode import DeviceDecoder, check_decoder, decode_jpegs, lay_out
from actors.preprocessing import split_transform
from actors.recorder import Recorder, TargetPart
from actors.targets import Target
from actors.undecoded import MAX_BYTES, Undecoded, undecoded
from actors.views import View
from core.errors import ConfigError

BICUBIC = tv.InterpolationMode.BICUBIC
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])


def view_of(*steps: Any) -> View:
    return split_transform(tv.Compose([*steps, tv.ToTensor()])).view


#: The largest difference of a grey level from Pillow on the photographs below, and the largest mean over
#: an image, on a CPU. Found were 2 and .09 (the mean over all images .026), and 13 and .23 (.024) where the
#: shape changes: Pillow 13 goes down before across where that is less work, and bicubic filters then
#: overshoot elsewhere.
VIEWS = {
    "cut out": (view_of(tv.CenterCrop((400, 500))), 0, 0.0),
    "bilinear": (view_of(tv.Resize(256), tv.CenterCrop(224)), 2, 0.15),
    "bicubic": (view_of(tv.Resize(224, BICUBIC), tv.CenterCrop(224)), 2, 0.15),
    "larger": (view_of(tv.Resize(448), tv.CenterCrop(448)), 2, 0.15),
    "small": (view_of(tv.Resize(65, BICUBIC), tv.CenterCrop(64)), 2, 0.15),
    "with an edge": (view_of(tv.Resize(50, BICUBIC), tv.CenterCrop((60, 91))), 2, 0.15),
    "another shape": (view_of(tv.Resize((300, 331), BICUBIC)), 16, 0.5),
}
SIZES = [(37, 53), (501, 333), (1023, 767), (8, 9), (2500, 1401), (65, 64), (1, 1), (224, 224)]


def file_of(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[bytes]:
    """Files as they are, and some of other sizes, finer and coarser, colour thinned out or not, and grey."""
    folders = sorted((shared / "data" / "imagenet-sample").iterdir())[::25]
    files = [next(folder.iterdir()).read_bytes() for folder in folders]
    for number, size in enumerate(SIZES):
        image = decode(files[number]).resize(size)
        for quality, subsampling in ((95, 0), (75, 1), (30, 2)):
            options = {"quality": quality, "subsampling": subsampling, "progressive": quality == 75}
            files.append(file_of(image, **options))
        files.append(file_of(image.convert("L")))
    return files


def left(data: bytes, *views: View) -> Undecoded | None:
    return undecoded(data, views, MAX_PIXELS)


def sent(files: list[bytes], views: dict[str, View]) -> list[Undecoded]:
    found = [left(data, *views.values()) for data in files]
    assert None not in found
    return [file for file in found if file is not None]


@on_each_device
@pytest.mark.parametrize("name", VIEWS)
def test_views_made_on_a_device_are_those_of_pillow_up_to_rounding(
    name: str, device: str, photographs: list[bytes]
) -> None:
    view, most, mean = VIEWS[name]
    if (
        device == "cuda"
    ):  # nvJPEG makes colours of thinned out ones in a way of its own: guessed, not found
        most, mean = 255, 6.0
    answers = DeviceDecoder({view.key: view}, device)(sent(photographs, {view.key: view}))
    differences = []
    for data, (reason, views) in zip(photographs, answers, strict=True):
        assert reason is None
        found = views[view.key]
        assert (found.dtype, found.device.type) == (torch.uint8, device)
        expected = view.apply(decode(data)).astype(int)
        difference = np.abs(found.cpu().numpy().astype(int) - expected)
        assert difference.max() <= most
        assert difference.mean() <= mean
        differences.append(difference.mean())
    assert np.mean(differences) <= mean / 2


@on_each_device
def test_resizing_and_cropping_on_a_device_is_pillows_whatever_decodes(
    device: str, photographs: list[bytes]
) -> None:
    for view, most, mean in VIEWS.values():
        for data in photographs[::3]:
            image = decode(data)
            pixels = torch.tensor(np.asarray(image), device=device).permute(2, 0, 1)
            difference = np.abs(
                lay_out(pixels, view).cpu().numpy().astype(int) - view.apply(image).astype(int)
            )
            assert difference.max() <= most
            assert difference.mean() <= mean


@on_each_device
def test_a_file_gives_the_same_pixels_alone_and_among_others_one_of_them_broken(
    device: str, photographs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_decode, "BATCH", 5)
    view = VIEWS["bilinear"][0]
    files = sent(photographs[:12], {view.key: view})
    files.insert(7, Undecoded(b"\xff\xd8 no picture \xff\xd9", 40, 40))
    decoder = DeviceDecoder({view.key: view}, device)
    together = decoder(files)
    assert [reason for reason, _ in together] == [None] * 7 + ["not an image"] + [None] * 5
    for file, (reason, views) in zip(files, together, strict=True):
        ((alone_reason, alone),) = decoder([file])
        assert alone_reason == reason
        assert all(torch.equal(alone[key], value) for key, value in views.items())
    assert decoder([]) == []


@on_each_device
def test_what_the_decoder_cannot_read_is_read_by_pillow(device: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    view = view_of(tv.CenterCrop((30, 40)))
    png, jpeg = (file_of(Image.fromarray(noise), kind) for kind in ("PNG", "JPEG"))
    files = [Undecoded(png, 40, 30), Undecoded(jpeg, 41, 30), Undecoded(jpeg, 40, 30)]
    assert decode_jpegs([png, jpeg], device)[0] is None
    answers = DeviceDecoder({view.key: view}, device)(files)
    assert [reason for reason, _ in answers] == [None] * 3
    np.testing.assert_array_equal(answers[0][1][view.key].cpu().numpy(), noise)
    expected = np.asarray(decode(jpeg))
    np.testing.assert_array_equal(answers[1][1][view.key].cpu().numpy(), expected)
    assert {views[view.key].device.type for _, views in answers} == {device}


def test_broken_files_are_found_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    good, broken = file_of(PHOTOGRAPH), b"\xff\xd8 no picture \xff\xd9"
    files = [good] * 64
    files[41] = broken
    asked: list[int] = []
    whole = gpu_decode._decode_all

    def counted(some: Sequence[bytes], device: torch.device) -> Sequence[torch.Tensor]:
        asked.append(len(some))
        return whole(some, device)

    monkeypatch.setattr(gpu_decode, "_decode_all", counted)
    images = decode_jpegs(files, "cpu")
    assert [image is None for image in images] == [file is broken for file in files]
    assert len(asked) <= 2 * 6 + 3, "a file after the other would be 64 times"


def test_a_decoder_that_refuses_good_files_ends_the_pass_instead_of_changing_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a library says that has no memory left: nothing of the file, so that no other may decode it."""

    def refuse(_files: Sequence[bytes], _device: torch.device) -> Sequence[torch.Tensor]:
        raise RuntimeError("Error while decoding JPEG images: allocation failed")

    monkeypatch.setattr(gpu_decode, "_decode_all", refuse)
    file = left(file_of(PHOTOGRAPH), PLAIN)
    assert file is not None
    with pytest.raises(RuntimeError, match="allocation failed"):
        DeviceDecoder({PLAIN.key: PLAIN}, "cpu")([file])


PHOTOGRAPH = Image.fromarray(
    np.stack(np.broadcast_arrays(*np.ogrid[0:120:2, 0:200:2], 90), axis=-1).astype(np.uint8)
)
PLAIN = view_of(tv.Resize(40), tv.CenterCrop(32))


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


def with_app_segment(data: bytes, number: int, content: bytes) -> bytes:
    """A JPEG file with one more segment at its beginning."""
    head = struct.pack(">BBH", 0xFF, 0xE0 + number, len(content) + 2)
    return data[:2] + head + content + data[2:]


def with_component_numbers(data: bytes, numbers: bytes) -> bytes:
    """A baseline JPEG file of three components that are numbered otherwise, in frame and scan."""
    out = bytearray(data)
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for place, number in enumerate(numbers):
        out[frame + 10 + 3 * place] = out[scan + 5 + 2 * place] = number
    return bytes(out)


WHOLE = file_of(PHOTOGRAPH, quality=90)
XMP = (
    b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
)
NOT_SENT = {
    "png": file_of(PHOTOGRAPH, "PNG"),
    "inks": file_of(PHOTOGRAPH.convert("CMYK")),
    "turned": file_of(PHOTOGRAPH, exif=oriented(6)),
    "mirrored": file_of(PHOTOGRAPH, exif=oriented(2)),
    "turned by XMP": with_app_segment(WHOLE, 1, XMP),
    "cut short": WHOLE[: len(WHOLE) // 2],
    "without its last marker": WHOLE[:-2],
    "followed by other data": WHOLE + b"more",
    "several pictures": file_of(
        PHOTOGRAPH, "MPO", save_all=True, append_images=[PHOTOGRAPH.copy()]
    ),
    "kept in red, green and blue": file_of(PHOTOGRAPH, keep_rgb=True),
    "marked by Adobe as unconverted": with_app_segment(WHOLE, 14, b"Adobe\0\x64\0\0\0\0\0"),
    "numbered otherwise": with_component_numbers(WHOLE, b"\0\1\2"),
    "colour thinned out downwards alone": file_of(PHOTOGRAPH, subsampling=1).replace(
        b"\3\1\x21\0\2\x11", b"\3\1\x12\0\2\x11"
    ),
    "too elongated": file_of(Image.new("RGB", (60_000, 1))),
    "empty": b"",
    "two markers": b"\xff\xd8\xff\xd9",
    "large": file_of(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)),
        quality=98,
        subsampling=0,
    ),
}


@pytest.mark.parametrize("name", NOT_SENT)
def test_a_file_that_a_gpu_may_read_otherwise_stays_on_the_cpu(name: str) -> None:
    data = NOT_SENT[name]
    assert (len(data) > MAX_BYTES) == (name == "large")
    assert left(data, PLAIN) is None
    decoder = Decoder({PLAIN.key: PLAIN}, lambda _row: data)
    (answer,), (expected,) = decoder.or_left([{}]), decoder([{}])
    assert answer[0] == expected[0]
    file, arrays = answer[1]
    assert file is None
    assert arrays.keys() == expected[1].keys()
    for key, array in expected[1].items():
        np.testing.assert_array_equal(arrays[key], array)


@pytest.mark.parametrize(
    "data",
    [
        WHOLE,
        WHOLE + bytes(700),
        file_of(PHOTOGRAPH.convert("L")),
        file_of(PHOTOGRAPH, progressive=True),
        file_of(PHOTOGRAPH, exif=oriented(1), icc_profile=b"not a profile" * 9),
        with_app_segment(WHOLE, 14, b"Adobe\0\x64\0\0\0\0\1"),
    ],
    ids=["plain", "padded", "grey", "progressive", "upright", "marked by Adobe as converted"],
)  # fmt: skip
def test_other_jpeg_files_go_to_the_gpu_without_what_follows_them(data: bytes) -> None:
    file = left(data, PLAIN)
    assert file is not None
    assert (file.width, file.height) == PHOTOGRAPH.size
    assert file.data == data.rstrip(b"\0")
    (row,) = Decoder({PLAIN.key: PLAIN}, lambda _row: data).or_left([{}])
    assert row == (None, (file, {}))


def lanczos(size: int) -> View:
    return view_of(tv.Resize(size, tv.InterpolationMode.LANCZOS), tv.CenterCrop(size))


WHOLE_VIEW = split_transform(tv.Compose([tv.Resize((40, 40)), tv.ToTensor(), tv.Lambda(abs)])).view


@pytest.mark.parametrize(
    "view",
    [lanczos(32), WHOLE_VIEW, View("as-it-is", (61, 100, 3), ())],
    ids=["Lanczos", "whole", "of another size"],
)
def test_a_view_that_a_gpu_cannot_make_keeps_all_files_on_the_cpu(view: View) -> None:
    assert left(WHOLE, PLAIN) is not None
    assert left(WHOLE, view) is None
    assert left(WHOLE, PLAIN, view) is None


def test_too_many_pixels_are_not_sent_to_a_gpu() -> None:
    pixels = PHOTOGRAPH.width * PHOTOGRAPH.height
    assert undecoded(WHOLE, [PLAIN], pixels) is not None
    assert undecoded(WHOLE, [PLAIN], pixels - 1) is None


def either_way(data: bytes, view: View, device: str) -> tuple[Any, Any]:
    """Reason and pixels of a file by Pillow alone, and by way of a device."""
    decoder = Decoder({view.key: view}, lambda _row: data)
    (expected,), ((reason, (file, made)),) = decoder([{}]), decoder.or_left([{}])
    if file is not None:
        ((reason, views),) = DeviceDecoder({view.key: view}, device)([file])
        return expected, (reason, {key: value.cpu().numpy() for key, value in views.items()})
    return expected, (reason, made)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
def test_the_zoo_is_refused_and_read_with_a_gpu_as_without(device: str) -> None:
    view, here = view_of(tv.CenterCrop((48, 64))), 0
    for animal in [*good(), *bad()]:
        expected, found = either_way(animal.data, view, device)
        here += left(animal.data, view) is not None
        assert found[0] == expected[0] == animal.reason
        for key, array in expected[1].items():
            difference = np.abs(found[1][key].astype(int) - array)
            assert difference.max() <= (0 if device == "cpu" else 12)
    assert here == 4


@settings(max_examples=200, deadline=None)
@given(position=st.floats(0, 1), junk=st.binary(min_size=1, max_size=30), grey=st.booleans())
def test_damage_anywhere_has_the_same_reason_by_way_of_a_device(
    position: float, junk: bytes, grey: bool
) -> None:
    image = PHOTOGRAPH.convert("L") if grey else PHOTOGRAPH
    data = bytearray(file_of(image))
    start = int(position * (len(data) - 2))
    data[start : start + len(junk)] = junk[: len(data) - 2 - start]
    expected, found = either_way(bytes(data), PLAIN, "cpu")
    assert found[0] == expected[0]
    for key, array in expected[1].items():
        assert np.abs(found[1][key].astype(int) - array).max() <= 2


class Small(nn.Module):
    """Two convolutions with random weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(3, 12, 5, stride=2)
        self.second = nn.Conv2d(12, 24, 3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(images).relu()).relu()
        return result


def recorder(device: str) -> Recorder:
    steps = [tv.Resize(72, BICUBIC), tv.CenterCrop(64), tv.ToTensor(), tv.Normalize(0.45, 0.25)]
    target = Target(Small().eval(), tv.Compose(steps), "small")
    layers = {"first": ("avg", "max"), "second": ("avg", "max")}
    return Recorder([TargetPart(target, layers)], device=device, dtype="float32", batch_size=16)


@on_each_device
def test_tensors_on_the_device_are_recorded_as_arrays_are(
    device: str, photographs: list[bytes]
) -> None:
    ours = recorder(device)
    ((key, view),) = ours.views.items()
    arrays = np.stack([view.apply(decode(data)) for data in photographs])
    tensors = torch.tensor(arrays, device=device)
    expected, found = ours.record({key: arrays}), ours.record({key: tensors})
    some = ours.record({key: tensors[5:8]})
    none = ours.record({key: tensors[:0]})
    for name, values in expected.activations.items():
        np.testing.assert_array_equal(found.activations[name], values)
        np.testing.assert_array_equal(some.activations[name], values[5:8])
        assert none.activations[name].shape == (0, values.shape[1])


@on_each_device
def test_activations_by_way_of_a_device_correlate_with_pillows(
    device: str, photographs: list[bytes]
) -> None:
    ours = recorder(device)
    ((key, view),) = ours.views.items()
    answers = DeviceDecoder(ours.views, device)(sent(photographs, ours.views))
    found = ours.record({key: torch.stack([views[key] for _, views in answers])}).activations
    arrays = np.stack([view.apply(decode(data)) for data in photographs])
    for name, expected in ours.record({key: arrays}).activations.items():
        a, b = (x.astype(np.float64) - x.mean(0, np.float64) for x in (found[name], expected))
        varies = b.std(0) > 0
        r = (a * b).sum(0)[varies] / np.sqrt((a * a).sum(0) * (b * b).sum(0))[varies]
        assert len(r) >= 8
        assert r.min() > (0.99999 if device == "cpu" else 0.99)


def test_the_check_before_a_run_decodes_on_the_device_itself() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of the library's reaches anybody
        check_decoder("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"cannot be decoded on 'cuda'.*'cpu'"):
            check_decoder("cuda")


def without_torchvision_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torchvision.io.decode_jpeg")


def test_a_missing_library_is_named_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    without_torchvision_decoder(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ConfigError, match=r"torchcodec.*set recordings\.decode to 'cpu'"):
        check_decoder("cpu")


@on_each_device
def test_torchcodec_decodes_where_torchvision_has_no_decoder(
    device: str, photographs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchcodec", reason="torchcodec, another decoder, is not installed")
    expected = decode_jpegs(photographs[:40], device)
    without_torchvision_decoder(monkeypatch)
    check_decoder(device)
    found = decode_jpegs(photographs[:40], device)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        assert theirs is not None
        assert int((ours.int() - theirs.int()).abs().max()) <= (0 if device == "cpu" else 4)
    assert decode_jpegs([photographs[0][:300]], device) == [None]
