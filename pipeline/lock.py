"""One run at a time in a run directory: `lock.json` says who works there and until when.

A thread renews the lock while a run executes. A run that crashed stops renewing, so that its lock
expires; on the same machine it is known at once that its process is gone. On a local disk the lock is
exact. On other storage, which cannot create a file exclusively everywhere, a run writes the lock, waits
and reads back who has it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from core.errors import ConfigError, NeuroscribeError, StoppedEarly
from pipeline.signals import request_stop
from pipeline.storage import Folder, filesystem

NAME = "lock.json"

#: Seconds after which a lock that is not renewed may be taken over, and between two renewals.
EXPIRY, RENEWAL = 120.0, 30.0

#: Seconds between writing a lock to storage that cannot create exclusively and reading it back.
SETTLE = 2.0


@dataclass(frozen=True)
class Owner:
    """The process that a lock belongs to; times are seconds since 1970."""

    host: str
    pid: int
    token: str
    """Random; no other lock has it."""
    process: str
    """What tells this process from others of the same host name and number."""
    started: float
    expires: float

    def is_gone(self, now: float) -> bool:
        """Whether nobody renews this lock any more."""
        return now >= self.expires or (
            self.host == socket.gethostname() and _is_dead(self.pid, self.process)
        )


class RunLock:
    """The lock of one run directory, to be taken, renewed and released by one process."""

    def __init__(
        self,
        folder: Folder,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare; nothing is written yet.

        Args:
            folder: The run directory.
            clock: Seconds since 1970.
            sleep: Waits for some seconds.
        """
        self.folder, self._clock, self._sleep = folder, clock, sleep
        file_system, root = filesystem(folder.url)
        self._path = Path(root) / NAME if isinstance(file_system, LocalFileSystem) else None
        pid, now = os.getpid(), clock()
        self.owner = Owner(
            socket.gethostname(), pid, secrets.token_hex(8), _process(pid), now, now + EXPIRY
        )

    def refuse_if_held(self) -> None:
        """Refuse early, before anything is prepared.

        Raises:
            StoppedEarly: Another run is at work here.
            ConfigError: Nothing can be read here.
        """
        with self._told():
            holder = self._holder()
        if holder is not None and not self._may_take_from(holder):
            raise self._refusal(holder)

    def holder(self) -> Owner | None:
        """Who works here now; None where nobody does.

        Raises:
            ConfigError: Nothing can be read here.
        """
        with self._told():
            holder = self._holder()
        return None if holder is None or holder.is_gone(self._clock()) else holder

    def take(self) -> None:
        """Take the lock, also from an owner that is gone.

        Raises:
            StoppedEarly: Another run is at work here.
            ConfigError: Nothing can be written here.
        """
        with self._told():
            holder = self._take_locally(self._path) if self._path else self._take_by_agreement()
        if holder is not None:
            raise self._refusal(holder)

    def renew(self) -> bool:
        """Put the expiry off; returns whether the lock is still ours."""
        with self._exclusively():
            holder = self._holder()
            if holder is None or holder.token != self.owner.token:
                return False
            self._write()
        return True

    def release(self) -> None:
        """Delete the lock if it is ours; that of another is left alone."""
        with self._exclusively():
            holder = self._holder()
            if holder is not None and holder.token == self.owner.token:
                self.folder.delete(NAME)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what a storage's own error means here."""
        try:
            yield
        except NeuroscribeError:
            raise
        except Exception as error:  # what a storage raises is its own affair
            raise ConfigError(
                f"the run directory {self.folder.url!r} cannot be read and written "
                f"({type(error).__name__}: {error}); check the path or bucket, and the right to "
                "write there"
            ) from error

    def _may_take_from(self, holder: Owner) -> bool:
        return holder.token == self.owner.token or holder.is_gone(self._clock())

    def _take_locally(self, path: Path) -> Owner | None:
        """Take the lock on a local disk; returns who has it if it cannot be taken."""
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with suppress(FileExistsError):
                with path.open("xb") as file:
                    file.write(self._content())
                return None
            with self._exclusively() as there:
                if not there:
                    continue
                holder = self._holder()
                if holder is not None and not self._may_take_from(holder):
                    return holder
                self._write()
                return None

    def _take_by_agreement(self) -> Owner | None:
        """Write the lock, wait, and read back who has it: of several the last to write."""
        holder = self._holder()
        if holder is not None and not self._may_take_from(holder):
            return holder
        self._write()
        self._sleep(SETTLE)
        holder = self._holder()
        if holder is None:
            raise FileNotFoundError(f"{NAME} is not there {SETTLE:g} s after it was written")
        return None if holder.token == self.owner.token else holder

    @contextmanager
    def _exclusively(self) -> Iterator[bool]:
        """Keep other processes from changing a local lock file; yields whether there is one.

        Every change puts a new file in place of the old one, under an advisory lock on the old one:
        who waited for it finds another file in its place, or none, and looks again.
        """
        if self._path is None:
            yield True
            return
        while True:
            try:
                file = self._path.open("r+b")
            except FileNotFoundError:
                yield False
                return
            with file:
                with suppress(OSError):  # not every file system has advisory locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_at(file, self._path):
                    continue
                yield True
                return

    def _holder(self) -> Owner | None:
        """Whose lock it is, or None where there is none."""
        try:
            data = self.folder.read(NAME)
        except FileNotFoundError:
            return None
        try:
            return Owner(**json.loads(data))
        except (ValueError, TypeError):
            # Its writer is between creating and filling it, or was cut off there.
            return self._unreadable()

    def _unreadable(self) -> Owner | None:
        file_system, root = filesystem(self.folder.url)
        try:
            written = file_system.modified(f"{root.rstrip('/')}/{NAME}").timestamp()
        except FileNotFoundError:
            return None
        return Owner("unknown host", 0, "", "", written, written + EXPIRY)

    def _content(self) -> bytes:
        facts = asdict(self.owner) | {"expires": self._clock() + EXPIRY}
        return (json.dumps(facts, indent=2) + "\n").encode()

    def _write(self) -> None:
        self.folder.write(NAME, self._content(), durable=False)

    def _refusal(self, holder: Owner) -> StoppedEarly:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.started))
        left = max(0.0, holder.expires - self._clock())
        return StoppedEarly(
            f"the run {self.folder.url!r} is in use by process {holder.pid} on {holder.host} since "
            f"{since}; wait for it, or stop it, and run again (its lock {NAME} is renewed while it "
            f"works, and otherwise expires in {left:.0f} s)"
        )


