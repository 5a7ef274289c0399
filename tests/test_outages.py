"""Storage that is away, full or gone: what is waited for, what stops the run, what is held against a file."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import (
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)
from trouble import s3_endpoint, small_disk

from core.errors import RecordingError, StoppedEarly
from pipeline import outages, planted
from pipeline.config import parse_config
from pipeline.fetching import fetch
from pipeline.images_config import ImagesConfig
from pipeline.outages import is_outage, patiently, writing
from pipeline.run import execute
from pipeline.rundir import Run
from pipeline.sources import read_index
from pipeline.storage import Folder


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "WAITS", (0.02,) * 120)


def of_object_store(code: int) -> OSError:
    """As s3fs translates an answer that it does not know."""
    error = OSError(code, "unknown")
    error.__cause__ = EndpointConnectionError(endpoint_url="x")
    return error


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (EndpointConnectionError(endpoint_url="x"), True),
        (ReadTimeoutError(endpoint_url="x"), True),
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ClientPayloadError(), True),
        (of_object_store(errno.EIO), True),
        (OSError(errno.EIO, "a damaged sector"), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (NoCredentialsError(), False),
        (ParamValidationError(report="x"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (ValueError(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_outage_is_told_from_an_answer(error: Exception, away: bool) -> None:
    assert is_outage(error) is away


def failing(times: int, error: Exception) -> Callable[[], int]:
    """Something that fails some times and then counts its calls."""
    calls = []

    def action() -> int:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return action


def test_what_passes_is_waited_for_and_what_stays_stops_the_run() -> None:
    assert patiently(failing(5, ConnectionResetError()), "it") == 6
    with pytest.raises(StoppedEarly, match=r"storage of it does not answer.*run again"):
        patiently(failing(1000, ConnectionResetError()), "it")
    with pytest.raises(FileNotFoundError):
        patiently(failing(1, FileNotFoundError()), "it")
    with pytest.raises(StoppedEarly, match=r"No space left.*make room"):
        writing(failing(1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), "it")


def test_a_folder_on_s3_outlives_a_cut_and_its_tables_are_not_taken_for_missing() -> None:
    with s3_endpoint() as s3:
        run = Run("s3://neurons/run")
        run.commit("scores", "scores.parquet", "f", 3)
        s3.wire.cut()
        mended = threading.Timer(1.5, s3.wire.mend)
        mended.start()
        assert run.tables()["scores"].rows == 3
        mended.join()
        s3.wire.cut()
        threading.Timer(1.0, s3.wire.mend).start()
        run.commit("sanity", "sanity.parquet", "f", 1)
        assert set(run.tables()) == {"scores", "sanity"}
        # What another process writes is seen, whatever was asked before.
        assert not run.folder.exists("a/b")
        assert run.folder.names("a") == []
        import botocore.session

        client = botocore.session.get_session().create_client("s3")
        client.put_object(Bucket="neurons", Key="run/a/b", Body=b"x")
        assert run.folder.exists("a/b")
        assert run.folder.names("a") == ["b"]


def test_a_full_disk_stops_in_order_and_leaves_the_old_file(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "disk", 1) as disk:
            folder = Folder(disk)
            folder.write("f", b"old")
            with pytest.raises(StoppedEarly, match="No space left"):
                folder.write("f", b"x" * (2 << 20))
            assert folder.read("f") == b"old"
            assert folder.names() == ["f"]
            assert [path.name for path in disk.iterdir()] == ["f"], "a temporary file is left"
            run = Run(folder)
            with pytest.raises(StoppedEarly, match="No space left"), run.stage("fit"):
                folder.write("g", b"x" * (2 << 20))
    except PermissionError as error:
        pytest.skip(str(error))


def listed(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_index(ImagesConfig(path=str(folder))).rows.to_pylist()
    return rows


def test_an_image_that_is_gone_is_held_against_it_only_where_its_folder_is_there(
    tmp_path: Path,
) -> None:
    planted.write_images(tmp_path, 8)
    rows = listed(tmp_path / "images")
    (tmp_path / "images" / rows[0]["path"]).unlink()
    with pytest.raises(FileNotFoundError):
        fetch(rows[0])
    assert fetch(rows[1])
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(StoppedEarly, match="was there when the images were listed"):
        fetch(rows[1])


def test_a_file_that_a_manifest_names_in_vain_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\nnowhere/a.png\n")
    with pytest.raises(FileNotFoundError):
        fetch(listed(tmp_path / "list.csv")[0])


def test_a_network_that_does_not_load_on_workers_is_no_reason_to_try_again(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.write_images(tmp_path, 120)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/only_here.py").write_text("from pipeline.planted import network as network\n")
    monkeypatch.syspath_prepend(tmp_path / "here")  # of this process alone
    sections = planted.config(tmp_path)
    sections["target"] |= {"model": "python:only_here:network"}  # type: ignore[operator]
    with pytest.raises(RecordingError, match="do not load on a worker"):
        execute(parse_config(sections, base=tmp_path), tmp_path / "run")
