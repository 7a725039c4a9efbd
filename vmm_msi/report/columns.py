"""Lay out text and tables for a terminal: wrapped at words, folded where they are too wide.

Only spaces, and commas within a long word such as a strategy with options, end a line: addresses
and names stay whole, even if one is wider than the terminal.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm_msi.terminal import WIDTH, Line, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_msi.pages.blocks import Cell, Table, Terms
    from vmm_msi.terminal import Tone

#: Width of prose on a terminal that is wider.
MAX_PROSE: Final = 100
#: For tables that are never wrapped.
_ANY: Final = 1 << 20
_GAP = "  "
#: Columns are not wrapped into more lines than this, unless they would be wider than _NARROW.
_LINES = 3
_NARROW = 20


class Rows(NamedTuple):
    """Rows below a head.

    :param title: what the rows are, in the plural.
    :param note: a remark about them, such as why there are none.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class _Text(NamedTuple):
    """A cell whose text is printable; a page's own would import what only pages need."""

    text: str
    tone: Tone | None


def wrapped(text: object, width: int, head: str = "", below: str | None = None) -> Iterator[str]:
    """Yield text behind a head, wrapped at words; at least one line.

    :param below: the start of the lines after the first; None for spaces as wide as the head.
    """
    indent = " " * len(head) if below is None else below
    start = head
    for line in _words(printable(text), width - max(len(head), len(indent))):
        yield f"{start}{line}".rstrip()
        start = indent


def fitted(lines: Iterable[str], width: int = WIDTH) -> Iterator[str]:
    """Yield lines, those that are too long wrapped at words and indented."""
    for line in lines:
        shown = printable(line)
        if len(shown) <= width:
            yield line
            continue
        indent = " " * (len(shown) - len(shown.lstrip()))
        parts = line.parts if isinstance(line, Line) else [(line, None)]
        toned = [(letter, tone) for text, tone in parts for letter in printable(text)]
        place = 0
        for text in wrapped(shown.strip(), width, indent, f"{indent}  "):
            piece = text.strip()
            place = shown.index(piece, place)
            letters = toned[place : place + len(piece)]
            yield Line([(text[: len(text) - len(piece)], None), *letters])
            place += len(piece)


def prose(text: object, width: int, head: str = "", below: str | None = None) -> Iterator[str]:
    """Yield :func:`wrapped` text, in lines that are not too long to read."""
    return wrapped(text, min(width, MAX_PROSE), head, below)


def _words(text: str, width: int) -> list[str]:
    """Return lines of at most ``width`` characters, where the words permit it."""
    lines = textwrap.wrap(text, max(width, 1), break_long_words=False, break_on_hyphens=False)
    return [piece for line in lines for piece in _after_commas(line, width)] or [""]


def _after_commas(word: str, width: int) -> Iterator[str]:
    """Yield a line, in several after commas if it is too long."""
    while len(word) > width and (end := word.rfind(",", 0, width) + 1 or word.find(",") + 1):
        if end == len(word):
            break
        yield word[:end]
        word = word[end:]
    yield word


def _longest_piece(text: str) -> int:
    """Return the width that a text needs at least."""
    pieces = text.replace(",", ", ").split()
    return max(map(len, pieces), default=0)


def table(content: Table, width: int = WIDTH) -> Iterator[str]:
    """Yield the rows of a table below its head, underlined.

    A table that is too wide has its long cells wrapped; if that is not enough, columns go below,
    behind the first one again.
    """
    return columns([content.head, *content.rows], width)


def fits(content: Table, width: int) -> bool:
    """Return whether no column of a table has to go below."""
    rows: list[Sequence[str | Cell]] = [content.head, *content.rows]
    return len(_blocks([[_printable(cell) for cell in row] for row in rows], width)) == 1


def columns(rows: Sequence[Sequence[str | Cell]], width: int = _ANY) -> Iterator[str]:
    """Yield rows as :func:`table` does; the first one is the head."""
    shown = [[_printable(cell) for cell in row] for row in rows]
    for number, block in enumerate(_blocks(shown, width)):
        if number:
            yield ""
        yield from _aligned(block, width, underlined=True)


def columns_with_prose(rows: Sequence[Sequence[str]], width: int = WIDTH) -> Iterator[str]:
    """Yield rows as :func:`columns` does, the last cell of each below it if it is too wide there.

    The last column is of sentences; the first row is the head.
    """
    widths = [max(len(printable(cell)) for cell in column) for column in zip(*rows, strict=True)]
    if sum(widths) + len(_GAP) * (len(widths) - 1) <= width:
        yield from columns(rows, width)
        return
    shown = [[_printable(cell) for cell in row[:-1]] for row in rows]
    for number, (line, row) in enumerate(zip(_table_rows(shown, width), rows, strict=True)):
        yield from line
        if number and row[-1]:
            yield from prose(row[-1], width, "    ")


def aligned(rows: Sequence[Sequence[str | Cell]], width: int = _ANY) -> Iterator[str]:
    """Yield rows in aligned columns, the long cells wrapped."""
    yield from _aligned([[_printable(cell) for cell in row] for row in rows], width)


