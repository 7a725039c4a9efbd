"""The content of a report, without its layout: what every writer of this package prints.

A report module returns a :class:`Page`. Its text is plain: writers escape what their format would
obey, and show what is not printable as ``vmm_msi.terminal.printable`` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from vmm_msi.terminal import Tone as Tone  # noqa: TC001 - writers import it from here

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    :param link: fragment of the page that the cell leads to, in HTML.
    """

    text: str
    tone: Tone | None = None
    link: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading; level 2 is the highest below the title."""

    text: str
    level: int = 2
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Text:
    """A paragraph.

    :param copy: what it is, such as a remedy, for its label and a button that copies it; empty for
        a text without them.
    """

    text: str
    tone: Tone | None = None
    copy: str = ""
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Items:
    """A list of short texts."""

    texts: tuple[str, ...]
    kind: ClassVar[str] = "items"


@dataclass(frozen=True)
class Code:
    """Lines to copy, such as a command or a log line.

    :param label: what they are, for the button that copies them.
    """

    lines: tuple[str, ...]
    label: str = ""
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Terms:
    """Names with their values, such as a legend or the provenance."""

    rows: tuple[tuple[str, str], ...]
    kind: ClassVar[str] = "terms"


@dataclass(frozen=True)
class Table:
    """Rows below a head; the first column names the row.

    :param caption: what the rows are.
    :param filterable: whether HTML offers to filter the rows.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    filterable: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A drawing, with what it shows in words.

    :param svg: an ``svg`` element, made by :mod:`vmm_msi.pages.drawing`.
    :param lines: the same as text, for formats without pictures.
    """

    svg: str
    caption: str
    lines: tuple[str, ...] = ()
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Section:
    """Blocks that belong together.

    :param id: fragment that leads to it; empty for none.
    :param marks: words by which a filter selects it, such as a severity.
    :param folded: shown closed in HTML.
    """

    title: str
    blocks: tuple[Block, ...]
    id: str = ""
    tone: Tone | None = None
    marks: tuple[str, ...] = ()
    folded: bool = False
    kind: ClassVar[str] = "section"


@dataclass(frozen=True)
class Filter:
    """Buttons and a field that select among the sections that follow, by their marks and text."""

    label: str
    marks: tuple[str, ...]
    kind: ClassVar[str] = "filter"


@dataclass(frozen=True)
class Step:
    """One place of a picture that is stepped through.

    :param notes: paragraphs below its text.
    """

    name: str
    text: str
    notes: tuple[str, ...] = ()
    tone: Tone | None = None


@dataclass(frozen=True)
class Walk:
    """A picture that is stepped through.

    :param id: fragment that leads to it.
    :param row: what it is about, such as a strategy; equal in walks that a table has in one row.
    :param column: the same for the column.
    """

    id: str
    title: str
    svg: str
    steps: tuple[Step, ...]
    row: str = ""
    column: str = ""


@dataclass(frozen=True)
class Walks:
    """Pictures, of which HTML shows what a link chose, and another picture beside it.

    Formats without pictures leave it out: the table with the links says how each ends.

    :param hint: how to choose one.
    """

    title: str
    hint: str
    walks: tuple[Walk, ...]
    kind: ClassVar[str] = "walks"


Block = Heading | Text | Items | Code | Terms | Table | Picture | Section | Filter | Walks


@dataclass(frozen=True)
class Page:
    """A report.

    :param provenance: what it was made from: host, guest, version, date, command line.
    :param data: the rows for programs that read CSV; None where the report has none.
    """

    title: str
    blocks: tuple[Block, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)
    data: Table | None = None


def cells(*texts: object) -> tuple[Cell, ...]:
    """Return a row of cells without tone."""
    return tuple(text if isinstance(text, Cell) else Cell(str(text)) for text in texts)
