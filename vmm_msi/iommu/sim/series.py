"""The simulated kernels before iommufd: VFIO's type1 container, "SMMUv3 Nested Stage Setup".

Doorbells can be mapped by iommu_map() from inside the kernel, and bindings can be registered in
the revisions that have the call. Without an IOAS, nothing checks a mapping against the window.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules, series_rules
from vmm_msi.iommu.allocators import GuestBindings, MsiCookie
from vmm_msi.iommu.backend import no_own_file
from vmm_msi.iommu.revisions import revision_numbered
from vmm_msi.iommu.sim.kernel import ALL_ONES, RAM_PA, Kernel, S2Domain
from vmm_msi.iommu.sim.page_table import PageTable
from vmm_msi.iommu.sim.smmu import Stage1Config, Stage2Config, StreamTableEntry
from vmm_msi.iommu.type1 import Type1
from vmm_msi.types import Iova

if TYPE_CHECKING:
    from collections.abc import Collection

    from vmm_msi.errors import Rule
    from vmm_msi.iommu.backend import MsiAllocator, S2Handle
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.types import GuestDomain, HostDevice, HostTopology, Ipa, Pa, PciAddress


class SeriesKernel(Kernel):
    """A kernel with a revision of the series, or without the series (revision 0)."""

    def __init__(self, host: HostTopology, guest: GuestDomain, profile: Profile) -> None:
        super().__init__(host, guest, profile)
        self._revision = revision_numbered(profile.revision)
        self._type1 = Type1(host, guest, self._revision, self)

    def open_domain(self, handle: S2Handle, smmu: int) -> PageTable:
        """Allocate a nested IOMMU domain: ``arm_smmu_domain_finalise`` with DOMAIN_ATTR_NESTING.

        :raise BackendError: ENODEV for an SMMUv1 or v2, whose driver has none of the series'
            operations (``iommu_attach_pasid_table``); EINVAL when the SMMU lacks a stage.
        """
        hardware = self.host.smmu_by_id[smmu]
        if hardware.version < 3:
            raise series_rules.smmuv3(self._revision).refusal(
                errno.ENODEV,
                f"SMMU {smmu}: is not an SMMUv3, and its driver takes no stage 1 of a guest; use a "
                "device behind an SMMUv3",
            )
        if not hardware.nested:
            raise series_rules.two_stages(self._revision).refusal(
                errno.EINVAL, f"SMMU {smmu}: does not implement two stages"
            )
        table = PageTable(self.host.granule)
        physical = RAM_PA
        for ram in self.guest.memory:
            table.map(ram.base, physical, ram.size)
            physical += ram.size
        self.domains[handle] = S2Domain(handle, smmu, Stage2Config(vmid=handle, table=table))
        return table

    def close_domain(self, handle: S2Handle) -> None:
        """Free an IOMMU domain with its mappings."""
        self.forget(handle)

    @property
    def stage2_count(self) -> int:
        """Number of stage 2 tables."""
        return self._type1.stage2_count

    @property
    def containers(self) -> int:
        """Number of VFIO containers."""
        return self._type1.container_count

    def alloc_s2(
        self, smmu: int, allocator: MsiAllocator, own_file: HostDevice | None = None
    ) -> S2Handle:
        """Ask for a stage 2, which VFIO makes when a device is attached.

        :raise BackendError: EOPNOTSUPP for a file descriptor of /dev/iommu.
        """
        if own_file is not None:
            raise no_own_file(self.profile.name)
        return self._type1.alloc_s2(smmu, allocator)

    def free_s2(self, handle: S2Handle) -> None:
        """Free what was asked for; see :meth:`Type1.free_s2`."""
        self._type1.free_s2(handle)

    def attach(self, device: HostDevice, handle: S2Handle, name: str, s1: Stage1Config) -> S2Handle:
        """Attach a device, which sets the stage 1 of its whole container: :meth:`Type1.attach`."""
        attached = self._type1.attach(device, handle, name)
        domain = self.domains[attached.handle]
        domain.cookie = attached.cookie
        self.join(device, domain, name)
        for mate in self._type1.mates(device):
            own = self.domain_of(mate.address)
            own.devices[mate.address] = name
            self.smmus[own.smmu].install(mate.stream_id, StreamTableEntry(s1, own.config))
        return domain.handle

    def detach(self, device: HostDevice) -> None:
        """Detach a device; see :meth:`Type1.detach`."""
        self._type1.domain_of(device.address)
        self.leave(device, [device])
        self._type1.detach(device)

    def map_doorbell(self, handle: S2Handle, gdb: Ipa, page: Pa) -> None:
        """``iommu_map``: nothing keeps the software MSI window free.

        :raise BackendError: ENOENT for a stage 2 that VFIO has not made.
        """
        self._made(handle).config.table.map(gdb, page, self.page_size)

    def unmap_doorbell(self, handle: S2Handle, gdb: Ipa) -> None:
        """``iommu_unmap``."""
        self._made(handle).config.table.unmap(gdb)
        self.invalidate(handle)

    def _made(self, handle: S2Handle) -> S2Domain:
        domain = self.domains.get(handle)
        if domain is None:
            raise rules.S2_MADE.refusal(
                errno.ENOENT, f"S2 {handle}: has no IOMMU domain before an attach"
            )
        return domain

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding; see :meth:`Type1.bind`."""
        try:
            self._type1.bind(self.host.device_by_address[device], giova, gdb, size)
        except BackendError:
            # Where one IOMMU domain refuses it, it is withdrawn in others.
            for handle in self.domains:
                self.invalidate(handle)
            raise

    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """Withdraw a guest binding, and invalidate; see :meth:`Type1.unbind`."""
        for handle in self._type1.unbind(self.host.device_by_address[device], giova):
            self.invalidate(handle)

    def free_msis(self, device: HostDevice) -> None:
        """Do nothing: a page of the cookie stays with the IOMMU domain."""

    def prepare_msi(self, device: HostDevice, doorbell: Pa) -> Iova | None:
        """Return the address for a doorbell; see :meth:`Type1.prepare`.

        The page need not be aligned to a host page (``msi_msg_set_addr``).
        """
        page = self._type1.prepare(device, doorbell)
        return None if page is None else page.offset(doorbell & (self.page_size - 1))

    def address_rule(self, device: HostDevice, programmed: Iova) -> Rule:
        """Return the rule by which a device got its address; all ones stand for none."""
        if programmed == ALL_ONES:
            return rules.NO_ADDRESS
        match self.domain_of(device.address).cookie:
            case MsiCookie():
                return rules.COOKIE
            case GuestBindings():
                return series_rules.choose_binding(self._revision)
        return rules.NO_COOKIE

    def stage2_rule(self, domain: S2Domain, ipa: Ipa) -> Rule:
        """Return the rule by which an IPA is mapped: the allocator's page, guest RAM or another."""
        page = ipa.align_down(self.page_size)
        match domain.cookie:
            case MsiCookie() as cookie if Iova(page) in cookie.pages.values():
                return rules.COOKIE
            case GuestBindings() as bindings:
                if any(gdb == page and hdb is not None for _giova, gdb, hdb in bindings.state()):
                    return series_rules.choose_binding(self._revision)
        in_ram = self.in_ram(ipa)
        return rules.RAM_MAPPED_TYPE1 if in_ram else rules.CALLER_MAPPED

    @property
    def slots(self) -> int:
        """Pages of the software MSI window that the cookies use."""
        cookies = [domain.cookie for domain in self.domains.values()]
        return sum(len(cookie.pages) for cookie in cookies if isinstance(cookie, MsiCookie))

    def slots_for(self, device: HostDevice) -> Collection[Iova]:
        """Return the pages of the cookie of the device's IOMMU domain."""
        cookie = self.domain_of(device.address).cookie
        return cookie.pages.values() if isinstance(cookie, MsiCookie) else ()

    def close(self) -> None:
        """Do nothing: nothing outlives an IOMMU domain."""
