"""The stage 2 tables of a guest on a real kernel, and what picks doorbell addresses in them.

The kernel's own allocator picks them with the host's ITS; guest bindings go to the kernel if it has
the interface for them. With a page of memory for each ITS, the rules are those of a profile: of a
nest parent, or of VFIO's type1 container, of which each IOMMU domain is then a nest parent of the
running kernel.
"""

from __future__ import annotations

import errno
import mmap
from collections import Counter
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.allocators import GuestBindings, MsiCookie, SwMsiSlots
from vmm_msi.iommu.guest_msi import BINDING_OF, MsiBinding
from vmm_msi.iommu.linux.s2_doorbells import S2Doorbells
from vmm_msi.iommu.revisions import revision_numbered
from vmm_msi.iommu.type1 import Type1
from vmm_msi.types import Costs, Iova

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

    from vmm_msi.iommu.backend import MsiAllocator, S2Handle
    from vmm_msi.iommu.linux.raise_msi import Witnesses
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.iommu.vmm import RamMapping, Vmm
    from vmm_msi.types import GuestDomain, HostDevice, HostTopology, Ipa, Pa, PciAddress


class Stage2Tables:
    """The stage 2 tables of one guest.

    :param profile: with witness pages, the kernel whose rules apply.
    :param ram: returns the mappings of guest RAM.
    :param witnesses: the page of memory for each ITS; None for the host's own ITS.
    :param relocate: returns the IPA at which a page is mapped for an IPA of the guest's memory map.
    :param retake: makes the MSIs of a device, if they are enabled, take their address again.
    :param binds: the running kernel takes guest bindings, which counts with the host's own ITS.
    """

    def __init__(
        self,
        vmm: Vmm[Sequence[int]],
        host: HostTopology,
        guest: GuestDomain,
        profile: Profile,
        ram: Callable[[], Iterable[RamMapping]],
        witnesses: Witnesses | None,
        relocate: Callable[[int], int],
        *,
        retake: Callable[[PciAddress], None],
        binds: bool = False,
    ) -> None:
        self._vmm = vmm
        self._host = host
        self._guest = guest
        self._retake_msis = retake
        self._ram = ram
        #: Guest bindings are kept in this process, by the rules of the interface; or in the kernel.
        self._keeps_bindings = witnesses is not None and profile.has_bindings and profile.iommufd
        self._binds = witnesses is None and binds
        self._witnesses = witnesses
        self._relocate = relocate
        self._slots = SwMsiSlots()
        self._doorbells: dict[S2Handle, S2Doorbells] = {}
        self._type1: Type1 | None = None
        if witnesses is not None and not profile.iommufd:
            self._type1 = Type1(host, guest, revision_numbered(profile.revision), self)

    def alloc(self, smmu: int, allocator: MsiAllocator) -> S2Handle:
        """Allocate a stage 2; see :meth:`Vmm.alloc_s2` and :meth:`Type1.alloc_s2`."""
        if self._type1 is not None:
            return self._type1.alloc_s2(smmu, allocator)
        binding = BINDING_OF.get(allocator, MsiBinding.DIRECT)
        doorbells = self._open(smmu, binding)
        if self._keeps_bindings:
            doorbells.keep_bindings(binding, self._guest.memory, self._retake)
        self._doorbells[doorbells.handle] = doorbells
        return doorbells.handle

    def _open(self, smmu: int, binding: MsiBinding = MsiBinding.DIRECT) -> S2Doorbells:
        in_kernel = MsiBinding.DIRECT if self._keeps_bindings else binding
        handle = self._vmm.alloc_s2(smmu, self._ram(), in_kernel).handle
        pages: dict[int, int] | None = None
        if self._witnesses is not None:
            pages = {
                its.doorbell.align_down(mmap.PAGESIZE): self._witnesses.address(number)
                for number, its in enumerate(self._host.itses)
            }
        kernel = binding if self._binds else None
        return S2Doorbells(
            self._vmm, handle, self._relocate, mmap.PAGESIZE, pages, self._slots, kernel
        )

    def open_domain(self, handle: S2Handle, smmu: int) -> S2Doorbells:
        """Allocate the stage 2 of an IOMMU domain; see :class:`DomainTables`."""
        doorbells = self._doorbells[handle] = self._open(smmu)
        return doorbells

    def close_domain(self, handle: S2Handle) -> None:
        """Free it."""
        self._vmm.free_s2(self._doorbells.pop(handle).handle)

    def free(self, s2: S2Handle) -> None:
        """Free a stage 2; see :meth:`Vmm.free_s2` and :meth:`Type1.free_s2`."""
        if self._type1 is not None:
            self._type1.free_s2(s2)
            return
        self._vmm.free_s2(s2)
        del self._doorbells[s2]

    def drop(self, handle: S2Handle) -> None:
        """Free a stage 2 of the VMM, unless it went with its last device."""
        if handle in self._vmm.stage2:
            self._vmm.free_s2(handle)

    def join(self, device: HostDevice, s2: S2Handle, stage1: str) -> S2Handle:
        """Make the checks of a profile for a device to attach; return the stage 2 to attach it to.

        :raise BackendError: ENOENT when there is no such stage 2; see :meth:`Type1.attach` and
            :meth:`NestBindings.check_attach`.
        """
        if self._type1 is not None:
            return self._type1.attach(device, s2, stage1).handle
        bindings = self.doorbells(s2).bindings
        if bindings is not None:
            by_address = self._host.device_by_address
            attached = (by_address[address] for address in self._vmm.s2(s2).devices)
            bindings.check_attach(device, attached)
        return s2

    def leave(self, device: HostDevice) -> None:
        """Record that a device is detached, and perhaps its vDEVICE destroyed."""
        if self._type1 is not None:
            self._type1.detach(device)
        for doorbells in self._doorbells.values():
            if doorbells.bindings is None:
                continue
            for mate in self._host.devices:
                gone = mate.iommu_group == device.iommu_group and not self._vmm.has_vdevice(mate)
                if gone and doorbells.bindings.destroy(mate.address):
                    doorbells.bindings.update_withdrawn()

    def _retake(self, device: HostDevice) -> bool:
        """Make the MSIs of an attached device take their address again; see NestBindings."""
        is_attached = self._vmm.is_attached(device.address)
        if is_attached:
            self._retake_msis(device.address)
        return is_attached

    def of(self, device: PciAddress) -> S2Doorbells:
        """Return the doorbells of the stage 2 that a device is attached to.

        :raise BackendError: for a device that is not attached: EINVAL in the series' profiles,
            else ENOSPC as VFIO_DEVICE_SET_IRQS returns it. The kernel is not called, since the
            call would cost the device an event of its ITS until the host reboots.
        """
        if self._type1 is not None:
            return self._doorbells[self._type1.domain_of(device).handle]
        if not self._vmm.is_attached(device):
            raise BackendError(
                errno.ENOSPC,
                f"{device}: is not attached, so its MSIs get no address; attach it first",
                inside=errno.EOPNOTSUPP,
            )
        return self._doorbells[self._vmm.s2_of(device).handle]

    def doorbells(self, s2: S2Handle) -> S2Doorbells:
        """Return the doorbells of a stage 2.

        :raise BackendError: ENOENT when there is no such stage 2.
        """
        if s2 not in self._doorbells:
            raise BackendError(errno.ENOENT, f"S2 {s2}: does not exist")
        return self._doorbells[s2]

    def bind(self, device: HostDevice, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding; see :meth:`Type1.bind`, :meth:`NestBindings.bind`."""
        if self._type1 is not None:
            self._type1.bind(device, giova, gdb, size)
            return
        doorbells = self.of(device.address)
        if doorbells.bindings is not None:
            doorbells.bindings.bind(device, giova, gdb, size.bit_length() - 1)
        else:
            doorbells.check_call()
            self._vmm.bind_msi(device.address, giova, gdb, size)

    def unbind(self, device: HostDevice, giova: Iova) -> None:
        """Withdraw a guest binding; the kernel invalidates."""
        if self._type1 is not None:
            self._type1.unbind(device, giova)
            return
        doorbells = self.of(device.address)
        if doorbells.bindings is not None:
            doorbells.bindings.unbind(device.address, giova)
            doorbells.bindings.update_withdrawn()
        else:
            doorbells.check_call()
            self._vmm.unbind_msi(device.address, giova)

    def pick(self, device: HostDevice, doorbell: Pa) -> Iova | None:
        """Return the address that the profile's allocator picks for a device's MSIs to a doorbell.

        :return: None for an address of all ones; see :meth:`Type1.prepare`.
        :raise BackendError: ENOSPC, inside the allocator's error or the kernel's refusal to map
            the page.
        """
        if self._type1 is not None:
            page = self._type1.prepare(device, doorbell)
            return None if page is None else page.offset(doorbell & (mmap.PAGESIZE - 1))
        doorbells = self.of(device.address)
        try:
            return doorbells.pick(device, doorbell)
        except BackendError as error:
            raise error.seen_as(errno.ENOSPC) from error

    def slots_for(self, device: HostDevice) -> Collection[Iova]:
        """Return the pages of the software MSI window that a device's MSIs may get."""
        if self._type1 is not None:
            cookie = self._type1.domain_of(device.address).cookie
            return cookie.pages.values() if isinstance(cookie, MsiCookie) else ()
        window = device.sw_msi_window
        if self._witnesses is not None and window is not None:
            return self._slots.pages(window.base, mmap.PAGESIZE)
        every = self._doorbells.values()
        return {Iova(slot) for doorbells in every for slot in doorbells.kernel_slots}

    def costs(self) -> Costs:
        """Return the resources in use; with the host's ITS, slots seen in device addresses only."""
        every = self._doorbells.values()
        kernel_slots = {slot for doorbells in every for slot in doorbells.kernel_slots}
        slots = len(self._slots) + len(kernel_slots)
        bindings = sum(doorbells.binding_count for doorbells in every)
        cookies = () if self._type1 is None else self._type1.cookies
        for cookie in cookies:
            match cookie:
                case MsiCookie():
                    slots += len(cookie.pages)
                case GuestBindings():
                    bindings += len(cookie)
        return Costs(
            s2_domains=len(every) if self._type1 is None else self._type1.stage2_count,
            s2_mappings=sum(d.mapping_count for d in every),
            sw_msi_slots=slots,
            bindings=bindings,
            containers=0 if self._type1 is None else self._type1.container_count,
        )

    def state(self) -> Hashable:
        """Return what a detach undoes, for comparison."""
        tables = Counter(
            (s2.smmu, frozenset(s2.devices.items()), doorbells.state())
            for doorbells in self._doorbells.values()
            for s2 in [self._vmm.s2(doorbells.handle)]
        )
        return frozenset(tables.items())
