"""Ranges of IDs: which of many overlapping ranges an ID belongs to, and merging of routes."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.types import PciRoute

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Linear intervals that the RequesterIDs of a host may fall into: four segments of which no two
#: neighbouring RequesterIDs have neighbouring StreamIDs or DeviceIDs.
MAX_PIECES = 4 * 65536


class Interval(NamedTuple):
    """The IDs ``first`` to ``last``, which all belong to the range with that number."""

    first: int
    last: int
    number: int


def first_match(ranges: Sequence[tuple[int, int]]) -> tuple[Interval, ...]:
    """Cut overlapping ranges (first and last ID) into intervals, sorted and disjoint.

    An ID belongs to the range that comes first in ``ranges``; empty ranges (last below first) are
    left out. Needs n log n steps.
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
    for route in sorted(routes, key=lambda one: (one.segment, one.first)):
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
    """Tell whether two ranges of IDs together are one ID or count up; None where neither.

    :param step: by how much the first ID of the one differs from that of the other.
    :param one: whether each is one ID, which one that stands ``alone`` is in any case.
    """
    if step == distance and all(
        not each or single for each, single in zip(one, alone, strict=True)
    ):
        return False
    if not step and all(each or single for each, single in zip(one, alone, strict=True)):
        return True
    return None
