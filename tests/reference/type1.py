"""VFIO's type1 containers with the series of 2018-2021, before and after it.

drivers/vfio/vfio_iommu_type1.c vfio_iommu_type1_attach_group, vfio_iommu_type1_detach_group (Linux
5.9 and 7.2); the postings' changes of vfio_iommu_type1.c (v8 20190526161004.25232-25, v10
20200320161911.27494-4, v13 20210411114659.15051-4) and arm-smmu-v3.c (v7 to v11, v15).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from reference.bindings import ONE_MSI_DOMAIN, WITH_HANDLE, Bindings
from reference.machine import (
    ALL_ONES,
    BYPASS,
    DIRECT_RELAXABLE,
    HW_MSI,
    Device,
    Guest,
    Machine,
    RefusalError,
    Stage2,
    landing,
)


@dataclass(eq=False)
class IommuDomain:
    """An IOMMU domain of a container.

    :param window: base of the MSI window of the group that it was made for; None without a cookie.
    :param slots: pages of the window, by doorbell page.
    :param users: the devices of each doorbell that the VMM mapped, by IPA.
    """

    stage2: Stage2
    bindings: Bindings
    window: int | None
    devices: list[Device] = field(default_factory=list)
    stage1: str | None = None
    slots: dict[int, int] = field(default_factory=dict)
    users: dict[int, set[str]] = field(default_factory=dict)


@dataclass(eq=False)
class Container:
    """A container: its IOMMU domains, newest first, and the assigned devices in it."""

    domains: list[IommuDomain] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    bound: list[Device] = field(default_factory=list)

    def domain(self, device: Device) -> IommuDomain:
        """Return the IOMMU domain of a device's group."""
        return next(d for d in self.domains if device in d.devices)


