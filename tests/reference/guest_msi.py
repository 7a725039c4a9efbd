"""Guest MSI bindings of a nest parent, as docs/kernels.md describes the interface.

Written from the description alone. Each binding is a row; the newest row is the first.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reference.machine import RefusalError

if TYPE_CHECKING:
    from reference.machine import Device, Stage2

#: Value of IOMMU_OPTION_MSI_BINDING by the revision of the series; 0 is DIRECT.
DIRECT, LIST, DEVICE, ONE_DOMAIN, ONE_GRANULE = range(5)
OPTION = {0: DIRECT, 2: LIST, 4: DEVICE, 8: ONE_DOMAIN, 15: ONE_GRANULE}


@dataclass(eq=False)
class Row:
    """One binding.

    :param hdb: doorbell page that it has, None before its first use.
    :param owners: devices whose vDEVICE registered it.
    :param programmed: devices that have its address.
    """

    giova: int
    gpa: int
    size: int
    hdb: int | None = None
    owners: dict[str, int] = field(default_factory=dict)
    programmed: set[str] = field(default_factory=set)


@dataclass(eq=False)
class GuestMsi:
    """The bindings of one nest parent.

    :param slots: the slots of the file descriptor, by window and doorbell page.
    """

    option: int
    stage2: Stage2
    slots: dict[tuple[int, int], int]
    rows: list[Row] = field(default_factory=list)
    #: Rows without owners that some device is programmed with.
    stale: list[Row] = field(default_factory=list)
    #: Of each gDB page: the MSI domain that it was bound for first, and its doorbell page.
    domains: dict[int, int] = field(default_factory=dict)
    mapped: dict[int, int] = field(default_factory=dict)

    def page_of(self, row: Row) -> int:
        """Return the gDB page of a row."""
        return row.gpa & -self.stage2.machine.page

    def check_attach(self, device: Device, attached: list[Device]) -> None:
        """ONE_DOMAIN and ONE_GRANULE: attached devices have one MSI domain."""
        if self.option >= ONE_DOMAIN and any(other.its != device.its for other in attached):
            raise RefusalError(errno.EINVAL)

    def bind(self, device: Device, giova: int, gpa: int, size: int) -> None:
        """BIND, for a device whose MSIs are not set up."""
        page = self.stage2.machine.page
        if (giova | gpa) % size or (self.option == ONE_GRANULE and size > page):
            raise RefusalError(errno.EINVAL)
        for row in self.rows:
            if row.giova != giova:
                continue
            mine = device.name in row.owners
            if self.option == DIRECT:
                known = mine and (row.gpa, row.size) == (gpa, size)
            else:
                known = mine or self.option != DEVICE
            if known:
                row.owners[device.name] = device.its
                return
        domains = {its for row in self.rows for its in row.owners.values()}
        if self.option >= ONE_DOMAIN and domains - {device.its}:
            raise RefusalError(errno.EINVAL)
        new = Row(giova, gpa, size, owners={device.name: device.its})
        gdb = self.page_of(new)
        if gdb in self.domains:
            if self.option == DIRECT and self.domains[gdb] != device.its:
                raise RefusalError(errno.EEXIST)
        elif gdb in self.slots.values():
            raise RefusalError(errno.EEXIST)
        elif self.stage2.machine.overlaps_ram(gdb, page):
            raise RefusalError(errno.EADDRINUSE)
        self.domains.setdefault(gdb, device.its)
        self.rows.insert(0, new)

    def address(self, device: Device) -> int | None:
        """Return the address of the device's MSIs; None for the slot."""
        page = self.stage2.machine.page
        phys = device.hdb & -page
        rows = self.rows
        if self.option in (DIRECT, DEVICE):
            rows = [row for row in rows if device.name in row.owners]
        if not rows:
            return None
        row = rows[0]
        if self.option != DIRECT:
            same = [row for row in rows if row.hdb == phys]
            unused = [row for row in rows if row.hdb is None]
            if not same + unused:
                raise RefusalError(errno.ENOMEM)
            row = (same + unused)[0]
        self._use(row, device.hdb)
        row.programmed.add(device.name)
        return row.giova + device.hdb % min(row.size, page)

    def _use(self, row: Row, hdb: int) -> None:
        page, gdb = self.stage2.machine.page, self.page_of(row)
        phys = hdb & -page
        if row.hdb == phys:
            return
        if row.size < page and row.gpa % page // row.size != hdb % page // row.size:
            raise RefusalError(errno.EINVAL)
        present = self.mapped.get(gdb)
        if present is None:
            self.stage2.map(gdb, phys)
            self.mapped[gdb] = phys
        elif present != phys or (
            self.option != DIRECT
            and any(r.hdb is not None and r.owners and self.page_of(r) == gdb for r in self.rows)
        ):
            raise RefusalError(errno.EEXIST)
        row.hdb = phys

    def leave(self, name: str) -> None:
        """Forget what a device without MSIs was programmed with."""
        for row in [*self.rows, *self.stale]:
            row.programmed.discard(name)
            self._free(row)

    def unbind(self, device: Device, giova: int) -> None:
        """UNBIND, for a device whose MSIs are disabled."""
        row = next(r for r in self.rows if r.giova == giova and device.name in r.owners)
        del row.owners[device.name]
        if row.owners:
            return
        self.rows.remove(row)
        self.stale.append(row)
        if device.name in row.programmed:
            self.leave(device.name)
        self._free(row)

    def served(self, name: str) -> bool:
        """Return whether a device is programmed with a row that was withdrawn."""
        return any(name in row.programmed for row in self.stale)

    def keep_only(self, name: str, address: int | None) -> None:
        """Forget what a device is programmed with, but for the row of its new address."""
        page = self.stage2.machine.page
        for row in [*self.rows, *self.stale]:
            if (
                address is None
                or row not in self.rows
                or row.giova != address & -min(row.size, page)
            ):
                row.programmed.discard(name)
                self._free(row)

    def destroy(self, name: str) -> None:
        """Withdraw all bindings of a vDEVICE."""
        for row in list(self.rows):
            if row.owners.pop(name, None) is not None and not row.owners:
                self.rows.remove(row)
                self.stale.append(row)
        self.leave(name)

    def _free(self, row: Row) -> None:
        """Release the page of a row that is not given out and in no device."""
        if row.owners or row.programmed or row not in self.stale:
            return
        self.stale.remove(row)
        gdb = self.page_of(row)
        others = [o for o in [*self.rows, *self.stale] if self.page_of(o) == gdb]
        if row.hdb is not None and all(other.hdb is None for other in others):
            self.stage2.unmap(gdb)
            del self.mapped[gdb]
        if not others:
            del self.domains[gdb]
