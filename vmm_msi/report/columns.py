"""Lay out text in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Rows(NamedTuple):
    """Rows below a head.

    :param title: what the rows are, in the plural.
    :param note: a remark about them, such as why there are none.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield one line per row, every column as wide as its widest cell."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield :func:`aligned` rows; the first one is a head, underlined."""
    widths = [max(len(printable(cell)) for cell in column) for column in zip(*rows, strict=True)]
    yield from aligned([rows[0], ["-" * width for width in widths], *rows[1:]])


def section(rows: Rows) -> Iterator[str]:
    """Yield an empty line, a title with the number of rows, the rows below a head, and the note."""
    yield ""
    yield f"{rows.title} ({len(rows.rows)})"
    if rows.rows:
        yield from (f"  {line}" for line in aligned([rows.head, *rows.rows]))
    if rows.note:
        yield f"  ({rows.note})"
