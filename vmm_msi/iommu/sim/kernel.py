"""The host kernel: stage 2 domains, attaching, and the rules that differ between kernels.

Every rule names the function of Linux it follows. "Series" is "SMMUv3 Nested Stage Setup" and
VFIO's type1 container, for the profiles before ``linux-7.2``.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.backend import S2Handle
from vmm_msi.iommu.sim.cookies import GuestBindings, MsiCookie, SwMsiSlots
from vmm_msi.iommu.sim.pagetable import PageTable
from vmm_msi.iommu.sim.smmu import SmmuModel, Stage1Config, Stage2Config, StreamTableEntry
from vmm_msi.model import SW_MSI_WINDOW, Iova, Ipa, Pa, ReservedKind, ReservedRegion

if TYPE_CHECKING:
    from vmm_msi.iommu.sim.profiles import Profile
    from vmm_msi.model import GuestDomain, HostDevice, HostTopology, PciAddress

#: Where guest RAM lies in host memory: any place that no doorbell lies in will do.
_RAM_PA = 0x4000_0000_0000


@dataclass
class S2Domain:
    """A stage 2 IOMMU domain: a nesting parent in iommufd, a nested IOMMU domain in the series.

    :param cookie: what picks doorbell addresses, where it belongs to the IOMMU domain.
    :param devices: attached devices, with the id of their stage 1.
    :param doorbells: doorbell pages the caller mapped, by IPA.
    :param slots: addresses of the SW MSI slots that are mapped here (iommufd).
    :param itses: the ITSes of the attached devices, counted.
    :param reserved: reserved regions of the attached devices, counted.
    """

    handle: S2Handle
    smmu: int
    config: Stage2Config
    cookie: MsiCookie | GuestBindings | None = None
    devices: dict[PciAddress, str] = field(default_factory=dict)
    doorbells: dict[Ipa, Pa] = field(default_factory=dict)
    slots: set[Iova] = field(default_factory=set)
    itses: Counter[int] = field(default_factory=Counter)
    reserved: Counter[ReservedRegion] = field(default_factory=Counter)


@dataclass(slots=True)
class _Group:
    """An IOMMU group that is attached: all its devices share one translation."""

    s2: S2Handle
    stage1: str
    devices: set[PciAddress]


class Kernel:
    """One host kernel and one iommufd file descriptor (or VFIO container) in it."""

    def __init__(self, host: HostTopology, guest: GuestDomain, profile: Profile) -> None:
        self.profile = profile
        self.smmus = {smmu.id: SmmuModel() for smmu in host.smmus}
        self.domains: dict[S2Handle, S2Domain] = {}
        self.slots = SwMsiSlots()
        self._host = host
        self._guest = guest
        self._groups: dict[int, _Group] = {}
        self._of: dict[PciAddress, S2Handle] = {}
        self._next = 1

    @property
    def page_size(self) -> int:
        """PAGE_SIZE in bytes."""
        return self._host.granule

    def alloc_s2(self, smmu: int, *, msi_cookie: bool) -> S2Handle:
        """Allocate a stage 2 with the guest's RAM.

        iommufd: ``arm_smmu_domain_alloc_paging_flags`` with IOMMU_HWPT_ALLOC_NEST_PARENT;
        series: ``arm_smmu_domain_finalise`` with DOMAIN_ATTR_NESTING.

        :raise BackendError: EOPNOTSUPP (series: EINVAL) when the SMMU lacks a stage.
        """
        if not self._host.smmu_by_id[smmu].nested:
            code = errno.EOPNOTSUPP if self.profile.iommufd else errno.EINVAL
            raise BackendError(code, f"SMMU {smmu}: does not implement two stages")
        handle = S2Handle(self._next)
        self._next += 1
        table = PageTable(self._host.granule)
        domain = S2Domain(handle, smmu, Stage2Config(vmid=handle, table=table))
        physical = _RAM_PA
        for ram in self._guest.memory:
            table.map(ram.base, physical, ram.size)
            physical += ram.size
        if self.profile.iommufd or not msi_cookie:
            pass
        elif self.profile.revision:
            domain.cookie = GuestBindings(table, self.profile.revision)
        else:
            domain.cookie = MsiCookie(table, SW_MSI_WINDOW.base)
        self.domains[handle] = domain
        return handle

    def free_s2(self, handle: S2Handle) -> None:
        """Free a stage 2 (CMD_TLBI_S12_VMALL follows).

        :raise BackendError: EBUSY while a device is attached: ``iommufd_destroy``.
        """
        domain = self.domains[handle]
        if domain.devices:
            raise BackendError(errno.EBUSY, f"S2 {handle}: {len(domain.devices)} devices attached")
        del self.domains[handle]
        self.smmus[domain.smmu].invalidate_vmid(domain.config.vmid)

    def attach(self, device: HostDevice, handle: S2Handle, name: str, s1: Stage1Config) -> None:
        """Attach a device with the stage 1 called ``name``, nested on a stage 2.

        :raise BackendError: see :meth:`_check_series` and :meth:`_check_iommufd`; EBUSY when the
            device is attached already (``iommufd_hw_pagetable_attach``, xa_insert).
        """
        domain = self.domains[handle]
        if device.address in self._of:
            raise BackendError(errno.EBUSY, f"{device.address}: attached already")
        group = self._groups.get(device.iommu_group)
        if self.profile.iommufd:
            self._check_iommufd(device, domain, group, name)
        else:
            self._check_series(device, domain, group, name)
        if group is None:
            group = _Group(handle, name, set())
        group.devices.add(device.address)
        self._groups[device.iommu_group] = group
        self._of[device.address] = handle
        domain.devices[device.address] = name
        domain.itses[device.its] += 1
        domain.reserved.update(device.reserved)
        entry = StreamTableEntry(s1, domain.config)
        self.smmus[domain.smmu].install(device.stream_id, entry)

    def _check_series(
        self, device: HostDevice, domain: S2Domain, group: _Group | None, name: str
    ) -> None:
        """Check what ``arm_smmu_attach_dev`` and ``__iommu_attach_group`` of the series check.

        The patches make the last two checks for every nested IOMMU domain; they are there for the
        allocator's sake, and are left out here where it is not in use (``direct`` maps doorbells
        from inside the kernel instead).

        :raise BackendError: ENXIO for another SMMU, EBUSY for a group that is attached elsewhere;
            from revision 8 on EINVAL for a device with another MSI domain than the ones attached
            (``arm_smmu_share_msi_domain``) or with a HW MSI region
            (``arm_smmu_has_hw_msi_resv_region``).
        """
        address = device.address
        if device.smmu != domain.smmu:
            raise BackendError(
                errno.ENXIO,
                f"{address}: cannot attach to SMMU {domain.smmu} (upstream of {device.smmu})",
            )
        if group is not None and (group.s2, group.stage1) != (domain.handle, name):
            raise BackendError(
                errno.EBUSY, f"{address}: IOMMU group {device.iommu_group} is attached elsewhere"
            )
        if self.profile.revision < 8 or domain.cookie is None:
            return
        others = domain.itses.keys() - {device.its}
        if others:
            raise BackendError(
                errno.EINVAL,
                f"Nested mode forbids to attach devices using different physical MSI doorbells to "
                f"the same IOMMU domain: {address} uses ITS {device.its}, what is attached uses "
                f"ITS {', '.join(map(str, sorted(others)))}",
            )
        if device.hw_msi is not None:
            raise BackendError(errno.EINVAL, f"{address}: HW MSI region {device.hw_msi}")

    def _check_iommufd(
        self, device: HostDevice, domain: S2Domain, group: _Group | None, name: str
    ) -> None:
        """Check what allocating the vIOMMU and the vDEVICE and attaching check.

        :raise BackendError: EINVAL for another SMMU (``arm_vsmmu_init``,
            ``iommufd_vdevice_alloc_ioctl``) and for a group that is attached with another
            translation (``iommufd_hw_pagetable_attach``); EADDRINUSE when a reserved region of
            the device is mapped in the IOAS (``iopt_table_enforce_dev_resv_regions``).
        """
        address = device.address
        if device.smmu != domain.smmu:
            raise BackendError(
                errno.EINVAL,
                f"{address}: is behind SMMU {device.smmu}, the S2 is SMMU {domain.smmu}'s: one S2 "
                f"parent per physical SMMU",
            )
        if group is not None and (group.s2, group.stage1) != (domain.handle, name):
            raise BackendError(
                errno.EINVAL, f"{address}: IOMMU group {device.iommu_group} is attached elsewhere"
            )
        for region in device.reserved:
            if region.kind is ReservedKind.DIRECT_RELAXABLE:
                continue
            if self._ioas_overlaps(domain, region.base, region.size):
                raise BackendError(
                    errno.EADDRINUSE,
                    f"{address}: reserved region {region} is mapped already in the guest's "
                    f"address space",
                )

    def _ioas_overlaps(self, domain: S2Domain, base: int, size: int) -> bool:
        """Tell whether what user space mapped (not the kernel's own slots) touches a range."""
        ram = any(r.base < base + size and base < r.base + r.size for r in self._guest.memory)
        return ram or any(base <= gdb < base + size for gdb in domain.doorbells)

    def detach(self, device: HostDevice) -> None:
        """Detach a device; its stream aborts from now on."""
        domain = self.domains[self._of.pop(device.address)]
        del domain.devices[device.address]
        domain.itses -= Counter([device.its])
        domain.reserved -= Counter(device.reserved)
        group = self._groups[device.iommu_group]
        group.devices.discard(device.address)
        if not group.devices:
            del self._groups[device.iommu_group]
        self.smmus[domain.smmu].clear(device.stream_id)

    def domain_of(self, device: PciAddress) -> S2Domain:
        """Return the stage 2 that a device is attached to.

        :raise BackendError: EINVAL when it is attached to none.
        """
        handle = self._of.get(device)
        if handle is None:
            raise BackendError(errno.EINVAL, f"{device}: not attached")
        return self.domains[handle]

    def map_doorbell(self, handle: S2Handle, gdb: Ipa, page: Pa) -> None:
        """Map one granule at ``gdb`` to a doorbell page.

        Series: iommu_map() from inside the kernel. iommufd: ``iopt_check_iova``, which knows the
        reserved regions of the devices attached so far.

        :raise BackendError: EINVAL when it is not aligned or (iommufd) reserved, EEXIST when it
            is mapped.
        """
        domain = self.domains[handle]
        size = self.page_size
        if self.profile.iommufd and gdb.is_aligned(size):
            for region in domain.reserved:
                if region.kind is not ReservedKind.DIRECT_RELAXABLE and region.overlaps(gdb, size):
                    raise BackendError(
                        errno.EINVAL,
                        f"IOMMU_IOAS_MAP of gDB {gdb}: lies in the reserved region {region} of "
                        f"the attached devices; a gDB outside of it would work",
                    )
        domain.config.table.map(gdb, page, size)
        domain.doorbells[gdb] = page

    def unmap_doorbell(self, handle: S2Handle, gdb: Ipa) -> None:
        """Unmap what :meth:`map_doorbell` mapped, and invalidate."""
        domain = self.domains[handle]
        del domain.doorbells[gdb]
        domain.config.table.unmap(gdb)
        self.smmus[domain.smmu].invalidate_vmid(domain.config.vmid)

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding: ``iommu_dma_bind_guest_msi``.

        :raise BackendError: EOPNOTSUPP where the kernel has no such interface.
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
        domain = self.domain_of(device)
        if bindings.unbind(device, giova):
            self.smmus[domain.smmu].invalidate_vmid(domain.config.vmid)

    def _bindings(self, device: PciAddress) -> GuestBindings:
        cookie = self.domain_of(device).cookie
        if not isinstance(cookie, GuestBindings):
            raise BackendError(
                errno.EOPNOTSUPP, f"{self.profile.name} has no call to register a guest binding"
            )
        return cookie

    def prepare_msi(self, device: HostDevice, doorbell: Pa) -> Iova:
        """Return the page address that ``iommu_dma_prepare_msi`` picks for a doorbell.

        :raise BackendError: what the allocator in charge returns.
        """
        domain = self.domain_of(device.address)
        match domain.cookie:
            case MsiCookie() as cookie:
                return cookie.prepare(doorbell)
            case GuestBindings() as bindings:
                return bindings.prepare(device.address, doorbell)
            case None if self.profile.iommufd:
                return self._sw_msi(device, domain, doorbell)
            case None:
                raise BackendError(
                    errno.ENOMEM, f"{device.address}: its IOMMU domain has no MSI cookie"
                )

    def _sw_msi(self, device: HostDevice, domain: S2Domain, doorbell: Pa) -> Iova:
        """``iommufd_sw_msi``: without a window the address is left as it is."""
        page = doorbell.align_down(self.page_size)
        window = device.sw_msi_window
        if window is None:
            return Iova(page)
        iova = self.slots.get(window.base, page, self.page_size)
        if iova not in domain.slots:
            # iommufd_sw_msi_install: a raw iommu_map, once per stage 2.
            domain.config.table.map(iova, page, self.page_size)
            domain.slots.add(iova)
        return iova
