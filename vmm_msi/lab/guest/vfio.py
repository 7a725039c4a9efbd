"""Take a device of this machine, a guest, with VFIO, as DPDK or a nested guest would."""

from __future__ import annotations

import time
from pathlib import Path

from vmm_msi.errors import BackendError, errno_name
from vmm_msi.iommu.linux.iommufd import LinuxIommufd
from vmm_msi.iommu.linux.vfio import VfioDevice
from vmm_msi.types import PciAddress

_PCI = Path("/sys/bus/pci")
_READY_S = 20.0


def take(address: str, use_s: float = 0.0) -> str:
    """Bind a device to vfio-pci and to an iommufd; give it back to its driver.

    :param address: the device's address in this machine.
    :param use_s: enable an MSI for so many seconds, whose address is in this kernel's MSI window.
    :return: the name of the errno with which the kernel refused it; empty if it did not.
    """
    folder = _PCI / "devices" / address
    driver = (folder / "driver").resolve()
    (driver / "unbind").write_text(address, encoding="ascii")
    refused = ""
    try:
        device = VfioDevice(PciAddress.parse(address))
        try:
            with LinuxIommufd() as iommufd:
                device.open()
                device.bind(iommufd)
                if use_s:
                    device.attach(iommufd.ioas_alloc())
                    device.enable_bus_master()
                    device.enable_msi()
                    time.sleep(use_s)
                    device.disable_msi()
                    device.close()
        except BackendError as error:
            refused = errno_name(error.errno)
        finally:
            device.release()
    finally:
        (driver / "bind").write_text(address, encoding="ascii")
        _await_use(folder)
    return refused


def _await_use(folder: Path) -> None:
    """Wait until the driver has made a drive or an interface of the device again."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if any(folder.glob("nvme/nvme*/nvme*n*")) or any(folder.glob("net/*")):
            return
        time.sleep(0.1)
