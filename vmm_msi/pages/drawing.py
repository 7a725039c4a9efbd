"""Drawings of boxes and arrows, as SVG 1.1 elements.

A letter is ``CHAR`` units wide, that of a fixed-width font, so a drawing knows what fits a box.
Colours are classes: the page has the style, and a drawing of its own carries it along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vmm_msi.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Width of a letter, and height of a line of text.
CHAR = 7.3
LINE = 17


@dataclass(frozen=True)
class Label:
    """One line of text.

    :param anchor: which part of it is at ``x``: ``start``, ``middle`` or ``end``.
    """

    x: float
    y: float
    text: str
    style: str = ""
    anchor: str = "start"
    kind: ClassVar[str] = "label"


@dataclass(frozen=True)
class Box:
    """A rectangle with lines of text, centred in it."""

    x: float
    y: float
    width: float
    height: float
    lines: tuple[str, ...] = ()
    style: str = ""
    kind: ClassVar[str] = "box"

    @property
    def labels(self) -> Sequence[Label]:
        """The lines with their places."""
        top = self.y + (self.height - LINE * len(self.lines)) / 2 + LINE * 0.75
        return [
            Label(self.x + self.width / 2, top + LINE * number, line, anchor="middle")
            for number, line in enumerate(self.lines)
        ]


@dataclass(frozen=True)
class Arrow:
    """A line from one point to another, with a head there unless it is broken."""

    x1: float
    y1: float
    x2: float
    y2: float
    style: str = ""
    kind: ClassVar[str] = "arrow"


@dataclass(frozen=True)
class Polyline:
    """A line through points, such as the course of a count.

    :param points: x and y of each.
    """

    points: tuple[tuple[float, float], ...]
    style: str = ""
    kind: ClassVar[str] = "polyline"


@dataclass(frozen=True)
class Group:
    """Shapes that belong to one place of a path.

    :param step: number of the place, from 1; 0 for none.
    """

    shapes: tuple[Shape, ...]
    style: str = ""
    step: int = 0
    kind: ClassVar[str] = "group"


Shape = Label | Box | Arrow | Polyline | Group


@dataclass(frozen=True)
class Drawing:
    """Shapes on a plane, the origin at the top left.

    :param title: what it shows, for who does not see it.
    """

    width: float
    height: float
    title: str
    shapes: tuple[Shape, ...]


def fitted(text: str, width: float) -> str:
    """Return text that fits a width, the middle of a longer one left out."""
    shown = printable(text)
    count = int(width / CHAR)
    if len(shown) <= count:
        return shown
    head = max(1, (count - 1) // 2)
    return f"{shown[:head]}…{shown[len(shown) - max(0, count - 1 - head) :]}"


def to_svg(drawing: Drawing, *, alone: bool) -> str:
    """Return a drawing as SVG.

    :param alone: a file of its own, with its style; else an element of an HTML page.
    """
    from vmm_msi.pages.html_writer import environment

    return environment().get_template("drawing.svg.j2").render(drawing=drawing, alone=alone)