@contextmanager
def locked(folder: Folder) -> Iterator[RunLock]:
    """Have a run directory to oneself for the length of a `with` block; yields the lock.

    Should the lock be lost in the middle, this process is stopped in order: another one was told that
    it is gone, and works there now.

    Raises:
        StoppedEarly: Another run is at work here.
        ConfigError: Nothing can be written here.
    """
    lock = RunLock(folder)
    over = threading.Event()
    thread = threading.Thread(target=_keep, args=(lock, over), name="lock", daemon=True)
    try:
        lock.take()
        thread.start()
        yield lock
    finally:
        over.set()
        if thread.is_alive():
            thread.join(timeout=RENEWAL)
        with suppress(Exception):  # a lock that stays behind expires
            lock.release()


def _keep(lock: RunLock, over: threading.Event) -> None:
    """Renew a lock until it is over; ask for a stop where it is lost."""
    renewed = time.time()
    while not over.wait(RENEWAL):
        try:
            if lock.renew():
                renewed = time.time()
            elif not over.is_set():
                request_stop(f"the loss of its lock on {lock.folder.url!r}")
                return
        except Exception as error:  # perhaps a passing fault of the storage
            if time.time() - renewed > EXPIRY:
                request_stop(f"a lock that could not be renewed ({type(error).__name__}: {error})")
                return


def _is_at(file: IO[Any], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_dead(pid: int, process: str) -> bool:
    """Whether a process of this machine is gone; False where that cannot be told from here."""
    if not process or process.rpartition("/")[0] != _process(os.getpid()).rpartition("/")[0]:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _process(pid) != process


def _process(pid: int) -> str:
    """Boot, process namespace and start of a living process; empty where it is gone.

    A number alone says little: it is used again, and containers count for themselves.
    """
    if sys.platform != "linux":
        return "-"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, ticks = facts[0], facts[19]
    return "" if state in "ZX" else f"{boot}/{namespace}/{ticks}"
