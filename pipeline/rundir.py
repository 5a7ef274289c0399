"""The run directory: its tables, their fingerprints, and the ledger of what each stage cost.

A table is committed by naming it in `manifest.json` with the fingerprint of what it was made from;
until then its parts are work in progress, and each part carries in its name the fingerprint of its
own content's origin, so that a restart sees from one listing what is done.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.errors import ConfigError, RecordingError, close_names
from pipeline.storage import Folder, is_elsewhere

#: Changes when tables made by an older version must not be taken for fresh.
FORMAT_VERSION = 1

_PART = re.compile(r"^part-\d{6}-[0-9a-f]{12}\.(parquet|npz)$")


def part_name(table_path: str, number: int, fingerprint: str, suffix: str = "parquet") -> str:
    """File name of one part of a table; the fingerprint says what the part was made from."""
    return f"{table_path}/part-{number:06d}-{fingerprint[:12]}.{suffix}"


@dataclass(frozen=True)
class TableEntry:
    """A committed table: its path relative to the run, or in a store, what it was made from, its rows."""

    path: str
    fingerprint: str
    rows: int
    files: str | None = None
    """JSON file in the run with the names of the table's parts, where the folder is a store's, which may
    hold those of other runs too."""


class Run:
    """A run directory, local or remote."""

    def __init__(self, url: str | Path | Folder, store: str | None = None) -> None:
        """Name a run directory, whether it is there yet or not, and the store that it shares."""
        self.folder = url if isinstance(url, Folder) else Folder(url)
        self.store = store

    @classmethod
    def open(cls, url: str | Path) -> Run:
        """An existing run.

        Raises:
            ConfigError: There is no run at this place.
        """
        run = cls(url)
        if not run.folder.exists("manifest.json"):
            raise ConfigError(
                f"{run.folder.url!r} is not a run directory (it has no manifest.json); "
                "'neuroscribe run CONFIG.yaml --out RUN' makes one"
            )
        return run

    # Tables -----------------------------------------------------------------------------------

    def tables(self) -> dict[str, TableEntry]:
        """Every committed table by name."""
        manifest = self.folder.read_json("manifest.json") or {"tables": {}}
        return {name: TableEntry(**entry) for name, entry in manifest["tables"].items()}

    def is_fresh(self, name: str, fingerprint: str) -> bool:
        """Whether a table is committed and was made from exactly this."""
        entry = self.tables().get(name)
        return entry is not None and entry.fingerprint == fingerprint

    def entry(self, name: str) -> TableEntry:
        """One committed table.

        Raises:
            RecordingError: The run has no such table (yet).
        """
        tables = self.tables()
        if name not in tables:
            raise RecordingError(
                f"{self.folder.url!r} has no table {name!r}{close_names(name, tables)}; the stage "
                "that makes it has not finished: run the same 'neuroscribe run' again"
            )
        return tables[name]

    def commit(
        self, name: str, path: str, fingerprint: str, rows: int, parts: Sequence[str] = ()
    ) -> None:
        """Name a finished table in the manifest; the rename of that file is the commit.

        A table that lies in a store needs the names of its parts.
        """
        files = None
        if is_elsewhere(path):
            # Named for what it lists: until the manifest names it, an older table keeps its own.
            files = f"recordings/{name}-{fingerprint[:12]}.json"
            self.folder.write_json(files, [part.rsplit("/", 1)[-1] for part in parts])
        tables = self.tables()
        old = tables.get(name)
        tables[name] = TableEntry(path, fingerprint, rows, files)
        self._write_tables(tables)
        if old is not None and old.files not in (None, files):
            self.folder.delete(old.files)

    def withdraw(self, name: str) -> None:
        """Take a table out of the manifest before its parts are made anew."""
        tables = self.tables()
        if (old := tables.pop(name, None)) is not None:
            self._write_tables(tables)
            if old.files is not None:
                self.folder.delete(old.files)

    def begin(self) -> None:
        """Make this a run directory, which can be asked how it goes before it has a table."""
        if not self.folder.exists("manifest.json"):
            self._write_tables({})

    def _write_tables(self, tables: dict[str, TableEntry]) -> None:
        entries = {
            name: {key: value for key, value in asdict(entry).items() if value is not None}
            for name, entry in sorted(tables.items())
        }
        self.folder.write_json("manifest.json", {"format": FORMAT_VERSION, "tables": entries})

    def parts(self, name: str) -> list[str]:
        """Paths of the files of a committed table, in order."""
        entry = self.entry(name)
        if entry.path.endswith(".parquet"):
            return [entry.path]
        if entry.files is not None:
            return [f"{entry.path}/{file}" for file in self.folder.read_json(entry.files)]
        return [f"{entry.path}/{file}" for file in self.part_files(entry.path)]

    def part_files(self, path: str) -> list[str]:
        """Names of the finished parts in a table's folder, sorted, whatever they were made from."""
        return [file for file in self.folder.names(path) if _PART.match(file)]

    def prune(self, path: str, keep: Sequence[str]) -> None:
        """Delete parts of our own making that the table no longer needs; nothing else is touched.

        What lies in a store may be another run's too, and stays.
        """
        if is_elsewhere(path):
            return
        for file in set(self.part_files(path)) - {name.rsplit("/", 1)[-1] for name in keep}:
            self.folder.delete(f"{path}/{file}")

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A whole table, parts in order."""
        return pa.concat_tables(
            [self.folder.read_table(part, columns) for part in self.parts(name)]
        )

    def write(self, name: str, path: str, table: pa.Table, fingerprint: str) -> int:
        """Write and commit a table of one file; returns its bytes."""
        self.withdraw(name)
        size = self.folder.write_table(path, table)
        self.commit(name, path, fingerprint, table.num_rows)
        return size

    # Ledger -----------------------------------------------------------------------------------

    def ledger(self) -> dict[str, Any]:
        """What each stage did and cost, by stage."""
        ledger: dict[str, Any] = self.folder.read_json("ledger.json") or {"stages": {}}
        return ledger

    def note(self, stage: str, **facts: Any) -> None:
        """Add facts about a stage to the ledger."""
        ledger = self.ledger()
        ledger["stages"].setdefault(stage, {}).update(facts)
        self.folder.write_json("ledger.json", ledger)

    def note_base(self, folder: str) -> None:
        """Keep in the ledger where modules of the user's are looked up."""
        self.folder.write_json("ledger.json", self.ledger() | {"base": folder})

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Keep the ledger of a stage: running, then done, or stopped with the reason.

        The facts that the stage puts into the yielded dictionary are kept with it. A stage that
        finds everything fresh leaves the figures of the start that did the work; `last_seconds` are
        those of the latest start alone.
        """
        begun = time.time()
        self.note(name, state="running", started=timestamp(begun), reason=None)
        facts: dict[str, Any] = {}
        try:
            yield facts
        except BaseException as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            took = round(time.time() - begun, 2)
            with suppress(Exception):  # a storage that has failed may not take this either
                self.note(name, state="stopped", reason=why, last_seconds=took, **facts)
            raise
        seconds = time.time() - begun
        took = round(seconds, 2)
        if rows := facts.get("rows"):
            facts["rows_per_second"] = round(rows / max(seconds, 1e-9), 1)
        elif "seconds" in self.ledger()["stages"][name]:
            # All was fresh: keep what the start that did the work has cost.
            facts, seconds = {}, self.ledger()["stages"][name]["seconds"]
        facts |= {"seconds": round(seconds, 2), "last_seconds": took, "progress": None}
        self.note(name, state="done", **facts)


def timestamp(seconds: float) -> str:
    """Seconds since 1970 as the ledger writes times: ISO 8601, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