class Type1:
    """A guest whose VMM assigns devices by groups and containers.

    :param revision: of the series; 0 is the kernel before it, 16 gave bindings up.
    :param strategy: bindings, cookie (the kernel's own allocator) or direct.
    """

    def __init__(
        self, machine: Machine, revision: int, strategy: str = "bindings", *, rmr: bool = False
    ) -> None:
        self.machine, self.revision, self.strategy = machine, revision, strategy
        self.guest = Guest(machine, rmr)
        self.containers: dict[object, Container] = {}
        self.programmed: dict[str, int] = {}

    def _key(self, device: Device) -> object:
        # QEMU has a container for each address space, and a group is in one address space.
        return {"device": device.group, "stage1": device.stage1, "guest": 0}[
            self.machine.containers
        ]

    def attach(self, device: Device) -> None:
        """Put the device's group into the container, and set the container's stage 1."""
        if any(kind == HW_MSI for _base, _size, kind in device.regions):
            raise RefusalError(errno.EINVAL)
        key = self._key(device)
        if any(
            other != key and mate.group == device.group
            for other, container in self.containers.items()
            for mate in container.devices
        ):
            # vfio_group_ioctl_set_container: the group has a container.
            raise RefusalError(errno.EINVAL)
        container = self.containers.setdefault(key, Container())
        is_new = all(mate.group != device.group for mate in container.devices)
        try:
            if is_new:
                self._attach_group(container, self.machine.group(device.group))
            try:
                self._set_table(container, device.stage1)
            except RefusalError:
                if is_new:
                    self._leave(container, device.group)
                raise
        except RefusalError:
            if not container.devices:
                del self.containers[key]
            raise
        container.devices.append(device)
        self.guest.attach(device)

    def _attach_group(self, container: Container, members: list[Device]) -> None:
        """Try a fresh IOMMU domain, whose refusal is the group's; then the existing ones."""
        # vfio_iommu_has_sw_msi, on the regions of the group in order of their addresses.
        windows = [member.window[0] for member in members if member.window]
        window = max(windows, default=None)
        if any(kind == HW_MSI for m in members for _base, _size, kind in m.regions):
            window = None
        stage2 = Stage2(self.machine)
        fresh = IommuDomain(stage2, Bindings(self.revision, stage2), window)
        self._join(fresh, members)
        # vfio_iommu_resv_conflict, and vfio_iommu_iova_dma_valid when RAM is mapped later: 5.4.
        if self.revision >= 15 and any(
            self.machine.overlaps_ram(base, size)
            for member in members
            for base, size, kind in member.regions
            if kind != DIRECT_RELAXABLE
        ):
            raise RefusalError(errno.EINVAL)
        for domain in container.domains:
            try:
                self._join(domain, members)
            except RefusalError:
                continue
            return
        container.domains.insert(0, fresh)

    def _join(self, domain: IommuDomain, members: list[Device]) -> None:
        """iommu_attach_group: arm_smmu_attach_dev for each device of the group, or none."""
        joined = list(domain.devices)
        for member in members:
            if member.smmu in self.machine.single_stage:
                raise RefusalError(errno.EINVAL)
            if any(other.smmu != member.smmu for other in joined):
                raise RefusalError(errno.ENXIO)
            joined.append(member)
            # The checks are the allocators': no kernel was posted that has them with direct maps.
            if self.strategy == "direct":
                continue
            if self.revision in ONE_MSI_DOMAIN and joined[0].its != member.its:
                raise RefusalError(errno.EINVAL)
            if self.revision >= 8 and any(kind == HW_MSI for *_range, kind in member.regions):
                raise RefusalError(errno.EINVAL)
        domain.devices = joined

    def _set_table(self, container: Container, stage1: str) -> None:
        """SET_PASID_TABLE; for an IOMMU domain made since, the VMM unsets and sets again."""
        others = {domain.stage1 for domain in container.domains} - {None, stage1}
        # A bypass is always accepted and clears the table: arm_smmu_attach_pasid_table
        # (v10 20200320160932.27222-7, v15 20210411111228.14386-6).
        tables = [s for s in (stage1, *others) if self.machine.modes.get(str(s)) != BYPASS]
        if self.revision >= 8 and others and len(tables) > 1:
            raise RefusalError(errno.EINVAL)
        for domain in container.domains:
            domain.stage1 = stage1

    def bind(self, device: Device) -> None:
        """BIND of the device's doorbell, in every IOMMU domain of its container."""
        container = self.containers[self._key(device)]
        size = self.machine.granules[device.stage1]
        if self.strategy == "direct":
            self._map_direct(container.domain(device), device)
        elif self.strategy == "bindings":
            done: list[tuple[IommuDomain, str]] = []
            for domain in container.domains:
                try:
                    self._register(domain, device, size)
                except RefusalError:
                    # In the IOMMU domains before the refusing domain, from v4 on.
                    for earlier, name in done if self.revision >= 4 else ():
                        earlier.bindings.unbind(name, device.giova)
                    raise
                done += [(domain, name) for name in self._handles(domain)]
        container.bound.append(device)

    def _register(self, domain: IommuDomain, device: Device, size: int) -> None:
        if domain.window is None:
            # No nested MSI cookie.
            raise RefusalError(errno.EINVAL)
        for name in self._handles(domain):
            domain.bindings.bind(name, device.giova, device.gdb, size)

    def _handles(self, domain: IommuDomain) -> list[str]:
        """Return the devices that the ioctl calls the IOMMU API for."""
        return [d.name for d in domain.devices] if self.revision in WITH_HANDLE else [""]

    def _map_direct(self, domain: IommuDomain, device: Device) -> None:
        phys = device.hdb & -self.machine.page
        if domain.users.get(device.gdb):
            if domain.stage2.pages[device.gdb] != phys:
                raise RefusalError(None)
        else:
            domain.stage2.map(device.gdb, phys)
        domain.users.setdefault(device.gdb, set()).add(device.name)

    def prepare(self, device: Device) -> None:
        """Enable the MSIs; the mapping is made while the message is composed until Linux 5.1."""
        domain = self.containers[self._key(device)].domain(device)
        try:
            self.programmed[device.name] = self._address(domain, device)
        except RefusalError as error:
            if self.revision >= 8:
                raise RefusalError(errno.ENOSPC, error.number) from None
            self.programmed[device.name] = ALL_ONES

    def _address(self, domain: IommuDomain, device: Device) -> int:
        page = self.machine.page
        if self.strategy == "direct":
            return guest_address(self.machine, device)
        if domain.window is None:
            return device.hdb
        if self.strategy == "bindings":
            return domain.bindings.prepare(device.name, device.hdb)
        phys = device.hdb & -page
        if phys not in domain.slots:
            slot = domain.window + len(domain.slots) * page
            domain.stage2.map(slot, phys)
            domain.slots[phys] = slot
        return domain.slots[phys] + device.hdb % page

    def detach(self, device: Device) -> None:
        """Withdraw the binding that no other device uses; the group goes with its last device."""
        container = self.containers[self._key(device)]
        self.programmed.pop(device.name, None)
        if device in container.bound:
            container.bound.remove(device)
            self._unbind(container, device)
        container.devices.remove(device)
        self.guest.detach(device)
        if all(mate.group != device.group for mate in container.devices):
            self._leave(container, device.group)
        if not container.devices:
            del self.containers[self._key(device)]

    def _unbind(self, container: Container, device: Device) -> None:
        if self.strategy == "direct":
            domain = container.domain(device)
            domain.users[device.gdb].remove(device.name)
            if not domain.users[device.gdb]:
                domain.stage2.unmap(device.gdb)
            return
        used = any(mate.giova == device.giova for mate in container.bound)
        if self.strategy == "bindings" and self.revision >= 4 and not used:
            for domain in container.domains:
                for name in self._handles(domain):
                    domain.bindings.unbind(name, device.giova)

    def _leave(self, container: Container, group: int) -> None:
        """vfio_iommu_type1_detach_group: an IOMMU domain is freed with its last group."""
        for domain in list(container.domains):
            domain.devices = [d for d in domain.devices if d.group != group]
            if not domain.devices:
                container.domains.remove(domain)

    def deliver(self, device: Device) -> str:
        """Raise the device's MSIs."""
        domain = self.containers[self._key(device)].domain(device)
        iova = self.programmed[device.name]
        return landing(self.guest, device, domain.stage1, domain.stage2, iova)


def guest_address(machine: Machine, device: Device) -> int:
    """Return the guest's address of the doorbell page, with the host's offset in its page."""
    granule = machine.granules[device.stage1]
    return (device.giova & -granule) + device.gdb % granule + device.hdb % machine.page
