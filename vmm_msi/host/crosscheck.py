"""Sources about one host that say the same thing differently.

Whoever has several sources (:func:`vmm_msi.host.live.read_sources` gives those of a host's
files) asks :func:`disagreements`; :func:`vmm_msi.host.join.join` believes the first.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.join import join
from vmm_msi.host.resolve import find_route, reserved_memory, streams_of
from vmm_msi.types import PciFunction, ReservedKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_msi.types import HostTopology, PciAddress, ReservedRegion

_DIRECT = frozenset({ReservedKind.DIRECT, ReservedKind.DIRECT_RELAXABLE})


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One thing that sources say differently.

    :param subject: what it is about: an SMMU, an ITS, a PCI function, an IOMMU group.
    :param statements: each source and what it says, at least two.
    """

    subject: str
    statements: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        said = "; ".join(f"{source} says: {what}" for source, what in self.statements)
        return f"{self.subject}: {said}"


def disagreements(sources: Sequence[HostTopology]) -> list[Disagreement]:
    """Compare all sources of one host with each other.

    A source that says nothing of a thing disagrees with nobody about it.

    :param sources: in the order in which they are believed.
    """
    told = join(sources).functions
    found: list[Disagreement] = []
    for first, second in combinations(sources, 2):
        found += _smmus(first, second)
        found += _itses(first, second)
        found += _groups(first, second)
        found += _ways(first, second, told)
    for tables in sources:
        if not tables.routes:
            continue
        for lists in sources:
            found += _routes(tables, lists)
            found += _reserved(tables, lists)
    return found


def _smmus(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    """Compare the addresses of SMMUs: in the tables, and in the names under /sys/class/iommu."""
    known = [
        {smmu.base: smmu.version for smmu in host.smmus if smmu.base is not None}
        for host in (first, second)
    ]
    if not all(known):
        return
    for base in sorted({*known[0], *known[1]}):
        said = [
            "there is none"
            if base not in one
            else ("an SMMUv3" if one[base] == 3 else "an SMMUv1 or v2")
            for one in known
        ]
        if said[0] != said[1]:
            yield _two(f"SMMU at {base}", first, said[0], second, said[1])


def _itses(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    bases = [{its.base for its in host.itses} for host in (first, second)]
    if not all(bases):
        return
    for base in sorted(bases[0] ^ bases[1]):
        said = ["there is one" if base in one else "there is none" for one in bases]
        yield _two(f"ITS at {base}", first, said[0], second, said[1])


def _groups(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    """Compare IOMMU groups: in sysfs, and of libvirt's node devices."""
    for function in first.functions:
        other = second.function_by_address.get(function.address)
        if other is None or function.iommu_group is None or other.iommu_group is None:
            continue
        if function.iommu_group != other.iommu_group or (
            function.members and other.members and set(function.members) != set(other.members)
        ):
            yield _two(
                f"IOMMU group of {function.address}",
                first,
                _group_text(function),
                second,
                _group_text(other),
            )


def _group_text(function: PciFunction) -> str:
    members = ", ".join(map(str, sorted(function.members)))
    return f"{function.iommu_group} ({members})" if members else str(function.iommu_group)


def _ways(
    first: HostTopology, second: HostTopology, functions: Sequence[PciFunction]
) -> Iterator[Disagreement]:
    """Compare the way of each function in two sets of tables: ACPI and a device tree."""
    if not (first.routes and second.routes):
        return
    for function in functions:
        said = [_way(host, function) for host in (first, second)]
        if said[0] != said[1]:
            yield _two(f"way of {function.address}", first, said[0], second, said[1])


def _way(host: HostTopology, function: PciFunction) -> str:
    rid, segment = function.address.rid, function.address.segment
    route = find_route(host, segment, rid)
    if route is None:
        return "no route has it"
    msi_rid = rid if function.msi_rid is None else function.msi_rid
    arrives = find_route(host, segment, msi_rid)
    parts = ["no SMMU"]
    if route.smmu is not None:
        base = host.smmu_by_id[route.smmu].base
        parts = [f"SMMU {base}, StreamID {route.stream_of(rid)}"]
    if arrives is None or not arrives.its_group:
        parts.append("no ITS")
    else:
        its = host.its_by_id.get(arrives.its_group[0])
        # An ITS of which the base is not known could be any.
        device_id = arrives.device_of(msi_rid)
        parts.append("" if its is None else f"ITS {its.base}, DeviceID {device_id}")
    return ", ".join(filter(None, parts))


def _routes(tables: HostTopology, lists: HostTopology) -> Iterator[Disagreement]:
    """Compare the SMMU of each function's route with the one the kernel has it behind."""
    kernel_tells = bool(lists.smmus)
    for function in lists.functions:
        address = function.address
        route = find_route(tables, address.segment, address.rid)
        if route is None:
            yield _two(f"route of {address}", tables, "no route has it", lists, "it is there")
            continue
        if not kernel_tells:
            continue
        base = None if route.smmu is None else tables.smmu_by_id[route.smmu].base
        if route.smmu is not None and base is None:
            continue
        if base != function.smmu:
            said = ["behind none" if at is None else f"behind {at}" for at in (base, function.smmu)]
            yield _two(f"SMMU of {address}", tables, said[0], lists, said[1])


def _reserved(tables: HostTopology, lists: HostTopology) -> Iterator[Disagreement]:
    """Compare memory ranges of the IORT with the regions the kernel reserves, group by group."""
    if not tables.reserved_memory:
        return
    groups: dict[int, list[PciFunction]] = defaultdict(list)
    for function in lists.functions:
        if function.iommu_group is not None and function.reserved is not None:
            groups[function.iommu_group].append(function)
    for group, members in groups.items():
        kernel = [region for region in members[0].reserved or () if region.kind in _DIRECT]
        wanted = _wanted(tables, members)
        lost = [region for region, _owner in wanted.items() if not _covered(region, kernel)]
        more = [region for region in kernel if not any(_touch(region, one) for one in wanted)]
        if lost or more:
            yield _two(
                f"memory mapped 1:1 for IOMMU group {group}",
                tables,
                ", ".join(map(str, wanted)) or "none",
                lists,
                ", ".join(map(str, kernel)) or "none",
            )


def _wanted(
    tables: HostTopology, members: Sequence[PciFunction]
) -> Mapping[ReservedRegion, PciAddress]:
    found: dict[ReservedRegion, PciAddress] = {}
    for function in members:
        route = find_route(tables, function.address.segment, function.address.rid)
        if route is None or route.smmu is None:
            continue
        try:
            streams = streams_of(tables, function)
        except TopologyError:
            continue
        for region in reserved_memory(tables, route.smmu, streams):
            found.setdefault(region, function.address)
    return found


def _covered(region: ReservedRegion, by: Sequence[ReservedRegion]) -> bool:
    """Tell whether a region is within one of the same kind; the kernel joins neighbours."""
    return any(
        one.kind is region.kind and one.base <= region.base and region.last <= one.last
        for one in by
    )


def _touch(one: ReservedRegion, other: ReservedRegion) -> bool:
    return one.kind is other.kind and one.overlaps(other.base, other.size)


def _two(
    subject: str, first: HostTopology, says: str, second: HostTopology, other: str
) -> Disagreement:
    return Disagreement(subject, ((first.source, says), (second.source, other)))
