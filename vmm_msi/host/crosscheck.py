"""Compare the sources about one host and report what they describe differently.

:func:`vmm_msi.host.sources.read_host` returns the sources of a HOST. :func:`disagreements` compares
them; :func:`vmm_msi.host.join.join` uses the first source that reports a value.
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
    from collections.abc import Iterator, Sequence

    from vmm_msi.types import HostTopology, ReservedRegion

_DIRECT = frozenset({ReservedKind.DIRECT, ReservedKind.DIRECT_RELAXABLE})


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A part of a host that sources describe differently.

    :param subject: the part: an SMMU, an ITS, a PCI function, an IOMMU group.
    :param statements: each source and its description, at least two.
    """

    subject: str
    statements: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        descriptions = "; ".join(f"{source}: {text}" for source, text in self.statements)
        return f"{self.subject}: {descriptions}"


def disagreements(sources: Sequence[HostTopology]) -> list[Disagreement]:
    """Compare all sources about one host with each other.

    Facts that a source does not report are not compared.

    :param sources: the most trusted first.
    """
    functions = join(sources).functions
    differences: list[Disagreement] = []
    for first, second in combinations(sources, 2):
        differences += _smmus(first, second)
        differences += _itses(first, second)
        differences += _groups(first, second)
        differences += _paths(first, second, functions)
    for tables in sources:
        if not tables.routes:
            continue
        for system in sources:
            differences += _routes(tables, system)
            differences += _reserved(tables, system)
    return differences


def _smmus(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    """Compare the addresses of SMMUs: in the tables, and in the names under /sys/class/iommu."""
    versions = [
        {smmu.base: smmu.version for smmu in host.smmus if smmu.base is not None}
        for host in (first, second)
    ]
    if not all(versions):
        return
    for base in sorted({*versions[0], *versions[1]}):
        texts = [
            "absent"
            if base not in known
            else ("SMMUv3" if known[base] == 3 else "SMMUv1 or SMMUv2")
            for known in versions
        ]
        if texts[0] != texts[1]:
            yield _two(f"SMMU at {base}", first, texts[0], second, texts[1])


def _itses(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    bases = [{its.base for its in host.itses} for host in (first, second)]
    if not all(bases):
        return
    for base in sorted(bases[0] ^ bases[1]):
        texts = ["present" if base in known else "absent" for known in bases]
        yield _two(f"ITS at {base}", first, texts[0], second, texts[1])


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


def _paths(
    first: HostTopology, second: HostTopology, functions: Sequence[PciFunction]
) -> Iterator[Disagreement]:
    """Compare how functions reach SMMU and ITS in two sets of tables: ACPI and a device tree."""
    if not (first.routes and second.routes):
        return
    for function in functions:
        texts = [_path(host, function) for host in (first, second)]
        if texts[0] != texts[1]:
            yield _two(f"path of {function.address}", first, texts[0], second, texts[1])


def _path(host: HostTopology, function: PciFunction) -> str:
    rid, segment = function.address.rid, function.address.segment
    route = find_route(host, segment, rid)
    if route is None:
        return "no route"
    msi_rid = rid if function.msi_rid is None else function.msi_rid
    msi_route = find_route(host, segment, msi_rid)
    parts = ["no SMMU"]
    if route.smmu is not None:
        base = host.smmu_by_id[route.smmu].base
        parts = [f"SMMU {base}, StreamID {route.stream_of(rid)}"]
    if msi_route is None or not msi_route.its_group:
        parts.append("no ITS")
    else:
        its = host.its_by_id.get(msi_route.its_group[0])
        # An ITS whose base is unknown could be any ITS of the other source.
        device_id = msi_route.device_of(msi_rid)
        parts.append("" if its is None else f"ITS {its.base}, DeviceID {device_id}")
    return ", ".join(filter(None, parts))


def _routes(tables: HostTopology, system: HostTopology) -> Iterator[Disagreement]:
    """Compare the SMMU of each function's route with the one that the kernel put it behind."""
    kernel_lists_smmus = bool(system.smmus)
    for function in system.functions:
        address = function.address
        route = find_route(tables, address.segment, address.rid)
        if route is None:
            yield _two(f"route of {address}", tables, "no route", system, "device present")
            continue
        if not kernel_lists_smmus:
            continue
        base = None if route.smmu is None else tables.smmu_by_id[route.smmu].base
        if route.smmu is not None and base is None:
            continue
        if base != function.smmu:
            texts = ["none" if smmu is None else str(smmu) for smmu in (base, function.smmu)]
            yield _two(f"SMMU of {address}", tables, texts[0], system, texts[1])


def _reserved(tables: HostTopology, system: HostTopology) -> Iterator[Disagreement]:
    """Compare memory ranges of the IORT with the regions the kernel reserves, group by group."""
    if not tables.reserved_memory:
        return
    groups: dict[int, list[PciFunction]] = defaultdict(list)
    for function in system.functions:
        if function.iommu_group is not None and function.reserved is not None:
            groups[function.iommu_group].append(function)
    for group, members in groups.items():
        kernel = [region for region in members[0].reserved or () if region.kind in _DIRECT]
        required = _required(tables, members)
        unreserved = [region for region in required if not _is_covered(region, kernel)]
        extra = [region for region in kernel if not any(_touch(region, rmr) for rmr in required)]
        if unreserved or extra:
            yield _two(
                f"memory mapped 1:1 for IOMMU group {group}",
                tables,
                ", ".join(map(str, required)) or "none",
                system,
                ", ".join(map(str, kernel)) or "none",
            )


def _required(tables: HostTopology, members: Sequence[PciFunction]) -> tuple[ReservedRegion, ...]:
    """Return the memory ranges of the IORT for the functions of a group, each once."""
    regions: dict[ReservedRegion, None] = {}
    for function in members:
        route = find_route(tables, function.address.segment, function.address.rid)
        if route is None or route.smmu is None:
            continue
        try:
            streams = streams_of(tables, function)
        except TopologyError:
            continue
        regions |= dict.fromkeys(reserved_memory(tables, route.smmu, streams))
    return tuple(regions)


def _is_covered(region: ReservedRegion, kernel: Sequence[ReservedRegion]) -> bool:
    """Return whether a region lies within one of the same kind; the kernel joins neighbours."""
    return any(
        other.kind is region.kind and other.base <= region.base and region.last <= other.last
        for other in kernel
    )


def _touch(region: ReservedRegion, other: ReservedRegion) -> bool:
    return region.kind is other.kind and region.overlaps(other.base, other.size)


def _two(
    subject: str, first: HostTopology, text: str, second: HostTopology, other: str
) -> Disagreement:
    return Disagreement(subject, ((first.source, text), (second.source, other)))
