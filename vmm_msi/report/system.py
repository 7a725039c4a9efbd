"""Print the PCI segments, IOMMU groups and PCI functions of a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.host.resolve import find_route, isolates_msis
from vmm_msi.report.columns import Rows, section
from vmm_msi.terminal import WIDTH, Line, Tone
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_msi.host.crosscheck import Disagreement
    from vmm_msi.report.documents import FunctionJson, GroupJson, SystemJson
    from vmm_msi.types import HostTopology, PciFunction, ReservedRegion


def json_of(host: HostTopology, differences: Sequence[Disagreement]) -> SystemJson:
    """Return their part of the JSON of ``topology show``, with the disagreements of sources."""
    return {
        "granule_known": host.granule_known,
        "missing": list(host.missing),
        "table_errors": [
            {"table": error.table, "error": error.text} for error in host.table_errors
        ],
        "segments": [
            {"segment": segment.number, "ats": segment.ats, "canwbs": segment.canwbs}
            for segment in host.segments
        ],
        "reserved_memory": [
            {
                "base": f"{memory.base:#x}",
                "size": f"{memory.size:#x}",
                "smmu": memory.smmu,
                "first_stream_id": f"{memory.first_stream:#x}",
                "last_stream_id": f"{memory.last_stream:#x}",
                "relaxable": memory.relaxable,
            }
            for memory in host.reserved_memory
        ],
        "functions": [_function_json(host, function) for function in host.functions],
        "iommu_groups": [_group_json(host, group) for group in _groups(host)],
        "disagreements": [
            {
                "subject": difference.subject,
                "statements": [
                    {"source": source, "says": text} for source, text in difference.statements
                ],
            }
            for difference in differences
        ],
    }


def sections(host: HostTopology) -> Iterator[Rows]:
    """Yield the rows for people, without empty sections."""
    if host.segments:
        yield Rows(
            "PCI segments",
            ("segment", "ATS", "CANWBS"),
            [
                (str(segment.number), _yes(segment.ats), _yes(segment.canwbs))
                for segment in host.segments
            ],
        )
    if host.reserved_memory:
        yield Rows(
            "Memory mapped 1:1 (RMR)",
            ("base", "size", "SMMU", "StreamIDs", "relaxable"),
            [
                (
                    f"{memory.base:#x}",
                    f"{memory.size:#x}",
                    str(memory.smmu),
                    f"{memory.first_stream:#x}-{memory.last_stream:#x}",
                    _yes(memory.relaxable),
                )
                for memory in host.reserved_memory
            ],
        )
    if not host.functions:
        return
    yield Rows(
        "IOMMU groups",
        ("group", "isolated MSI", "members", "reserved regions"),
        [
            (
                str(group[0].iommu_group),
                _yes(_isolated(host, group)),
                " ".join(str(function.address) for function in group),
                _regions(group[0].reserved),
            )
            for group in _groups(host)
        ],
    )
    yield Rows(
        "PCI functions",
        ("address", "group", "SMMU", "driver", "vectors", "ATS", "PASID", "VF of", "aliases"),
        [_function_row(host, function) for function in host.functions],
    )


def disagreements(differences: Sequence[Disagreement]) -> Rows:
    """Return the rows about disagreements of sources, several for each."""
    return Rows(
        "Disagreements",
        ("about", "source", "description"),
        [
            (difference.subject if not number else "", source, text)
            for difference in differences
            for number, (source, text) in enumerate(difference.statements)
        ],
    )


def disagreement_lines(differences: Sequence[Disagreement], width: int = WIDTH) -> Iterator[str]:
    """Yield the section about disagreements of sources."""
    yield ""
    tone = Tone.WARNING if differences else Tone.GOOD
    yield Line([(f"Disagreements ({len(differences)})", tone)])
    if differences:
        yield from list(section(disagreements(differences), width))[2:]


def _function_json(host: HostTopology, function: PciFunction) -> FunctionJson:
    segment = function.address.segment
    return {
        "address": str(function.address),
        "class": None if function.class_code is None else f"{function.class_code:#08x}",
        "driver": function.driver,
        "numa_node": function.numa_node,
        "iommu_group": function.iommu_group,
        "smmu": _smmu(host, function),
        "vectors": function.vectors,
        "ats": function.ats,
        "pasid": function.pasid,
        "physical_function": (
            None if function.physical_function is None else str(function.physical_function)
        ),
        "virtual_functions": [str(virtual) for virtual in function.virtual_functions],
        "dma_aliases": [str(PciAddress.from_rid(segment, rid)) for rid in function.dma_rids],
        "msi_alias": (
            None
            if function.msi_rid is None
            else str(PciAddress.from_rid(segment, function.msi_rid))
        ),
    }


def _group_json(host: HostTopology, group: Sequence[PciFunction]) -> GroupJson:
    reserved = group[0].reserved
    return {
        "group": group[0].iommu_group,
        "members": [str(function.address) for function in group],
        "isolated_msi": _isolated(host, group),
        "reserved": None
        if reserved is None
        else [
            {"base": f"{region.base:#x}", "size": f"{region.size:#x}", "type": str(region.kind)}
            for region in reserved
        ],
    }


def _function_row(host: HostTopology, function: PciFunction) -> tuple[str, ...]:
    smmu = _smmu(host, function)
    return (
        str(function.address),
        "-" if function.iommu_group is None else str(function.iommu_group),
        "-" if smmu is None else str(smmu),
        function.driver or "-",
        "?" if function.vectors is None else str(function.vectors),
        _yes(function.ats),
        _yes(function.pasid),
        "-" if function.physical_function is None else str(function.physical_function),
        _aliases(function),
    )


def _groups(host: HostTopology) -> list[list[PciFunction]]:
    groups: dict[int, list[PciFunction]] = {}
    for function in host.functions:
        if function.iommu_group is not None:
            groups.setdefault(function.iommu_group, []).append(function)
    return [groups[number] for number in sorted(groups)]


def _isolated(host: HostTopology, group: Sequence[PciFunction]) -> bool | None:
    """Return whether the MSIs of all members are isolated, as VFIO requires; None if unknown."""
    isolated = [isolates_msis(host, function.address) for function in group]
    return None if None in isolated else all(isolated)


def _smmu(host: HostTopology, function: PciFunction) -> int | None:
    """Return the id of a function's SMMU: by its route, else by the kernel's link."""
    route = find_route(host, function.address.segment, function.address.rid)
    if route is not None:
        return route.smmu
    return next(
        (
            smmu.id
            for smmu in host.smmus
            if function.smmu is not None and smmu.base == function.smmu
        ),
        None,
    )


def _aliases(function: PciFunction) -> str:
    others = [rid for rid in function.dma_rids if rid != function.address.rid]
    if not function.dma_rids:
        return "?"
    names = [str(PciAddress.from_rid(function.address.segment, rid)) for rid in others]
    return _shortened(names) or "-"


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return " ".join(names[:4]) + more


def _regions(regions: Iterable[ReservedRegion] | None) -> str:
    return "?" if regions is None else ", ".join(map(str, regions)) or "-"


def _yes(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "no"
