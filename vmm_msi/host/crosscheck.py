"""Compare the sources about one host and report what they describe differently.

:func:`vmm_msi.host.sources.read_host` returns the sources of a HOST. :func:`disagreements` compares
them; :func:`vmm_msi.host.join.join` uses the first source that reports a value.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import TopologyError
from vmm_msi.host.join import join
from vmm_msi.host.resolve import find_route, reserved_memory, streams_of
from vmm_msi.types import PciAddress, PciFunction, ReservedKind, ReservedRegion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmm_msi.types import HostTopology, Its

_LAST_RID = 0xFFFF
_MAX_SHOWN = 6
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
        differences += _page_size(first, second)
        if has_tables(first) and has_tables(second):
            differences += table_differences(first, second, functions)
        else:
            differences += smmu_differences(first, second)
        differences += _functions(first, second)
    for tables in sources:
        if not tables.routes:
            continue
        for system in sources:
            differences += _routes(tables, system)
            differences += _reserved(tables, system)
    return differences


def has_tables(host: HostTopology) -> bool:
    """Return whether a source describes how devices reach SMMUs and ITSes."""
    return bool(host.routes or host.devices)


def table_differences(
    first: HostTopology, second: HostTopology, functions: Sequence[PciFunction] = ()
) -> Iterator[Disagreement]:
    """Compare two sources that both describe how devices reach SMMUs and ITSes.

    :param functions: the functions that any source lists.
    """
    yield from smmu_differences(first, second)
    yield from _itses(first, second)
    yield from _segments(first, second)
    yield from _reserved_memory(first, second)
    yield from _paths(first, second, functions)


def smmu_differences(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
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


def _page_size(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    if first.granule_known and second.granule_known and first.granule != second.granule:
        yield _two("page size", first, str(first.granule), second, str(second.granule))


def _itses(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    bases = [{its.base: its for its in host.itses} for host in (first, second)]
    if not all(bases):
        return
    for base in sorted({*bases[0], *bases[1]}):
        itses = [known.get(base) for known in bases]
        if None in itses:
            texts = ["absent" if its is None else "present" for its in itses]
        else:
            texts = [_its_text(its) for its in itses if its is not None]
        if texts[0] != texts[1]:
            yield _two(f"ITS at {base}", first, texts[0], second, texts[1])


def _its_text(its: Its) -> str:
    """Describe an ITS beyond its base."""
    pre_its = "" if its.pre_its is None else f", behind a pre-ITS at {its.pre_its}"
    return f"doorbell {its.doorbell}{pre_its}"


def _segments(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    """Compare the PCI segments of two sets of tables, and their attributes."""
    known = [{segment.number: segment for segment in host.segments} for host in (first, second)]
    if not all(known):
        return
    for number in sorted({*known[0], *known[1]}):
        segments = [segments.get(number) for segments in known]
        if segments[0] is None or segments[1] is None:
            texts = ["absent" if segment is None else "present" for segment in segments]
            yield _two(f"PCI segment {number}", first, texts[0], second, texts[1])
            continue
        yield from _facts(
            first,
            second,
            (
                (f"ATS of PCI segment {number}", segments[0].ats, segments[1].ats),
                (f"CANWBS of PCI segment {number}", segments[0].canwbs, segments[1].canwbs),
            ),
        )


def _reserved_memory(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    """Compare the RMRs of two IORTs; a device tree has neither them nor CANWBS."""
    if not all(
        any(segment.canwbs is not None for segment in host.segments) for host in (first, second)
    ):
        return
    known = [
        {(memory.base, memory.size, memory.relaxable): memory for memory in host.reserved_memory}
        for host in (first, second)
    ]
    for base, size, relaxable in sorted(known[0].keys() ^ known[1].keys()):
        texts = [
            "present" if (base, size, relaxable) in memories else "absent" for memories in known
        ]
        kind = ReservedKind.DIRECT_RELAXABLE if relaxable else ReservedKind.DIRECT
        subject = f"memory mapped 1:1 {ReservedRegion(base, size, kind)}"
        yield _two(subject, first, texts[0], second, texts[1])


def _functions(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    """Compare the functions that two sources list: sysfs, libvirt's node devices."""
    yield from _groups(first, second)
    for function in first.functions:
        other = second.function_by_address.get(function.address)
        if other is not None:
            yield from _facts(
                first,
                second,
                (
                    (f"{what} of {function.address}", read(function), read(other))
                    for what, read in _FUNCTION_FACTS
                ),
            )
    yield from _presence(first, second)


def _hex_class(function: PciFunction) -> str | None:
    return None if function.class_code is None else f"{function.class_code:#08x}"


#: Facts about a function and the value of each; None if the source does not report it.
_FUNCTION_FACTS: tuple[tuple[str, Callable[[PciFunction], object]], ...] = (
    ("class", _hex_class),
    ("driver", lambda function: function.driver),
    ("NUMA node", lambda function: function.numa_node),
    ("physical function", lambda function: function.physical_function),
    ("SMMU by the kernel", lambda function: function.smmu),
    ("number of vectors", lambda function: function.vectors),
    ("ATS", lambda function: function.ats),
    ("PASID", lambda function: function.pasid),
    ("reserved regions", lambda function: _regions(function.reserved)),
)


