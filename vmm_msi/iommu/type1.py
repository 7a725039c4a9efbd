"""VFIO's type1 containers, with the nested IOMMU domains of "SMMUv3 Nested Stage Setup" in them.

Linux ``drivers/vfio/vfio_iommu_type1.c`` before iommufd, and what the series adds to it. One set of
rules for the simulator and, with pages of memory in place of doorbells, for a real kernel: what
they do not share is how an IOMMU domain comes to be (:class:`DomainTables`).

A container has IOMMU domains, and an IOMMU domain belongs to the IOMMU groups attached to it. The
guest's stage 1, the allocator of doorbell addresses and the bindings belong to the IOMMU domain.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Protocol

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules, series_rules
from vmm_msi.iommu.allocators import GuestBindings, MsiCookie, check_msi_domain
from vmm_msi.iommu.backend import MsiAllocator, S2Handle
from vmm_msi.types import ContainerPer, Iova, ReservedKind, Stage1Mode

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from vmm_msi.iommu.allocators import DoorbellTable
    from vmm_msi.iommu.revisions import Revision
    from vmm_msi.types import GuestDomain, HostDevice, HostTopology, Ipa, Pa, PciAddress


class DomainTables(Protocol):
    """How a backend makes the stage 2 of an IOMMU domain."""

    def open_domain(self, handle: S2Handle, smmu: int) -> DoorbellTable:
        """Allocate a stage 2 with the guest's RAM on an SMMU.

        :raise BackendError: when the SMMU lacks a stage; the kernel's refusal.
        """
        ...

    def close_domain(self, handle: S2Handle) -> None:
        """Free it with everything mapped in it."""
        ...


@dataclass(eq=False)
class Type1Domain:
    """An IOMMU domain of a container.

    :param made_for: the handle that a device was attached to when it was made.
    :param cookie: the allocator of doorbell addresses; None without one.
    :param groups: the attached IOMMU groups, each with its devices that the guest uses.
    """

    handle: S2Handle
    made_for: S2Handle
    smmu: int
    table: DoorbellTable
    cookie: MsiCookie | GuestBindings | None
    groups: dict[int, list[HostDevice]] = field(default_factory=dict)

    @property
    def devices(self) -> Iterator[HostDevice]:
        """The attached devices that the guest uses."""
        return (device for group in self.groups.values() for device in group)


@dataclass(eq=False)
class _Container:
    """A container: one address space.

    :param stage1: the stage 1 that its IOMMU domains have.
    :param users: number of devices that registered each binding, which the last one withdraws.
    """

    key: tuple[MsiAllocator, int, Hashable]
    domains: list[Type1Domain] = field(default_factory=list)
    stage1: str | None = None
    users: Counter[Iova] = field(default_factory=Counter)


@dataclass(eq=False)
class _Space:
    """What a strategy asked for as one stage 2 on an SMMU.

    A container has IOMMU domains on several SMMUs, so requests on different SMMUs share the VMM's
    containers; requests on one SMMU get containers of their own.

    :param number: counts the requests on one SMMU.
    """

    smmu: int
    allocator: MsiAllocator
    number: int


class Type1:
    """The containers of one guest.

    :param revision: of the series.
    """

    def __init__(
        self, host: HostTopology, guest: GuestDomain, revision: Revision, tables: DomainTables
    ) -> None:
        self._per = guest.containers
        self._memory = guest.memory
        self._modes: dict[str | None, Stage1Mode] = {s.id: s.config for s in guest.stage1}
        self._revision = revision
        self._tables = tables
        self._members: dict[int, list[HostDevice]] = {}
        for device in host.devices:
            self._members.setdefault(device.iommu_group, []).append(device)
        #: ``irq_domain_check_msi_remap`` asks all MSI domains of the host, not the device's.
        self._not_isolated = None
        if "vfio_iommu_type1" not in host.unsafe_interrupts:
            shared = (its.id for its in host.itses if not its.isolates_msis)
            self._not_isolated = next(shared, None)
        self._next = 1
        self._spaces: dict[S2Handle, _Space] = {}
        self._containers: dict[tuple[MsiAllocator, int, Hashable], _Container] = {}
        self._container_of: dict[int, _Container] = {}
        self._domain_of: dict[PciAddress, Type1Domain] = {}

    def _handle(self) -> S2Handle:
        self._next += 1
        return S2Handle(self._next - 1)

    @property
    def stage2_count(self) -> int:
        """Number of stage 2 tables; a requested stage 2 counts before its first device, too."""
        return sum(len(self._domains(handle)) or 1 for handle in self._spaces)

    @property
    def container_count(self) -> int:
        """Number of open containers."""
        return len(self._containers)

    @property
    def cookies(self) -> Iterator[MsiCookie | GuestBindings]:
        """The allocators of doorbell addresses."""
        for container in self._containers.values():
            for domain in container.domains:
                if domain.cookie is not None:
                    yield domain.cookie

    def alloc_s2(self, smmu: int, allocator: MsiAllocator) -> S2Handle:
        """Return a handle for one stage 2; containers are opened for its devices."""
        numbers = {s.number for s in self._spaces.values() if s.smmu == smmu}
        handle = self._handle()
        number = next(n for n in count() if n not in numbers)
        self._spaces[handle] = _Space(smmu, allocator, number)
        return handle

    def _domains(self, handle: S2Handle) -> list[Type1Domain]:
        """Return the IOMMU domains that were made for one of those handles."""
        domains = (domain for c in self._containers.values() for domain in c.domains)
        return [domain for domain in domains if domain.made_for == handle]

    def free_s2(self, handle: S2Handle) -> None:
        """Forget it.

        :raise BackendError: EBUSY while a device is attached.
        """
        self._space(handle)
        attached = sum(1 for domain in self._domains(handle) for _ in domain.devices)
        if attached:
            raise rules.S2_UNUSED.refusal(errno.EBUSY, f"S2 {handle}: {attached} devices attached")
        del self._spaces[handle]

    def _space(self, handle: S2Handle) -> _Space:
        space = self._spaces.get(handle)
        if space is None:
            raise rules.S2_EXISTS.refusal(errno.ENOENT, f"S2 {handle}: does not exist")
        return space

    def attach(self, device: HostDevice, handle: S2Handle, stage1: str) -> Type1Domain:
        """Add a device's IOMMU group to its container, and set the container's stage 1.

        ``vfio_iommu_type1_attach_group`` attaches the group to the first IOMMU domain of the
        container that takes it, else to a new one. VFIO_IOMMU_SET_PASID_TABLE sets the stage 1 in
        all of them.

        The VMM registers the stage 1 again where a new IOMMU domain of the container lacks it:
        nothing does so by itself.

        :return: the IOMMU domain. The other devices of its container have the same stage 1 now.
        :raise BackendError: EBUSY for an attached device; EPERM on a host with an ITS that does
            not isolate MSIs; EINVAL for a group that is in another container, for a second PASID
            table from revision 8 on (before, it replaces the first, as a bypass does in any), for
            guest RAM in a reserved region from revision 15 on, and for a group that no IOMMU domain
            takes; ENXIO for a group behind several SMMUs.
        """
        space = self._space(handle)
        if device.address in self._domain_of:
            raise rules.NOT_ATTACHED.refusal(errno.EBUSY, f"{device.address}: attached already")
        if self._not_isolated is not None:
            raise rules.TYPE1_ISOLATED.refusal(
                errno.EPERM,
                f"{device.address}: ITS {self._not_isolated} of the host does not isolate MSIs, so "
                "VFIO takes no device at all (irq_domain_check_msi_remap)",
            )
        key = (space.allocator, space.number, self._key(device, stage1))
        current = self._container_of.get(device.iommu_group)
        container = self._containers.get(key)
        if current is not None and current is not container:
            raise rules.TYPE1_CONTAINER.refusal(
                errno.EINVAL,
                f"{device.address}: IOMMU group {device.iommu_group} is in another container "
                "(VFIO_GROUP_SET_CONTAINER)",
            )
        if container is None:
            container = _Container(key)
        if self._revision.one_stage1 and self._has_another_table(container, stage1):
            raise series_rules.one_stage1(self._revision).refusal(
                errno.EINVAL,
                f"{device.address}: its container has the stage 1 {container.stage1}, and an IOMMU "
                f"domain takes one (arm_smmu_attach_pasid_table); {stage1} needs another container",
            )
        domain = self._attach_group(device, container, handle)
        domain.groups.setdefault(device.iommu_group, []).append(device)
        container.stage1 = stage1
        self._containers[key] = self._container_of[device.iommu_group] = container
        self._domain_of[device.address] = domain
        return domain

    def _has_another_table(self, container: _Container, stage1: str) -> bool:
        """Return whether a container has a PASID table, and ``stage1`` is another one.

        A bypass is accepted, and clears the table.
        """
        names = {container.stage1, stage1} - {None}
        tables = [n for n in names if self._modes[n] is not Stage1Mode.BYPASS]
        return len(tables) > 1

    def _key(self, device: HostDevice, stage1: str) -> Hashable:
        """Return what tells the VMM's containers apart."""
        match self._per:
            case ContainerPer.DEVICE:
                return device.iommu_group
            case ContainerPer.STAGE1:
                return stage1
            case ContainerPer.GUEST:
                return None

    def _attach_group(
        self, device: HostDevice, container: _Container, made_for: S2Handle
    ) -> Type1Domain:
        group = device.iommu_group
        for domain in container.domains:
            if group in domain.groups:
                return domain
        members = self._members.get(group, [device])
        others = [member.address for member in members if member.smmu != device.smmu]
        if others:
            raise series_rules.one_smmu(self._revision).refusal(
                errno.ENXIO,
                f"{device.address}: {others[0]} of its IOMMU group is behind another SMMU "
                "(arm_smmu_attach_dev)",
            )
        if self._revision.reserves_regions:
            self._check_regions(members)
        # The patches check every nested IOMMU domain, because their allocator needs it. A caller
        # that maps doorbells itself needs no such check.
        checked = self._spaces[made_for].allocator is not MsiAllocator.CALLER
        # The newest one comes first: list_add().
        for domain in reversed(container.domains):
            if domain.smmu != device.smmu:
                continue
            try:
                if checked:
                    check_msi_domain(self._revision, members, domain.devices)
            except BackendError:
                continue
            return domain
        if checked:
            check_msi_domain(self._revision, members, ())
        return self._open_domain(device, container, made_for)

    def _check_regions(self, members: list[HostDevice]) -> None:
        """``vfio_iommu_resv_conflict``; RAM that is mapped later is refused, too."""
        for member in members:
            for region in member.reserved:
                if region.kind is ReservedKind.DIRECT_RELAXABLE:
                    continue
                if any(region.overlaps(ram.base, ram.size) for ram in self._memory):
                    raise rules.TYPE1_REGIONS.refusal(
                        errno.EINVAL, f"{member.address}: guest RAM is in its region {region}"
                    )

    def _open_domain(
        self, device: HostDevice, container: _Container, made_for: S2Handle
    ) -> Type1Domain:
        if device.smmu is None:
            raise rules.BEHIND_SMMU.refusal(
                errno.ENODEV, f"{device.address}: is not behind an SMMU"
            )
        handle = self._handle()
        table = self._tables.open_domain(handle, device.smmu)
        cookie: MsiCookie | GuestBindings | None = None
        base = self._window_base(device)
        if base is not None and self._spaces[made_for].allocator is not MsiAllocator.CALLER:
            if self._revision.has_bindings:
                cookie = GuestBindings(table, self._revision)
            else:
                cookie = MsiCookie(table, base)
        domain = Type1Domain(handle, made_for, device.smmu, table, cookie)
        container.domains.append(domain)
        return domain

    def _window_base(self, device: HostDevice) -> int | None:
        """``vfio_iommu_has_sw_msi``: of a group's software MSI windows, unless it has a HW MSI one.

        :return: None without a cookie.
        """
        members = self._members.get(device.iommu_group, [device])
        windows = [m.sw_msi_window.base for m in members if m.sw_msi_window is not None]
        return None if any(m.hw_msi for m in members) else max(windows, default=None)

    def detach(self, device: HostDevice) -> None:
        """Remove a device; the last one of a group takes the group out of its container.

        An IOMMU domain goes with its last group, and its bindings with it
        (``vfio_iommu_type1_detach_group``).

        :raise BackendError: EINVAL for a device that is not attached.
        """
        domain = self.domain_of(device.address)
        del self._domain_of[device.address]
        group = device.iommu_group
        domain.groups[group].remove(device)
        if domain.groups[group]:
            return
        del domain.groups[group]
        container = self._container_of.pop(group)
        if domain.groups:
            return
        container.domains.remove(domain)
        self._tables.close_domain(domain.handle)
        if not container.domains:
            del self._containers[container.key]

    def domain_of(self, device: PciAddress) -> Type1Domain:
        """Return the IOMMU domain of a device.

        :raise BackendError: EINVAL for a device that is not attached.
        """
        domain = self._domain_of.get(device)
        if domain is None:
            raise rules.ATTACHED.refusal(errno.EINVAL, f"{device}: not attached")
        return domain

    def mates(self, device: HostDevice) -> list[HostDevice]:
        """Return the attached devices of a device's container."""
        domains = self._container_of[device.iommu_group].domains
        return [mate for domain in domains for mate in domain.devices]

    def is_attached(self, device: PciAddress) -> bool:
        """Return whether a device is attached."""
        return device in self._domain_of

    def bind(self, device: HostDevice, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding in every IOMMU domain of the device's container.

        VFIO_IOMMU_SET_MSI_BINDING; with a device handle, once for each device in it. When one
        refuses it, revisions with a call to withdraw a binding do so in those before, also of one
        that was registered earlier.

        :raise BackendError: ENOTTY without the call, EINVAL without the nested MSI cookie; the
            allocator's error.
        """
        self._check_call(device, self._revision.has_bindings, "register")
        domains = self._container_of[device.iommu_group].domains[::-1]
        for number, domain in enumerate(domains):
            try:
                for owner in self._owners(domain):
                    self._bindings(domain).bind(owner, giova, gdb, size)
            except BackendError:
                if self._revision.can_unbind:
                    self._unbind_all(domains[:number], giova)
                raise
        self._container_of[device.iommu_group].users[giova] += 1

    def unbind(self, device: HostDevice, giova: Iova) -> list[S2Handle]:
        """Withdraw a guest binding; return the stage 2 tables in which a page was unmapped.

        The call reaches every IOMMU domain of the container, so the VMM makes it for the last
        device of the container that registered the binding.

        :raise BackendError: ENOTTY without the call.
        """
        self._check_call(device, self._revision.can_unbind, "withdraw")
        container = self._container_of[device.iommu_group]
        if container.users[giova] > 1:
            container.users[giova] -= 1
            return []
        del container.users[giova]
        return self._unbind_all(container.domains, giova)

    def _unbind_all(self, domains: list[Type1Domain], giova: Iova) -> list[S2Handle]:
        changed = []
        for domain in domains:
            if isinstance(domain.cookie, GuestBindings):
                unmapped = [domain.cookie.unbind(owner, giova) for owner in self._owners(domain)]
                changed += [domain.handle] * any(unmapped)
        return changed

    def _owners(self, domain: Type1Domain) -> list[PciAddress]:
        """Return the devices that a call names in an IOMMU domain.

        With a device handle it names every device of the IOMMU groups (vfio_iommu_for_each_dev),
        whether the guest uses it or not; else any stands for all.
        """
        owners = [member.address for group in domain.groups for member in self._members[group]]
        return owners if self._revision.device_handle else owners[:1]

    def _bindings(self, domain: Type1Domain) -> GuestBindings:
        if not isinstance(domain.cookie, GuestBindings):
            raise series_rules.binding_cookie(self._revision).refusal(
                errno.EINVAL, f"IOMMU domain {domain.handle}: has no nested MSI cookie"
            )
        return domain.cookie

    def _check_call(self, device: HostDevice, has_call: bool, verb: str) -> None:
        self.domain_of(device.address)
        if not has_call:
            raise series_rules.unknown_call(self._revision).refusal(
                errno.ENOTTY, self._no_call(verb)
            )

    def _no_call(self, verb: str) -> str:
        number = self._revision.number
        kernel = f"revision {number} of the series" if number else "this kernel"
        return f"{kernel} has no call to {verb} a guest binding"

    def prepare(self, device: HostDevice, doorbell: Pa) -> Iova | None:
        """Return the page address that ``iommu_dma_prepare_msi`` picks for a doorbell.

        Without a cookie it is the doorbell's own. Before revision 8 a failure is not reported
        (``iommu_dma_map_msi_msg``): the message gets an address of all ones.

        :return: None for that address.
        :raise BackendError: ENOSPC, inside the allocator's error.
        """
        domain = self.domain_of(device.address)
        try:
            match domain.cookie:
                case MsiCookie() as cookie:
                    return cookie.prepare(doorbell)
                case GuestBindings() as bindings:
                    return bindings.prepare(device.address, doorbell)
        except BackendError as error:
            if self._revision.reports_failure:
                raise error.seen_as(errno.ENOSPC) from error
            return None
        return Iova(doorbell.align_down(domain.table.granule))
