"""Tables in files that are mapped into memory: the process holds none of their rows itself."""

from __future__ import annotations

from tempfile import NamedTemporaryFile

import pyarrow as pa

#: Bytes below which a table is left where it is.
LEAST = 16_000_000


def on_disk(table: pa.Table, least: int = LEAST) -> pa.Table:
    """The same rows in one piece, from a temporary file that has lost its name.

    The operating system drops what nobody looks at and reads it again, and the file is gone with the
    table. Where there is no room for it, or the table is small, the rows stay in memory.

    Args:
        table: Any table.
        least: Bytes from which on it is put into a file.
    """
    table = table.combine_chunks()
    if table.nbytes < least:
        return table
    try:
        with NamedTemporaryFile(prefix="neuroscribe-", suffix=".arrow") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            file.flush()
            return pa.ipc.open_file(pa.memory_map(file.name)).read_all()
    except OSError:
        return table
