"""The simulated host kernel: stage 2 domains and the devices attached to them.

:mod:`series` has the rules of "SMMUv3 Nested Stage Setup" and VFIO's type1 container,
:mod:`linux72` those of Linux 7.2. Every rule names the function of Linux it follows.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm_msi.iommu import rules
from vmm_msi.iommu.allocators import GuestBindings
from vmm_msi.iommu.backend import no_preset_action, no_window_option
from vmm_msi.iommu.sim.smmu import SimSmmu
from vmm_msi.types import Iova

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from vmm_msi.errors import Rule
    from vmm_msi.iommu.allocators import MsiCookie
    from vmm_msi.iommu.backend import MsiAllocator, S2Handle
    from vmm_msi.iommu.nest_bindings import NestBindings
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.iommu.sim.smmu import Stage1Config, Stage2Config
    from vmm_msi.types import (
        GuestDomain,
        HostDevice,
        HostTopology,
        Ipa,
        Pa,
        PciAddress,
        ReservedRegion,
    )

#: Physical address of guest RAM: any range without a doorbell.
RAM_PA = 0x4000_0000_0000

#: The address in a device to which an old kernel gave none.
ALL_ONES = Iova((1 << 64) - 1)


@dataclass
class S2Domain:
    """A stage 2 IOMMU domain: a nest parent in iommufd, a nested IOMMU domain in the series.

    :param cookie: the allocator of doorbell addresses, if it belongs to the IOMMU domain.
    :param bindings: the guest MSI bindings of a nest parent.
    :param devices: attached devices, each with the name of its stage 1.
    """

    handle: S2Handle
    smmu: int
    config: Stage2Config
    cookie: MsiCookie | GuestBindings | None = None
    bindings: NestBindings | None = None
    devices: dict[PciAddress, str] = field(default_factory=dict)

    @property
    def guest_bindings(self) -> GuestBindings | NestBindings | None:
        """What takes guest bindings in it."""
        return self.cookie if isinstance(self.cookie, GuestBindings) else self.bindings


class Kernel(ABC):
    """One host kernel, and the iommufd file descriptors or VFIO containers of one guest in it."""

    def __init__(self, host: HostTopology, guest: GuestDomain, profile: Profile) -> None:
        self.profile = profile
        self.host = host
        self.guest = guest
        self.smmus = {smmu.id: SimSmmu() for smmu in host.smmus}
        self.domains: dict[S2Handle, S2Domain] = {}
        self._of: dict[PciAddress, S2Handle] = {}
        #: Software MSI windows that were moved, and the addresses that were preset.
        self.moved_windows: dict[PciAddress, ReservedRegion] = {}
        self.presets: dict[PciAddress, Iova] = {}
        #: The MSI address in each device whose MSIs are enabled.
        self.programmed: dict[PciAddress, Iova] = {}

    @property
    def page_size(self) -> int:
        """PAGE_SIZE in bytes."""
        return self.host.granule

    @property
    @abstractmethod
    def slots(self) -> int:
        """Pages of the software MSI window in use."""

    @abstractmethod
    def slots_for(self, device: HostDevice) -> Collection[Iova]:
        """Return the pages of the software MSI window that a device's MSIs may get."""

    @property
    def stage2_count(self) -> int:
        """Number of stage 2 tables."""
        return len(self.domains)

    @property
    def containers(self) -> int:
        """Number of VFIO containers."""
        return 0

    @abstractmethod
    def alloc_s2(
        self, smmu: int, allocator: MsiAllocator, own_file: HostDevice | None = None
    ) -> S2Handle:
        """Allocate a stage 2 with the guest's RAM; see :meth:`Backend.alloc_s2`."""

    @abstractmethod
    def free_s2(self, handle: S2Handle) -> None:
        """Free a stage 2."""

    @abstractmethod
    def attach(self, device: HostDevice, handle: S2Handle, name: str, s1: Stage1Config) -> S2Handle:
        """Attach a device with the stage 1 called ``name``; return the stage 2 it is nested on."""

    @abstractmethod
    def detach(self, device: HostDevice) -> None:
        """Detach a device; its stream aborts from now on."""

    @abstractmethod
    def map_doorbell(self, handle: S2Handle, gdb: Ipa, page: Pa) -> None:
        """Map one granule at ``gdb`` to a doorbell page."""

    @abstractmethod
    def unmap_doorbell(self, handle: S2Handle, gdb: Ipa) -> None:
        """Unmap what :meth:`map_doorbell` mapped, and invalidate."""

    @abstractmethod
    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding."""

    @abstractmethod
    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """Withdraw a guest binding."""

    def move_sw_msi_window(self, device: PciAddress, window: ReservedRegion | None) -> None:  # noqa: ARG002
        """IOMMU_OPTION_SW_MSI_START and _SIZE.

        :raise BackendError: EOPNOTSUPP, what ``iommufd_option`` answers to an unknown option.
        """
        rule = rules.UNKNOWN_OPTION if self.profile.iommufd else rules.CAPABILITY
        raise no_window_option(device, self.profile.name, rule=rule)

    def preset_msi(self, device: PciAddress, giova: Iova | None) -> None:
        """VFIO_DEVICE_SET_IRQS with VFIO_IRQ_SET_ACTION_PREPARE.

        :raise BackendError: EINVAL, the answer to unknown flags
            (``vfio_set_irqs_validate_and_prepare``).
        """
        rule = rules.UNKNOWN_ACTION if self.profile.iommufd else rules.UNKNOWN_ACTION_TYPE1
        raise no_preset_action(device, giova, self.profile.name, rule=rule)

    @abstractmethod
    def prepare_msi(self, device: HostDevice, doorbell: Pa) -> Iova | None:
        """Return the address that the kernel picks for a device's MSIs to a doorbell.

        None stands for an address of all ones, which an old kernel writes when it has none.
        """

    @abstractmethod
    def address_rule(self, device: HostDevice, programmed: Iova) -> Rule:
        """Return the rule by which :meth:`prepare_msi` gave a device its address."""

    def in_ram(self, ipa: Ipa) -> bool:
        """Return whether an IPA is in the guest's RAM."""
        return any(ram.base <= ipa < ram.base + ram.size for ram in self.guest.memory)

    @abstractmethod
    def stage2_rule(self, domain: S2Domain, ipa: Ipa) -> Rule:
        """Return the rule by which an IPA is mapped in a stage 2."""

    @abstractmethod
    def free_msis(self, device: HostDevice) -> None:
        """Free the interrupts of a device's MSIs."""

    @abstractmethod
    def close(self) -> None:
        """Drop what outlives every stage 2."""

    def domain_of(self, device: PciAddress) -> S2Domain:
        """Return the stage 2 that a device is attached to.

        :raise BackendError: EINVAL for a device that is not attached.
        """
        handle = self._of.get(device)
        if handle is None:
            raise rules.ATTACHED.refusal(errno.EINVAL, f"{device}: not attached")
        return self.domains[handle]

    def translation_of(self, device: HostDevice) -> tuple[S2Domain, str]:
        """Return the stage 2 and the name of the stage 1 that translate a device's MSIs.

        :raise BackendError: for a device whose MSIs cannot be enabled, as it is not attached.
        """
        domain = self.domain_of(device.address)
        return domain, domain.devices[device.address]

    def is_attached(self, device: PciAddress) -> bool:
        """Return whether a device is attached."""
        return device in self._of

    def join(self, device: HostDevice, domain: S2Domain, name: str) -> None:
        """Record an attached device."""
        self._of[device.address] = domain.handle
        domain.devices[device.address] = name

    def leave(self, device: HostDevice, aborted: Iterable[HostDevice]) -> None:
        """Remove a detached device and make the streams of some devices abort."""
        domain = self.domains[self._of.pop(device.address)]
        del domain.devices[device.address]
        for stream in {each.stream_id for each in aborted}:
            self.smmus[domain.smmu].clear(stream)

    def invalidate(self, handle: S2Handle) -> None:
        """Invalidate all cached translations of a stage 2."""
        domain = self.domains[handle]
        self.smmus[domain.smmu].invalidate_vmid(domain.config.vmid)

    def forget(self, handle: S2Handle) -> None:
        """Drop a stage 2 (CMD_TLBI_S12_VMALL follows)."""
        self.invalidate(handle)
        del self.domains[handle]
