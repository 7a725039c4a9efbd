"""Read SMMUs, PCI segments and reserved memory from an IORT; ``iort_routes`` has the routes.

Linux ``drivers/acpi/arm64/iort.c`` is the reference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.intervals import MAX_PIECES
from vmm_msi.types import Pa, PciSegment, ReservedKind, ReservedMemory, ReservedRegion, Smmu
from vmm_msi.types.host import ITS_FRAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.host.firmware.iort import Iort
    from vmm_msi.types import Granule, Its, PciRoute

#: Revision of the table from which Linux reads RMR nodes: Arm DEN0049 E.d (iort_find_rmrs).
_RMR_REVISION = 5
_RMR_ALIGNMENT = 0x10000
#: Model number of the SMMUv3 of a HiSilicon Hi161x, which MSIs bypass: ``actbl2.h``.
_HI161X = 1


def smmus(iort: Iort) -> tuple[Smmu, ...]:
    """Return the SMMUs, numbered in the order of the table.

    IORT's own identifiers are 0 before revision 3 of the table and so are not used. The table does
    not have whether an SMMUv3 can nest; an SMMUv1 or v2 counts as one that cannot.
    """
    return tuple(
        Smmu(index, Pa(node.base), nested=node.is_v3, version=3 if node.is_v3 else 2)
        for index, node in enumerate(iort.smmus)
    )


def segments(iort: Iort) -> tuple[PciSegment, ...]:
    """Return the PCI segments with the attributes of their root complexes, in the table's order.

    The first root complex of a segment stands for it, in iort_iommu_configure_id too: its ATS
    attribute (iort_pci_rc_supports_ats) and its CANWBS (iort_pci_rc_supports_canwbs).
    """
    return tuple(
        PciSegment(segment, ats=bool(node.ats & 1), canwbs=node.canwbs)
        for segment, node in iort.segments.items()
    )


def with_hw_msi(
    iort: Iort, routes: Sequence[PciRoute], itses: Sequence[Its]
) -> tuple[PciRoute, ...]:
    """Return the routes with the regions in which MSIs bypass a HiSilicon Hi161x's SMMU.

    They are the translation frames of all ITSes of the group (iort_iommu_msi_get_resv_regions).

    :param itses: the ITSes whose bases are known.
    """
    bypassed = {
        index for index, node in enumerate(iort.smmus) if node.is_v3 and node.model == _HI161X
    }
    if not bypassed:
        return tuple(routes)
    frames = {its.id: its.base + ITS_FRAME for its in itses}
    return tuple(
        replace(
            route,
            reserved=tuple(
                ReservedRegion(frames[number], ITS_FRAME, ReservedKind.HW_MSI)
                for number in route.its_group
                if number in frames
            ),
        )
        if route.smmu in bypassed
        else route
        for route in routes
    )


def reserved_memory(iort: Iort, granule: Granule) -> tuple[ReservedMemory, ...]:
    """Return the memory ranges of the RMR nodes, once for each range of StreamIDs and SMMU.

    As in iort_node_get_rmr_info, an ID mapping stands for the StreamIDs from its output base on,
    whatever its flags, and counts if its target is an SMMU. The flag "remapping is permitted" makes
    a range relaxable (iort_get_rmrs), and a range that is not made of 64 KiB is widened to whole
    pages of the kernel (iort_rmr_alloc). Linux maps them for a PCI device only if it keeps the PCI
    configuration of the firmware (iort_rmr_has_dev).

    :param granule: page size of the host's kernel.
    :raise TopologyError: when there are more than :data:`MAX_PIECES`.
    """
    if iort.revision < _RMR_REVISION:
        return ()
    count = sum(len(node.ranges) * len(node.mappings) for node in iort.rmrs)
    if count > MAX_PIECES:
        raise TopologyError(
            f"{iort.source}: the RMR nodes have {count} pairs of a memory range and StreamIDs; "
            f"the limit is {MAX_PIECES}"
        )
    return tuple(_reserved(iort, granule))


def _reserved(iort: Iort, granule: Granule) -> Iterator[ReservedMemory]:
    number = {node.offset: index for index, node in enumerate(iort.smmus)}
    for node in iort.rmrs:
        pages = [page for pair in node.ranges if (page := _pages(*pair, granule))[1]]
        for mapping in node.mappings:
            if mapping.target not in number:
                continue
            for base, size in pages:
                yield ReservedMemory(
                    base,
                    size,
                    smmu=number[mapping.target],
                    first_stream=mapping.output_base,
                    last_stream=mapping.output_base + mapping.id_count,
                    relaxable=node.remap_permitted,
                )


def _pages(base: int, size: int, granule: Granule) -> tuple[int, int]:
    """Return base and size as Linux rounds them."""
    if base % _RMR_ALIGNMENT or size % _RMR_ALIGNMENT:
        size += base % granule
        return base - base % granule, size + -size % granule
    return base, size
