"""The reserved regions of an IOMMU group, as sysfs lists them."""

from __future__ import annotations

from vmm_msi.errors import InputError
from vmm_msi.types.address import SW_MSI_WINDOW, ReservedKind, ReservedRegion


def parse_reserved_regions(listing: str, source: str) -> tuple[ReservedRegion, ...]:
    """Read a ``reserved_regions``: Linux ``drivers/iommu/iommu.c`` iommu_group_show_resv_regions.

    Both kinds of MSI window are printed as ``msi``; what is not at the place where Linux's SMMU
    driver puts its software window is taken for a hardware one.

    :param source: the file it is from, for messages.
    :raise InputError: when a line is not two addresses and a type.
    """
    return tuple(_region(line, source) for line in listing.splitlines())


def _region(line: str, source: str) -> ReservedRegion:
    try:
        first, last, word = line.split()
        base, size = int(first, 16), int(last, 16) - int(first, 16) + 1
        if word != "msi":
            kind = ReservedKind(word)
        elif base == SW_MSI_WINDOW.base:
            kind = ReservedKind.SW_MSI
        else:
            kind = ReservedKind.HW_MSI
    except ValueError:
        raise InputError(
            f"{source}: {line[:80]!r}: not a first address, a last one and a type, which is "
            "direct, direct-relaxable, reserved or msi"
        ) from None
    return ReservedRegion(base, size, kind)
