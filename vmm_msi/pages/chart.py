"""Counts over time as a drawing: a panel for each thing that was counted, two beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm_msi.pages.drawing import LINE, Drawing, Label, Polyline, fitted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.pages.drawing import Shape

_WIDTH: Final = 300
_HEIGHT: Final = 130
#: Room beside a panel's plot for the numbers of its axis, above it for its title, below it.
_LEFT: Final = 74
_TOP: Final = 2.2 * LINE
_BOTTOM: Final = 2.8 * LINE
_COLUMNS: Final = 2
_GAP: Final = 24


@dataclass(frozen=True)
class Series:
    """A count over time.

    :param points: seconds and count, in order.
    :param style: ``quiet`` for a dashed line.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    style: str = ""


@dataclass(frozen=True)
class Panel:
    """Counts of one thing, on axes of their own."""

    title: str
    series: tuple[Series, ...]


def chart(title: str, panels: Sequence[Panel]) -> Drawing:
    """Return the drawing of panels.

    :param panels: each with a series of at least one point.
    """
    rows = -(-len(panels) // _COLUMNS)
    width = _LEFT + _WIDTH + _GAP
    height = _TOP + _HEIGHT + _BOTTOM
    shapes: list[Shape] = []
    for number, panel in enumerate(panels):
        shapes += _panel(panel, number % _COLUMNS * width, number // _COLUMNS * height)
    return Drawing(_COLUMNS * width, rows * height, title, tuple(shapes))


def _panel(panel: Panel, left: float, top: float) -> Iterator[Shape]:
    points = [point for series in panel.series for point in series.points]
    last = max(seconds for seconds, _count in points) or 1.0
    most = max(count for _seconds, count in points) or 1
    x0, y0 = left + _LEFT, top + _TOP
    bottom, right = y0 + _HEIGHT, x0 + _WIDTH
    yield Label(x0, top + LINE, fitted(panel.title, _WIDTH), "strong")
    yield Polyline(((x0, y0), (x0, bottom), (right, bottom)), "axis")
    for part in (0, 1, 2):
        y = bottom - part / 2 * _HEIGHT
        if part:
            yield Polyline(((x0, y), (right, y)), "axis")
        yield Label(x0 - 6, y + 4, f"{most * part / 2:.0f}", "quiet", "end")
    yield Label(x0, bottom + LINE, "0 s", "quiet")
    yield Label(right, bottom + LINE, f"{last:.2f} s", "quiet", "end")
    for number, series in enumerate(panel.series):
        places = tuple(
            (x0 + seconds / last * _WIDTH, bottom - count / most * _HEIGHT)
            for seconds, count in series.points
        )
        yield Polyline(places, series.style)
        at = x0 + number * _WIDTH / len(panel.series)
        yield Polyline(
            ((at, bottom + 2 * LINE - 4), (at + 22, bottom + 2 * LINE - 4)), series.style
        )
        name = fitted(f"{series.name} {series.points[-1][1]:.0f}", _WIDTH / len(panel.series) - 30)
        yield Label(at + 28, bottom + 2 * LINE, name)
