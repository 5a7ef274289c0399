"""One run at a time in a run directory, and runs that stop in order when their time is up."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from core.errors import ConfigError, StoppedEarly
from pipeline import lock as lock_module
from pipeline import planted
from pipeline.cli import main
from pipeline.lock import EXPIRY, NAME, RunLock, locked
from pipeline.rundir import Run
from pipeline.signals import (
    deferred_signals,
    raise_if_stopped,
    request_stop,
    stop_signals,
    time_limit,
)
from pipeline.storage import Folder

ROUNDS = 40


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def foreign(folder: Folder, clock: Clock) -> RunLock:
    """A lock as a process on another machine would take it."""
    lock = RunLock(folder, clock, sleep=lambda seconds: None)
    lock.owner = dataclasses.replace(lock.owner, host="elsewhere", pid=7)
    return lock


def holder(folder: Folder) -> str | None:
    facts = folder.read_json(NAME)
    return None if facts is None else facts["token"]


CONTENDER = f"""
import sys, time
from core.errors import StoppedEarly
from pipeline.lock import RunLock
from pipeline.storage import Folder
print("ready", flush=True)
begin = float(sys.stdin.readline())
for number in range({ROUNDS}):
    lock = RunLock(Folder(sys.argv[1] + f"/run-{{number}}"))
    while time.time() < begin + 0.02 * number:
        pass
    try:
        lock.take()
        print(number)
    except StoppedEarly:
        pass
