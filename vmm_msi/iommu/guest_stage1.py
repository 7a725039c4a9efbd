"""The guest's kernel: the mappings in its stage 1 tables.

A guest maps its doorbell (gIOVA -> gDB) in the stage 1 of a device when the device's driver
requests interrupts and, if it honours RMR nodes, their ranges 1:1. After an unmap it issues the
invalidation that Linux issues (CMD_TLBI_NH_VA, here by ASID).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vmm_msi.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.types import Granule, GuestDevice, GuestDomain, Iova, Ipa, ReservedRegion, Stage1


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
        self._windows: set[ReservedRegion] = set()
        self._users: Counter[tuple[str, Iova]] = Counter()
        doorbells: dict[tuple[str, Iova], Ipa] = {}
        for device in guest.devices:
            gdb = guest.gdb(device)
            if doorbells.setdefault((device.stage1, device.giova), gdb) != gdb:
                raise InputError(
                    f"guest {guest.name}, stage 1 {device.stage1}: gIOVA {device.giova} would map "
                    f"to two doorbells, {doorbells[device.stage1, device.giova]} and {gdb}; use "
                    f"another gIOVA or another stage 1 for {device.host}"
                )

    def map_doorbell(self, device: GuestDevice) -> None:
        """Map the device's gIOVA, unless its page is mapped for another device or an RMR."""
        key = (device.stage1, device.giova)
        table = self.tables[device.stage1]
        page = device.giova.align_down(table.granule)
        if key not in self._users and not table.overlaps(page, table.granule):
            gdb = self._guest.gdb(device).align_down(table.granule)
            table.map(page, gdb, table.granule)
        self._users[key] += 1

    def unmap_doorbell(self, device: GuestDevice) -> bool:
        """Unmap it after its last device; return whether an invalidation is due."""
        key = (device.stage1, device.giova)
        self._users[key] -= 1
        if self._users[key]:
            return False
        del self._users[key]
        table = self.tables[device.stage1]
        page = device.giova.align_down(table.granule)
        if any(window.overlaps(page, table.granule) for window in self._windows):
            return False
        return table.unmap(page)

    def advertise(self, window: ReservedRegion) -> None:
        """Read an RMR node; a guest that honours it maps ``window`` 1:1 everywhere."""
        if not self._guest.honours_rmr or window in self._windows:
            return
        self._windows.add(window)
        for table in self.tables.values():
            if not table.overlaps(window.base, window.size):
                table.map(window.base, window.base, window.size)

    def withdraw(self) -> None:
        """Unmap the RMR ranges, as after a boot without RMR nodes."""
        for window in self._windows:
            for table in self.tables.values():
                table.unmap(window.base)
        self._windows.clear()

    def state(self) -> frozenset[tuple[str, frozenset[tuple[int, int]]]]:
        """Return the mappings, for comparison."""
        return frozenset((name, table.pages()) for name, table in self.tables.items())
