"""Stamps: what is known of a file's content without reading it, and changes when the content does.

On a local disk that is size and modification time, elsewhere the size and what the storage keeps beside
it: a digest, a version or a time. However a file is asked for, by itself or with its folder, its stamp is
the same; and that a file is not there is taken from the storage that it would lie on, from no other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from core.errors import NeuroscribeError, SourceError
from pipeline.log import say
from pipeline.outages import is_outage, patiently
from pipeline.storage import filesystem

#: The stamp of a file that is not there, as its own file system says.
MISSING = "missing:None"

#: What file systems of fsspec call it: digests of the content and versions first, then times. S3, HTTP and
#: Azure, Google, Hugging Face, GitHub, git, lakeFS, archives; disks, SFTP and SMB, WebDAV, FTP, HDFS, memory.
_VERSIONS = (
    *("ETag", "etag", "blob_id", "xet_hash", "sha", "hex", "checksum"),
    *(
        "Content-MD5",
        "content_md5",
        "Digest",
        "md5",
        "md5Hash",
        "md5Checksum",
        "content_hash",
        "CRC",
    ),
    *("mtime", "LastModified", "last_modified", "Last-Modified", "modified", "modify"),
    *("modificationTime", "modifiedTime", "updated", "created"),
)

_LOCAL = "file://"

#: Files of one folder from which on the folder is listed: one request then tells of a thousand.
_SEVERAL = 3


def stamp_of(info: Mapping[str, Any]) -> str:
    """The stamp of a remote file; `size:None` where the storage says nothing but its size."""
    return f"{info.get('size')}:{_version(info)}"


def _version(info: Mapping[str, Any]) -> str | None:
    for key in _VERSIONS:
        value = info.get(key)
        if isinstance(value, datetime):
            # Some file systems list seconds and tell a date when they are asked for one file.
            return str((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
        if isinstance(value, str):
            # Some services put an etag in quotes in one answer and not in the other.
            value = value.removeprefix("W/").strip('"')
        if value not in (None, ""):
            return str(value)
    return None


def _is_bare(stamp: str) -> bool:
    """Whether a stamp says no more than a size."""
    return stamp != MISSING and stamp.endswith(":None")


def local_stamp(path: str) -> str:
    """Size and modification time of a local file, of what a link leads to."""
    try:
        facts = os.stat(path)  # noqa: PTH116 - a million times, a Path would double it
    except OSError as error:
        if is_outage(error):
            raise
        return MISSING
    return f"{facts.st_size}:{facts.st_mtime}"


def stamps(urls: Sequence[str]) -> list[str]:
    """Stamps of named files, in their order, each by the file system that its URL is of.

    On remote storage files are asked for folder by folder where a folder has several of them.

    Returns:
        `MISSING` for a file of which its file system says that it is not there; it is quarantined when
        it is read.

    Raises:
        SourceError: A file may not be looked at: nobody knows then whether it is there.
        ConfigError: fsspec knows no such protocol, or the package for it is not installed.
        StoppedEarly: A storage does not answer.
    """
    together: dict[object, list[int]] = {}
    for place, url in enumerate(urls):
        together.setdefault(_storage(url), []).append(place)
    found = [""] * len(urls)
    for places in together.values():
        some = [urls[place] for place in places]
        for place, stamp in zip(places, _of_one_storage(some), strict=True):
            found[place] = stamp
    return found


def listed_stamps(fs: Any, files: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Stamps of remote files that were listed, with paths and what the listing says of them.

    Where that is no more than sizes, the files are asked for one by one, if that tells more.

    Raises:
        SourceError: A file may not be looked at.
        StoppedEarly: The storage does not answer.
    """
    found = [stamp_of(info) for _, info in files]
    bare = [place for place, stamp in enumerate(found) if _is_bare(stamp)]

    def asked(place: int) -> str:
        path = files[place][0]
        return _asked(fs, path, fs.unstrip_protocol(path), {})

    if bare and asked(bare[0]) != found[bare[0]]:
        with ThreadPoolExecutor(max_workers=_workers(fs)) as pool:
            for place, stamp in zip(bare, pool.map(asked, bare), strict=True):
                found[place] = stamp
    return found


def warn_of_sizes(stamps: pa.ChunkedArray, where: str) -> None:
    """Say how many images of an index have a stamp that tells no more than the size of a file.

    Args:
        stamps: The index's stamps.
        where: What the images were listed from.
    """
    bare = pc.and_(pc.match_substring_regex(stamps, ":None(#|$)"), pc.not_equal(stamps, MISSING))
    if count := pc.sum(bare).as_py() or 0:
        say(
            f"neuroscribe: of {count:,} of {len(stamps):,} images of {where!r} the storage tells a size "
            "and nothing else: one that is replaced by another of the same size will not be noticed; "
            "run --stage record --force records them again",
            "sizes",
            level="warning",
            images=count,
        )


