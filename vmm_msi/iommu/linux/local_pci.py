"""The PCI devices of this machine in sysfs, for a backend that drives them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.host.files.folder import this_machine
from vmm_msi.host.pci import sysfs
from vmm_msi.host.pci.sysfs import PciDevices
from vmm_msi.types import ReservedKind

if TYPE_CHECKING:
    from vmm_msi.types import PciAddress, PciFunction, ReservedRegion

DEVICES = Path(sysfs.DEVICES)


def folder_of(device: PciAddress) -> Path:
    """Return the folder of a device.

    :raise BackendError: ENODEV when there is no such device.
    """
    folder = DEVICES / str(device)
    if not folder.is_dir():
        raise BackendError(errno.ENODEV, f"{device}: the host has no such PCI device")
    return folder


def function_of(device: PciAddress) -> PciFunction:
    """Return what sysfs shows of a device: its driver and its IOMMU group among others.

    :raise BackendError: ENODEV when there is no such device.
    """
    folder_of(device)
    return PciDevices(this_machine()).function(device)


def ids_of(device: PciAddress) -> tuple[int, int]:
    """Return a device's vendor id and device id.

    :raise BackendError: ENODEV when there is no such device, EIO when its ids cannot be read.
    """
    folder_of(device)
    vendor, number = PciDevices(this_machine()).ids(device)
    if vendor is None or number is None:
        raise BackendError(errno.EIO, f"{device}: its vendor id and device id cannot be read")
    return vendor, number


def sw_msi_window(device: PciAddress) -> ReservedRegion | None:
    """Return the device's software MSI window; None if it has none."""
    pci = PciDevices(this_machine())
    group = pci.function(device).iommu_group
    regions = () if group is None else pci.reserved_regions(group) or ()
    return next((region for region in regions if region.kind is ReservedKind.SW_MSI), None)
