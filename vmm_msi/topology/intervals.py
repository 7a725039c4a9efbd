"""Ranges of IDs: which of many overlapping ranges an ID belongs to, and merging of routes."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.model import PciRoute

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Linear pieces that the RequesterIDs of a host may fall into: four segments of which no two
#: neighbouring RequesterIDs have neighbouring StreamIDs or DeviceIDs.
MAX_PIECES = 4 * 65536


class Piece(NamedTuple):
    """The IDs ``first`` to ``last``, which all belong to the range with that number."""

    first: int
    last: int
    number: int


def first_match(ranges: Sequence[tuple[int, int]]) -> tuple[Piece, ...]:
    """Cut overlapping ranges (first and last ID) into pieces, sorted and disjoint.

    An ID belongs to the range that comes first in ``ranges``; empty ranges (last below first) are
    left out. Needs n log n steps.
    """
    plain = sorted(
        Piece(first, last, index) for index, (first, last) in enumerate(ranges) if first <= last
    )
    if all(low.last < high.first for low, high in pairwise(plain)):
        return tuple(plain)
    starts = sorted((first, index) for index, (first, last) in enumerate(ranges) if first <= last)
    cuts = sorted({first for first, _ in starts} | {ranges[index][1] + 1 for _, index in starts})
    active: list[int] = []
    pieces: list[Piece] = []
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
        if pieces and pieces[-1].number == index and pieces[-1].last == cut - 1:
            pieces[-1] = Piece(pieces[-1].first, following - 1, index)
        else:
            pieces.append(Piece(cut, following - 1, index))
    return tuple(pieces)


def overlapping(pieces: Sequence[Piece], first: int, last: int) -> Iterator[Piece]:
    """Yield the parts of sorted, disjoint ``pieces`` that lie from ``first`` to ``last``."""
    position = max(bisect_left(pieces, Piece(first + 1, 0, 0)) - 1, 0)
    while position < len(pieces) and pieces[position].first <= last:
        piece = pieces[position]
        if piece.last >= first:
            yield Piece(max(piece.first, first), min(piece.last, last), piece.number)
        position += 1


def merge(routes: Iterable[PciRoute]) -> tuple[PciRoute, ...]:
    """Sort disjoint routes and join those that continue each other linearly."""
    merged: list[PciRoute] = []
    for route in sorted(routes, key=lambda one: (one.segment, one.first)):
        if merged and _continues(merged[-1], route):
            merged[-1] = _extended(merged[-1], route.last)
        else:
            merged.append(route)
    return tuple(merged)


def _continues(low: PciRoute, high: PciRoute) -> bool:
    distance = high.first - low.first
    return (
        low.segment == high.segment
        and low.last + 1 == high.first
        and low.smmu == high.smmu
        and low.its_group == high.its_group
        and low.stream_base + distance == high.stream_base
        and low.device_base + distance == high.device_base
    )


def _extended(route: PciRoute, last: int) -> PciRoute:
    return PciRoute(
        segment=route.segment,
        first=route.first,
        last=last,
        smmu=route.smmu,
        stream_base=route.stream_base,
        its_group=route.its_group,
        device_base=route.device_base,
    )