def _storage(url: str) -> object:
    """What decides which file system reads a URL: equal for URLs of one storage."""
    scheme, _, _ = url.partition("://")
    if scheme == "file":
        return scheme
    if "::" not in url:
        try:
            # fsspec's own way from a URL to what a file system is made with, without making it.
            return scheme, str(fsspec.get_filesystem_class(scheme)._get_kwargs_from_urls(url))
        except (ValueError, ImportError):
            pass  # `filesystem` says it better
    return filesystem(url)[0]


def _of_one_storage(urls: list[str]) -> list[str]:
    try:
        fs, _ = patiently(lambda: filesystem(urls[0]), urls[0])
    except NeuroscribeError:
        raise
    except Exception as error:  # some connect at once, and every client has errors of its own
        raise _refused(urls[0], error) from error
    if isinstance(fs, LocalFileSystem):
        return patiently(lambda: [_of_local(fs, url) for url in urls], urls[0])
    paths = [filesystem(url)[1] if "::" in url else fs._strip_protocol(url) for url in urls]
    named = dict(zip(paths, urls, strict=True))
    inside: dict[str, list[str]] = {}
    for path in named:
        inside.setdefault(_folder(path), []).append(path)

    # A server's index page says nothing of files, and files may be there that it does not name.
    least = len(paths) + 1 if _is_web(fs) else _SEVERAL
    several = [
        {path: named[path] for path in some} for some in inside.values() if len(some) >= least
    ]
    with ThreadPoolExecutor(max_workers=_workers(fs)) as pool:
        listed = pool.map(lambda some: _listed(fs, some) or {}, several)
        known = {path: stamp for some in listed for path, stamp in some.items()}
        rest = [path for path in named if path not in known]
        asked = pool.map(lambda path: _asked(fs, path, named[path]), rest)
        known |= dict(zip(rest, asked, strict=True))
    return [known[path] for path in paths]


def _of_local(fs: LocalFileSystem, url: str) -> str:
    # Names keep the characters that fsspec would take for its own.
    path = url.removeprefix(_LOCAL) if url.startswith(_LOCAL) else fs._strip_protocol(url)
    stamp = local_stamp(path)
    if stamp == MISSING:
        try:
            os.stat(path)  # noqa: PTH116
        except PermissionError as error:
            raise _refused(path, error) from error
        except OSError:
            pass
    return stamp


def _listed(fs: Any, named: Mapping[str, str]) -> dict[str, str] | None:
    """Stamps of files of one folder from its listing, if that says what is said of one file by itself.

    Args:
        fs: Their file system.
        named: URLs of the files by their paths.

    Returns:
        Stamps by path; None where they must be asked for one by one.
    """
    first = next(iter(named))
    try:
        entries = _entries(fs, _folder(first), named[first])
    except NeuroscribeError:
        raise
    except Exception:  # who may not list may still be allowed to look at each
        return None
    sample = next((path for path in named if path in entries), first)
    if _asked(fs, sample, named[sample], entries) != entries.get(sample, MISSING):
        return None
    return {path: entries.get(path, MISSING) for path in named}


def _entries(fs: Any, folder: str, url: str) -> dict[str, str]:
    """Stamps of what is in a folder, by path; nothing where it is not there."""
    try:
        found = patiently(lambda: fs.ls(folder, detail=True), url)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {info["name"]: stamp_of(info) for info in found}


def _asked(fs: Any, path: str, url: str, entries: Mapping[str, str] | None = None) -> str:
    """The stamp of one file; where it is no more than a size, what its folder says of it.

    Args:
        fs: Its file system.
        path: Its path.
        url: Its URL, for messages.
        entries: Stamps of what is in its folder, where that was listed.
    """
    try:
        stamp = stamp_of(patiently(lambda: _info(fs, path), url))
        if _is_bare(stamp) and not _is_web(fs):
            entries = _entries(fs, _folder(path), url) if entries is None else entries
            stamp = entries.get(path, stamp)
    except NeuroscribeError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except Exception as error:  # every client has errors of its own for what it is refused
        raise _refused(url, error) from error
    return stamp


def _info(fs: Any, path: str) -> Mapping[str, Any]:
    """What a file system says of a file.

    Some say of everything that goes wrong that the file is not found: there the cause is raised, unless
    it is that.
    """
    try:
        found: Mapping[str, Any] = fs.info(path)
    except FileNotFoundError as error:
        cause: Any = error.__cause__
        answer = getattr(cause, "response", None)
        status = getattr(cause, "status", None) or getattr(answer, "status_code", None)
        if cause is not None and (is_outage(cause) or status not in (None, 404, 410)):
            raise cause from None
        raise
    return found


def _refused(url: str, error: BaseException) -> SourceError:
    said = (str(error).splitlines() or [""])[0]
    return SourceError(
        f"the image {url!r} may not be looked at ({type(error).__name__}: {said}), so that nobody knows "
        "whether it is there; give credentials and the right to read and to list it, or take it out"
    )


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _is_web(fs: Any) -> bool:
    return "http" in _protocols(fs)


def _workers(fs: Any) -> int:
    """How many files are asked for at once; FTP has one connection, which takes no two requests."""
    return 1 if "ftp" in _protocols(fs) else 16
