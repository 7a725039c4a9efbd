"""The simulator's backend: kernel, hardware and guest of one host."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules
from vmm_msi.iommu.backend import BackendInfo, MsiAllocator, S2Handle
from vmm_msi.iommu.guest_stage1 import GuestStage1
from vmm_msi.iommu.sim.its import LpiSpace, SimIts, table_sizes
from vmm_msi.iommu.sim.kernel import ALL_ONES
from vmm_msi.iommu.sim.linux72 import IommufdKernel
from vmm_msi.iommu.sim.page_table import PageTable
from vmm_msi.iommu.sim.series import SeriesKernel
from vmm_msi.iommu.sim.smmu import Stage1Config
from vmm_msi.types import Costs, Iova, Outcome, Pa, Stage1Mode, TraceStep, Verdict
from vmm_msi.types.verdict import possible_addresses

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from vmm_msi.errors import Rule
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.iommu.sim.kernel import Kernel
    from vmm_msi.iommu.sim.smmu import Walk
    from vmm_msi.types import (
        GuestDomain,
        HostDevice,
        HostTopology,
        Ipa,
        Its,
        PciAddress,
        ReservedRegion,
    )

#: Bytes between the first-level tables of two stage 1s in guest RAM.
_ROOT_STRIDE = 0x10000


class SimBackend:
    """A backend that simulates a kernel of the given profile on ``host``, with ``guest`` on it.

    :param fail_at: refuse the n-th operation that changes something, counted from 1, with
        ``fail_errno`` (as Linux's fail_nth does); 0 for none.
    :raise InputError: when one stage 1 would map one gIOVA to two doorbells.
    """

    def __init__(
        self,
        host: HostTopology,
        guest: GuestDomain,
        profile: Profile,
        *,
        fail_at: int = 0,
        fail_errno: int = errno.ENOMEM,
    ) -> None:
        self._host = host
        self._guest = guest
        kind = IommufdKernel if profile.iommufd else SeriesKernel
        self._kernel: Kernel = kind(host, guest, profile)
        self._stage1 = GuestStage1(guest, lambda stage1, _asid: PageTable(stage1.granule))
        self._configs = {
            name: Stage1Config(asid, table, self._root(asid), guest.stage1_by_id[name].config)
            for asid, (name, table) in enumerate(self._stage1.tables.items(), 1)
        }
        lpis = LpiSpace(gicv5=any(its.is_gicv5 for its in host.itses))
        self._itses = {its.id: SimIts(its, lpis) for its in host.itses}
        self._table_sizes = table_sizes(host)
        self._doorbells = {its.doorbell: its.id for its in host.itses if its.pre_its is None}
        for device in host.devices:
            if device.its_group and device.its in host.its_by_id:
                self._doorbells[self._doorbell_of(device)] = device.its
        self._programmed = self._kernel.programmed
        #: The devices whose address the strategy wrote itself.
        self._written: set[PciAddress] = set()
        self._fail_at = fail_at
        self._fail_errno = fail_errno
        #: Number of operations that changed something or were refused by ``fail_at``.
        self.steps = 0

    def _root(self, asid: int) -> Ipa:
        """Return the IPA of a stage 1's first-level table, in guest RAM."""
        ram = self._guest.memory[0]
        return ram.base.offset((asid - 1) * _ROOT_STRIDE % ram.size)

    @property
    def info(self) -> BackendInfo:
        """Name, kernel and capabilities."""
        profile = self._kernel.profile
        return BackendInfo("sim", profile.name, profile.capabilities)

    @property
    def page_size(self) -> int:
        """PAGE_SIZE of the host kernel in bytes."""
        return self._kernel.page_size

    def sw_msi_window(self, device: PciAddress) -> ReservedRegion | None:
        """Return the device's software MSI window."""
        moved = self._kernel.moved_windows.get(device)
        return moved or self._host.device_by_address[device].sw_msi_window

    def move_sw_msi_window(self, device: PciAddress, window: ReservedRegion | None) -> None:
        """Move it; see :meth:`Kernel.move_sw_msi_window`."""
        if window is not None:
            self._step("move_sw_msi_window")
        self._kernel.move_sw_msi_window(device, window)

    def alloc_s2(
        self,
        smmu: int,
        *,
        allocator: MsiAllocator = MsiAllocator.KERNEL,
        own_file: PciAddress | None = None,
    ) -> S2Handle:
        """Allocate a stage 2; see :meth:`Kernel.alloc_s2`."""
        self._step("alloc_s2")
        device = None if own_file is None else self._host.device_by_address[own_file]
        return self._kernel.alloc_s2(smmu, allocator, device)

    def free_s2(self, s2: S2Handle) -> None:
        """Free a stage 2; see :meth:`Kernel.free_s2`."""
        self._kernel.free_s2(s2)

    def attach(self, device: PciAddress, s2: S2Handle) -> S2Handle:
        """Attach a device and let the guest map its doorbell; see :meth:`Kernel.attach`."""
        self._step("attach")
        guest_device = self._guest.device_by_address[device]
        config = self._configs[guest_device.stage1]
        host_device = self._host.device_by_address[device]
        attached_to = self._kernel.attach(host_device, s2, guest_device.stage1, config)
        try:
            self._stage1.add_device(guest_device)
        except BackendError:
            self._kernel.detach(host_device)
            raise
        return attached_to

    def detach(self, device: PciAddress) -> None:
        """Detach a device: its interrupts, then its translation, then the guest's device."""
        host_device = self._host.device_by_address[device]
        guest_device = self._guest.device_by_address[device]
        self._kernel.domain_of(device)
        self._disable(host_device)
        self._kernel.detach(host_device)
        if self._stage1.remove_device(guest_device):
            asid = self._configs[guest_device.stage1].asid
            for domain in self._kernel.domains.values():
                self._kernel.smmus[domain.smmu].invalidate_asid(domain.config.vmid, asid)

    def _disable(self, device: HostDevice) -> None:
        """Disable the device's MSIs, if they are enabled."""
        if self._programmed.pop(device.address, None) is not None:
            self._written.discard(device.address)
            self._itses[device.its].disable(device)
            self._kernel.free_msis(device)

    def is_attached(self, device: PciAddress) -> bool:
        """Return whether a device is attached."""
        return self._kernel.is_attached(device)

    def map_doorbell(self, s2: S2Handle, gdb: Ipa, its: int) -> None:
        """Map an ITS's doorbell page; see :meth:`Kernel.map_doorbell`."""
        self._step("map_doorbell")
        page = self._its(its).doorbell.align_down(self.page_size)
        self._kernel.map_doorbell(s2, gdb, page)

    def unmap_doorbell(self, s2: S2Handle, gdb: Ipa) -> None:
        """Unmap it; see :meth:`Kernel.unmap_doorbell`."""
        self._kernel.unmap_doorbell(s2, gdb)

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding; see :meth:`Kernel.bind_guest_msi`."""
        self._step("bind_guest_msi")
        self._kernel.bind_guest_msi(device, giova, gdb, size)

    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """Withdraw a guest binding; see :meth:`Kernel.unbind_guest_msi`.

        On iommufd the VMM disables the device's MSIs first, which would take another address.
        """
        if self._kernel.profile.has_bindings and self._kernel.profile.iommufd:
            self._disable(self._host.device_by_address[device])
        self._kernel.unbind_guest_msi(device, giova)

    def preset_msi(self, device: PciAddress, giova: Iova | None) -> None:
        """Preset its MSI address; see :meth:`Kernel.preset_msi`."""
        if giova is not None:
            self._step("preset_msi")
        self._kernel.preset_msi(device, giova)

    def prepare_msi(self, device: PciAddress) -> Iova:
        """Enable the device's MSIs at the address the kernel picks, or the preset one.

        :raise BackendError: ENODEV without a table in the ITS (:meth:`SimIts.map_device`); ENOSPC
            without an event (:meth:`SimIts.enable`) or an address (:meth:`Kernel.prepare_msi`).
        """
        self._step("prepare_msi")
        host_device = self._host.device_by_address[device]
        with self._events(host_device):
            picked = self._pick(host_device)
        self._written.discard(device)
        # Without an address all ones (iommu_dma_map_msi_msg before revision 8 of the series).
        self._programmed[device] = ALL_ONES if picked is None else picked
        return self._programmed[device]

    def program_msi(self, device: PciAddress, doorbell: Iova) -> Iova:
        """Enable the device's MSIs at ``doorbell``, which need not be aligned to a host page.

        The kernel enables the interrupts and picks an address, which the caller overwrites. A
        caller in the kernel needs no address of the kernel's allocator.

        :raise BackendError: see :meth:`prepare_msi`.
        """
        self._step("program_msi")
        host_device = self._host.device_by_address[device]
        with self._events(host_device):
            self._kernel.translation_of(host_device)
            if not self._kernel.profile.maps_doorbells:
                self._pick(host_device)
        offset = self._doorbell_of(host_device) & (self.page_size - 1)
        self._programmed[device] = doorbell.offset(offset)
        self._written.add(device)
        return self._programmed[device]

    @contextmanager
    def _events(self, device: HostDevice) -> Iterator[None]:
        """Allocate the events of a device, before an address: ``its_irq_domain_alloc``.

        The kernel does not give them back when there is no address; the simulator does.
        """
        self._its(device.its)
        its = self._itses[device.its]
        allocates = device.address not in self._programmed
        if allocates:
            its.map_device(device, self._table_sizes[device.address])
            its.enable(device)
        try:
            yield
        except BackendError:
            if allocates:
                its.disable(device)
            raise

    def _its(self, number: int) -> Its:
        """Return an ITS of the host.

        :raise BackendError: ENODEV when a group names an ITS that the host does not have: the
            device has no MSI domain.
        """
        its = self._host.its_by_id.get(number)
        if its is None:
            has_iommufd = self._kernel.profile.iommufd
            rule = rules.NO_MSI_DOMAIN if has_iommufd else rules.NO_MSI_DOMAIN_TYPE1
            raise rule.refusal(errno.ENODEV, f"ITS {number}: the host does not have it")
        return its

    def _pick(self, device: HostDevice) -> Iova | None:
        return self._kernel.prepare_msi(device, self._doorbell_of(device))

    def _doorbell_of(self, device: HostDevice) -> Pa:
        return self._host.its_by_id[device.its].doorbell_of(device.device_id)

    def advertise_rmr(self, window: ReservedRegion) -> None:
        """Add an RMR node to the guest's IORT."""
        self._step("advertise_rmr")
        self._stage1.advertise(window)

    def withdraw_rmr(self) -> None:
        """Remove the RMR nodes."""
        self._stage1.withdraw()

    def deliver(self, device: PciAddress) -> Verdict:
        """Raise the device's MSIs; all of them take the path of the first one."""
        host_device = self._host.device_by_address[device]
        programmed = self._programmed.get(device)
        if programmed is None:
            raise rules.ENABLED.refusal(errno.EINVAL, f"{device}: its MSIs are not enabled")
        verdict = self._deliver(host_device, programmed)
        slots = self._kernel.slots_for(host_device)
        return replace(verdict, possible=possible_addresses(programmed, slots, self.page_size))

    def _deliver(self, host_device: HostDevice, programmed: Iova) -> Verdict:
        chosen = self._address_rule(host_device, programmed)
        steps = [TraceStep("programmed", {"iova": str(programmed)}, chosen)]
        domain, _stage1 = self._kernel.translation_of(host_device)
        smmu = self._kernel.smmus[domain.smmu]
        walk = smmu.translate(host_device.stream_id, programmed)
        steps += self._walk_steps(host_device, programmed, walk)
        if walk.pa is None:
            outcome = Outcome.S2_FAULT if walk.stage == 2 else Outcome.S1_FAULT
            return Verdict(
                host_device.address,
                0,
                host_device.vectors,
                outcome,
                None,
                host_device.its,
                programmed,
                reason=str(walk.event),
                trace=tuple(steps),
                decided_by=steps[-1].decided_by,
            )
        return self._arrive(host_device, programmed, walk.pa, steps)

    def _address_rule(self, device: HostDevice, programmed: Iova) -> Rule:
        if device.address in self._written:
            return rules.WRITTEN
        return self._kernel.address_rule(device, programmed)

    def _walk_steps(self, device: HostDevice, programmed: Iova, walk: Walk) -> list[TraceStep]:
        domain, stage1 = self._kernel.translation_of(device)
        s2 = domain.handle
        fault: dict[str, str | int | None] = {}
        broken = None
        if (event := walk.event) is not None:
            fault = {"fault": event.kind.name}
            broken = rules.smmu_event(event.kind.name, event.stage, table_walk=event.table_walk)
        first: dict[str, str | int | None] = {"stage1": stage1, "iova": str(programmed)}
        if walk.ipa is None:
            # Stage 2 faults without an IPA on a stage 1 table walk.
            return [TraceStep("s2" if walk.stage == 2 else "s1", {**first, **fault}, broken)]
        config = self._configs[stage1].mode
        bypassed: dict[str, str | int | None] = {}
        if config is not Stage1Mode.TRANSLATE:
            bypassed = {"config": config}
        rule = self._stage1.rule(stage1, programmed)
        steps = [TraceStep("s1", {**first, **bypassed, "ipa": str(walk.ipa)}, rule)]
        second: dict[str, str | int | None] = {"s2": s2, "ipa": str(walk.ipa)}
        if walk.pa is None:
            return [*steps, TraceStep("s2", {**second, **fault}, broken)]
        rule = self._kernel.stage2_rule(domain, walk.ipa)
        return [*steps, TraceStep("s2", {**second, "pa": str(walk.pa)}, rule)]

    def _arrive(
        self, device: HostDevice, programmed: Iova, pa: Pa, steps: list[TraceStep]
    ) -> Verdict:
        """Return the verdict on a write that reached a physical address."""
        reached = self._doorbells.get(pa)
        lpi, reason, rule = None, "", rules.NO_DOORBELL
        if reached is None:
            reason = f"{pa} is not an ITS doorbell"
        else:
            its = self._host.its_by_id[reached]
            doorbell: dict[str, str | int | None] = {"pa": str(pa), "its": reached}
            steps.append(TraceStep("doorbell", doorbell, rules.doorbell(its)))
            rule = rules.MAPPED_V5 if its.is_gicv5 else rules.TRANSLATED
            events = self._itses[device.its].events_of(device)
            lpi = self._itses[reached].first_lpi(device, events)
            if lpi is None:
                rule = rule if its.is_gicv5 else rules.UNKNOWN_DEVICE
                reason = f"ITS {reached} does not know DeviceID {device.device_id}"
            elif reached != device.its:
                rule = rules.OTHER_DEVICE
                reason = f"ITS {reached} has DeviceID {device.device_id} for another device"
            looked_up: dict[str, str | int | None] = {
                "its": reached,
                "device_id": str(device.device_id),
                "lpi": lpi,
            }
            steps.append(TraceStep("its", looked_up, rule))
        delivered = lpi is not None and reached == device.its
        return Verdict(
            device.address,
            0,
            device.vectors,
            Outcome.DELIVERED if delivered else Outcome.MISROUTED,
            reached,
            device.its,
            programmed,
            reason=reason,
            trace=tuple(steps),
            lpi=lpi if delivered else None,
            decided_by=steps[0].decided_by if delivered else rule,
        )

    def costs(self) -> Costs:
        """Return the resources in use."""
        domains = self._kernel.domains.values()
        pages = sum(len(domain.config.table) for domain in domains)
        return Costs(
            s2_domains=self._kernel.stage2_count,
            s2_mappings=pages,
            sw_msi_slots=self._kernel.slots,
            bindings=sum(len(d.guest_bindings or ()) for d in domains),
            containers=self._kernel.containers,
        )

    def snapshot(self) -> Hashable:
        """Return everything that a detach undoes.

        Slots of the software MSI window are left out: they stay until the file descriptor is
        closed, in Linux too. So are the tables of the ITSes with their LPIs, which stay until a
        device's driver is unbound.
        """
        domains = frozenset(
            (
                domain.smmu,
                domain.config.table.pages(),
                frozenset(domain.devices.items()),
                None if bindings is None else bindings.state(),
            )
            for domain in self._kernel.domains.values()
            for bindings in [domain.guest_bindings]
        )
        enabled = frozenset((number, its.enabled()) for number, its in self._itses.items())
        streams = frozenset((i, frozenset(s.streams)) for i, s in self._kernel.smmus.items())
        programmed = frozenset(self._programmed.items())
        moved = frozenset(self._kernel.moved_windows.items())
        presets = frozenset(self._kernel.presets.items())
        return domains, self._stage1.state(), enabled, streams, programmed, moved, presets

    def stale(self) -> list[str]:
        """Return a line for each cached translation that differs from the tables; expect none."""
        return [
            f"SMMU {number}: StreamID {stream}, IOVA {iova}"
            for number, smmu in self._kernel.smmus.items()
            for stream, iova in smmu.stale()
        ]

    def close(self) -> None:
        """Close the file descriptor: detach every device, free every stage 2 and slot."""
        for domain in list(self._kernel.domains.values()):
            for device in list(domain.devices):
                self.detach(device)
            self.free_s2(domain.handle)
        self._stage1.withdraw()
        self._kernel.close()

    def _step(self, operation: str) -> None:
        self.steps += 1
        if self.steps == self._fail_at:
            raise rules.FAIL_AT.refusal(self._fail_errno, f"{operation}: made to fail by fail_at")
