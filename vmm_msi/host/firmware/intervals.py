"""Ranges of IDs: assign IDs to overlapping ranges, and merge routes."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.types import PciRoute

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Limit of the linear intervals of a host's RequesterIDs: four segments in which no two
#: neighbouring RequesterIDs have neighbouring StreamIDs or DeviceIDs.
MAX_PIECES = 4 * 65536


class Interval(NamedTuple):
    """The IDs ``first`` to ``last``, which all belong to the range ``number``."""

    first: int
    last: int
    number: int


def first_match(ranges: Sequence[tuple[int, int]]) -> tuple[Interval, ...]:
    """Cut overlapping ranges (first and last ID) into intervals, sorted and disjoint.

    An ID belongs to the first range in ``ranges`` that contains it; empty ranges (last below first)
    are left out. Takes n log n steps.
    """
    plain = sorted(
        Interval(first, last, index) for index, (first, last) in enumerate(ranges) if first <= last
    )
    if all(low.last < high.first for low, high in pairwise(plain)):
        return tuple(plain)
    starts = sorted((first, index) for index, (first, last) in enumerate(ranges) if first <= last)
    cuts = sorted({first for first, _ in starts} | {ranges[index][1] + 1 for _, index in starts})
    active: list[int] = []
    intervals: list[Interval] = []
    position = 0
    for cut, following in pairwise(cuts):
        while position < len(starts) and starts[position][0] <= cut:
            heapq.heappush(active, starts[position][1])
            position += 1
        while active and ranges[active[0]][1] < cut:
            heapq.heappop(active)
        if not active:
            continue
        index = active[0]
        if intervals and intervals[-1].number == index and intervals[-1].last == cut - 1:
            intervals[-1] = Interval(intervals[-1].first, following - 1, index)
        else:
            intervals.append(Interval(cut, following - 1, index))
    return tuple(intervals)


def overlapping(intervals: Sequence[Interval], first: int, last: int) -> Iterator[Interval]:
    """Yield the parts of sorted, disjoint ``intervals`` that lie from ``first`` to ``last``."""
    position = max(bisect_left(intervals, Interval(first + 1, 0, 0)) - 1, 0)
    while position < len(intervals) and intervals[position].first <= last:
        interval = intervals[position]
        if interval.last >= first:
            yield Interval(max(interval.first, first), min(interval.last, last), interval.number)
        position += 1


def merge(routes: Iterable[PciRoute]) -> tuple[PciRoute, ...]:
    """Sort disjoint routes and join those that continue each other."""
    merged: list[PciRoute] = []
    for route in sorted(routes, key=lambda route: (route.segment, route.first)):
        joined = _joined(merged[-1], route) if merged else None
        if joined is not None:
            merged[-1] = joined
        else:
            merged.append(route)
    return tuple(merged)


def _joined(low: PciRoute, high: PciRoute) -> PciRoute | None:
    if (
        low.segment != high.segment
        or low.last + 1 != high.first
        or low.smmu != high.smmu
        or low.its_group != high.its_group
    ):
        return None
    distance = high.first - low.first
    alone = low.first == low.last, high.first == high.last
    one_stream = _one(
        high.stream_base - low.stream_base, distance, (low.one_stream, high.one_stream), alone
    )
    one_device = _one(
        high.device_base - low.device_base, distance, (low.one_device, high.one_device), alone
    )
    if one_stream is None or one_device is None:
        return None
    return PciRoute(
        segment=low.segment,
        first=low.first,
        last=high.last,
        smmu=low.smmu,
        stream_base=low.stream_base,
        its_group=low.its_group,
        device_base=low.device_base,
        one_stream=one_stream,
        one_device=one_device,
    )


def _one(step: int, distance: int, one: tuple[bool, bool], alone: tuple[bool, bool]) -> bool | None:
    """Return whether two ranges joined are one ID, False if they count up; None if neither.

    :param step: difference of the first IDs of the two.
    :param one: whether each of the two is one ID for all of its range.
    :param alone: whether the range of each is a single RequesterID, which is both.
    """
    if step == distance and all(
        not is_one or single for is_one, single in zip(one, alone, strict=True)
    ):
        return False
    if not step and all(is_one or single for is_one, single in zip(one, alone, strict=True)):
        return True
    return None
