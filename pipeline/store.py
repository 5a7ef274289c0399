"""A store that runs share: images, embeddings, concept scores and concept moments, kept by content.

With ``store: URL`` in the configuration the parts of these tables lie in the store, in a folder whose name
tells what the first of them is made from, beside the parts of other runs that begin with the same images.
What is there already is not made again, so that a second network on the same images costs its own forward
pass, and nothing in a store is ever changed or deleted. Runs need no lock to share one: parts are written
whole, under names that say what they hold, and whether an image can be used is decided once, by whoever
is first of those whose preprocessing can refuse the same images.
"""

from __future__ import annotations

from pipeline.expected import QUARANTINE, Expected, table_path
from pipeline.moment_files import Layout
from pipeline.rundir import Run, TableEntry
from pipeline.storage import is_elsewhere

#: JSON file in the run that says where the parts of its quarantine lie, where that is a store.
PLACE = "recordings/quarantine.json"


def move_tables(run: Run, expected: Expected) -> None:
    """Bring recordings to where they are expected, after the configuration's store has changed.

    Parts are copied, or linked on one local disk. Those that lay in the run are deleted there.
    """
    for table, names in expected.parts.items():
        place = expected.places[table]
        entry = run.tables().get(table)
        lay = _lay(run, table, entry)
        sources = {table_path(table), lay} - {place}
        if not sources:
            continue
        wanted = {name.rsplit("/", 1)[-1] for name in names}
        there = set(run.part_files(place))
        for source in sorted(sources):
            found = wanted.intersection(run.part_files(source))
            for file in sorted(found - there):
                run.folder.copy(f"{source}/{file}", f"{place}/{file}")
            there |= found
        if entry and entry.fingerprint == expected.tables[table] and wanted <= there:
            if table == QUARANTINE:
                keep_place(run, expected)
            elif entry.path != place:
                run.commit(table, place, entry.fingerprint, entry.rows, names)
            for source in sources:
                run.prune(source, [])


def keep_place(run: Run, expected: Expected) -> None:
    """Note in which folder of a store the parts of the quarantine lie: its table is one file in the run."""
    place = expected.places[QUARANTINE]
    if is_elsewhere(place):
        run.folder.write_json(PLACE, {"path": place})
    else:
        run.folder.delete(PLACE)


def _lay(run: Run, table: str, entry: TableEntry | None) -> str:
    """The folder that a table's parts lay in when it was committed."""
    if table == QUARANTINE:
        noted: dict[str, str] = run.folder.read_json(PLACE) or {}
        return noted.get("path", table_path(table))
    return entry.path if entry else table_path(table)


def fetch_moments(run: Run, layout: Layout) -> None:
    """Take from the store what moments of the concepts among themselves are there already."""
    if run.store is None:
        return
    there = set(run.part_files(layout.path))
    place = _moments(run.store)
    shared = set(run.part_files(place))
    for name in layout.of_concepts:
        file = name.rsplit("/", 1)[-1]
        if file in shared - there:
            run.folder.copy(f"{place}/{file}", name)


def share_moments(run: Run, layout: Layout) -> None:
    """Leave the moments of the concepts among themselves in the store for other runs."""
    if run.store is None:
        return
    place = _moments(run.store)
    shared = set(run.part_files(place))
    for name in layout.of_concepts:
        file = name.rsplit("/", 1)[-1]
        if file not in shared and run.folder.exists(name):
            run.folder.copy(name, f"{place}/{file}")


def _moments(store: str) -> str:
    """Folder of the store with concept moments; their names tell all that they are made from."""
    return f"{store}/moments"
