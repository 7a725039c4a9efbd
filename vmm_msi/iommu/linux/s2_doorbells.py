"""The doorbells in a stage 2 on a real kernel, and the allocator that picks their addresses."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu.allocators import GuestBindings

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from vmm_msi.iommu.allocators import SwMsiSlots
    from vmm_msi.iommu.backend import S2Handle
    from vmm_msi.iommu.revisions import Revision
    from vmm_msi.iommu.vmm import Vmm
    from vmm_msi.types import HostDevice, Iova, Pa


class S2Doorbells:
    """The doorbells in one stage 2.

    :param handle: of the stage 2, in ``vmm``.
    :param relocate: returns the IPA at which a page is mapped for an IPA of the guest's memory map.
    :param granule: PAGE_SIZE in bytes.
    :param witnesses: virtual address of the page of memory for each doorbell's page; None for the
        host's own ITS.
    :param revision: of the series whose guest bindings the addresses come from.
    """

    def __init__(
        self,
        vmm: Vmm[Sequence[int]],
        handle: S2Handle,
        relocate: Callable[[int], int],
        granule: int,
        witnesses: Mapping[int, int] | None,
        revision: Revision | None = None,
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
        self.revision = revision
        self._bindings = None if revision is None else GuestBindings(self, revision)

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

    @property
    def bindings(self) -> GuestBindings:
        """The allocator that takes guest bindings.

        :raise BackendError: ENOTTY without one.
        """
        if self._bindings is None:
            raise BackendError(
                errno.ENOTTY, "registering a guest binding: the kernel has no such call"
            )
        return self._bindings

    @property
    def binding_count(self) -> int:
        """Number of registered guest bindings."""
        return 0 if self._bindings is None else len(self._bindings)

    def pick(self, device: HostDevice, doorbell: Pa, slots: SwMsiSlots) -> Iova:
        """Return the page address that the allocator picks for a doorbell.

        :raise BackendError: ENOSPC, inside the allocator's error or the kernel's refusal to map
            the page.
        """
        try:
            if self._bindings:
                return self._bindings.prepare(device.address, doorbell)
            return self._slot(device, doorbell, slots)
        except BackendError as error:
            raise error.seen_as(errno.ENOSPC) from error

    def _slot(self, device: HostDevice, doorbell: Pa, slots: SwMsiSlots) -> Iova:
        window = device.sw_msi_window
        if window is None:
            raise BackendError(errno.ENOMEM, f"{device.address}: has no software MSI window")
        page = doorbell.align_down(self.granule)
        iova = slots.get(window.base, page, self.granule)
        if iova not in self.mapped:
            self.map(iova, page, self.granule)
        return iova

    def state(self) -> Hashable:
        """Return the mapped doorbells and the bindings, for comparison."""
        bindings = None if self._bindings is None else self._bindings.state()
        return frozenset(self.mapped.items()), bindings
