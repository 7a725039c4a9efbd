"""What the guest's kernel does: its stage 1 tables.

A guest maps its doorbell (gIOVA -> gDB) in the stage 1 of a device when the device's driver asks
for interrupts, and, if it honours RMR nodes, the ranges they name 1:1. After an unmap it issues
the invalidation that Linux issues (CMD_TLBI_NH_VA, here by ASID).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vmm_msi.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.types import Granule, GuestDevice, GuestDomain, Iova, Ipa, ReservedRegion, Stage1


class Table(Protocol):
    """A stage 1 table: the model's, or one that an SMMU walks."""

    @property
    def granule(self) -> Granule:
        """Its page size."""
        ...

    def map(self, base: int, output: int, size: int) -> None:
        """Map ``size`` bytes of IOVAs from ``base`` to IPAs from ``output``."""
        ...

    def unmap(self, base: int) -> bool:
        """Unmap what one call mapped at ``base``; tell whether there was anything."""
        ...

    def overlaps(self, base: int, size: int) -> bool:
        """Tell whether anything is mapped in ``size`` bytes from ``base``."""
        ...

    def pages(self) -> frozenset[tuple[int, int]]:
        """Return (input, output) of what was mapped a single granule at a time."""
        ...


TableT = TypeVar("TableT", bound=Table)


class GuestStage1(Generic[TableT]):
    """All stage 1 tables of one guest.

    :param make: makes the empty table of a stage 1 with an ASID, which is not 0.
    :raise InputError: when one table would have to map one gIOVA to two doorbells, or the guest
        has no RAM to hold its tables.
    """

    def __init__(self, guest: GuestDomain, make: Callable[[Stage1, int], TableT]) -> None:
        if not guest.memory:
            raise InputError(f"guest {guest.name}: no memory to hold its stage 1 tables")
        self._guest = guest
        self.tables = {
            stage1.id: make(stage1, index) for index, stage1 in enumerate(guest.stage1, 1)
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
        table = self.tables[device.stage1]
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
        """Boot without RMR nodes."""
        for window in self._windows:
            for table in self.tables.values():
                table.unmap(window.base)
        self._windows.clear()

    def state(self) -> frozenset[tuple[str, frozenset[tuple[int, int]]]]:
        """Return what is mapped, for comparison."""
        return frozenset((name, table.pages()) for name, table in self.tables.items())
