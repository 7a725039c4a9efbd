"""The address and data of a device's MSI, in the MSI capability or the MSI-X table.

PCI Express base specification 7.7.1 and 7.7.2. VFIO shows user space a virtual configuration
space and drops reads and writes of the MSI-X table. The real values, programmed by the kernel, are
in the ``config`` file of sysfs and in a mapping of the table's BAR. VFIO lets user space map that
whole BAR (Linux ``include/uapi/linux/vfio.h`` VFIO_REGION_INFO_CAP_MSIX_MAPPABLE), even if the
kernel refuses the mapping through sysfs because a driver has the BAR (CONFIG_IO_STRICT_DEVMEM).
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from vmm_msi.errors import BackendError
from vmm_msi.iommu.linux import local_pci, uapi

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator

    from vmm_msi.types import PciAddress

_PCI_CAPABILITY_LIST = 0x34
PCI_CAP_ID_MSI = 0x05
PCI_CAP_ID_MSIX = 0x11
CONFIG_BYTES = 256

MSI_ENABLE = 1 << 0
MSI_64BIT = 1 << 7
MSIX_ENABLE_UNMASKED = (1 << 15, 1 << 15 | 1 << 14)
MSIX_TABLE = 4
MSIX_BAR = 7
MSIX_ENTRY_BYTES = 16
ENTRY_MASKED = 1 << 0


@contextmanager
def backend_errors(action: str, advice: str = "") -> Iterator[None]:
    """Raise an OSError as the kernel's refusal of an action.

    :param action: doing what to which device, for the message.
    :param advice: how to avoid the refusal.
    """
    try:
        yield
    except OSError as error:
        reason = f"{action}: {error.strerror or error}"
        raise BackendError(
            error.errno or errno.EIO, f"{reason}; {advice}" if advice else reason
        ) from error


def capabilities(config: bytes) -> dict[int, int]:
    """Return the offset of the first capability of each kind, by the capability's id.

    :param config: the first 256 bytes of a configuration space.
    """
    offsets: dict[int, int] = {}
    at, seen = config[_PCI_CAPABILITY_LIST] & ~3, set[int]()
    while at and at not in seen and at + 2 <= len(config):
        offsets.setdefault(config[at], at)
        seen.add(at)
        at = config[at + 1] & ~3
    return offsets


class RealConfig:
    """The real configuration space of a device, through sysfs.

    :raise BackendError: when it cannot be opened.
    """

    def __init__(self, address: PciAddress) -> None:
        self.address = address
        with backend_errors(f"{address}: opening its configuration space", "run as root"):
            self._fd = os.open(local_pci.folder_of(address) / "config", os.O_RDWR | os.O_CLOEXEC)

    def read(self, at: int, size: int) -> int:
        """Return ``size`` bytes."""
        with backend_errors(f"{self.address}: reading its configuration space"):
            return int.from_bytes(os.pread(self._fd, size, at), "little")

    def write(self, at: int, value: int, size: int) -> None:
        """Write ``size`` bytes."""
        action = f"{self.address}: writing to its configuration space"
        # pci_write_config
        advice = "a locked-down kernel, as after Secure Boot, refuses it even to root"
        with backend_errors(action, advice):
            os.pwrite(self._fd, value.to_bytes(size, "little"), at)

    def capabilities(self) -> dict[int, int]:
        """Return the offset of the first capability of each kind, by the capability's id."""
        with backend_errors(f"{self.address}: reading its configuration space"):
            return capabilities(os.pread(self._fd, CONFIG_BYTES, 0))

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


class MsiEntry(Protocol):
    """The address and data of a device's first MSI."""

    #: VFIO's number of this kind of interrupt.
    irq_index: int

    @property
    def enabled(self) -> bool:
        """Return whether the device sends it."""
        ...

    def read_address(self) -> int:
        """Return the address."""
        ...

    def write(self, address: int, data: int | None) -> None:
        """Write the address and, if given, the data."""
        ...

    def probe(self) -> None:
        """Write the present value.

        :raise BackendError: when the write is refused.
        """
        ...

    def close(self) -> None:
        """Unmap the MSI-X table, if any."""
        ...