sys.stdout.flush()
sys.stdin.readline()
"""


def test_of_two_processes_that_contend_for_a_lock_exactly_one_wins(tmp_path: Path) -> None:
    for number in range(0, ROUNDS, 2):
        # Half of the locks have expired, so that both may take them over.
        foreign(Folder(tmp_path / f"run-{number}"), Clock()).take()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    begin = f"{time.time() + 0.1}\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(begin)
        process.stdin.flush()
    time.sleep(0.1 + 0.02 * ROUNDS)
    # Neither ends before the other is through: a process that is gone would lose its locks.
    won = [[int(line) for line in _lines_of(process)] for process in processes]
    assert sorted(won[0] + won[1]) == list(range(ROUNDS))


def _lines_of(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate("\n", timeout=60)
    return output.split()


def test_an_expired_lock_is_taken_over_and_a_renewed_one_is_not(tmp_path: Path) -> None:
    folder, clock = Folder(tmp_path), Clock()
    first, second = foreign(folder, clock), foreign(folder, clock)
    first.take()
    clock.now += EXPIRY - 1
    with pytest.raises(StoppedEarly, match=r"process 7 on elsewhere .* expires in 1 s"):
        second.take()
    assert first.renew()
    clock.now += EXPIRY - 1
    with pytest.raises(StoppedEarly):
        second.take()
    clock.now += 1
    second.refuse_if_held()
    second.take()
    assert holder(folder) == second.owner.token


@pytest.mark.parametrize("place", ["disk", "memory://"])
def test_a_lock_that_is_ours_no_longer_is_neither_renewed_nor_deleted(
    tmp_path: Path, place: str
) -> None:
    folder, clock = Folder(tmp_path if place == "disk" else f"{place}{tmp_path}"), Clock()
    first, second = foreign(folder, clock), foreign(folder, clock)
    for lock in (first, second):
        lock.take()
        clock.now += EXPIRY
    before = folder.read(NAME)
    assert not first.renew()
    first.release()
    assert folder.read(NAME) == before
    second.release()
    assert not folder.exists(NAME)
    assert not second.renew()


def test_the_lock_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pipeline.lock import RunLock; from pipeline.storage import Folder\n"
            "RunLock(Folder(sys.argv[1])).take(); print('taken', flush=True); time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    own = RunLock(Folder(tmp_path))
    with pytest.raises(StoppedEarly, match=f"process {process.pid} on "):
        own.take()
    process.kill()
    # Also where its parent has not asked after it yet.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    own.take()
    process.communicate()
    own.release()


def test_a_number_of_a_process_that_was_given_again_does_not_keep_a_lock(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    lock = RunLock(folder)
    lock.take()
    facts = folder.read_json(NAME)
    place, _, ticks = facts["process"].rpartition("/")
    with pytest.raises(StoppedEarly):
        RunLock(folder).take()
    folder.write_json(NAME, facts | {"process": f"{place}/{int(ticks) - 1}"})
    RunLock(folder).take()
    # In another container the same number is another process.
    folder.write_json(NAME, facts | {"process": f"elsewhere/{ticks}"})
    with pytest.raises(StoppedEarly):
        RunLock(folder).take()


def test_a_lock_that_was_cut_off_while_it_was_written_expires_too(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(b"")
    folder, clock = Folder(tmp_path), Clock()
    clock.now = path.stat().st_mtime + EXPIRY - 1
    with pytest.raises(StoppedEarly):
        RunLock(folder, clock).take()
    clock.now += 2
    RunLock(folder, clock).take()


def test_where_files_cannot_be_created_exclusively_the_last_to_write_has_the_lock(
    tmp_path: Path,
) -> None:
    folder, clock = Folder(f"memory://{tmp_path}"), Clock()

    def overtaken(seconds: float) -> None:
        # Another looked before the first had written, and writes after it.
        folder.write_json(NAME, folder.read_json(NAME) | {"token": "another", "pid": 7})

    first = RunLock(folder, clock, sleep=overtaken)
    with pytest.raises(StoppedEarly, match="in use by process 7"):
        first.take()
    first.release()
    assert holder(folder) == "another"


def test_a_lock_is_released_after_errors_and_signals(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(KeyError), locked(folder):
        {}[holder(folder)]
    assert not folder.exists(NAME)
    with pytest.raises(StoppedEarly, match="SIGTERM"), stop_signals(), locked(folder):
        signal.raise_signal(signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_lock_is_lost_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "RENEWAL", 0.05)
    folder, clock = Folder(tmp_path), Clock()
    clock.now = time.time() + 10 * EXPIRY
    other = foreign(folder, clock)

    def robbed() -> None:
        with stop_signals(), locked(folder):
            time.sleep(0.12)
            other.take()
            time.sleep(30)

    begun = time.monotonic()
    with pytest.raises(StoppedEarly, match="loss of its lock"):
        robbed()
    assert time.monotonic() - begun < 10
    assert holder(folder) == other.owner.token


def test_a_second_start_ends_with_75_and_leaves_the_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(planted.config(tmp_path)))
    with locked(Folder(tmp_path / "run")):
        assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 75
        assert f"in use by process {os.getpid()} on " in capsys.readouterr().err
        assert list((tmp_path / "run").iterdir()) == [tmp_path / "run" / NAME]


def test_a_run_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be read and written"):
        RunLock(Folder(tmp_path / "file" / "run")).take()


# Stopping ---------------------------------------------------------------------------------------


def test_a_time_limit_stops_the_main_thread_when_it_is_over_and_not_before() -> None:
    with stop_signals(), time_limit(time.monotonic() + 30):
        pass
    with stop_signals(), time_limit(None):
        raise_if_stopped()
    begun = time.monotonic()
    with (
        pytest.raises(StoppedEarly, match="stopped by the time limit; run again to resume"),
        stop_signals(),
        time_limit(begun + 0.1),
    ):
        time.sleep(30)
    assert 0.1 <= time.monotonic() - begun < 10
    raise_if_stopped()  # nothing of it is left


def test_a_stop_that_a_library_swallowed_or_changed_or_that_was_deferred_is_raised_later() -> None:
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    with stop_signals(), time_limit(time.monotonic() + 0.1):
        with suppress(StoppedEarly):
            time.sleep(30)
        with pytest.raises(StoppedEarly, match="time limit"):
            raise_if_stopped()
    with pytest.raises(StoppedEarly, match="SIGTERM"), stop_signals():
        _made_another(signal.SIGTERM)
    reached = []

    def deferring() -> None:
        with stop_signals(), deferred_signals():
            signal.raise_signal(signal.SIGINT)
            reached.append(True)

    with pytest.raises(StoppedEarly, match="SIGINT"):
        deferring()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before


def _made_another(number: int) -> None:
    try:
        signal.raise_signal(number)
    except StoppedEarly as error:
        raise SystemError("returned a result with an exception set") from error


def test_a_run_whose_time_is_up_stops_in_order_and_is_resumed(
    tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.write_images(tmp_path, 400)
    config, out = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(planted.config(tmp_path, recordings={"shard_size": 40})))
    command = ["run", str(config), "--out", str(out)]
    assert main([*command, "--max-seconds", "0"]) == 2
    assert not out.exists()
    assert main([*command, "--max-seconds", "0.01"]) == 75
    assert "stopped by the time limit; run again to resume" in capsys.readouterr().err
    account = ["metrics.prom", "summary.html", "summary.json"]
    begun = ["ledger.json", "manifest.json", "run.yaml"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*account, *begun])

    parts = out / "recordings" / "activations"
    over = threading.Event()

    def stop_at_the_first_part() -> None:
        while not (parts.is_dir() and list(parts.glob("part-*"))) and not over.wait(0.005):
            pass
        request_stop("a timer")

    thread = threading.Thread(target=stop_at_the_first_part)
    thread.start()
    code = main(command)
    over.set()
    thread.join()
    assert code == 75
    assert not (out / NAME).exists()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("part-*")}
    assert 1 <= len(kept) < 10

    assert main([*command, "--max-seconds", "3600"]) == 3, "one planted neuron fails"
    assert "atlas" in Run.open(out).tables()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not (out / NAME).exists()
