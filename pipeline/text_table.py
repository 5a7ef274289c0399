"""Tables for a terminal: aligned columns, two spaces between them."""

from __future__ import annotations

from collections.abc import Sequence


def table_lines(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> list[str]:
    """Lines of a table, its head first.

    Args:
        head: Names of the columns.
        rows: Cells, as many in every row as there are columns.
        right: Columns that are aligned to the right.
    """
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
