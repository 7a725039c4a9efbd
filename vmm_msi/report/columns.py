"""Text in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield one line per row, every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield :func:`aligned` rows, the first of which is a head with a line below it."""
    rule = ["-" * max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from aligned([rows[0], rule, *rows[1:]])


def section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield an empty line, a title with the number of rows, and the rows below a head."""
    yield ""
    yield f"{title} ({len(rows)})"
    if rows:
        yield from (f"  {line}" for line in aligned([head, *rows]))
