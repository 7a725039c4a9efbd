"""What sysfs tells of a device and its IOMMU group."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.types import ReservedKind
from vmm_msi.types.reserved import parse_reserved_regions

if TYPE_CHECKING:
    from vmm_msi.types import PciAddress, ReservedRegion

DEVICES = Path("/sys/bus/pci/devices")


def folder_of(device: PciAddress) -> Path:
    """Return the folder of a device.

    :raise BackendError: ENODEV when there is no such device.
    """
    folder = DEVICES / str(device)
    if not folder.is_dir():
        raise BackendError(errno.ENODEV, f"{device}: the host has no such PCI device")
    return folder


def ids_of(device: PciAddress) -> tuple[int, int]:
    """Return a device's vendor and device id.

    :raise BackendError: ENODEV when there is no such device.
    """
    folder = folder_of(device)
    vendor, number = (
        int((folder / name).read_text(encoding="ascii"), 16) for name in ("vendor", "device")
    )
    return vendor, number


def class_of(device: PciAddress) -> int:
    """Return a device's class code, 24 bits.

    :raise BackendError: ENODEV when there is no such device.
    """
    return int((folder_of(device) / "class").read_text(encoding="ascii"), 16)


def reserved_regions(device: PciAddress) -> tuple[ReservedRegion, ...]:
    """Return the reserved regions of a device's IOMMU group, none where it is in none."""
    listing = DEVICES / str(device) / "iommu_group" / "reserved_regions"
    if not listing.exists():
        return ()
    return parse_reserved_regions(listing.read_text(encoding="ascii"), str(listing))


def sw_msi_window(device: PciAddress) -> ReservedRegion | None:
    """Return the device's software MSI window, None where it has none."""
    regions = reserved_regions(device)
    return next((region for region in regions if region.kind is ReservedKind.SW_MSI), None)
