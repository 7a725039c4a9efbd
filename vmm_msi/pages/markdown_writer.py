"""A report as Markdown (CommonMark with GitHub's tables) that is readable as it is, in 80 columns.

It is for mailing lists and issues: a table that is too wide becomes several, or a list.
"""

from __future__ import annotations

import re
import textwrap
from functools import singledispatch
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from vmm_msi.pages.blocks import (
    Code,
    Filter,
    Heading,
    Items,
    Picture,
    Section,
    Table,
    Terms,
    Text,
    Walks,
)
from vmm_msi.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.pages.blocks import Block, Page

_WIDTH = 80

# Backslashes make these characters plain, wherever they are (CommonMark 0.31, section 2.4). An
# underscore inside a word is plain already.
_SPECIAL = re.compile(r"[\\`*\[\]<|~]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|(?<!\w)@(?=\w)")
# What makes a heading, a list, a quotation or a rule of a line that starts with it.
_LINE_START = re.compile(r"#{1,6}(\s|$)|>|[-+](\s|$)|=+\s*$|-[-\s]*$")
# Below the lines of a heading (CommonMark 0.31, section 4.3), by its level.
_UNDERLINES = ("=", "-")
_NUMBERED = re.compile(r"^\d{1,9}(?=[.)](\s|$))")


def to_markdown(page: Page) -> str:
    """Return a report as Markdown."""
    lines = _heading(page.title, 1)
    for block in page.blocks:
        lines += _lines(block, 2)
    if page.provenance:
        lines += ["---", ""]
        lines += _lines(Terms(tuple(page.provenance.items())), 2)
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", printable(text))


def _wrapped(text: str, head: str = "", indent: str = "") -> list[str]:
    """Return escaped text as lines; none of them starts another kind of block."""
    lines = textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [
        _safe_start(line, len(indent) if number else len(head)) for number, line in enumerate(lines)
    ]


def _safe_start(line: str, indent: int) -> str:
    head, text = line[:indent], line[indent:]
    if _LINE_START.match(text):
        return f"{head}\\{text}"
    return head + _NUMBERED.sub(lambda match: f"{match[0]}\\", text, count=1)


def _heading(text: str, level: int) -> list[str]:
    """Return a heading; a long one of the levels that allow it is wrapped and underlined."""
    line = f"{'#' * level} {_plain(text)}"
    if len(line) <= _WIDTH or level > len(_UNDERLINES):
        return [line, ""]
    return [*_wrapped(_plain(text)), _UNDERLINES[level - 1] * _WIDTH, ""]


@singledispatch
def _lines(block: Block, _level: int) -> list[str]:
    """Return a block as lines, an empty one at the end.

    :param _level: level of the headings of sections in it.
    """
    raise AssertionError(f"no Markdown for {type(block).__name__}")


@_lines.register
def _(block: Heading, level: int) -> list[str]:
    return _heading(block.text, level + block.level - 2)


@_lines.register
def _(block: Text, _level: int) -> list[str]:
    label = f"**{_plain(block.copy.capitalize())}:** " if block.copy else ""
    return [*_wrapped(f"{label}{_plain(block.text)}"), ""]


@_lines.register
def _(block: Items, _level: int) -> list[str]:
    lines = [line for text in block.texts for line in _wrapped(_plain(text), "- ", "  ")]
    return [*lines, ""] if lines else []


@_lines.register
def _(block: Code, _level: int) -> list[str]:
    lines = [printable(line) for line in block.lines]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, *lines, fence, ""]


@_lines.register
def _(block: Terms, _level: int) -> list[str]:
    lines = []
    for name, value in block.rows:
        lines += _wrapped(f"**{_plain(name)}**: {_plain(value)}", "- ", "  ")
    return [*lines, ""] if lines else []


@_lines.register
def _(block: Picture, _level: int) -> list[str]:
    return _lines(Code(block.lines), _level) if block.lines else []


@_lines.register
def _(block: Section, level: int) -> list[str]:
    lines = _heading(block.title, level) if block.title else []
    for inner in block.blocks:
        lines += _lines(inner, level + 1)
    return lines


@_lines.register
def _(_block: Filter | Walks, _level: int) -> list[str]:
    return []


@_lines.register
def _(block: Table, _level: int) -> list[str]:
    caption = [*_wrapped(_plain(block.caption)), ""] if block.caption else []
    if not block.rows:
        return [*caption, "None.", ""]
    rows = [[_plain(text) for text in block.head]]
    rows += [[_plain(cell.text) for cell in row] for row in block.rows]
    widths = _widths(rows)
    groups = list(_columns_that_fit(widths))
    if any(_table_width([widths[i] for i in group]) > _WIDTH for group in groups):
        return [*caption, *_records(rows), ""]
    lines: list[str] = []
    for group in groups:
        lines += [*_piped([[row[i] for i in group] for row in rows]), ""]
    return [*caption, *lines]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    # A delimiter row has at least three dashes.
    return [max(3, *map(len, column)) for column in zip(*rows, strict=True)]


def _table_width(widths: Sequence[int]) -> int:
    return sum(widths) + 3 * len(widths) + 1


def _columns_that_fit(widths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the columns of each table: the first one, and as many others as the width allows."""
    group = [0]
    for column in range(1, len(widths)):
        if len(group) > 1 and _table_width([widths[i] for i in (*group, column)]) > _WIDTH:
            yield group
            group = [0]
        group.append(column)
    yield group


def _piped(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = _widths(rows)
    for number, row in enumerate(rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            yield f"| {' | '.join('-' * width for width in widths)} |"


def _records(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a list item per row, with a line for each cell that is not empty.

    Rows with the same first cell share an item, and have a line each.
    """
    head, *records = rows
    for name, alike in groupby(records, key=itemgetter(0)):
        yield from _wrapped(f"**{name or head[0]}**", "- ", "  ")
        lines = [
            [f"{title}: {text}" for title, text in zip(head[1:], others, strict=True) if text]
            for _name, *others in alike
        ]
        texts = lines[0] if len(lines) == 1 else map("; ".join, lines)
        for text in texts:
            yield from _wrapped(text, "  - ", "    ")
