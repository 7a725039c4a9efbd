"""iommufd of Linux 7.2.12, and the same with the interface for guest bindings.

drivers/iommu/iommufd/device.c iommufd_hw_pagetable_attach, driver.c iommufd_sw_msi, io_pagetable.c
iopt_table_enforce_dev_resv_regions and iopt_check_iova, viommu.c, hw_pagetable.c;
drivers/iommu/arm/arm-smmu-v3; kernel/irq/msi.c msi_handle_pci_fail for ENOSPC.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from reference.guest_msi import OPTION, GuestMsi
from reference.machine import (
    BYPASS,
    DIRECT,
    DIRECT_RELAXABLE,
    HW_MSI,
    RMR,
    Device,
    Guest,
    Machine,
    RefusalError,
    Stage2,
    landing,
    overlap,
)
from reference.type1 import guest_address

#: struct iommufd_sw_msi_maps: a bit for each doorbell page.
SLOTS = 64


@dataclass(eq=False)
class NestParent:
    """A nest parent on an IOAS of its own.

    :param devices: the attached devices.
    :param users: the devices of each doorbell that the caller mapped or bound, by IPA.
    """

    smmu: int
    stage2: Stage2
    bindings: GuestMsi | None
    devices: list[Device] = field(default_factory=list)
    bound: list[Device] = field(default_factory=list)
    users: dict[int, set[str]] = field(default_factory=dict)
    slots: set[int] = field(default_factory=set)


class Iommufd:
    """A guest whose VMM has one file descriptor of /dev/iommu.

    :param strategy: host-cookie, identity, direct, bindings; s2, vits or vsmmu of multi-its.
    :param revision: the allocator's, for bindings.
    :param bind: the kernel has the interface for guest bindings, by which direct goes, too.
    """

    def __init__(
        self, machine: Machine, strategy: str, revision: int = 0, *, bind: bool = False
    ) -> None:
        self.machine, self.strategy, self.revision = machine, strategy, revision
        self.binds = bind
        self.rmr = strategy in ("identity", "vsmmu")
        self.direct = strategy in ("direct", "s2", "vits")
        self.guest = Guest(machine, self.rmr)
        self.tables: dict[object, NestParent] = {}
        self.slots: dict[tuple[int, int], int] = {}
        #: Base of the window of each IOMMU group; the last attach of one of its devices sets it.
        self.starts: dict[int, int] = {}
        self.programmed: dict[str, int] = {}
        #: Devices with a vDEVICE, in the order of their allocation.
        self.vdevices: list[str] = []

    def _key(self, device: Device) -> object:
        return (device.smmu, device.its) if self.strategy == "s2" else device.smmu

    def _attached(self, group: int) -> list[Device]:
        return [d for t in self.tables.values() for d in t.devices if d.group == group]

    def attach(self, device: Device) -> None:
        """Attach the device with its stage 1; a nest parent is made for the first one."""
        if any(kind == HW_MSI for _base, _size, kind in device.regions):
            raise RefusalError(errno.EINVAL)
        self._check_policy(device)
        mates = self._attached(device.group)
        key = self._key(device)
        table = self.tables.get(key)
        behind = [d for d in self.machine.devices if d.assigned and d.smmu == device.smmu]
        if table is None:
            # Any bound device behind the SMMU can be named for it.
            if device.smmu in self.machine.single_stage and any(map(self._is_bound, behind)):
                raise RefusalError(errno.EOPNOTSUPP)
            stage2 = Stage2(self.machine)
            bindings = None
            if self.binds:
                bindings = GuestMsi(OPTION[self.revision], stage2, self.slots)
            table = NestParent(device.smmu, stage2, bindings)
        if not self._is_bound(device):
            raise RefusalError(errno.EINVAL)
        self._check_attach(table, device, mates)
        self.tables[key] = table
        table.devices.append(device)
        for member in self.machine.group(device.group):
            if member.assigned and member.name not in self.vdevices:
                self.vdevices.append(member.name)
        if table.bindings is not None:
            table.bindings.leave(device.name)
        self.guest.attach(device)

    def _is_bound(self, device: Device) -> bool:
        """Return whether VFIO_DEVICE_BIND_IOMMUFD takes a device: require_direct of its group.

        iommufd_device_bind, iommu_device_claim_dma_owner, __iommu_device_set_domain.
        """
        members = self.machine.group(device.group)
        return all(kind != DIRECT for member in members for *_range, kind in member.regions)

    def _check_policy(self, device: Device) -> None:
        """Refuse what the guest's kernel or the VMM refuse."""
        if self.rmr and self.machine.honours_rmr and device.guest_vfio:
            # In the guest: its RMR is a direct region.
            raise RefusalError(errno.EINVAL)
        translates = device.stage1 not in self.machine.modes
        if self.strategy == "vsmmu" and translates and not self.machine.honours_rmr:
            raise RefusalError(None)
        if self.rmr and device.window != RMR:
            raise RefusalError(None)
        if self.strategy in ("s2", "vits", "vsmmu") and any(
            mate.its != device.its for mate in self._attached(device.group)
        ):
            raise RefusalError(None)

    def _check_attach(self, table: NestParent, device: Device, mates: list[Device]) -> None:
        members = self.machine.group(device.group)
        if not mates:
            # IOMMU_VDEVICE_ALLOC for each assigned device of the group.
            for member in members:
                if member.assigned and member.smmu != table.smmu:
                    raise RefusalError(errno.EINVAL)
                if member.assigned and member.streams != 1:
                    raise RefusalError(errno.EOPNOTSUPP)
        elif any(mate.stage1 != device.stage1 for mate in mates):
            raise RefusalError(errno.EINVAL)
        if table.bindings is not None:
            table.bindings.check_attach(device, table.devices)
        if device.window is not None:
            self.starts[device.group] = device.window[0]
        # Guest RAM and, unless the kernel maps them itself, doorbells are areas of the IOAS.
        areas = () if self.binds else tuple(gdb for gdb, users in table.users.items() if users)
        for base, size in _reserved(device):
            if self.machine.overlaps_ram(base, size) or any(
                overlap(base, size, gdb, self.machine.page) for gdb in areas
            ):
                raise RefusalError(errno.EADDRINUSE)
        if mates:
            return
        # arm_smmu_attach_dev_nested, arm_smmu_attach_prepare_vmaster: for each device of the group.
        for member in members:
            if member.smmu != table.smmu:
                raise RefusalError(errno.EINVAL)
            if not member.assigned and self.machine.modes.get(device.stage1) != BYPASS:
                raise RefusalError(errno.ENOENT)

    def bind(self, device: Device) -> None:
        """Bind the doorbell: register it, or map it straight away."""
        table = self.tables[self._key(device)]
        if self.direct:
            self._check_conflict(table, device)
        if table.bindings is not None and (self.direct or self.strategy == "bindings"):
            size = self.machine.granules[device.stage1]
            table.bindings.bind(device, device.giova & -size, device.gdb & -size, size)
        elif self.direct and not table.users.get(device.gdb):
            page = self.machine.page
            reserved = [region for d in table.devices for region in _reserved(d)]
            if any(overlap(device.gdb, page, *r) for r in reserved):
                raise RefusalError(errno.EINVAL)
            table.stage2.map(device.gdb, device.hdb & -page)
        if self.direct:
            table.users.setdefault(device.gdb, set()).add(device.name)
        table.bound.append(device)

    def _check_conflict(self, table: NestParent, device: Device) -> None:
        """Refuse a gDB that a device of another ITS has."""
        users = table.users.get(device.gdb, set())
        if any(d.its != device.its for d in self.machine.devices if d.name in users):
            raise RefusalError(None)

    def prepare(self, device: Device) -> None:
        """Enable the MSIs."""
        table = self.tables[self._key(device)]
        try:
            self.programmed[device.name] = self._address(table, device)
        except RefusalError as error:
            raise RefusalError(errno.ENOSPC, error.number) from None

    def _address(self, table: NestParent, device: Device) -> int:
        if table.bindings is not None:
            address = None
            if device.group in self.starts:
                address = table.bindings.address(device)
            return self._slot(table, device) if address is None else address
        slot = self._slot(table, device)
        # VFIO enables the MSIs at a slot before the VMM can overwrite it.
        return guest_address(self.machine, device) if self.direct else slot

    def _slot(self, table: NestParent, device: Device) -> int:
        """iommufd_sw_msi."""
        if device.group not in self.starts:
            return device.hdb
        page, start = self.machine.page, self.starts[device.group]
        key = (start, device.hdb & -page)
        if key not in self.slots:
            if len(self.slots) == SLOTS:
                raise RefusalError(errno.EOVERFLOW)
            last = max(
                (s for (base, _phys), s in self.slots.items() if base == start), default=None
            )
            slot = start if last is None else last + page
            gdbs = {gdb for t in self.tables.values() if t.bindings for gdb in t.bindings.domains}
            while slot in gdbs:
                slot += page
            self.slots[key] = slot
        slot = self.slots[key]
        if slot not in table.slots:
            table.stage2.map(slot, key[1])
            table.slots.add(slot)
        return slot + device.hdb % page

    def detach(self, device: Device) -> None:
        """Withdraw the binding, and destroy the nest parent with its last device."""
        key = self._key(device)
        table = self.tables[key]
        # MSIs are disabled first.
        self.programmed.pop(device.name, None)
        if device in table.bound:
            table.bound.remove(device)
            self._unbind(table, device)
        table.devices.remove(device)
        if table.bindings is not None:
            self._leave_withdrawn(table, table.bindings)
            if not self._attached(device.group):
                # The vDEVICEs of a group go with its last device.
                for member in self.machine.group(device.group):
                    if member.name in self.vdevices:
                        self.vdevices.remove(member.name)
                        table.bindings.destroy(member.name)
                        self._leave_withdrawn(table, table.bindings)
        self.guest.detach(device)
        if not table.devices:
            del self.tables[key]

    def _leave_withdrawn(self, table: NestParent, bindings: GuestMsi) -> None:
        """Devices that a withdrawn binding serves take another address, if there is one."""
        attached = {device.name: device for device in table.devices}
        for name in self.vdevices:
            if name not in attached or not bindings.served(name):
                continue
            if name not in self.programmed:
                bindings.leave(name)
                continue
            device = attached[name]
            try:
                address = bindings.address(device)
                self.programmed[name] = self._slot(table, device) if address is None else address
            except RefusalError:
                continue
            bindings.keep_only(name, address)

    def _unbind(self, table: NestParent, device: Device) -> None:
        """A doorbell that the caller mapped goes with its last user."""
        if self.direct:
            table.users[device.gdb].remove(device.name)
        if table.bindings is not None:
            if self.direct or self.strategy == "bindings":
                size = self.machine.granules[device.stage1]
                table.bindings.unbind(device, device.giova & -size)
        elif self.direct and not table.users[device.gdb]:
            table.stage2.unmap(device.gdb)

    def deliver(self, device: Device) -> str:
        """Raise the device's MSIs."""
        table = self.tables[self._key(device)]
        iova = self.programmed[device.name]
        return landing(self.guest, device, device.stage1, table.stage2, iova)


def _reserved(device: Device) -> list[tuple[int, int]]:
    """Return the ranges that an IOAS reserves for a device."""
    return [(base, size) for base, size, kind in device.regions if kind != DIRECT_RELAXABLE]
