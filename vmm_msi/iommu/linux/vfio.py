"""A PCI device in the hands of vfio-pci: its character device, its interrupts, its MSI entry.

Linux ``include/uapi/linux/vfio.h``, ``Documentation/driver-api/vfio.rst``. VFIO shows user space
a virtual MSI capability; the real one, which holds what the kernel programmed, is read and
written through the ``config`` file of sysfs.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.linux import uapi
from vmm_msi.iommu.linux.calls import ioctl

if TYPE_CHECKING:
    from vmm_msi.iommu.linux.calls import IommuFd
    from vmm_msi.model import PciAddress

SYSFS_DEVICES = Path("/sys/bus/pci/devices")
_DRIVER = "vfio-pci"

_PCI_COMMAND = 0x04
_PCI_COMMAND_MEMORY_AND_MASTER = 0x06
_PCI_CAPABILITY_LIST = 0x34
_PCI_CAP_ID_MSI = 0x05
_PCI_MSI_FLAGS_ENABLE = 0x01
_PCI_MSI_FLAGS_64BIT = 0x80
_CONFIG_BYTES = 256


class VfioDevice:
    """One PCI function, bound to vfio-pci.

    :param address: where it is.
    :raise BackendError: ENODEV when there is no such device, EBUSY when another driver has it,
        else what sysfs says.
    """

    def __init__(self, address: PciAddress) -> None:
        self.address = address
        self._sysfs = SYSFS_DEVICES / str(address)
        self._fd = -1
        self._regions: dict[int, int] = {}
        self._event = -1
        self._config = -1
        self._msi_offset: int | None = None
        self._bind_driver()

    def _bind_driver(self) -> None:
        """Let vfio-pci take the device, unless another driver has it."""
        if not self._sysfs.is_dir():
            raise BackendError(errno.ENODEV, f"{self.address}: the host has no such PCI device")
        driver = self._sysfs / "driver"
        if driver.is_symlink():
            name = driver.readlink().name
            if name != _DRIVER:
                raise BackendError(
                    errno.EBUSY,
                    f"{self.address}: the driver {name} has it; unbind it first, for example with "
                    f"virsh nodedev-detach pci_{str(self.address).translate(_UNDERSCORES)}",
                )
            return
        try:
            (self._sysfs / "driver_override").write_text(_DRIVER, encoding="ascii")
            Path("/sys/bus/pci/drivers_probe").write_text(str(self.address), encoding="ascii")
        except OSError as error:
            raise BackendError(
                error.errno or errno.EIO,
                f"{self.address}: binding {_DRIVER}: {error.strerror}; it takes root and a kernel "
                "with CONFIG_VFIO_PCI",
            ) from error

    @property
    def ids(self) -> tuple[int, int]:
        """Vendor and device id."""
        vendor, device = (
            int((self._sysfs / name).read_text(encoding="ascii"), 16)
            for name in ("vendor", "device")
        )
        return vendor, device

    @property
    def is_open(self) -> bool:
        """Tell whether the character device is open."""
        return self._fd >= 0

    def open(self) -> None:
        """Open the character device.

        :raise BackendError: ENODEV without one: the kernel lacks CONFIG_VFIO_DEVICE_CDEV or
            vfio-pci refused the device.
        """
        try:
            node = next((self._sysfs / "vfio-dev").iterdir()).name
            self._fd = os.open(f"/dev/vfio/devices/{node}", os.O_RDWR | os.O_CLOEXEC)
        except (OSError, StopIteration) as error:
            number = error.errno if isinstance(error, OSError) and error.errno else errno.ENODEV
            raise BackendError(
                number,
                f"{self.address}: opening its VFIO character device: {error}; it takes a kernel "
                "with CONFIG_VFIO_DEVICE_CDEV and the device bound to vfio-pci",
            ) from error

    def close(self) -> None:
        """Close the character device: interrupts, attachment and binding end with it."""
        for fd in (self._fd, self._event, self._config):
            if fd >= 0:
                os.close(fd)
        self._fd = self._event = self._config = -1
        self._regions.clear()

    def bind(self, iommufd: IommuFd) -> int:
        """VFIO_DEVICE_BIND_IOMMUFD; return the device's id in the file descriptor."""
        argument = uapi.DeviceBindIommufd(ctypes.sizeof(uapi.DeviceBindIommufd), iommufd=iommufd.fd)
        name = f"VFIO_DEVICE_BIND_IOMMUFD of {self.address}"
        ioctl(self._fd, uapi.VFIO_DEVICE_BIND_IOMMUFD, name, argument)
        return int(argument.out_devid)

    def attach(self, number: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT to an IOAS or HWPT; replaces what it is attached to."""
        argument = uapi.DeviceAttachIommufdPt(
            ctypes.sizeof(uapi.DeviceAttachIommufdPt), pt_id=number
        )
        name = f"VFIO_DEVICE_ATTACH_IOMMUFD_PT of {self.address} to object {number}"
        ioctl(self._fd, uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, name, argument)

    def detach(self) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT."""
        argument = uapi.DeviceDetachIommufdPt(ctypes.sizeof(uapi.DeviceDetachIommufdPt))
        name = f"VFIO_DEVICE_DETACH_IOMMUFD_PT of {self.address}"
        ioctl(self._fd, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT, name, argument)

    def _region(self, index: int) -> int:
        """Return where a region starts in the character device."""
        if index not in self._regions:
            argument = uapi.RegionInfo(ctypes.sizeof(uapi.RegionInfo), index=index)
            name = f"VFIO_DEVICE_GET_REGION_INFO of {self.address}"
            ioctl(self._fd, uapi.VFIO_DEVICE_GET_REGION_INFO, name, argument)
            self._regions[index] = int(argument.offset)
        return self._regions[index]

    def write32(self, bar: int, offset: int, value: int) -> None:
        """Write 32 bits into a memory BAR."""
        os.pwrite(self._fd, value.to_bytes(4, "little"), self._region(bar) + offset)

    @property
    def sends_msi(self) -> bool:
        """Tell whether MSIs are enabled in the device itself."""
        at = self._msi()
        return bool(os.pread(self._config, 1, at + 2)[0] & _PCI_MSI_FLAGS_ENABLE)

    def enable_bus_master(self) -> None:
        """Let the device decode memory and send writes, MSIs among them."""
        at = self._region(uapi.VFIO_PCI_CONFIG_REGION_INDEX) + _PCI_COMMAND
        command = int.from_bytes(os.pread(self._fd, 2, at), "little")
        wanted = command | _PCI_COMMAND_MEMORY_AND_MASTER
        if wanted != command:
            os.pwrite(self._fd, wanted.to_bytes(2, "little"), at)

    def enable_msi(self) -> int:
        """VFIO_DEVICE_SET_IRQS of one MSI with an eventfd; return the eventfd, non-blocking."""
        if self._event < 0:
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        head = uapi.IrqSet(
            ctypes.sizeof(uapi.IrqSet) + 4,
            uapi.VFIO_IRQ_SET_DATA_EVENTFD | uapi.VFIO_IRQ_SET_ACTION_TRIGGER,
            uapi.VFIO_PCI_MSI_IRQ_INDEX,
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
            uapi.VFIO_PCI_MSI_IRQ_INDEX,
            0,
            0,
        )
        name = f"VFIO_DEVICE_SET_IRQS of {self.address}"
        ioctl(self._fd, uapi.VFIO_DEVICE_SET_IRQS, name, argument)

    @property
    def event_fd(self) -> int | None:
        """The eventfd that the MSI signals; None before it was enabled."""
        return self._event if self._event >= 0 else None

    def take_interrupts(self) -> int:
        """Return how many interrupts arrived since the last call."""
        try:
            return os.eventfd_read(self._event) if self._event >= 0 else 0
        except BlockingIOError:
            return 0

    def _msi(self) -> int:
        """Return where the MSI capability lies in the real configuration space.

        :raise BackendError: EOPNOTSUPP for a device without one.
        """
        if self._config < 0:
            try:
                self._config = os.open(self._sysfs / "config", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise BackendError(
                    error.errno or errno.EIO,
                    f"{self.address}: opening its configuration space for writing: "
                    f"{error.strerror}; it takes root",
                ) from error
        if self._msi_offset is None:
            self._msi_offset = self._find_msi(os.pread(self._config, _CONFIG_BYTES, 0))
        return self._msi_offset

    def _find_msi(self, config: bytes) -> int:
        at, seen = config[_PCI_CAPABILITY_LIST] & ~3, set[int]()
        while at and at not in seen and at + 2 <= len(config):
            if config[at] == _PCI_CAP_ID_MSI and config[at + 2] & _PCI_MSI_FLAGS_64BIT:
                return at
            seen.add(at)
            at = config[at + 1] & ~3
        raise BackendError(
            errno.EOPNOTSUPP,
            f"{self.address}: has no MSI capability with a 64-bit address; one that has would work",
        )

    @property
    def can_write_msi(self) -> bool:
        """Tell whether the real MSI capability can be written."""
        try:
            self._msi()
        except BackendError:
            return False
        return True

    def msi_address(self) -> int:
        """Return the address in the device's MSI capability."""
        at = self._msi()
        return int.from_bytes(os.pread(self._config, 8, at + 4), "little")

    def set_msi_address(self, address: int, data: int | None = None) -> None:
        """Write address and, where given, data into the device's MSI capability.

        The kernel does not know of it. It writes its own again when it enables the MSI, when it
        restores the device after a reset or a sleep (``pci_restore_msi_state``), but not when the
        affinity of the interrupt changes (``its_set_affinity`` moves the LPI instead).
        """
        at = self._msi()
        os.pwrite(self._config, address.to_bytes(8, "little"), at + 4)
        if data is not None:
            os.pwrite(self._config, data.to_bytes(2, "little"), at + 12)


_UNDERSCORES = str.maketrans(":.", "__")
