"""What the guest's kernel does: its stage 1 tables.

A guest maps its doorbell (gIOVA -> gDB) in the stage 1 of a device when the device's driver asks
for interrupts, and, if it honours RMR nodes, the ranges they name 1:1. After an unmap it issues
the invalidation that Linux issues (CMD_TLBI_NH_VA, here by ASID).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError
from vmm_msi.iommu.sim.pagetable import PageTable
from vmm_msi.iommu.sim.smmu import Stage1Config

if TYPE_CHECKING:
    from vmm_msi.model import GuestDevice, GuestDomain, Iova, Ipa, ReservedRegion


class GuestStage1:
    """All stage 1 tables of one guest.

    :raise InputError: when one table would have to map one gIOVA to two doorbells, or the guest
        has no RAM to hold its tables.
    """

    #: Bytes between the first-level tables of two stage 1 tables in guest RAM.
    ROOT_STRIDE = 0x10000

    def __init__(self, guest: GuestDomain) -> None:
        if not guest.memory:
            raise InputError(f"guest {guest.name}: no memory to hold its stage 1 tables")
        self._guest = guest
        ram = guest.memory[0]
        self.configs = {
            stage1.id: Stage1Config(
                asid=index + 1,
                table=PageTable(stage1.granule),
                root=ram.base.offset(index * self.ROOT_STRIDE % ram.size),
            )
            for index, stage1 in enumerate(guest.stage1)
        }
        self._windows: set[ReservedRegion] = set()
        self._users: Counter[tuple[str, Iova]] = Counter()
        doorbells: dict[tuple[str, Iova], Ipa] = {}
        for device in guest.devices:
            gdb = guest.gdb(device)
            if doorbells.setdefault((device.stage1, device.giova), gdb) != gdb:
                raise InputError(
                    f"guest {guest.name}, stage 1 {device.stage1}: gIOVA {device.giova} is to map "
                    f"to two doorbells, {doorbells[device.stage1, device.giova]} and {gdb}; give "
                    f"{device.host} a gIOVA or a stage 1 of its own"
                )

    def map_doorbell(self, device: GuestDevice) -> None:
        """Map the device's gIOVA, unless another device or an RMR has mapped that page."""
        key = (device.stage1, device.giova)
        table = self.configs[device.stage1].table
        page = device.giova.align_down(table.granule)
        if key not in self._users and not table.overlaps(page, table.granule):
            gdb = self._guest.gdb(device).align_down(table.granule)
            table.map(page, gdb, table.granule)
        self._users[key] += 1

    def unmap_doorbell(self, device: GuestDevice) -> bool:
        """Unmap it when no other device uses it; tell whether an invalidation is due."""
        key = (device.stage1, device.giova)
        self._users[key] -= 1
        if self._users[key]:
            return False
        del self._users[key]
        table = self.configs[device.stage1].table
        page = device.giova.align_down(table.granule)
        if any(window.overlaps(page, table.granule) for window in self._windows):
            return False
        return table.unmap(page)

    def advertise(self, window: ReservedRegion) -> None:
        """Read an RMR node; a guest that honours it maps ``window`` 1:1 everywhere."""
        if not self._guest.honours_rmr or window in self._windows:
            return
        self._windows.add(window)
        for config in self.configs.values():
            if not config.table.overlaps(window.base, window.size):
                config.table.map(window.base, window.base, window.size)

    def withdraw(self) -> None:
        """Boot without RMR nodes."""
        for window in self._windows:
            for config in self.configs.values():
                config.table.unmap(window.base)
        self._windows.clear()

    def state(self) -> frozenset[tuple[str, frozenset[tuple[int, int]]]]:
        """Return what is mapped, for comparison."""
        return frozenset((name, config.table.pages()) for name, config in self.configs.items())