def _regions(regions: Iterable[ReservedRegion] | None) -> str | None:
    return None if regions is None else ", ".join(map(str, sorted(regions, key=str))) or "none"


def _presence(first: HostTopology, second: HostTopology) -> Iterator[Disagreement]:
    """Compare which functions two sources list."""
    known = [set(host.function_by_address) for host in (first, second)]
    complete = first.lists_all_functions and second.lists_all_functions
    if complete and all(known) and known[0] != known[1]:
        texts = [_names(known[0] - known[1]), _names(known[1] - known[0])]
        yield _two("PCI functions in one source only", first, texts[0], second, texts[1])


def _names(addresses: Iterable[PciAddress]) -> str:
    names = [str(address) for address in sorted(addresses)]
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return (", ".join(names[:_MAX_SHOWN]) or "none") + more


def _facts(
    first: HostTopology, second: HostTopology, facts: Iterable[tuple[str, object, object]]
) -> Iterator[Disagreement]:
    """Compare values that both sources report.

    :param facts: the subject, and the value of each source, None if the source lacks it.
    """
    for subject, value, other in facts:
        if value is not None and other is not None and value != other:
            yield _two(subject, first, _value_text(value), second, _value_text(other))


def _value_text(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


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
    """Compare how devices reach SMMU and ITS: the listed ones, then the routes of each segment."""
    listed = {device.address: PciFunction(device.address) for device in first.devices}
    listed |= {device.address: PciFunction(device.address) for device in second.devices}
    listed |= {function.address: function for function in functions}
    segments = set()
    for function in sorted(listed.values(), key=lambda function: function.address):
        paths = _path(first, function), _path(second, function)
        if _differ(*paths):
            segments.add(function.address.segment)
            texts = [str(path) for path in paths]
            yield _two(f"path of {function.address}", first, texts[0], second, texts[1])
    if not (first.routes and second.routes) or (
        (first.routes, first.smmus, first.itses) == (second.routes, second.smmus, second.itses)
    ):
        return
    for address in _route_bounds(first, second):
        if address.segment in segments:
            continue
        paths = _path(first, PciFunction(address)), _path(second, PciFunction(address))
        if _differ(*paths):
            segments.add(address.segment)
            texts = [str(path) for path in paths]
            yield _two(f"route of {address}", first, texts[0], second, texts[1])


class _Path(NamedTuple):
    """How a function reaches SMMU and ITS; None for what is unknown."""

    route: str
    smmu: str | None = None
    stream: str | None = None
    its: str | None = None
    device_id: str | None = None

    def __str__(self) -> str:
        return ", ".join(filter(None, self))


def _differ(path: _Path | None, other: _Path | None) -> bool:
    """Return whether two sources describe a path differently; an unknown ITS may be any."""
    if path is None or other is None:
        return False
    return any(
        value != counterpart
        for value, counterpart in zip(path, other, strict=True)
        if value is not None and counterpart is not None
    )


def _route_bounds(first: HostTopology, second: HostTopology) -> list[PciAddress]:
    """Return addresses on which routes differ if they differ anywhere: they are linear between."""
    bounds = set()
    for route in (*first.routes, *second.routes):
        for rid in (route.first - 1, route.first, route.last, route.last + 1):
            if 0 <= rid <= _LAST_RID:
                bounds.add((route.segment, rid))
    return [PciAddress.from_rid(segment, rid) for segment, rid in sorted(bounds)]


def _path(host: HostTopology, function: PciFunction) -> _Path | None:
    """Return how a function reaches SMMU and ITS; None if the source lists other devices only."""
    rid, segment = function.address.rid, function.address.segment
    device = host.device_by_address.get(function.address)
    if device is None:
        if not host.routes:
            return None
        route = find_route(host, segment, rid)
        if route is None:
            return _Path("no route")
        device = route.device(function.address, 0)
        if function.msi_rid is not None:
            msi_route = find_route(host, segment, function.msi_rid)
            group = () if msi_route is None else msi_route.its_group
            device = replace(device, its_group=group)
            if msi_route is not None:
                device = replace(device, device_id=msi_route.device_of(function.msi_rid))
    smmu: str | None = "no SMMU"
    its: str | None = "no ITS"
    stream = device_id = ""
    if device.smmu is not None:
        base = host.smmu_by_id[device.smmu].base
        smmu = None if base is None else f"SMMU {base}"
        stream = f"StreamID {device.stream_id}"
    if device.its_group:
        known = host.its_by_id.get(device.its)
        its = None if known is None else f"ITS {known.base}"
        device_id = f"DeviceID {device.device_id}"
    return _Path("", smmu, stream, its, device_id)


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
