"""A stage 2 on the real kernel: an IOAS, a nesting parent, a vIOMMU and what hangs on it."""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import BackendError
from vmm_msi.iommu.allocators import GuestBindings, MsiCookie, MsiDomains, cookie_for
from vmm_msi.iommu.linux.raise_msi import EventQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Hashable, Mapping, Sequence

    from vmm_msi.iommu.allocators import SwMsiSlots
    from vmm_msi.iommu.linux.iommufd import IommuFd
    from vmm_msi.iommu.linux.vfio import VfioDevice
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.types import HostDevice, Iova, Pa, PciAddress, StreamId


class Bound(NamedTuple):
    """A device that is bound to the file descriptor: its id there, and its StreamID."""

    id: int
    stream_id: StreamId


class Stage2:
    """One stage 2 of one SMMU.

    :param smmu: id of the SMMU in the host description.
    :param behind: id of a bound device behind that SMMU.
    :param place: tells where a page is mapped that the guest's memory map has at an IPA.
    :param granule: PAGE_SIZE in bytes.
    :raise BackendError: the kernel's refusal; nothing is left allocated.
    """

    def __init__(
        self,
        iommufd: IommuFd,
        smmu: int,
        behind: int,
        place: Callable[[int], int],
        granule: int,
    ) -> None:
        self.smmu = smmu
        self.granule = granule
        self.queue: EventQueue | None = None
        #: Attached devices, with the name of their stage 1.
        self.devices: dict[PciAddress, str] = {}
        #: IPAs at which this process mapped doorbells: where they really are, and which.
        self.doorbells: dict[int, tuple[int, int]] = {}
        #: Pages of the MSI window that the kernel has mapped, as far as addresses told.
        self.kernel_slots: set[int] = set()
        self._fd = iommufd
        self._place = place
        self._witnesses: Mapping[int, int] | None = None
        self._cookie: MsiCookie | GuestBindings | None = None
        self._msi_domains: MsiDomains | None = None
        self._viommu: int | None = None
        self._nested: dict[str, int] = {}
        self._users: Counter[str] = Counter()
        self.vdevices: dict[PciAddress, int] = {}
        self._ioas = iommufd.ioas_alloc()
        try:
            self.hwpt = iommufd.hwpt_alloc(behind, self._ioas)
        except BackendError as error:
            iommufd.destroy(self._ioas)
            raise _explained(error, _NO_NESTING) from error

    def map_memory(self, ipa: int, size: int, address: int) -> None:
        """Map memory of this process, as guest RAM."""
        self._fd.ioas_map(self._ioas, ipa, size, address)

    def use_witnesses(
        self, pages: Mapping[int, int], profile: Profile, *, with_cookie: bool
    ) -> None:
        """Let pages of memory stand for doorbells.

        :param pages: virtual address of the page that stands for each doorbell's page.
        :param profile: whose allocator picks addresses.
        :param with_cookie: an allocator is wanted.
        """
        self._witnesses = pages
        if not with_cookie or profile.iommufd:
            return
        self._cookie = cookie_for(self, profile.revision)
        self._msi_domains = MsiDomains() if profile.revision >= 8 else None

    def map(self, address: int, output: int, size: int) -> None:
        """Map the page that stands for the doorbell page ``output`` at the IPA ``address``.

        :raise BackendError: the kernel's refusal; EOPNOTSUPP where no page stands for it.
        """
        self.map_at(self._place(address), address, output, size)

    def map_at(self, place: int, address: int, output: int, size: int) -> None:
        """Do so at ``place`` in the IOAS, wherever the guest's memory map has it."""
        if self._witnesses is None:
            raise BackendError(
                errno.EOPNOTSUPP,
                f"mapping doorbell {output:#x} at {address:#x}: user space cannot map an ITS; a "
                "page of memory in its place would work (--doorbells witness)",
            )
        virtual = self._witnesses[output]
        try:
            self._fd.ioas_map(self._ioas, place, size, virtual)
        except BackendError as error:
            moved = "" if place == address else f", which stands for {address:#x} in the guest"
            raise BackendError(error.errno, f"{error.reason}{moved}") from error
        self.doorbells[address] = (place, output)

    def unmap(self, address: int) -> bool:
        """Unmap it; tell whether there was anything."""
        place, _output = self.doorbells.pop(address, (None, 0))
        if place is None:
            return False
        self._fd.ioas_unmap(self._ioas, place, self.granule)
        return True

    @property
    def bindings(self) -> GuestBindings:
        """The allocator that takes guest bindings.

        :raise BackendError: EOPNOTSUPP where there is none.
        """
        if not isinstance(self._cookie, GuestBindings):
            raise BackendError(
                errno.EOPNOTSUPP, "registering a guest binding: the kernel has no such call"
            )
        return self._cookie

    @property
    def binding_count(self) -> int:
        """Guest bindings that are registered."""
        return len(self._cookie) if isinstance(self._cookie, GuestBindings) else 0

    def pick(self, device: HostDevice, doorbell: Pa, slots: SwMsiSlots) -> Iova:
        """Return the page address that the allocator kept here picks for a doorbell.

        :raise BackendError: what the allocator or the kernel's map says.
        """
        match self._cookie:
            case MsiCookie() as cookie:
                return cookie.prepare(doorbell)
            case GuestBindings() as bindings:
                return bindings.prepare(device.address, doorbell)
        window = device.sw_msi_window
        if window is None:
            raise BackendError(errno.ENOMEM, f"{device.address}: has no software MSI window")
        page = doorbell.align_down(self.granule)
        iova = slots.get(window.base, page, self.granule)
        if iova not in self.doorbells:
            self.map(iova, page, self.granule)
        return iova

    @property
    def cookie_pages(self) -> int:
        """Pages that an MSI cookie kept here has taken."""
        return len(self._cookie.pages) if isinstance(self._cookie, MsiCookie) else 0

    def msi_domains_check(self, device: HostDevice) -> None:
        """Make the series' check of a device that is to be attached, where it makes one.

        :raise BackendError: EINVAL, see :class:`MsiDomains`.
        """
        if self._msi_domains is not None:
            self._msi_domains.check(device)

    def attach(
        self,
        vfio: VfioDevice,
        device: HostDevice,
        mates: Mapping[PciAddress, Bound],
        served: Container[PciAddress],
        stage1: str,
        ste: Sequence[int],
    ) -> None:
        """Allocate what is missing of vIOMMU, vDEVICEs and nested HWPT, and attach.

        :param mates: the assigned devices of its IOMMU group, itself included. The kernel attaches
            them together, and each needs a vDEVICE first (``arm_smmu_attach_prepare_vmaster``).
        :param served: devices that have a vDEVICE, wherever.
        :param stage1: name of the stage 1 that ``ste`` leads to.
        :raise BackendError: the kernel's refusal; nothing is left allocated for the device.
        """
        number = mates[device.address].id
        with ExitStack() as undo:
            if self._viommu is None:
                try:
                    self._viommu = self._fd.viommu_alloc(number, self.hwpt)
                except BackendError as error:
                    raise _explained(error, _NO_VIOMMU) from error
                undo.callback(self._destroy_viommu)
                self.queue = EventQueue(self._fd, self._viommu)
            for mate, bound in mates.items():
                if mate not in served:
                    self.vdevices[mate] = self._fd.vdevice_alloc(
                        self._viommu, bound.id, bound.stream_id
                    )
                    undo.callback(self._destroy_vdevice, mate)
            if stage1 not in self._nested:
                self._nested[stage1] = self._fd.hwpt_alloc_nested(number, self._viommu, ste)
                undo.callback(lambda: self._fd.destroy(self._nested.pop(stage1)))
            vfio.attach(self._nested[stage1])
            undo.pop_all()
        self._users[stage1] += 1
        self.devices[device.address] = stage1
        if self._msi_domains is not None:
            self._msi_domains.join(device)

    def _destroy_vdevice(self, address: PciAddress) -> None:
        self._fd.destroy(self.vdevices.pop(address))

    def detach(
        self, vfio: VfioDevice, device: HostDevice, mates: Mapping[PciAddress, object]
    ) -> None:
        """Detach, and destroy vDEVICEs and a nested HWPT that nobody uses.

        :param mates: the assigned devices of its IOMMU group, itself included.
        """
        stage1 = self.devices.pop(device.address)
        vfio.detach()
        if self.devices.keys().isdisjoint(mates):
            for mate in mates.keys() & self.vdevices.keys():
                self._destroy_vdevice(mate)
        self._users[stage1] -= 1
        if not self._users[stage1]:
            self._fd.destroy(self._nested.pop(stage1))
        if self._msi_domains is not None:
            self._msi_domains.leave(device)

    def invalidate(self, command: int) -> None:
        """Issue an invalidation as the guest would; nothing is cached without a vIOMMU."""
        if self._viommu is not None:
            self._fd.invalidate(self._viommu, [(command, 0)])

    def _destroy_viommu(self) -> None:
        if self.queue is not None:
            self.queue.close()
            self.queue = None
        if self._viommu is not None:
            self._fd.destroy(self._viommu)
            self._viommu = None

    def close(self) -> None:
        """Destroy everything, the doorbells and guest RAM that are mapped included."""
        self._destroy_viommu()
        self._fd.destroy(self.hwpt)
        self._fd.destroy(self._ioas)

    def state(self) -> Hashable:
        """Return what a detach undoes, for comparison."""
        bindings = self._cookie.state() if isinstance(self._cookie, GuestBindings) else None
        return (
            self.smmu,
            frozenset(self.doorbells.items()),
            frozenset(self.devices.items()),
            bindings,
        )


_NO_NESTING = "the SMMU may lack a stage (arm_smmu_domain_alloc_paging_flags)"
_NO_VIOMMU = (
    "it takes an SMMU with S2FWB, or CANWBS in the root complex's node of the IORT "
    "(arm_smmu_get_viommu_size)"
)


def _explained(error: BackendError, why: str) -> BackendError:
    """Return the error with what is likely behind EOPNOTSUPP."""
    if error.errno != errno.EOPNOTSUPP:
        return error
    return BackendError(error.errno, f"{error.reason}: {why}")
