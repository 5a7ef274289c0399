"""Stamps of files: asked of the right storage, the same however it is asked, another when a file changes."""

from __future__ import annotations

import datetime
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from trouble import S3, free_port, s3_endpoint

from core.errors import ConfigError, SourceError, StoppedEarly
from pipeline import outages
from pipeline.fetching import fetch
from pipeline.images_config import ImagesConfig
from pipeline.sources import read_index
from pipeline.sources_files import list_files
from pipeline.stamps import MISSING, stamp_of, stamps

NAMES = [f"{number}.png" for number in range(5)]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder and the URL that a web server gives it, with index pages."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def in_memory(tmp_path: Path) -> tuple[str, Callable[[str, bytes], None]]:
    base = f"memory://{tmp_path.name}"
    there = fsspec.filesystem("memory")
    return base, lambda name, data: there.pipe_file(f"{base}/{name}", data)


def on_s3(tmp_path: Path) -> tuple[str, Callable[[str, bytes], None]]:
    base = f"s3://neurons/{tmp_path.name}"
    there = fsspec.filesystem("s3", skip_instance_cache=True)
    return base, lambda name, data: there.pipe_file(f"{base}/{name}", data)


def on_disk(tmp_path: Path) -> tuple[str, Callable[[str, bytes], None]]:
    return f"file://{tmp_path}", lambda name, data: written(tmp_path / name, data)


def written(path: Path, data: bytes) -> None:
    """Write a file; HTTP tells times to the second, so that each file is of another one."""
    path.write_bytes(data)
    seconds = int.from_bytes(data, "big") % 10**9
    os.utime(path, (seconds, seconds))


