"""Triggers: make a device send its MSI, with the memory that some devices need for it."""

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

#: Bytes for one device: a page of any granule, several of the device's own pages.
DMA_BYTES = 0x10000

#: IOVA of the first device's memory in a stage 1. Guests allocate IOVAs from 4 GiB downwards.
DMA_IOVA = 0x70_0000_0000

_EDU_RAISE = 0x60
_EDU_ACKNOWLEDGE = 0x64


class DmaPages:
    """Guest RAM that a device reads and writes.

    :param memory: guest RAM.
    :param offset: of the pages in guest RAM.
    :param iova: of the pages for the device.
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
    """Pages of guest RAM for devices, mapped in each device's stage 1.

    :param arena: the free part of guest RAM.
    :param tables: the guest's stage 1 tables, by name.
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

    def map(self, device: GuestDevice) -> DmaPages:
        """Map pages for a device at a free IOVA; the same memory every time."""
        if device.host not in self._ipas:
            self._ipas[device.host] = self._arena.table(DMA_BYTES)
        ipa, table, iova = self._ipas[device.host], self._tables[device.stage1], DMA_IOVA
        used = {giova & -DMA_BYTES for stage1, giova in self._giovas if stage1 == device.stage1}
        while iova in used or table.overlaps(iova, DMA_BYTES):
            iova += DMA_BYTES
        table.map(iova, ipa, DMA_BYTES)
        return DmaPages(self._memory, ipa - self._arena.base, iova)

    def unmap(self, device: GuestDevice, pages: DmaPages) -> None:
        """Unmap a device's pages; the caller invalidates."""
        self._tables[device.stage1].unmap(pages.iova)


class Trigger(ABC):
    """Makes one device send its MSI.

    :param device: the device, open and attached.
    :param dma: memory for it, required with :attr:`needs_dma`.
    """

    #: Whether the device needs memory that it reads and writes.
    needs_dma: ClassVar[bool] = False

    def __init__(self, device: VfioDevice, dma: DmaPages | None = None) -> None:
        self.device = device
        self.dma = dma

    @abstractmethod
    def send(self) -> None:
        """Make it send its first MSI; the device is bus master.

        :raise BackendError: when it cannot be made to.
        """

    def stop(self) -> None:  # noqa: B027 - most devices have nothing to stop
        """Stop the device from using its memory."""


class EduTrigger(Trigger):
    """QEMU ``hw/misc/edu.c``: a write to 0x60 raises an interrupt, a write to 0x64 clears it."""

    def send(self) -> None:
        """Raise the interrupt and clear it."""
        self.device.write32(uapi.VFIO_PCI_BAR0_REGION_INDEX, _EDU_RAISE, 1)
        self.device.write32(uapi.VFIO_PCI_BAR0_REGION_INDEX, _EDU_ACKNOWLEDGE, 1)