class MsiCapability:
    """An MSI capability with a 64-bit address, at an offset of the configuration space."""

    irq_index = uapi.VFIO_PCI_MSI_IRQ_INDEX

    def __init__(self, config: RealConfig, at: int) -> None:
        self._config = config
        self._at = at

    @property
    def enabled(self) -> bool:
        """Return whether the device sends it."""
        return bool(self._config.read(self._at + 2, 2) & MSI_ENABLE)

    def read_address(self) -> int:
        """Return the address."""
        return self._config.read(self._at + 4, 8)

    def write(self, address: int, data: int | None) -> None:
        """Write the address and, if given, the data."""
        self._config.write(self._at + 4, address, 8)
        if data is not None:
            self._config.write(self._at + 12, data, 2)

    def probe(self) -> None:
        """Write half of the present address."""
        self._config.write(self._at + 4, self._config.read(self._at + 4, 4), 4)

    def close(self) -> None:
        """Do nothing: nothing is mapped."""


class MsixEntry:
    """Entry 0 of an MSI-X table.

    :param map_page: maps the page of a BAR with an offset; returns the page and the offset in it.
    :raise BackendError: when the table cannot be mapped.
    """

    irq_index = uapi.VFIO_PCI_MSIX_IRQ_INDEX

    def __init__(
        self, config: RealConfig, at: int, map_page: Callable[[int, int], tuple[mmap.mmap, int]]
    ) -> None:
        self._config = config
        self._at = at
        table = config.read(at + MSIX_TABLE, 4)
        self._map, offset = map_page(table & MSIX_BAR, table & ~MSIX_BAR)
        # Address, its upper half, data, vector control: accessed in whole words of 32 bits.
        words = ctypes.c_uint32 * (MSIX_ENTRY_BYTES // 4)
        self._words: ctypes.Array[ctypes.c_uint32] | None = words.from_buffer(self._map, offset)

    @property
    def _entry(self) -> ctypes.Array[ctypes.c_uint32]:
        if self._words is None:
            raise BackendError(
                errno.EBADF, f"{self._config.address}: its character device is not open"
            )
        return self._words

    @property
    def enabled(self) -> bool:
        """Return whether the device sends it: MSI-X is enabled, function and entry not masked."""
        value, mask = MSIX_ENABLE_UNMASKED
        enabled = self._config.read(self._at + 2, 2) & mask == value
        return enabled and not self._entry[3] & ENTRY_MASKED

    def read_address(self) -> int:
        """Return the address."""
        return self._entry[0] | self._entry[1] << 32

    def write(self, address: int, data: int | None) -> None:
        """Write the address and, if given, the data, with the entry masked (7.7.2.2)."""
        entry = self._entry
        control = entry[3]
        entry[3] = control | ENTRY_MASKED
        entry[0], entry[1] = address & 0xFFFF_FFFF, address >> 32
        if data is not None:
            entry[2] = data
        entry[3] = control

    def probe(self) -> None:
        """Write half of the present address."""
        self._entry[0] = self._entry[0]

    def close(self) -> None:
        """Unmap the table."""
        self._words = None
        self._map.close()


def find_entry(
    config: RealConfig, map_page: Callable[[int, int], tuple[mmap.mmap, int]]
) -> MsiEntry:
    """Return a device's first MSI: the MSI capability if it has a 64-bit address, else MSI-X.

    :raise BackendError: EOPNOTSUPP for a device without either.
    """
    offsets = config.capabilities()
    msi, msix = offsets.get(PCI_CAP_ID_MSI), offsets.get(PCI_CAP_ID_MSIX)
    if msi is not None and config.read(msi + 2, 2) & MSI_64BIT:
        return MsiCapability(config, msi)
    if msix is not None:
        return MsixEntry(config, msix, map_page)
    raise BackendError(
        errno.EOPNOTSUPP,
        f"{config.address}: has neither an MSI capability with a 64-bit address nor MSI-X; use a "
        "device that has one",
    )
