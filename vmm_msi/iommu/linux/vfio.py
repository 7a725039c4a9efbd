"""A PCI device bound to VFIO: its character device, its interrupts, its registers.

Linux ``include/uapi/linux/vfio.h``, ``Documentation/driver-api/vfio.rst``. The address and data of
its MSI are in :mod:`vmm_msi.iommu.linux.msi`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.host.pci.vfio_drivers import vfio_evidence
from vmm_msi.iommu.linux import local_pci, uapi
from vmm_msi.iommu.linux.iommufd import ioctl
from vmm_msi.iommu.linux.msi import MsiEntry, RealConfig, backend_errors, find_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.iommu.linux.iommufd import LinuxIommufd
    from vmm_msi.types import PciAddress

_BUS = Path("/sys/bus/pci")
_DRIVER = "vfio-pci"
# What driver_override reads without an override (``driver_override_show``).
_NO_OVERRIDE = "(null)"

_PCI_COMMAND = 0x04
_PCI_COMMAND_MEMORY = 0x02
_PCI_COMMAND_MASTER = 0x04


def is_free(address: PciAddress) -> bool:
    """Return whether a device has no driver; False if it is bound to VFIO.

    :raise BackendError: ENODEV when there is no such device, EBUSY when another driver has it.
    """
    function = local_pci.function_of(address)
    if function.driver is None:
        return True
    if vfio_evidence(function) is None:
        raise BackendError(
            errno.EBUSY,
            f"{address}: the driver {function.driver} has it; unbind it first, for example with "
            f"virsh nodedev-detach pci_{str(address).translate(_UNDERSCORES)}",
        )
    return False


class VfioDevice:
    """A PCI function, bound to VFIO; a function without driver is bound to vfio-pci.

    :param address: of the function.
    :raise BackendError: ENODEV when there is no such device, EBUSY when another driver has it,
        else the errno of sysfs.
    """

    def __init__(self, address: PciAddress) -> None:
        self.address = address
        self._sysfs = local_pci.folder_of(address)
        self._fd = -1
        self._regions: dict[int, int] = {}
        self._event = -1
        self._config: RealConfig | None = None
        self._entry: MsiEntry | None = None
        #: The former value of driver_override; None if this object did not write it.
        self._override: str | None = None
        if is_free(address):
            try:
                self._bind_driver()
            except BaseException:
                self._unbind_driver()
                raise

    def _bind_driver(self) -> None:
        """Bind a device without driver to vfio-pci."""
        advice = "run as root on a kernel with vfio-pci (modprobe vfio-pci)"
        override = self._sysfs / "driver_override"
        with backend_errors(f"{self.address}: binding {_DRIVER}", advice):
            before = override.read_text(encoding="utf-8").strip()
            override.write_text(_DRIVER, encoding="utf-8")
            self._override = before
            (_BUS / "drivers_probe").write_text(str(self.address), encoding="ascii")
        # Without such a driver, drivers_probe does nothing and reports nothing.
        if is_free(self.address):
            raise BackendError(
                errno.ENODEV, f"{self.address}: {_DRIVER} does not bind it; {advice}"
            )

    def _unbind_driver(self) -> None:
        """Undo :meth:`_bind_driver`: unbind the driver and restore driver_override."""
        before, self._override = self._override, None
        if before is None:
            return
        with backend_errors(f"{self.address}: unbinding {_DRIVER}"):
            if (self._sysfs / "driver").is_symlink():
                unbind = self._sysfs / "driver" / "unbind"
                unbind.write_text(str(self.address), encoding="ascii")
            # A line break alone clears it (``__device_set_driver_override``).
            kept = "" if before == _NO_OVERRIDE else before
            (self._sysfs / "driver_override").write_text(f"{kept}\n", encoding="utf-8")

    def release(self) -> None:
        """Close the device and, if it had no driver before, unbind it.

        :raise BackendError: when that fails.
        """
        self.close()
        self._unbind_driver()

    @property
    def is_open(self) -> bool:
        """Return whether the character device is open."""
        return self._fd >= 0

    def open(self) -> None:
        """Open the character device.

        :raise BackendError: ENOENT without one: the kernel lacks CONFIG_VFIO_DEVICE_CDEV.
        """
        action = f"{self.address}: opening its VFIO character device"
        advice = "run as root on a kernel with CONFIG_VFIO_DEVICE_CDEV"
        with backend_errors(action, advice):
            node = next((self._sysfs / "vfio-dev").iterdir(), self._sysfs).name
            self._fd = os.open(f"/dev/vfio/devices/{node}", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the character device, which ends interrupts, attachment and binding."""
        if self._entry is not None:
            self._entry.close()
        if self._config is not None:
            self._config.close()
        self._entry = self._config = None
        for fd in (self._fd, self._event):
            if fd >= 0:
                os.close(fd)
        self._fd = self._event = -1
        self._regions.clear()

    def bind(self, iommufd: LinuxIommufd) -> int:
        """VFIO_DEVICE_BIND_IOMMUFD; return the device's id in the file descriptor."""
        argument = uapi.DeviceBindIommufd(ctypes.sizeof(uapi.DeviceBindIommufd), iommufd=iommufd.fd)
        name = f"VFIO_DEVICE_BIND_IOMMUFD of {self.address}"
        try:
            ioctl(self._fd, uapi.VFIO_DEVICE_BIND_IOMMUFD, name, argument)
        except BackendError as error:
            if error.errno != errno.EPERM:
                raise
            # iommu_device_claim_dma_owner
            reason = (
                f"{error.reason}: a driver of the host or another process may have a device of its "
                "IOMMU group; unbind the group's other devices, or bind them to vfio-pci"
            )
            raise BackendError(error.errno, reason) from error
        return int(argument.out_devid)

    def attach(self, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT to an IOAS or HWPT; moves an attached device."""
        argument = uapi.DeviceAttachIommufdPt(
            ctypes.sizeof(uapi.DeviceAttachIommufdPt), pt_id=pt_id
        )
        name = f"VFIO_DEVICE_ATTACH_IOMMUFD_PT of {self.address} to object {pt_id}"
        ioctl(self._fd, uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, name, argument)

    def detach(self) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT."""
        argument = uapi.DeviceDetachIommufdPt(ctypes.sizeof(uapi.DeviceDetachIommufdPt))
        name = f"VFIO_DEVICE_DETACH_IOMMUFD_PT of {self.address}"
        ioctl(self._fd, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT, name, argument)

    def _region(self, index: int) -> int:
        """Return the offset of a region in the character device."""
        if index not in self._regions:
            argument = uapi.RegionInfo(ctypes.sizeof(uapi.RegionInfo), index=index)
            name = f"VFIO_DEVICE_GET_REGION_INFO of {self.address}"
            ioctl(self._fd, uapi.VFIO_DEVICE_GET_REGION_INFO, name, argument)
            self._regions[index] = int(argument.offset)
        return self._regions[index]

    def _map_page(self, bar: int, offset: int) -> tuple[mmap.mmap, int]:
        """Map the page of a BAR with ``offset``; return the page and the offset in it.

        :raise BackendError: when the kernel refuses.
        """
        self._set_command(_PCI_COMMAND_MEMORY)
        page = offset & -mmap.PAGESIZE
        with backend_errors(f"{self.address}: mapping {page:#x} of BAR {bar}"):
            region = self._region(bar)
            mapped = mmap.mmap(self._fd, mmap.PAGESIZE, mmap.MAP_SHARED, offset=region + page)
        return mapped, offset - page

    def read32(self, bar: int, offset: int) -> int:
        """Return 32 bits of a memory BAR."""
        with backend_errors(f"{self.address}: reading {offset:#x} of BAR {bar}"):
            return int.from_bytes(os.pread(self._fd, 4, self._region(bar) + offset), "little")

    def write32(self, bar: int, offset: int, value: int) -> None:
        """Write 32 bits into a memory BAR."""
        with backend_errors(f"{self.address}: writing to {offset:#x} of BAR {bar}"):
            os.pwrite(self._fd, value.to_bytes(4, "little"), self._region(bar) + offset)

    @property
    def sends_msi(self) -> bool:
        """Return whether MSIs are enabled in the device itself."""
        return self._msi().enabled

    def enable_bus_master(self) -> None:
        """Enable memory decoding and bus mastering, which MSIs need."""
        self._set_command(_PCI_COMMAND_MEMORY | _PCI_COMMAND_MASTER)

    def _set_command(self, bits: int) -> None:
        at = self._region(uapi.VFIO_PCI_CONFIG_REGION_INDEX) + _PCI_COMMAND
        with backend_errors(f"{self.address}: enabling memory and bus mastering"):
            command = int.from_bytes(os.pread(self._fd, 2, at), "little")
            if command | bits != command:
                os.pwrite(self._fd, (command | bits).to_bytes(2, "little"), at)

    def enable_msi(self) -> int:
        """VFIO_DEVICE_SET_IRQS of one MSI with an eventfd; return the eventfd, non-blocking.

        If it is enabled already, the kernel writes its own address again: VFIO exchanges the
        eventfd by free_irq and request_irq, and ``msi_domain_activate`` writes the message.

        :raise BackendError: EOPNOTSUPP for a device without MSI, else the kernel's refusal.
        """
        index = self._msi().irq_index
        if self._event < 0:
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        head = uapi.IrqSet(
            ctypes.sizeof(uapi.IrqSet) + 4,
            uapi.VFIO_IRQ_SET_DATA_EVENTFD | uapi.VFIO_IRQ_SET_ACTION_TRIGGER,
            index,
            0,
            1,
        )
        argument = bytearray(bytes(head) + self._event.to_bytes(4, "little", signed=True))
        name = f"VFIO_DEVICE_SET_IRQS of {self.address}"
        ioctl(self._fd, uapi.VFIO_DEVICE_SET_IRQS, name, argument)
        return self._event

    def disable_msi(self) -> None:
        """VFIO_DEVICE_SET_IRQS with no MSI."""
        argument = uapi.IrqSet(
            ctypes.sizeof(uapi.IrqSet),
            uapi.VFIO_IRQ_SET_DATA_NONE | uapi.VFIO_IRQ_SET_ACTION_TRIGGER,
            self._msi().irq_index,
            0,
            0,
        )
        name = f"VFIO_DEVICE_SET_IRQS of {self.address}"
        ioctl(self._fd, uapi.VFIO_DEVICE_SET_IRQS, name, argument)

    @property
    def event_fd(self) -> int | None:
        """The eventfd that the MSI signals; None if it was never enabled."""
        return self._event if self._event >= 0 else None

    def take_interrupts(self) -> int:
        """Return how many interrupts arrived since the last call."""
        try:
            return os.eventfd_read(self._event) if self._event >= 0 else 0
        except BlockingIOError:
            return 0

    def _msi(self) -> MsiEntry:
        """Return the device's MSI.

        :raise BackendError: EOPNOTSUPP for a device without one.
        """
        if self._config is None:
            self._config = RealConfig(self.address)
        if self._entry is None:
            self._entry = find_entry(self._config, self._map_page)
        return self._entry

    @property
    def can_write_msi(self) -> bool:
        """Return whether the real MSI can be written, by writing its present value."""
        try:
            self._msi().probe()
        except BackendError:
            return False
        return True

    def msi_address(self) -> int:
        """Return the address that the device sends its MSI to."""
        return self._msi().read_address()

    def set_msi_address(self, address: int, data: int | None = None) -> None:
        """Write the address and, if given, the data of the device's MSI.

        The kernel is not aware of it. It writes its own values again when it enables the MSI or
        gets another eventfd for it and when it restores the device after a reset or a sleep
        (``pci_restore_msi_state``), but not when the interrupt's affinity changes
        (``its_set_affinity`` moves the LPI instead).
        """
        self._msi().write(address, data)


@contextmanager
def bound_to_vfio(addresses: Iterable[PciAddress]) -> Iterator[None]:
    """Keep devices bound to VFIO in the context; devices without driver have none afterwards.

    :raise BackendError: as :class:`VfioDevice` does. If another driver has one of the devices,
        none is changed.
    """
    addresses = list(addresses)
    for address in addresses:
        is_free(address)
    with ExitStack() as stack:
        for address in addresses:
            stack.callback(VfioDevice(address).release)
        yield


_UNDERSCORES = str.maketrans(":.", "__")
