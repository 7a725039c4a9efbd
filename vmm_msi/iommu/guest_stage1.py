"""The guest's kernel: the mappings in its stage 1 tables.

A guest maps its doorbell (gIOVA -> gDB) in the stage 1 of a device when the device's driver
requests interrupts and, if it honours RMR nodes, their ranges 1:1. A stage 1 is an IOMMU domain of
the guest, and a doorbell stays mapped as long as that exists, whatever becomes of its device: Linux
``drivers/iommu/dma-iommu.c`` iommu_dma_get_msi_page never removes a page, and iommu_put_dma_cookie
frees them with the domain, which the last device of the guest's IOMMU group takes with it. After an
unmap the guest issues the invalidation that Linux issues (CMD_TLBI_NH_VA, here by ASID).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vmm_msi.errors import InputError
from vmm_msi.iommu import rules
from vmm_msi.types import Stage1Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from vmm_msi.errors import Rule
    from vmm_msi.types import (
        Granule,
        GuestDevice,
        GuestDomain,
        Iova,
        Ipa,
        PciAddress,
        ReservedRegion,
        Stage1,
    )


class GuestS1Table(Protocol):
    """A stage 1 table of a guest: simulated, or one that an SMMU walks."""

    @property
    def granule(self) -> Granule:
        """Its page size."""
        ...

    def map(self, base: int, output: int, size: int) -> None:
        """Map ``size`` bytes of IOVAs from ``base`` to IPAs from ``output``."""
        ...

    def unmap(self, base: int) -> bool:
        """Unmap the mapping of one call at ``base``; return whether one existed."""
        ...

    def overlaps(self, base: int, size: int) -> bool:
        """Return whether anything is mapped in ``size`` bytes from ``base``."""
        ...

    def pages(self) -> frozenset[tuple[int, int]]:
        """Return (input, output) of each mapping of a single granule."""
        ...


TableT = TypeVar("TableT", bound=GuestS1Table)


class GuestStage1(Generic[TableT]):
    """All stage 1 tables of one guest.

    :param new_table: returns an empty table for a stage 1 and its ASID, which is not 0.
    :raise InputError: when one table would have to map one gIOVA to two doorbells, or the guest
        has no RAM for its tables.
    """

    def __init__(self, guest: GuestDomain, new_table: Callable[[Stage1, int], TableT]) -> None:
        if not guest.memory:
            raise InputError(f"guest {guest.name}: has no memory for its stage 1 tables")
        self._guest = guest
        self.tables = {
            stage1.id: new_table(stage1, index) for index, stage1 in enumerate(guest.stage1, 1)
        }
        #: The stage 1 tables in which each range of an RMR node is mapped.
        self._windows: dict[ReservedRegion, list[TableT]] = {}
        #: The devices of each stage 1, and the pages mapped to doorbells in it.
        self._devices: dict[str, set[PciAddress]] = {name: set() for name in self.tables}
        self._pages: dict[str, set[Iova]] = {name: set() for name in self.tables}
        doorbells: dict[tuple[str, Iova], Ipa] = {}
        for device in guest.devices:
            gdb = guest.gdb(device)
            if not guest.stage1_by_id[device.stage1].translates:
                continue
            if doorbells.setdefault((device.stage1, device.giova), gdb) != gdb:
                raise InputError(
                    f"guest {guest.name}, stage 1 {device.stage1}: gIOVA {device.giova} would map "
                    f"to two doorbells, {doorbells[device.stage1, device.giova]} and {gdb}; use "
                    f"another gIOVA or another stage 1 for {device.host}"
                )

    def add_device(self, device: GuestDevice) -> None:
        """Add a device to its stage 1; map its gIOVA, unless the page is mapped already.

        In an identity domain Linux maps nothing (``iommu_dma_prepare_msi``).
        """
        table = self.tables[device.stage1]
        page = device.giova.align_down(table.granule)
        translates = self._guest.stage1_by_id[device.stage1].translates
        if translates and not table.overlaps(page, table.granule):
            table.map(page, self._guest.gdb(device).align_down(table.granule), table.granule)
            self._pages[device.stage1].add(page)
        self._devices[device.stage1].add(device.host)

    def remove_device(self, device: GuestDevice) -> bool:
        """Remove a device; the last one takes the doorbells of its stage 1 with it.

        :return: whether an invalidation is due.
        """
        devices, pages = self._devices[device.stage1], self._pages[device.stage1]
        devices.discard(device.host)
        if devices or not pages:
            return False
        for page in pages:
            self.tables[device.stage1].unmap(page)
        pages.clear()
        return True

    def advertise(self, window: ReservedRegion) -> None:
        """Read an RMR node; a guest that honours it maps ``window`` 1:1 where it translates.

        Linux ``drivers/iommu/iommu.c`` iommu_create_device_direct_mappings.
        """
        if not self._guest.honours_rmr or window in self._windows:
            return
        tables = self._windows[window] = []
        for name, table in self.tables.items():
            translates = self._guest.stage1_by_id[name].translates
            if translates and not table.overlaps(window.base, window.size):
                table.map(window.base, window.base, window.size)
                tables.append(table)

    def rule(self, stage1: str, iova: Iova) -> Rule:
        """Return the rule by which a stage 1 passes an address on."""
        mode = self._guest.stage1_by_id[stage1].config
        if mode is not Stage1Mode.TRANSLATE:
            return rules.STAGE1_BYPASS if mode is Stage1Mode.BYPASS else rules.STAGE1_S1DSS
        table = self.tables[stage1]
        for window, tables in self._windows.items():
            if window.base <= iova <= window.last and any(other is table for other in tables):
                return rules.GUEST_RMR
        return rules.GUEST_DOORBELL

    def withdraw(self) -> None:
        """Unmap the RMR ranges, as after a boot without RMR nodes."""
        for window, tables in self._windows.items():
            for table in tables:
                table.unmap(window.base)
        self._windows.clear()

    def state(self) -> Hashable:
        """Return the mappings and the RMR ranges, for comparison."""
        mappings = frozenset((name, table.pages()) for name, table in self.tables.items())
        return mappings, frozenset(self._windows)
