"""The path of an MSI as a picture: a box for each place, an arrow for each address."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.pages.drawing import (
    CHAR,
    LINE,
    Arrow,
    Box,
    Drawing,
    Group,
    Label,
    Polyline,
    fitted,
    to_svg,
)
from vmm_msi.report.chain import Passage, Place, path_title, stations
from vmm_msi.report.compare_rows import name_of
from vmm_msi.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_msi.engine.compare import Result
    from vmm_msi.pages.drawing import Shape
    from vmm_msi.report.chain import Station
    from vmm_msi.types import GuestDomain, PciAddress, Verdict

_BOX = 134
_GAP = 104
_HEIGHT = 52
_MARGIN = 10
WIDTH = 2 * _MARGIN + len(Place) * _BOX + (len(Place) - 1) * _GAP

#: What the box of a place says besides its name, and what the address that leaves it is.
_BOXES = {
    Place.DEVICE: ("device", "IOVA"),
    Place.STAGE_1: ("stage 1", "IPA"),
    Place.STAGE_2: ("stage 2", "PA"),
    Place.DOORBELL: ("doorbell", ""),
    Place.INTERRUPT: ("interrupt", ""),
}


def chain_drawing(title: str, path: Sequence[Station], *, notes: bool = True) -> Drawing:
    """Return the picture of a path.

    :param title: strategy, device and outcome.
    :param notes: write below it what decided it; a page has that beside the picture.
    """
    heads = _wrapped(title, "")
    shapes: list[Shape] = [
        Label(_MARGIN, 20 + LINE * number, line, "strong") for number, line in enumerate(heads)
    ]
    top = 24.0 + LINE * (len(heads) + 1)
    shapes += [_place(number, path, top) for number in range(len(path))]
    y = top + _HEIGHT + 26
    if notes:
        for station in path:
            for note in station.notes:
                for line in _wrapped(f"{station.place}: {note}", "  "):
                    shapes.append(Label(_MARGIN, y, line))
                    y += LINE
    return Drawing(WIDTH, y - LINE + 12, title, tuple(shapes))


def _wrapped(text: str, indent: str) -> Sequence[str]:
    """Return text as lines that fit the picture."""
    return textwrap.wrap(
        printable(text),
        int((WIDTH - 2 * _MARGIN) / CHAR),
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def chains_svg(
    verdicts: Iterable[tuple[Result, Verdict]], guest: GuestDomain, device: PciAddress, vector: int
) -> str:
    """Return the paths of an MSI with several strategies, below each other, as an SVG file.

    Strategies that share a path on one kernel share a picture.
    """
    alike: dict[tuple[object, ...], tuple[Result, Verdict, list[Station], list[str]]] = {}
    for result, verdict in verdicts:
        path = stations(result, verdict, guest, vector)
        key = (result.options["profile"], verdict.outcome, *path)
        names = alike.setdefault(key, (result, verdict, path, []))[3]
        names.append(name_of(result))
    shapes: list[Shape] = []
    y = 0.0
    for result, verdict, path, names in alike.values():
        drawing = chain_drawing(path_title(result, verdict, vector, names), path)
        shapes += [_moved(shape, y) for shape in drawing.shapes]
        y += drawing.height + 14
    title = f"Path of an MSI of {device}, vector {vector}"
    if not shapes:
        shapes.append(Label(_MARGIN, 20, f"{title}: no strategy", "strong"))
    return to_svg(Drawing(WIDTH, max(y, 30), title, tuple(shapes)), alone=True)


def _moved(shape: Shape, by: float) -> Shape:
    if isinstance(shape, Group):
        return replace(shape, shapes=tuple(_moved(inner, by) for inner in shape.shapes))
    if isinstance(shape, Polyline):
        return replace(shape, points=tuple((x, y + by) for x, y in shape.points))
    if isinstance(shape, Arrow):
        return replace(shape, y1=shape.y1 + by, y2=shape.y2 + by)
    return replace(shape, y=shape.y + by)


def _place(number: int, path: Sequence[Station], top: float) -> Group:
    """Return the box of a place, and the arrow that leaves it."""
    station = path[number]
    caption, address = _BOXES[station.place]
    x = _MARGIN + number * (_BOX + _GAP)
    name = [fitted(station.name, _BOX - 8)] if station.name else []
    shapes: list[Shape] = [Box(x, top, _BOX, _HEIGHT, (caption, *name))]
    if station.passage is Passage.BROKEN:
        mark = "✗ no MSI is sent" if station.place is Place.DEVICE else "✗ ends here"
        shapes.append(Label(x + _BOX / 2, top - 8, mark, "bad", "middle"))
    elif station.passage is Passage.PASSED and number == len(path) - 1:
        shapes.append(Label(x + _BOX / 2, top - 8, "✓ delivered", "good", "middle"))
    if number < len(path) - 1:
        goes_on = path[number + 1].passage is not Passage.NOT_REACHED
        middle, start = top + _HEIGHT / 2, x + _BOX
        shapes.append(Arrow(start, middle, start + _GAP, middle, "" if goes_on else "unreached"))
        if goes_on and station.out:
            centre = start + _GAP / 2
            shapes.append(Label(centre, middle - 8, fitted(station.out, _GAP - 4), anchor="middle"))
            if address:
                shapes.append(Label(centre, middle + 16, address, "quiet", "middle"))
    style = {Passage.BROKEN: "bad", Passage.NOT_REACHED: "unreached"}.get(station.passage, "")
    if station.passage is Passage.PASSED and number == len(path) - 1:
        style = "good"
    return Group(tuple(shapes), style, number + 1)
