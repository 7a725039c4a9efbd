"""Read the reserved regions of an IOMMU group, as sysfs lists them."""

from __future__ import annotations

from vmm_msi.errors import InputError
from vmm_msi.types import SW_MSI_WINDOW, ReservedKind, ReservedRegion


def parse_reserved_regions(listing: str, source: str) -> tuple[ReservedRegion, ...]:
    """Read a ``reserved_regions``: Linux ``drivers/iommu/iommu.c`` iommu_group_show_resv_regions.

    The kernel prints both kinds of MSI window as ``msi``. One at the place of the software window
    of Linux's SMMU drivers counts as that window, any other as a hardware one.

    :param source: the file that the listing is from, for messages.
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
            f"{source}: {line[:80]!r}: not a first address, a last address and a type, which is "
            "direct, direct-relaxable, reserved or msi"
        ) from None
    return ReservedRegion(base, size, kind)