@pytest.fixture(params=["disk", "memory", "s3", "http"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[str, Callable[[str, bytes], None]]:
    """The URL of a folder, and what writes a file there."""
    if request.param == "http":
        url, folder = request.getfixturevalue("served")
        return url, lambda name, data: written(folder / name, data)
    if request.param == "s3":
        request.getfixturevalue("s3")
    return {"disk": on_disk, "memory": in_memory, "s3": on_s3}[request.param](tmp_path)


def test_a_stamp_is_the_same_by_itself_and_in_company_and_changes_with_the_file_alone(
    storage: tuple[str, Callable[[str, bytes], None]],
) -> None:
    base, write = storage
    urls = [f"{base}/{name}" for name in NAMES]
    for number, name in enumerate(NAMES):
        write(name, bytes([7, number]))
    together = stamps(urls)
    assert MISSING not in together
    assert not any(stamp.endswith(":None") for stamp in together)
    assert [stamps([url])[0] for url in urls] == together
    write(NAMES[2], bytes([8, 2]))  # of the same size
    again = stamps(urls)
    assert [a == b for a, b in zip(together, again, strict=True)] == [True, True, False, True, True]
    assert stamps([urls[2]]) == [again[2]]


def test_files_that_a_web_server_lists_have_their_own_stamps(
    served: tuple[str, Path],
) -> None:
    base, folder = served
    for number, name in enumerate(NAMES):
        written(folder / name, bytes([7, number]))
    rows = read_index(ImagesConfig(path=f"{base}/*.png", format="folder")).rows
    assert rows["stamp"].to_pylist() == stamps([f"{base}/{name}" for name in NAMES])


@pytest.mark.parametrize("count", [1, len(NAMES)])
def test_a_file_is_missing_where_its_own_storage_says_so(
    storage: tuple[str, Callable[[str, bytes], None]], count: int
) -> None:
    base, write = storage
    for name in NAMES[:count]:
        write(name, b"x")
    found = stamps(
        [f"{base}/{name}" for name in (*NAMES[:count], "gone.png", "no/such/folder.png")]
    )
    assert [stamp == MISSING for stamp in found] == [False] * count + [True, True]


def listed(manifest: Path | str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_index(ImagesConfig(path=str(manifest))).rows.to_pylist()
    return rows


def test_a_manifest_may_name_images_of_several_storages(s3: S3, tmp_path: Path) -> None:
    memory, put = in_memory(tmp_path)
    bucket, upload = on_s3(tmp_path)
    for number, name in enumerate(NAMES):
        put(name, bytes([1, number]))
        upload(name, bytes([2, number]))
        (tmp_path / name).write_bytes(bytes([3, number]))
    paths = [f"{base}/{name}" for name in NAMES for base in (memory, bucket, f"file://{tmp_path}")]
    (tmp_path / "list.csv").write_text("\n".join(["path", *paths, *NAMES[:2]]))
    before = {row["path"]: row for row in listed(tmp_path / "list.csv")}
    assert len(before) == 17
    assert MISSING not in {row["stamp"] for row in before.values()}
    kinds = {memory: 1, bucket: 2, f"file://{tmp_path}": 3}
    for path, row in before.items():
        base, _, name = path.rpartition("/")
        assert fetch(row) == bytes([kinds.get(base, 3), NAMES.index(name)])
    put(NAMES[0], bytes([9, 9]))
    upload(NAMES[1], bytes([9, 9]))
    after = {row["path"]: row for row in listed(tmp_path / "list.csv")}
    changed = {path for path in before if before[path]["stamp"] != after[path]["stamp"]}
    assert changed == {f"{memory}/{NAMES[0]}", f"{bucket}/{NAMES[1]}"}
    upload("list.csv", (tmp_path / "list.csv").read_bytes().rsplit(b"\n", 2)[0])
    assert {row["path"]: row["stamp"] for row in listed(f"{bucket}/list.csv")} == {
        path: row["stamp"] for path, row in after.items() if "://" in path
    }


def test_files_in_archives_have_the_stamps_of_their_content(tmp_path: Path) -> None:
    for archive, byte in (("a.zip", b"a"), ("b.zip", b"b")):
        with zipfile.ZipFile(tmp_path / archive, "w") as made:
            for name in NAMES:
                made.writestr(zipfile.ZipInfo(name), byte + name.encode())
    one, two = (
        [f"zip://{name}::file://{tmp_path}/{archive}" for name in NAMES]
        for archive in ("a.zip", "b.zip")
    )
    found = stamps([*one, *two])
    assert len(set(found)) == 10
    assert [stamps([url])[0] for url in (*one, *two)] == found


def test_a_protocol_that_nobody_knows_is_refused_and_not_quarantined(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\nfoo://bar/a.png\n")
    with pytest.raises(ConfigError, match="foo"):
        listed(tmp_path / "list.csv")


def test_without_credentials_nothing_is_taken_for_missing(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, upload = on_s3(tmp_path)
    for name in NAMES:
        upload(name, b"x")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    clear = fsspec.get_filesystem_class("s3").clear_instance_cache
    clear()
    try:
        for some in (NAMES, NAMES[:1]):
            with pytest.raises(
                SourceError, match=r"may not be looked at .NoCredentials.*give cred"
            ):
                stamps([f"{bucket}/{name}" for name in some])
        for url in (bucket, f"{bucket}/*", f"{bucket}/{NAMES[0]}"):
            with pytest.raises(SourceError, match=r"may not be listed .NoCredentials.*give cred"):
                list_files(url)
    finally:
        clear()


@pytest.mark.parametrize("status", [401, 403, 404, 410, 500])
def test_what_a_web_server_refuses_is_not_taken_for_missing(status: int) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        if status in (404, 410):
            assert stamps([url]) == [MISSING]
        else:
            with pytest.raises(SourceError, match=str(status)):
                stamps([url])
        server.shutdown()


def test_a_web_server_that_is_away_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "WAITS", (0.01,) * 3)
    with pytest.raises(StoppedEarly, match="does not answer"):
        stamps([f"http://127.0.0.1:{free_port()}/a.png"])


class Odd(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory, of which a listing and a question tell what a test says."""

    protocol = "odd"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    find = fsspec.AbstractFileSystem.find  # by `ls`, as most do
    in_listing: Callable[[dict[str, Any]], dict[str, Any]] = staticmethod(dict)
    by_itself: Callable[[dict[str, Any]], dict[str, Any]] = staticmethod(dict)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        found = super().ls(path, detail=True, **kwargs)
        told = [Odd.in_listing(info) for info in found]
        return told if detail else [info["name"] for info in found]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        found = super().info(path, **kwargs)
        return found if found["type"] == "directory" else Odd.by_itself(found)


def told(*keys: str, **more: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda info: {k: info[k] for k in ("name", "size", "type", *keys) if k in info} | more


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URLs of some files there."""
    fsspec.register_implementation("odd", Odd, clobber=True)
    monkeypatch.setattr(Odd, "store", {})
    monkeypatch.setattr(Odd, "pseudo_dirs", [""])
    there = Odd(skip_instance_cache=True)
    for number, name in enumerate(NAMES):
        there.pipe_file(f"odd://data/{name}", bytes([number] * 10))
    return [f"odd://data/{name}" for name in NAMES]


@pytest.mark.parametrize(
    ("listing", "question", "stamp"),
    [
        # Hugging Face: a question tells the size, a listing the blob.
        (told(blob_id="5e1f"), told(), "10:5e1f"),
        # HTTP and others: a listing tells less.
        (told(size=None), told(etag="9"), "10:9"),
        # Azure: with and without quotes.
        (told(etag="0x8D"), told(etag='"0x8D"'), "10:0x8D"),
        (told(ETag='W/"a"'), told(ETag='"a"'), "10:a"),
        # WebHDFS and FTP.
        (told(modificationTime=1320173277227), told(modificationTime=1320173277227), None),
        (told(modify="20260101120000"), told(modify="20260101120000"), "10:20260101120000"),
        # A time in seconds, and the same as a date.
        (
            told(mtime=86400.0),
            told(mtime=datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)),
            "10:86400.0",
        ),
        # They tell different things, and the question counts.
        (told(etag="1"), told(md5="2"), "10:2"),
        (told(), told(), "10:None"),
    ],
)
def test_whether_a_file_is_asked_for_or_its_folder_changes_no_stamp(
    odd: list[str],
    monkeypatch: pytest.MonkeyPatch,
    listing: Callable[[dict[str, Any]], dict[str, Any]],
    question: Callable[[dict[str, Any]], dict[str, Any]],
    stamp: str | None,
) -> None:
    monkeypatch.setattr(Odd, "in_listing", staticmethod(listing))
    monkeypatch.setattr(Odd, "by_itself", staticmethod(question))
    expected = stamp or "10:1320173277227"
    assert stamps(odd[:1]) == [expected]
    assert stamps(odd) == [expected] * len(odd)


def test_who_may_look_at_files_and_not_list_them_gets_their_stamps(
    odd: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stamps(odd)

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError("no listing")

    monkeypatch.setattr(Odd, "ls", refused)
    assert stamps(odd) == before
    monkeypatch.setattr(Odd, "info", refused)
    with pytest.raises(SourceError, match="PermissionError: no listing"):
        stamps(odd)


@pytest.mark.parametrize("bare", [True, False])
def test_that_a_storage_tells_sizes_alone_is_said_once(
    odd: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bare: bool,
) -> None:
    facts = told() if bare else told("created")
    monkeypatch.setattr(Odd, "in_listing", staticmethod(facts))
    monkeypatch.setattr(Odd, "by_itself", staticmethod(facts))
    (tmp_path / "list.csv").write_text("\n".join(["path", *odd, "odd://data/gone.png"]))
    for where in (tmp_path / "list.csv", "odd://data"):
        listed(where)
        said = capsys.readouterr().err
        assert said.count("a size and nothing else") == bare
        assert (" 5 of " in said) == bare


def test_times_before_digests_are_not_taken_and_a_time_of_zero_is() -> None:
    now = datetime.datetime.fromtimestamp(time.time(), tz=datetime.UTC)
    assert stamp_of({"size": 1, "LastModified": now, "ETag": '"e"'}) == "1:e"
    assert stamp_of({"size": 1, "mtime": 0, "created": 5}) == "1:0"
    assert stamp_of({"size": 1, "etag": "", "mtime": None, "sha": "s"}) == "1:s"
