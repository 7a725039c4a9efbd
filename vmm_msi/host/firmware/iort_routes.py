"""Compose the ID mappings of an IORT, from the root complexes to the ITS groups.

Linux ``drivers/acpi/arm64/iort.c`` is the reference: iort_node_map_id follows the mappings,
iort_id_map applies one, iort_scan_node finds the root complex of a segment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.intervals import MAX_PIECES, Interval, first_match, merge, overlapping
from vmm_msi.host.firmware.iort import ItsGroup, NodeType, SmmuNode
from vmm_msi.types import PciRoute

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.host.firmware.iort import IdMapping, Iort, Node, RootComplex

_RID_LAST = 0xFFFF
_ID_LAST = 0xFFFF_FFFF
#: Types of nodes on which the flag "single mapping" holds for every input ID.
_SINGLE = frozenset({NodeType.NAMED_COMPONENT, NodeType.ROOT_COMPLEX, NodeType.IWB})


class _Walk(NamedTuple):
    """RequesterIDs ``first`` to ``last`` at one node, where they are ``id`` and following.

    :param constant: they all are ``id``, because of a single mapping.
    :param smmu: the first SMMU on the path, where they are ``stream`` and following.
    """

    node: Node
    first: int
    last: int
    id: int
    constant: bool = False
    smmu: SmmuNode | None = None
    stream: int = 0
    stream_constant: bool = False

    def part(self, first: int, last: int) -> _Walk:
        """Return the part with the RequesterIDs ``first`` to ``last``."""
        distance = first - self.first
        return self._replace(
            first=first,
            last=last,
            id=self.id + (0 if self.constant else distance),
            stream=self.stream + (0 if self.stream_constant else distance),
        )


def routes(iort: Iort) -> tuple[PciRoute, ...]:
    """Return the routes of all RequesterIDs that have one, as sorted, disjoint ranges.

    As in Linux (iort_match_node_callback), the first root complex of a segment stands for it.

    :raise TopologyError: when there are more than :data:`MAX_PIECES`.
    """
    return merge(_Composer(iort).all())


class _Composer:
    def __init__(self, iort: Iort) -> None:
        self.iort = iort
        self.number = {node.offset: index for index, node in enumerate(iort.smmus)}
        self.intervals: dict[int, tuple[Interval, ...]] = {}
        self.steps = 0

    def all(self) -> Iterator[PciRoute]:
        for segment, node in self.iort.segments.items():
            yield from self._routes(segment, node)

    def _routes(self, segment: int, root: RootComplex) -> Iterator[PciRoute]:
        pending = [_Walk(root, 0, _RID_LAST, 0)]
        while pending:
            walk = pending.pop()
            if isinstance(walk.node, ItsGroup):
                yield self._finish(segment, walk, walk.node.its_ids)
                continue
            mapped = list(self._step(walk))
            pending += mapped
            if walk.smmu is not None:
                yield from self._unmapped(segment, walk, mapped)

    def _unmapped(self, segment: int, walk: _Walk, mapped: Sequence[_Walk]) -> Iterator[PciRoute]:
        """Yield the parts that pass an SMMU and then reach no ITS."""
        first = walk.first
        for part in [*sorted(mapped, key=lambda part: part.first), None]:
            last = walk.last if part is None else part.first - 1
            if first <= last:
                yield self._finish(segment, walk.part(first, last), ())
            if part is not None:
                first = part.last + 1

    def _step(self, walk: _Walk) -> Iterator[_Walk]:
        """Apply the ID mappings of a node: ``iort_id_map`` for all IDs at once."""
        mappings = walk.node.mappings
        last_id = walk.id if walk.constant else walk.id + walk.last - walk.first
        for interval in overlapping(self._intervals_of(walk.node), walk.id, last_id):
            self._count()
            mapping = mappings[interval.number]
            target = self.iort.by_offset[mapping.target]
            low = walk.first if walk.constant else walk.first + interval.first - walk.id
            high = walk.last if walk.constant else walk.first + interval.last - walk.id
            out = mapping.output_base
            if not mapping.single:
                out += interval.first - mapping.input_base
            constant = walk.constant or mapping.single
            if walk.smmu is None and isinstance(target, SmmuNode):
                yield _Walk(target, low, high, out, constant, target, out, constant)
                continue
            stream = walk.stream + (0 if walk.stream_constant else low - walk.first)
            yield _Walk(target, low, high, out, constant, walk.smmu, stream, walk.stream_constant)

    def _intervals_of(self, node: Node) -> tuple[Interval, ...]:
        if node.offset not in self.intervals:
            own = node.own_mapping if isinstance(node, SmmuNode) else None
            self.intervals[node.offset] = _linux_intervals(node.mappings, node.type, own)
        return self.intervals[node.offset]

    def _finish(self, segment: int, walk: _Walk, its_group: tuple[int, ...]) -> PciRoute:
        smmu = None if walk.smmu is None else self.number[walk.smmu.offset]
        several = walk.first < walk.last
        self._count()
        return PciRoute(
            segment=segment,
            first=walk.first,
            last=walk.last,
            smmu=smmu,
            stream_base=walk.first if smmu is None else walk.stream,
            its_group=its_group,
            device_base=walk.id if its_group else walk.first,
            one_stream=several and smmu is not None and walk.stream_constant,
            one_device=several and bool(its_group) and walk.constant,
        )

    def _count(self) -> None:
        self.steps += 1
        if self.steps > MAX_PIECES:
            raise TopologyError(
                f"{self.iort.source}: the ID mappings split the RequesterIDs into more than "
                f"{MAX_PIECES} pieces"
            )


def _linux_intervals(
    mappings: Sequence[IdMapping], node_type: int, own: int | None
) -> tuple[Interval, ...]:
    """Return which ID mapping Linux uses for which input IDs.

    It uses the first that contains the ID, but the last ID of a mapping belongs to it only if no
    later mapping starts there. That corrects firmware that gives the number of IDs instead of that
    minus one (iort_id_map, iort_node_map_id).

    :param own: index of the mapping that is for the node itself, not for its inputs.
    """
    plain = sorted(
        Interval(mapping.input_base, mapping.input_last, index)
        for index, mapping in enumerate(mappings)
        if index != own and not (mapping.single and node_type not in _SINGLE)
    )
    if not any(mappings[interval.number].single for interval in plain) and all(
        low.last < high.first for low, high in pairwise(plain)
    ):
        return tuple(plain)
    ranges: list[tuple[int, int]] = []
    starts: dict[int, list[int]] = defaultdict(list)
    ends: dict[int, int] = {}
    singles: list[int] = []
    for index, mapping in enumerate(mappings):
        span = (1, 0)
        if index == own:
            pass
        elif mapping.single:
            if node_type in _SINGLE:
                span = (0, _ID_LAST)
                singles.append(index)
        else:
            starts[mapping.input_base].append(index)
            span = (mapping.input_base, mapping.input_last)
            if mapping.id_count:
                ends.setdefault(mapping.input_last, index)
                span = (mapping.input_base, mapping.input_last - 1)
        ranges.append(span)
    inner = first_match(ranges)
    winners: list[tuple[int, int]] = []
    for point, tentative in ends.items():
        before = next((interval.number for interval in overlapping(inner, point, point)), tentative)
        if before > tentative:
            later = [index for index in starts[point] if index > tentative]
            at = bisect_right(singles, tentative)
            later += singles[at : at + 1]
            before = min(later, default=tentative)
        winners.append((point, before))
    intervals = first_match([(point, point) for point, _index in winners] + ranges)
    return tuple(_joined(intervals, [index for _point, index in winners]))


def _joined(intervals: Sequence[Interval], points: Sequence[int]) -> Iterator[Interval]:
    """Yield the intervals with the index of their mapping, neighbours of one mapping joined."""
    held: Interval | None = None
    for interval in intervals:
        small = interval.number < len(points)
        index = points[interval.number] if small else interval.number - len(points)
        if held is not None and held.number == index and held.last + 1 == interval.first:
            held = Interval(held.first, interval.last, index)
            continue
        if held is not None:
            yield held
        held = Interval(interval.first, interval.last, index)
    if held is not None:
        yield held
