"""What makes a device send its MSI, and the memory that some devices take for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from vmm_msi.iommu.linux import uapi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.iommu.linux.guest_ram import Memory
    from vmm_msi.iommu.linux.stage1 import Stage1Table, TableArena
    from vmm_msi.iommu.linux.vfio import VfioDevice
    from vmm_msi.types import GuestDevice, GuestDomain

#: Bytes that a device is given: a page of any granule, several of the device's own.
DMA_BYTES = 0x10000

#: Where the first of them is in the stage 1 of a device. Guests take IOVAs from 4 GiB downwards.
DMA_IOVA = 0x70_0000_0000

_EDU_RAISE = 0x60
_EDU_ACKNOWLEDGE = 0x64


class DmaPages:
    """Guest RAM that a device reads and writes.

    :param memory: guest RAM.
    :param offset: where the pages are in it.
    :param iova: where the device finds them.
    """

    def __init__(self, memory: Memory, offset: int, iova: int) -> None:
        self._memory = memory
        self._offset = offset
        self.iova = iova

    def read64(self, at: int) -> int:
        """Return 64 bits."""
        return self._memory.read(self._offset + at)

    def write64(self, at: int, value: int) -> None:
        """Write 64 bits."""
        self._memory.write(self._offset + at, value)

    def clear(self) -> None:
        """Fill them with zeros."""
        for at in range(0, DMA_BYTES, 8):
            self.write64(at, 0)


class DmaPool:
    """Gives devices pages of guest RAM, in the stage 1 that the guest made for each.

    :param arena: the part of guest RAM that is free.
    :param tables: the guest's stage 1 tables by name.
    """

    def __init__(
        self,
        memory: Memory,
        arena: TableArena,
        guest: GuestDomain,
        tables: Mapping[str, Stage1Table],
    ) -> None:
        self._memory = memory
        self._arena = arena
        self._giovas = [(device.stage1, device.giova) for device in guest.devices]
        self._tables = tables
        self._ipas: dict[object, int] = {}

    def give(self, device: GuestDevice) -> DmaPages:
        """Map pages for a device, where nothing else is; the same memory every time."""
        if device.host not in self._ipas:
            self._ipas[device.host] = self._arena.table(DMA_BYTES)
        ipa, table, iova = self._ipas[device.host], self._tables[device.stage1], DMA_IOVA
        taken = {giova & -DMA_BYTES for stage1, giova in self._giovas if stage1 == device.stage1}
        while iova in taken or table.overlaps(iova, DMA_BYTES):
            iova += DMA_BYTES
        table.map(iova, ipa, DMA_BYTES)
        return DmaPages(self._memory, ipa - self._arena.base, iova)

    def take_back(self, device: GuestDevice, pages: DmaPages) -> None:
        """Unmap them; the caller invalidates."""
        self._tables[device.stage1].unmap(pages.iova)


class Trigger(ABC):
    """What makes one device send its MSI.

    :param device: the device, open and attached.
    :param dma: memory for it, where :attr:`needs_dma` says so.
    """

    #: Whether it takes memory that the device reads and writes.
    needs_dma: ClassVar[bool] = False

    def __init__(self, device: VfioDevice, dma: DmaPages | None = None) -> None:
        self.device = device
        self.dma = dma

    @abstractmethod
    def send(self) -> None:
        """Make it send its first MSI; the device is bus master.

        :raise BackendError: when it does not do what it takes.
        """

    def stop(self) -> None:  # noqa: B027 - most devices have nothing to stop
        """Keep it from the memory that was given."""


class EduTrigger(Trigger):
    """QEMU ``hw/misc/edu.c``: a write to 0x60 raises an interrupt, to 0x64 takes it back."""

    def send(self) -> None:
        """Raise it and take it back."""
        self.device.write32(uapi.VFIO_PCI_BAR0_REGION_INDEX, _EDU_RAISE, 1)
        self.device.write32(uapi.VFIO_PCI_BAR0_REGION_INDEX, _EDU_ACKNOWLEDGE, 1)
