"""The doorbells in a stage 2 on a real kernel, and the allocator that picks their addresses."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.nest_bindings import NestBindings

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from vmm_msi.iommu.allocators import SwMsiSlots
    from vmm_msi.iommu.backend import S2Handle
    from vmm_msi.iommu.guest_msi import BoundMsi, MsiBinding
    from vmm_msi.iommu.vmm import Vmm
    from vmm_msi.types import HostDevice, Iova, MemoryRange, Pa, PciAddress, ReservedRegion


class S2Doorbells:
    """The doorbells in one stage 2.

    :param handle: of the stage 2, in ``vmm``.
    :param relocate: returns the IPA at which a page is mapped for an IPA of the guest's memory map.
    :param granule: PAGE_SIZE in bytes.
    :param witnesses: virtual address of the page of memory for each doorbell's page; None for the
        host's own ITS.
    :param slots: those of the file descriptor.
    :param kernel: the kernel's allocator of guest bindings; None in a kernel without them, or if
        they are kept in this process.
    """

    #: The first IPA past the end of stage 2; the real kernel checks its own.
    aperture = 1 << 48

    def __init__(
        self,
        vmm: Vmm[Sequence[int]],
        handle: S2Handle,
        relocate: Callable[[int], int],
        granule: int,
        witnesses: Mapping[int, int] | None,
        slots: SwMsiSlots,
        kernel: MsiBinding | None = None,
    ) -> None:
        self.granule = granule
        self.handle = handle
        #: Doorbells that this process mapped, by IPA in the guest's memory map: the IPA at which
        #: the page is mapped, and the doorbell's page.
        self.mapped: dict[int, tuple[int, int]] = {}
        #: Pages of the MSI window that the kernel has mapped, as far as device addresses show.
        self.kernel_slots: set[int] = set()
        self._vmm = vmm
        self._relocate = relocate
        self._witnesses = witnesses
        self._kernel = kernel
        self._ram: Sequence[MemoryRange] = ()
        self._slots = slots
        self._mapped_slots: set[int] = set()
        #: Guest bindings that are kept in this process.
        self.bindings: NestBindings | None = None

    def keep_bindings(
        self,
        allocator: MsiBinding,
        ram: Sequence[MemoryRange],
        retake: Callable[[HostDevice], bool],
    ) -> None:
        """Keep guest bindings in this process, by the rules of the kernel's interface.

        :param ram: guest RAM, where no doorbell can be.
        :param retake: see :class:`NestBindings`.
        """
        self._ram = ram
        self.bindings = NestBindings(self, self._slots, retake)
        self.bindings.select(allocator)

    def map(self, address: int, output: int, size: int) -> None:
        """Map the page of memory for the doorbell page ``output`` at the IPA ``address``.

        :raise BackendError: the kernel's refusal; EOPNOTSUPP without witness pages.
        """
        self.map_at(self._relocate(address), address, output, size)

    def map_at(self, target: int, address: int, output: int, size: int) -> None:
        """Map it at the IPA ``target``, for the IPA ``address`` of the guest's memory map.

        :raise BackendError: the kernel's refusal; EOPNOTSUPP without witness pages.
        """
        if self._witnesses is None:
            raise BackendError(
                errno.EOPNOTSUPP,
                f"mapping doorbell {output:#x} at {address:#x}: user space cannot map an ITS; use "
                "a page of memory in its place (--doorbells witness)",
            )
        virtual = self._witnesses[output]
        try:
            self._vmm.map(self.handle, target, size, virtual)
        except BackendError as error:
            moved = "" if target == address else f", which stands for {address:#x} in the guest"
            raise BackendError(error.errno, f"{error.reason}{moved}") from error
        self.mapped[address] = (target, output)

    def unmap(self, address: int) -> bool:
        """Unmap the doorbell at an IPA; return whether one was mapped."""
        target, _output = self.mapped.pop(address, (None, 0))
        if target is None:
            return False
        self._vmm.unmap(self.handle, target, self.granule)
        return True

    def reserve(self, page: int) -> None:
        """Check that nothing is mapped at an IPA; user space cannot reserve it.

        :raise BackendError: EADDRINUSE for guest RAM or a doorbell.
        """
        in_ram = any(
            ram.base < page + self.granule and page < ram.base + ram.size for ram in self._ram
        )
        if in_ram or page in self.mapped:
            raise BackendError(errno.EADDRINUSE, f"reserving {page:#x}: something is mapped there")

    def release(self, page: int) -> None:
        """Do nothing: nothing was reserved."""

    def check_call(self) -> None:
        """Check that the kernel takes guest bindings.

        :raise BackendError: ENOTTY.
        """
        if self._kernel is None:
            raise BackendError(errno.ENOTTY, "guest MSI bindings: the kernel has no such call")

    def _in_kernel(self) -> dict[tuple[PciAddress | None, int], BoundMsi]:
        """Return the bindings that the kernel has, by device, unless they are a list, and gIOVA."""
        bindings: dict[tuple[PciAddress | None, int], BoundMsi] = {}
        if self._kernel is None:
            return bindings
        for device in self._vmm.s2(self.handle).devices:
            owner = None if self._kernel.is_list else device
            for binding in self._vmm.msi_bindings(device):
                key = (owner, binding.iova)
                used = binding.used or (key in bindings and bindings[key].used)
                bindings[key] = replace(binding, used=used)
        return bindings

    @property
    def binding_count(self) -> int:
        """Number of guest bindings."""
        return len(self._in_kernel() if self.bindings is None else self.bindings)

    @property
    def mapping_count(self) -> int:
        """Number of doorbell pages in stage 2, as far as device addresses and bindings show."""
        gdbs = {b.gpa & -self.granule for b in self._in_kernel().values() if b.used}
        return len(self.mapped) + len(self.kernel_slots) + len(gdbs)

    def note_slot(self, address: Iova, window: ReservedRegion | None) -> None:
        """Note the address that the kernel gave to a device, if it is in the device's window."""
        page = address & -self.granule
        bound = any(binding.iova == page for binding in self._in_kernel().values())
        if window is not None and window.overlaps(address, 1) and not bound:
            self.kernel_slots.add(page)

    def pick(self, device: HostDevice, doorbell: Pa) -> Iova:
        """Return the address that the allocator picks for a device's MSIs to a doorbell.

        :raise BackendError: the allocator's error or the kernel's refusal to map the page.
        """
        address = None
        if self.bindings is not None:
            address = self.bindings.pick(device, doorbell)
        return self._slot(device, doorbell) if address is None else address

    def _slot(self, device: HostDevice, doorbell: Pa) -> Iova:
        window = device.sw_msi_window
        if window is None:
            raise BackendError(errno.ENOMEM, f"{device.address}: has no software MSI window")
        page = doorbell.align_down(self.granule)
        iova = self._slots.get(window.base, page, self.granule)
        if iova not in self._mapped_slots:
            self.map(iova, page, self.granule)
            self._mapped_slots.add(iova)
        return iova.offset(doorbell - page)

    def state(self) -> Hashable:
        """Return the mapped doorbells and the bindings, for comparison."""
        bindings: Hashable = frozenset(self._in_kernel())
        if self.bindings is not None:
            bindings = self.bindings.state()
        return frozenset(self.mapped.items()), bindings
