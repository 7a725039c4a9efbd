"""iommufd of Linux 7.2.12, and the same with guest bindings on nest parents.

drivers/iommu/iommufd/device.c iommufd_hw_pagetable_attach, driver.c iommufd_sw_msi, io_pagetable.c
iopt_table_enforce_dev_resv_regions and iopt_check_iova, viommu.c, hw_pagetable.c;
drivers/iommu/arm/arm-smmu-v3; kernel/irq/msi.c msi_handle_pci_fail for ENOSPC.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from reference.bindings import ONE_MSI_DOMAIN, WITH_HANDLE, Bindings
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
    :param users: the devices of each doorbell that the caller mapped, by IPA.
    """

    smmu: int
    stage2: Stage2
    bindings: Bindings
    devices: list[Device] = field(default_factory=list)
    bound: list[Device] = field(default_factory=list)
    users: dict[int, set[str]] = field(default_factory=dict)
    slots: set[int] = field(default_factory=set)


class Iommufd:
    """A guest whose VMM has one file descriptor of /dev/iommu.

    :param strategy: host-cookie, identity, direct, bindings; s2, vits or vsmmu of multi-its.
    :param revision: the allocator's, for bindings.
    :param bind: the kernel maps doorbells itself, also in reserved regions.
    """

    def __init__(
        self, machine: Machine, strategy: str, revision: int = 0, *, bind: bool = False
    ) -> None:
        self.machine, self.strategy, self.revision = machine, strategy, revision
        self.maps_itself = bind
        self.rmr = strategy in ("identity", "vsmmu")
        self.direct = strategy in ("direct", "s2", "vits")
        self.guest = Guest(machine, self.rmr)
        self.tables: dict[object, NestParent] = {}
        self.slots: dict[tuple[int, int], int] = {}
        #: Base of the window of each IOMMU group; the last attach of one of its devices sets it.
        self.starts: dict[int, int] = {}
        self.programmed: dict[str, int] = {}

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
            table = NestParent(device.smmu, stage2, Bindings(self.revision, stage2))
        if not self._is_bound(device):
            raise RefusalError(errno.EINVAL)
        self._check_attach(table, device, mates)
        self.tables[key] = table
        table.devices.append(device)
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
        # No posting has this check on a nest parent; it comes first here.
        if self.revision in ONE_MSI_DOMAIN:
            its = {d.its for o in table.devices for d in self.machine.group(o.group)}
            hw_msi = any(kind == HW_MSI for m in members for *_range, kind in m.regions)
            if len(its | {member.its for member in members}) > 1:
                raise RefusalError(errno.EINVAL)
            if self.revision >= 8 and hw_msi:
                raise RefusalError(errno.EINVAL)
        if not mates:
            # IOMMU_VDEVICE_ALLOC for each assigned device of the group.
            for member in members:
                if member.assigned and member.smmu != table.smmu:
                    raise RefusalError(errno.EINVAL)
                if member.assigned and member.streams != 1:
                    raise RefusalError(errno.EOPNOTSUPP)
        elif any(mate.stage1 != device.stage1 for mate in mates):
            raise RefusalError(errno.EINVAL)
        if device.window is not None:
            self.starts[device.group] = device.window[0]
        # Guest RAM and, unless the kernel maps them itself, doorbells are areas of the IOAS.
        areas = (
            () if self.maps_itself else tuple(gdb for gdb, users in table.users.items() if users)
        )
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
        if self.strategy == "bindings":
            size = self.machine.granules[device.stage1]
            table.bindings.bind(device.name, device.giova, device.gdb, size)
        elif self.direct:
            self._map_direct(table, device)
        table.bound.append(device)

    def _map_direct(self, table: NestParent, device: Device) -> None:
        page = self.machine.page
        phys = device.hdb & -page
        if table.users.get(device.gdb):
            if table.stage2.pages[device.gdb] != phys:
                raise RefusalError(None)
        else:
            reserved = [region for d in table.devices for region in _reserved(d)]
            if not self.maps_itself and any(overlap(device.gdb, page, *r) for r in reserved):
                raise RefusalError(errno.EINVAL)
            table.stage2.map(device.gdb, phys)
        table.users.setdefault(device.gdb, set()).add(device.name)

    def prepare(self, device: Device) -> None:
        """Enable the MSIs."""
        table = self.tables[self._key(device)]
        try:
            self.programmed[device.name] = self._address(table, device)
        except RefusalError as error:
            raise RefusalError(errno.ENOSPC, error.number) from None

    def _address(self, table: NestParent, device: Device) -> int:
        if self.direct:
            if not self.maps_itself:
                # VFIO enables the MSIs at a slot before the VMM can overwrite it.
                self._slot(table, device)
            return guest_address(self.machine, device)
        if table.bindings.entries:
            return table.bindings.prepare(device.name, device.hdb)
        return self._slot(table, device)

    def _slot(self, table: NestParent, device: Device) -> int:
        """iommufd_sw_msi."""
        if device.group not in self.starts:
            return device.hdb
        page, start = self.machine.page, self.starts[device.group]
        key = (start, device.hdb & -page)
        if key not in self.slots:
            if len(self.slots) == SLOTS:
                raise RefusalError(errno.EOVERFLOW)
            self.slots[key] = start + page * sum(base == start for base, _phys in self.slots)
        slot = self.slots[key]
        if slot not in table.slots:
            table.stage2.map(slot, key[1])
            table.slots.add(slot)
        return slot + device.hdb % page

    def detach(self, device: Device) -> None:
        """Withdraw the binding, and destroy the nest parent with its last device."""
        key = self._key(device)
        table = self.tables[key]
        self.programmed.pop(device.name, None)
        if device in table.bound:
            table.bound.remove(device)
            self._unbind(table, device)
        table.devices.remove(device)
        self.guest.detach(device)
        if not table.devices:
            del self.tables[key]

    def _unbind(self, table: NestParent, device: Device) -> None:
        """A binding with a handle is the device's own; another one goes with its last user."""
        if self.strategy == "bindings":
            own = self.revision in WITH_HANDLE
            if own or all(mate.giova != device.giova for mate in table.bound):
                table.bindings.unbind(device.name, device.giova)
        elif self.direct:
            table.users[device.gdb].remove(device.name)
            if not table.users[device.gdb]:
                table.stage2.unmap(device.gdb)

    def deliver(self, device: Device) -> str:
        """Raise the device's MSIs."""
        table = self.tables[self._key(device)]
        iova = self.programmed[device.name]
        return landing(self.guest, device, device.stage1, table.stage2, iova)


def _reserved(device: Device) -> list[tuple[int, int]]:
    """Return the ranges that an IOAS reserves for a device."""
    return [(base, size) for base, size, kind in device.regions if kind != DIRECT_RELAXABLE]
