"""WebDataset tars: where the image of each sample lies in a tar, and the label beside it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import IO, Any

from core.errors import SourceError, close_names

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def tar_samples(
    fs: Any, path: str, label: str | None
) -> Iterator[tuple[str, tarfile.TarInfo, str | None]]:
    """Key, image member and label of every sample of one tar, in the order of the tar.

    Args:
        fs: File system that the tar lies in.
        path: The tar.
        label: Key of the JSON members that holds the label; without one, `.cls` members hold it.

    Raises:
        SourceError: It is not a tar, a sample has two images, or a JSON member lacks the label.
    """
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str | None] = {}
    try:
        with fs.open(path, "rb") as raw, tarfile.open(fileobj=_buffered(raw), mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not member.isfile():
                    continue
                if f".{suffix.lower()}".endswith(IMAGE_SUFFIXES):
                    if key in images:
                        raise SourceError(
                            f"{path!r} has two images for the key {key!r}: {images[key].name!r} and "
                            f"{member.name!r}; keep one image a sample"
                        )
                    images[key] = member
                elif suffix == "json" and label is not None:
                    labels[key] = _json_label(tar, member, label, path)
                elif suffix == "cls" and label in (None, "cls"):
                    labels[key] = _member_bytes(tar, member).decode().strip()
    except tarfile.TarError as error:
        raise SourceError(
            f"{path!r} is not a readable tar ({error}); remove it or make it again"
        ) from error
    for key, member in images.items():
        yield key, member, labels.get(key)


def _buffered(raw: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(raw, 1 << 20) if isinstance(raw, io.RawIOBase) else raw


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _json_label(tar: tarfile.TarFile, member: tarfile.TarInfo, key: str, path: str) -> str | None:
    try:
        facts = json.loads(_member_bytes(tar, member))
    except ValueError as error:
        raise SourceError(f"{path}/{member.name} is not JSON ({error})") from error
    if key not in facts:
        raise SourceError(
            f"images.label {key!r} is not in {path}/{member.name}, which has "
            f"{', '.join(map(repr, facts))}{close_names(key, facts)}"
        )
    return None if facts[key] is None else str(facts[key])