def section(rows: Rows, width: int = _ANY) -> Iterator[str]:
    """Yield an empty line, a title with the number of rows, the rows below a head, and the note."""
    yield ""
    yield f"{rows.title} ({len(rows.rows)})"
    if rows.rows:
        shown = [[_printable(cell) for cell in row] for row in (rows.head, *rows.rows)]
        for number, block in enumerate(_blocks(shown, width - 2)):
            if number:
                yield ""
            yield from indented("  ", _aligned(block, width - 2))
    if rows.note:
        yield from wrapped(f"({rows.note})", width, "  ")


def terms(content: Terms, width: int = WIDTH) -> Iterator[str]:
    """Yield names with what they mean, wrapped."""
    longest = max(len(name) for name, _text in content.rows)
    for name, text in content.rows:
        yield from prose(text, width, f"  {name:{longest}}  ")


def indented(prefix: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield lines behind a prefix, with the tones that they have."""
    for line in lines:
        parts = line.parts if isinstance(line, Line) else ((line, None),)
        yield Line([(prefix, None), *parts]) if line else line


def _printable(cell: str | Cell) -> _Text:
    if isinstance(cell, str):
        return _Text(printable(cell), None)
    return _Text(printable(cell.text), cell.tone)


def _blocks(rows: Sequence[Sequence[_Text]], width: int) -> list[list[list[_Text]]]:
    """Return the rows in blocks that fit; each starts with the first column.

    It is one block if wrapping makes it fit; else columns are wrapped only if they have to be.
    """
    by_column = list(zip(*rows, strict=True))
    sizes = [_least(column) for column in by_column]
    if sum(sizes) + len(_GAP) * (len(sizes) - 1) <= width:
        return [[list(row) for row in rows]]
    natural = [max(len(cell.text) for cell in column) for column in by_column]
    if natural[0] <= width // 2:
        sizes[0] = natural[0]
    room = width - sizes[0] - len(_GAP)
    sizes[1:] = [n if n <= room else size for n, size in zip(natural, sizes, strict=True)][1:]
    numbers: list[list[int]] = [[]]
    for number in range(1, len(sizes)):
        used = sum(sizes[n] + len(_GAP) for n in (0, *numbers[-1]))
        if numbers[-1] and used + sizes[number] > width:
            numbers.append([])
        numbers[-1].append(number)
    return [[[row[n] for n in (0, *block)] for row in rows] for block in numbers]


def _least(column: Sequence[_Text]) -> int:
    """Return the width to which a column is wrapped, so that few of its cells take many lines.

    Its head, the first cell, wraps at words.
    """
    head, *body = (cell.text for cell in column)
    needed = (max(_longest_piece(t), min(-(-len(t) // _LINES), _NARROW)) for t in body)
    return max(_longest_piece(head), *needed, 0)


def _widths(rows: Sequence[Sequence[_Text]], width: int) -> list[int]:
    """Return the widths of the columns of a block: natural, or less where that is too wide."""
    by_column = list(zip(*rows, strict=True))
    widths = [max(len(cell.text) for cell in column) for column in by_column]
    least = [_least(column) for column in by_column]
    floor = [max(_longest_piece(cell.text) for cell in column) for column in by_column]
    room = width - len(_GAP) * (len(widths) - 1)
    for lowest in (least, floor):
        while sum(widths) > room:
            widest = max(range(len(widths)), key=lambda n: (widths[n] > lowest[n], widths[n]))
            if widths[widest] <= lowest[widest]:
                break
            widths[widest] -= 1
    return widths


def _aligned(
    rows: Sequence[Sequence[_Text]], width: int, *, underlined: bool = False
) -> Iterator[str]:
    for lines in _table_rows(rows, width, underlined=underlined):
        yield from lines


def _table_rows(
    rows: Sequence[Sequence[_Text]], width: int, *, underlined: bool = True
) -> Iterator[list[str]]:
    """Yield the lines of each row; those of the head, which is the first, may be underlined."""
    widths = _widths(rows, width)
    texts = [[_words(cell.text, w) for cell, w in zip(row, widths, strict=True)] for row in rows]
    used = [max(len(t) for lines in column for t in lines) for column in zip(*texts, strict=True)]
    for number, (row, lines_of_cells) in enumerate(zip(rows, texts, strict=True)):
        lines = list(_row(row, lines_of_cells, used))
        if underlined and number == 0:
            lines.append(_GAP.join("-" * column for column in used))
        yield lines


def _row(
    row: Sequence[_Text], texts: Sequence[Sequence[str]], widths: Sequence[int]
) -> Iterator[str]:
    """Yield the lines of a row, whose cells may have several.

    :param texts: the lines of each cell.
    """
    for number in range(max(map(len, texts))):
        parts: list[tuple[str, Tone | None]] = []
        spaces = ""
        for cell, lines, width in zip(row, texts, widths, strict=True):
            text = lines[number] if number < len(lines) else ""
            if text:
                parts += [(spaces, None), (text, cell.tone)]
                spaces = ""
            spaces += " " * (width - len(text)) + _GAP
        yield Line(parts)
