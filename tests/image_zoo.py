"""Every kind of file that folders of photographs turn out to hold, with what should become of it."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

HEIGHT, WIDTH = 48, 64
RNG = np.random.default_rng(5)
NOISE = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = NOISE[:, :, 0]
DEEP = RNG.integers(0, 1 << 16, (HEIGHT, WIDTH, 3), dtype=np.uint16)
ALPHA = NOISE[:, :, 1]
#: Smooth, so that JPEG keeps it.
RAMP = np.stack(
    np.broadcast_arrays(*np.ogrid[0 : 4 * HEIGHT : 4, 0 : 3 * WIDTH : 3], 90), axis=-1
).astype(np.uint8)


@dataclass(frozen=True)
class Animal:
    """One file: its name in bytes, what is in it, and either its pixels or why it is refused."""

    name: bytes
    data: bytes
    pixels: np.ndarray | None = None
    reason: str | None = None
    tolerance: int = 0
    """Largest difference of a grey level, where the format loses some."""

    @property
    def image_id(self) -> str:
        return self.name.decode("utf-8", "backslashreplace")


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(header: tuple[int, int, int, int], rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG file by hand: width, height, bit depth and colour type, rows with their filter bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = struct.pack(">IIBBBBB", *header, 0, 0, 0)
    chunks = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return np.round(colour * share + 255 * (1 - share)).astype(np.uint8)


def three(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1)


def good() -> Iterator[Animal]:
    """Files that can be read, with the pixels that they stand for."""
    plain = file_of(Image.fromarray(NOISE), "PNG")
    jpeg = file_of(Image.fromarray(RAMP), "JPEG", quality=98, subsampling=0)
    yield Animal(b"a/plain.png", plain, NOISE)
    yield Animal(b"a/png under another ending.jpg", plain, NOISE)
    yield Animal(b"a/jpeg under another ending.gif", jpeg, RAMP, tolerance=4)
    yield Animal(b"a/ENDING IN CAPITALS.PNG", plain, NOISE)
    yield Animal(b"a/caf\xe9 in latin-1.png", plain, NOISE)
    yield Animal("b/zürich 東京.png".encode(), plain, NOISE)
    yield Animal(b"b/50% #1 [x] *a::b?.png", plain, NOISE)
    yield Animal(b"b/two\nlines.png", plain, NOISE)
    yield Animal(b"b/folder.jpg/inside.png", plain, NOISE)
    inks = np.concatenate([255 - RAMP, np.full_like(GREY, 60)[:, :, None]], axis=-1)
    shades = np.round((RAMP / 255) * (195 / 255) * 255).astype(np.uint8)
    cmyk = file_of(Image.fromarray(inks, mode="CMYK"), "JPEG", quality=98, subsampling=0)
    yield Animal(b"a/cmyk.jpg", cmyk, shades, tolerance=5)
    yield Animal(
        b"a/cmyk.tif", file_of(Image.fromarray(inks, mode="CMYK"), "TIFF"), shades, None, 1
    )
    grey = file_of(Image.fromarray(RAMP[:, :, 1]), "JPEG", quality=98)
    yield Animal(b"a/grey.jpg", grey, three(RAMP[:, :, 1]), tolerance=3)
    deep = file_of(Image.fromarray(DEEP[:, :, 0]), "PNG")
    yield Animal(b"a/grey of 16 bits.png", deep, three((DEEP[:, :, 0] >> 8).astype(np.uint8)))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    colour = (DEEP >> 8).astype(np.uint8)
    yield Animal(b"a/colour of 16 bits.png", png((WIDTH, HEIGHT, 16, 2), rows), colour)
    indices = (NOISE[:, :, 2] // 86).astype(np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    table = np.array([[255, 255, 255], [200, 0, 0], [127, 127, 252]], np.uint8)
    palette = file_of(image, "PNG", transparency=bytes([0, 255, 128]))
    yield Animal(b"a/palette with alpha.png", palette, table[indices], tolerance=1)
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    yield Animal(
        b"a/grey with alpha.png", file_of(grey_alpha, "PNG"), on_white(three(GREY), ALPHA), None, 1
    )
    seen = Image.fromarray(np.dstack([NOISE, ALPHA]))
    webp = file_of(seen, "WEBP", lossless=True, exact=True)
    yield Animal(b"a/alpha.webp", webp, on_white(NOISE, ALPHA), tolerance=1)
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "lime", "blue")]
    red = np.full_like(NOISE, (255, 0, 0))
    moving: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    for kind, ending in (("GIF", "gif"), ("PNG", "png"), ("TIFF", "tif")):
        name = f"a/several frames.{ending}".encode()
        yield Animal(name, file_of(frames[0], kind, **moving), red)
    yield Animal(b"a/several frames.webp", file_of(frames[0], "WEBP", lossless=True, **moving), red)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(RAMP)))
    turned = file_of(lying, "JPEG", quality=98, subsampling=0, exif=exif)
    yield Animal(b"b/turned by its camera.jpg", turned, RAMP, tolerance=4)
    profile = file_of(
        Image.fromarray(RAMP), "JPEG", quality=98, subsampling=0, icc_profile=b"not a profile" * 9
    )
    yield Animal(b"b/broken colour profile.jpg", profile, RAMP, tolerance=4)
    rows = b"".join(b"\0" + row.tobytes() for row in NOISE)
    broken = png((WIDTH, HEIGHT, 8, 2), rows, (b"iCCP", b"name\0\0not compressed"))
    yield Animal(b"b/broken colour profile.png", broken, NOISE)
    progressive = file_of(
        Image.fromarray(RAMP), "JPEG", quality=98, subsampling=0, progressive=True
    )
    yield Animal(b"b/progressive.jpg", progressive, RAMP, tolerance=4)
    yield Animal(b"b/followed by other data.jpg", jpeg + b"more" * 999, RAMP, tolerance=4)
    dot = np.full((1, 1, 3), (7, 77, 177), np.uint8)
    yield Animal(b"b/one pixel.png", file_of(Image.fromarray(dot), "PNG"), dot)


def bad() -> Iterator[Animal]:
    """Files that must be refused, with the reason."""
    noise = file_of(Image.fromarray(NOISE), "PNG")
    jpeg = file_of(Image.fromarray(NOISE), "JPEG", quality=95)
    yield Animal(b"a/cut short.jpg", jpeg[: len(jpeg) // 2], reason="truncated")
    yield Animal(b"a/cut short.png", noise[: len(noise) // 2], reason="truncated")
    yield Animal(b"a/cut in the header.jpg", jpeg[:160], reason="not an image")
    yield Animal(b"a/zero bytes.jpg", b"", reason="empty file")
    yield Animal(b"a/zeros.jpg", bytes(5000), reason="not an image")
    yield Animal(b"a/text.jpg", b"404: no such photograph\n", reason="not an image")
    yield Animal(b"a/page.png", b"<!DOCTYPE html><html>" + b" " * 900, reason="not an image")
    yield Animal(
        b"a/._resource fork.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(60), reason="not an image"
    )
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    yield Animal(b"a/drawing.png", drawing, reason="not an image")
    zeros = bytes(1024)
    yield Animal(b"b/bomb.png", png((60_000, 60_000, 1, 0), zeros), reason="too many pixels")
    widest = png((2**31 - 1, 2**31 - 1, 1, 0), zeros)
    yield Animal(b"b/largest header.png", widest, reason="too many pixels")
    text = zlib.compress(bytes(80 << 20), 9)
    rows = b"".join(b"\0" + row.tobytes() for row in NOISE)
    hidden = png((WIDTH, HEIGHT, 8, 2), rows, (b"zTXt", b"Comment\0\0" + text))
    yield Animal(b"b/bomb in a comment.png", hidden, reason="damaged")
    spoilt = bytearray(noise)
    spoilt[noise.index(b"IDAT") + 40] ^= 0xFF
    yield Animal(b"b/flipped bits.png", bytes(spoilt), reason="damaged")
    floats = Image.fromarray(GREY.astype(np.float32))
    yield Animal(b"b/floats.tif", file_of(floats, "TIFF"), reason="unsupported pixel format F")


def settle(folder: Path, animals: list[Animal]) -> None:
    """Write the files."""
    for animal in animals:
        path = os.path.join(os.fsencode(folder), animal.name)  # noqa: PTH118
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(animal.data)
