"""Where a device keeps the address and data of its MSI: the MSI capability or the MSI-X table.

PCI Express base specification 7.7.1 and 7.7.2. VFIO shows user space a virtual configuration
space and drops reads and writes of the MSI-X table; the real ones, which hold what the kernel
programmed, are the ``config`` file of sysfs and a mapping of the table's BAR. VFIO lets user space
map that BAR whole (Linux ``include/uapi/linux/vfio.h`` VFIO_REGION_INFO_CAP_MSIX_MAPPABLE), which
works where the kernel keeps sysfs from mapping it, since its driver has the BAR
(CONFIG_IO_STRICT_DEVMEM).
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
def telling(what: str, advice: str = "") -> Iterator[None]:
    """Raise what the system refuses as the kernel's refusal of ``what``."""
    try:
        yield
    except OSError as error:
        raise BackendError(
            error.errno or errno.EIO, f"{what}: {error.strerror or error}{advice and f'; {advice}'}"
        ) from error


def capabilities(config: bytes) -> dict[int, int]:
    """Return where the first capability of each kind is, by its id.

    :param config: a configuration space, its first 256 bytes.
    """
    found: dict[int, int] = {}
    at, seen = config[_PCI_CAPABILITY_LIST] & ~3, set[int]()
    while at and at not in seen and at + 2 <= len(config):
        found.setdefault(config[at], at)
        seen.add(at)
        at = config[at + 1] & ~3
    return found


class RealConfig:
    """The configuration space of a device as it is, by way of sysfs.

    :raise BackendError: when it cannot be opened.
    """

    def __init__(self, address: PciAddress) -> None:
        self.address = address
        with telling(f"{address}: opening its configuration space", "it takes root"):
            self._fd = os.open(local_pci.folder_of(address) / "config", os.O_RDWR | os.O_CLOEXEC)

    def read(self, at: int, size: int) -> int:
        """Return ``size`` bytes."""
        with telling(f"{self.address}: reading its configuration space"):
            return int.from_bytes(os.pread(self._fd, size, at), "little")

    def write(self, at: int, value: int, size: int) -> None:
        """Write ``size`` bytes."""
        what = f"{self.address}: writing to its configuration space"
        # pci_write_config
        with telling(what, "a locked-down kernel, as after Secure Boot, refuses it even to root"):
            os.pwrite(self._fd, value.to_bytes(size, "little"), at)

    def capabilities(self) -> dict[int, int]:
        """Return where the first capability of each kind is, by its id."""
        with telling(f"{self.address}: reading its configuration space"):
            return capabilities(os.pread(self._fd, CONFIG_BYTES, 0))

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


class MsiEntry(Protocol):
    """Where the first MSI's address and data are."""

    #: VFIO's number of this kind of interrupt.
    irq_index: int

    @property
    def enabled(self) -> bool:
        """Tell whether the device sends it."""
        ...

    def read_address(self) -> int:
        """Return the address."""
        ...

    def write(self, address: int, data: int | None) -> None:
        """Write the address and, where given, the data."""
        ...

    def probe(self) -> None:
        """Write what is there.

        :raise BackendError: when that is refused.
        """
        ...

    def close(self) -> None:
        """Give back what is mapped."""
        ...


class MsiCapability:
    """An MSI capability with a 64-bit address, at an offset of the configuration space."""

    irq_index = uapi.VFIO_PCI_MSI_IRQ_INDEX

    def __init__(self, config: RealConfig, at: int) -> None:
        self._config = config
        self._at = at

    @property
    def enabled(self) -> bool:
        """Tell whether the device sends it."""
        return bool(self._config.read(self._at + 2, 2) & MSI_ENABLE)

    def read_address(self) -> int:
        """Return the address."""
        return self._config.read(self._at + 4, 8)

    def write(self, address: int, data: int | None) -> None:
        """Write the address and, where given, the data."""
        self._config.write(self._at + 4, address, 8)
        if data is not None:
            self._config.write(self._at + 12, data, 2)

    def probe(self) -> None:
        """Write half of the address that is there."""
        self._config.write(self._at + 4, self._config.read(self._at + 4, 4), 4)

    def close(self) -> None:
        """Nothing is mapped."""


class MsixEntry:
    """Entry 0 of an MSI-X table.

    :param map_page: maps the page of a BAR that has an offset; returns it and the offset in it.
    :raise BackendError: when the table cannot be mapped.
    """

    irq_index = uapi.VFIO_PCI_MSIX_IRQ_INDEX

    def __init__(
        self, config: RealConfig, at: int, map_page: Callable[[int, int], tuple[mmap.mmap, int]]
    ) -> None:
        self._config = config
        self._at = at
        place = config.read(at + MSIX_TABLE, 4)
        self._map, offset = map_page(place & MSIX_BAR, place & ~MSIX_BAR)
        # Address, its upper half, data, vector control: devices take whole words of 32 bits.
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
        """Tell whether the device sends it: MSI-X is on, and neither all nor this is masked."""
        wanted, among = MSIX_ENABLE_UNMASKED
        on = self._config.read(self._at + 2, 2) & among == wanted
        return on and not self._entry[3] & ENTRY_MASKED

    def read_address(self) -> int:
        """Return the address."""
        return self._entry[0] | self._entry[1] << 32

    def write(self, address: int, data: int | None) -> None:
        """Write the address and, where given, the data; masked meanwhile, as 7.7.2.2 wants it."""
        entry = self._entry
        control = entry[3]
        entry[3] = control | ENTRY_MASKED
        entry[0], entry[1] = address & 0xFFFF_FFFF, address >> 32
        if data is not None:
            entry[2] = data
        entry[3] = control

    def probe(self) -> None:
        """Write half of the address that is there."""
        self._entry[0] = self._entry[0]

    def close(self) -> None:
        """Unmap the table."""
        self._words = None
        self._map.close()


def find_entry(
    config: RealConfig, map_page: Callable[[int, int], tuple[mmap.mmap, int]]
) -> MsiEntry:
    """Return where a device's first MSI is: MSI where it has a 64-bit address, else MSI-X.

    :raise BackendError: EOPNOTSUPP for a device that has neither.
    """
    found = config.capabilities()
    msi, msix = found.get(PCI_CAP_ID_MSI), found.get(PCI_CAP_ID_MSIX)
    if msi is not None and config.read(msi + 2, 2) & MSI_64BIT:
        return MsiCapability(config, msi)
    if msix is not None:
        return MsixEntry(config, msix, map_page)
    raise BackendError(
        errno.EOPNOTSUPP,
        f"{config.address}: has neither an MSI capability with a 64-bit address nor MSI-X; one "
        "that has would work",
    )
