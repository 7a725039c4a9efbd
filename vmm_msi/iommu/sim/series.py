"""The simulated kernels before iommufd: VFIO's type1 container, "SMMUv3 Nested Stage Setup".

Doorbells can be mapped by iommu_map() from inside the kernel, and bindings can be registered in
the revisions that have the call. Without an IOAS, nothing checks a mapping against the window.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.allocators import GuestBindings, MsiCookie, MsiDomains, cookie_for
from vmm_msi.iommu.backend import S2Handle
from vmm_msi.iommu.sim.kernel import RAM_PA, Kernel, S2Domain
from vmm_msi.iommu.sim.page_table import PageTable
from vmm_msi.iommu.sim.smmu import Stage1Config, Stage2Config, StreamTableEntry

if TYPE_CHECKING:
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.types import GuestDomain, HostDevice, HostTopology, Iova, Ipa, Pa, PciAddress


@dataclass(slots=True)
class _Group:
    """An attached IOMMU group: all its devices share one translation."""

    s2: S2Handle
    stage1: str
    devices: set[PciAddress]


class SeriesKernel(Kernel):
    """A kernel with a revision of the series, or without the series (revision 0)."""

    def __init__(self, host: HostTopology, guest: GuestDomain, profile: Profile) -> None:
        super().__init__(host, guest, profile)
        self._groups: dict[int, _Group] = {}
        self._msi_domains: dict[S2Handle, MsiDomains] = {}
        self._next = 1

    def alloc_s2(self, smmu: int, *, msi_cookie: bool) -> S2Handle:
        """Allocate a nested IOMMU domain: ``arm_smmu_domain_finalise`` with DOMAIN_ATTR_NESTING.

        :raise BackendError: EINVAL when the SMMU lacks a stage.
        """
        if not self.host.smmu_by_id[smmu].nested:
            raise BackendError(errno.EINVAL, f"SMMU {smmu}: does not implement two stages")
        table = PageTable(self.host.granule)
        physical = RAM_PA
        for ram in self.guest.memory:
            table.map(ram.base, physical, ram.size)
            physical += ram.size
        handle = S2Handle(self._next)
        self._next += 1
        domain = S2Domain(handle, smmu, Stage2Config(vmid=handle, table=table))
        if msi_cookie:
            domain.cookie = cookie_for(table, self.profile.revision)
        self.domains[handle] = domain
        self._msi_domains[handle] = MsiDomains()
        return handle

    def free_s2(self, handle: S2Handle) -> None:
        """Free an IOMMU domain with its cookie and its mappings.

        :raise BackendError: EBUSY while a device is attached.
        """
        devices = self.domains[handle].devices
        if devices:
            raise BackendError(errno.EBUSY, f"S2 {handle}: {len(devices)} devices attached")
        del self._msi_domains[handle]
        self.forget(handle)

    def attach(self, device: HostDevice, handle: S2Handle, name: str, s1: Stage1Config) -> None:
        """Attach a device: ``__iommu_attach_group`` and ``arm_smmu_attach_dev`` of the series.

        The patches make the last two checks for every nested IOMMU domain, because the allocator
        needs them. The simulator makes them only if the allocator is in use (``direct`` maps
        doorbells from inside the kernel instead).

        :raise BackendError: ENXIO for another SMMU; EBUSY for an attached device, or one whose
            group is attached elsewhere; from revision 8 on EINVAL for a device with another MSI
            domain than the ones attached (``arm_smmu_share_msi_domain``) or with a HW MSI region
            (``arm_smmu_has_hw_msi_resv_region``).
        """
        address, domain = device.address, self.domains[handle]
        group = self._groups.get(device.iommu_group)
        if self.is_attached(address):
            raise BackendError(errno.EBUSY, f"{address}: attached already")
        if device.smmu != domain.smmu:
            raise BackendError(
                errno.ENXIO,
                f"{address}: cannot attach to SMMU {domain.smmu} (upstream of {device.smmu})",
            )
        if group is not None and (group.s2, group.stage1) != (handle, name):
            raise BackendError(
                errno.EBUSY, f"{address}: IOMMU group {device.iommu_group} is attached elsewhere"
            )
        if self.profile.revision >= 8 and domain.cookie is not None:
            self._msi_domains[handle].check(device)
        if group is None:
            group = self._groups[device.iommu_group] = _Group(handle, name, set())
        group.devices.add(address)
        self._msi_domains[handle].join(device)
        self.join(device, domain, name)
        self.smmus[domain.smmu].install(device.stream_id, StreamTableEntry(s1, domain.config))

    def detach(self, device: HostDevice) -> None:
        """Detach a device."""
        self._msi_domains[self.domain_of(device.address).handle].leave(device)
        group = self._groups[device.iommu_group]
        group.devices.discard(device.address)
        if not group.devices:
            del self._groups[device.iommu_group]
        self.leave(device)

    def map_doorbell(self, handle: S2Handle, gdb: Ipa, page: Pa) -> None:
        """Call iommu_map() from inside the kernel.

        :raise BackendError: EINVAL for an unaligned address, EEXIST for a mapped one.
        """
        self.domains[handle].config.table.map(gdb, page, self.page_size)

    def unmap_doorbell(self, handle: S2Handle, gdb: Ipa) -> None:
        """Call iommu_unmap(), which invalidates."""
        self.domains[handle].config.table.unmap(gdb)
        self.invalidate(handle)

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding: ``iommu_dma_bind_guest_msi``.

        :raise BackendError: EOPNOTSUPP when the kernel lacks the call.
        """
        self._bindings(device).bind(device, giova, gdb, size)

    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """Withdraw a guest binding: ``iommu_dma_unbind_guest_msi``.

        :raise BackendError: EOPNOTSUPP before revision 4, which added it.
        """
        bindings = self._bindings(device)
        if self.profile.revision < 4:
            raise BackendError(
                errno.EOPNOTSUPP, f"{self.profile.name} has no call to withdraw a guest binding"
            )
        if bindings.unbind(device, giova):
            self.invalidate(self.domain_of(device).handle)

    def _bindings(self, device: PciAddress) -> GuestBindings:
        cookie = self.domain_of(device).cookie
        if not isinstance(cookie, GuestBindings):
            raise BackendError(
                errno.EOPNOTSUPP, f"{self.profile.name} has no call to register a guest binding"
            )
        return cookie

    def prepare_msi(self, device: HostDevice, doorbell: Pa) -> Iova:
        """Return the page address that ``iommu_dma_prepare_msi`` picks for a doorbell.

        :raise BackendError: the allocator's error; ENOMEM without an allocator.
        """
        match self.domain_of(device.address).cookie:
            case MsiCookie() as cookie:
                return cookie.prepare(doorbell)
            case GuestBindings() as bindings:
                return bindings.prepare(device.address, doorbell)
            case None:
                raise BackendError(
                    errno.ENOMEM, f"{device.address}: its IOMMU domain has no MSI cookie"
                )

    @property
    def slots(self) -> int:
        """Pages of the software MSI window that the cookies use."""
        cookies = [domain.cookie for domain in self.domains.values()]
        return sum(len(cookie.pages) for cookie in cookies if isinstance(cookie, MsiCookie))

    def close(self) -> None:
        """Do nothing: nothing outlives an IOMMU domain."""
