"""The three allocators by which Linux picks, or picked, a doorbell address.

:class:`MsiCookie` is the allocator before the series of 2018-2021, which VFIO's type1 container
still uses, :class:`GuestBindings` is the allocator of that series, :class:`SwMsiSlots` is
iommufd's. They map pages in a simulated stage 2, or, with pages of memory in place of doorbells,
in one of a real kernel. Their errors are those inside the kernel: what the caller of an ioctl sees
is decided where the ioctl is.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from vmm_msi.iommu import rules, series_rules
from vmm_msi.types import Iova, Ipa, Pa

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.errors import BackendError, Rule
    from vmm_msi.iommu.revisions import Revision
    from vmm_msi.types import HostDevice, PciAddress


class DoorbellTable(Protocol):
    """A stage 2 in which an allocator maps doorbell pages."""

    @property
    def granule(self) -> int:
        """Page size in bytes."""
        ...

    def map(self, address: int, output: int, size: int) -> None:
        """Map ``size`` bytes from the IPA ``address`` to ``output``.

        :raise BackendError: iommu_map's error.
        """
        ...

    def unmap(self, address: int) -> bool:
        """Unmap the mapping of one call; return whether one existed."""
        ...


class MsiCookie:
    """The MSI cookie of an unmanaged IOMMU domain.

    Linux ``drivers/iommu/dma-iommu.c`` iommu_get_msi_cookie, iommu_dma_get_msi_page,
    iommu_dma_alloc_iova, iommu_dma_free_iova: pages are allocated from the window's base upwards, a
    page that could not be mapped is given back, and the end of the window is not checked.

    :param base: of the window of the device that the IOMMU domain was made for.
    """

    def __init__(self, table: DoorbellTable, base: int) -> None:
        self._table = table
        self._next = base
        self.pages: dict[Pa, Iova] = {}

    def prepare(self, hdb: Pa) -> Iova:
        """Return the page for the doorbell ``hdb``, mapped in stage 2.

        :raise BackendError: iommu_map's error.
        """
        page = hdb.align_down(self._table.granule)
        existing = self.pages.get(page)
        if existing is not None:
            return existing
        iova = Iova(self._next)
        self._table.map(iova, page, self._table.granule)
        self._next += self._table.granule
        self.pages[page] = iova
        return iova


@dataclass(slots=True)
class _Binding:
    giova: Iova
    gdb: Ipa
    size: int
    serial: int
    hdb: Pa | None = None


@dataclass
class _Entries:
    """Bindings in order of age: the newest is at the head of Linux's list, here at the end."""

    by_giova: dict[Iova, _Binding] = field(default_factory=dict)
    by_hdb: dict[Pa, _Binding] = field(default_factory=dict)
    unused: dict[Iova, _Binding] = field(default_factory=dict)


class GuestBindings:
    """The nested MSI cookie of "SMMUv3 Nested Stage Setup", one per nested IOMMU domain.

    Patch "dma-iommu: Implement NESTED_MSI cookie": iommu_dma_bind_guest_msi,
    iommu_dma_unbind_guest_msi, iommu_dma_get_nested_msi_page. With a device handle the lookups are
    those among the device's own entries.

    :param revision: a revision with bindings.
    """

    def __init__(self, table: DoorbellTable, revision: Revision) -> None:
        self._table = table
        self.revision = revision
        self._serial = 0
        self._all = _Entries()
        self._own: dict[PciAddress, _Entries] = {}

    def _entries(self, device: PciAddress) -> _Entries:
        if self.revision.device_handle:
            return self._own.setdefault(device, _Entries())
        return self._all

    def bind(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register ``giova -> gdb``, both aligned down to ``size``; keep an existing binding.

        :raise BackendError: EINVAL when ``size`` exceeds the stage 2 granule, in a revision that
            compares them.
        """
        if self.revision.compares_granules and size > self._table.granule:
            raise series_rules.binding_size(self.revision).refusal(
                errno.EINVAL,
                f"iommu_dma_bind_guest_msi({giova}): the stage 1 granule of {size:#x} bytes is "
                f"larger than the stage 2 granule of {self._table.granule}",
            )
        entries = self._entries(device)
        page = giova.align_down(size)
        if page in entries.by_giova:
            return
        self._serial += 1
        binding = _Binding(page, gdb.align_down(size), size, self._serial)
        entries.by_giova[page] = entries.unused[page] = binding

    def unbind(self, device: PciAddress, giova: Iova) -> bool:
        """Drop the binding of ``giova``; return whether its stage 2 mapping was unmapped.

        Revisions 4 to 7 drop every binding that covers ``giova``, the others the newest.
        """
        entries = self._entries(device)
        unmapped = False
        while (binding := _find(entries, giova)) is not None:
            unmapped |= self._drop(entries, binding)
            if not self.revision.unbinds_all:
                break
        return unmapped

    def _drop(self, entries: _Entries, binding: _Binding) -> bool:
        del entries.by_giova[binding.giova]
        entries.unused.pop(binding.giova, None)
        if binding.hdb is None:
            return False
        del entries.by_hdb[binding.hdb]
        self._table.unmap(binding.gdb)
        return True

    def prepare(self, device: PciAddress, hdb: Pa) -> Iova:
        """Return the gIOVA page for ``hdb``: its own entry, else the newest unused one.

        :raise BackendError: iommu_map's error; ENOMEM when no unused entry is left.
        """
        entries = self._entries(device)
        page = hdb.align_down(self._table.granule)
        used = entries.by_hdb.get(page)
        if used is not None:
            return used.giova
        if not entries.unused:
            raise series_rules.choose_binding(self.revision).refusal(
                errno.ENOMEM, f"No usable S1 MSI mapping found: no free binding for doorbell {page}"
            )
        binding = entries.unused[next(reversed(entries.unused))]
        self._table.map(binding.gdb, page, self._table.granule)
        del entries.unused[binding.giova]
        binding.hdb = page
        entries.by_hdb[page] = binding
        return binding.giova

    def __bool__(self) -> bool:
        return bool(self._all.by_giova) or any(own.by_giova for own in self._own.values())

    def __len__(self) -> int:
        return len(self._all.by_giova) + sum(len(own.by_giova) for own in self._own.values())

    def state(self) -> frozenset[tuple[Iova, Ipa, Pa | None]]:
        """Return the registered bindings, for comparison."""
        groups = [self._all, *self._own.values()]
        return frozenset((b.giova, b.gdb, b.hdb) for g in groups for b in g.by_giova.values())


def _find(entries: _Entries, giova: Iova) -> _Binding | None:
    """Return the newest binding whose page contains ``giova``, for any granule."""
    pages = {giova.align_down(1 << shift) for shift in (12, 14, 16)}
    candidates = [entries.by_giova[page] for page in pages if page in entries.by_giova]
    matches = [b for b in candidates if giova.align_down(b.size) == b.giova]
    return max(matches, key=lambda binding: binding.serial, default=None)


class SwMsiSlots:
    """The pages of the software MSI window, per iommufd file descriptor.

    Linux ``drivers/iommu/iommufd/driver.c`` iommufd_sw_msi_get_map: the n-th distinct doorbell
    page, in order of first use, gets the n-th page of the window, 64 at most, until the file
    descriptor is closed. The end of the window is not checked. With the interface for guest MSI
    bindings, a new slot passes over the pages of gDBs in all stage 2s of the file descriptor.
    """

    LIMIT = 64

    def __init__(self) -> None:
        self._slots: dict[tuple[int, Pa], int] = {}
        self._per_window: dict[int, int] = {}
        #: Number of stage 2s with a gDB in each page.
        self._gdbs: Counter[int] = Counter()

    def get(self, window_base: int, hdb_page: Pa, page_size: int) -> Iova:
        """Return the address of the slot of a doorbell page.

        :raise BackendError: EOVERFLOW when 64 doorbells have a slot already.
        """
        slot = self._slots.get((window_base, hdb_page))
        if slot is None:
            if len(self._slots) >= self.LIMIT:
                raise rules.SLOT.refusal(
                    errno.EOVERFLOW,
                    f"iommufd_sw_msi_get_map: {self.LIMIT} doorbells have a slot already, no "
                    f"slot is left for {hdb_page}",
                )
            slot = self._per_window.get(window_base, 0)
            while self._gdbs[window_base + slot * page_size]:
                slot += 1
            self._per_window[window_base] = slot + 1
            self._slots[window_base, hdb_page] = slot
        return Iova(window_base + slot * page_size)

    def pages(self, window_base: int, page_size: int) -> list[Iova]:
        """Return the addresses of the slots in one window."""
        bases = ((base, slot) for (base, _page), slot in self._slots.items())
        return [Iova(base + slot * page_size) for base, slot in bases if base == window_base]

    def has(self, address: int, page_size: int) -> bool:
        """Return whether a doorbell has the slot at an address."""
        return any(
            base + slot * page_size == address for (base, _page), slot in self._slots.items()
        )

    def add_gdb(self, page: int) -> None:
        """Put no new slot at a page, since a stage 2 has a gDB there."""
        self._gdbs[page] += 1

    def remove_gdb(self, page: int) -> None:
        """Undo :meth:`add_gdb`."""
        self._gdbs[page] -= 1

    def clear(self) -> None:
        """Free all slots: the file descriptor is closed."""
        self._gdbs.clear()
        self._slots.clear()
        self._per_window.clear()

    def __len__(self) -> int:
        return len(self._slots)


def two_msi_domains(device: HostDevice, other: HostDevice, rule: Rule) -> BackendError:
    """Return the refusal of a device whose MSI domain differs from that of an attached one."""
    return rule.refusal(
        errno.EINVAL,
        "Nested mode forbids to attach devices using different physical MSI doorbells to the same "
        f"IOMMU domain: {device.address} uses ITS {device.its}, {other.address} uses ITS "
        f"{other.its}",
    )


def check_msi_domain(
    revision: Revision, devices: Iterable[HostDevice], attached: Iterable[HostDevice]
) -> None:
    """Make the checks of the MSI domain of devices that are attached to a nested IOMMU domain.

    The series, ``arm_smmu_share_msi_domain`` and ``arm_smmu_has_hw_msi_resv_region``.

    :param attached: the devices that are attached to it already.
    :raise BackendError: EINVAL for a device with another MSI domain than the ones before it, or
        with a HW MSI region, in the revisions that refuse them.
    """
    first = next(iter(attached), None)
    for device in devices:
        first = first or device
        if revision.one_msi_domain and device.its != first.its:
            raise two_msi_domains(device, first, series_rules.one_its(revision))
        if device.hw_msi is not None and revision.refuses_hw_msi:
            rule = series_rules.hw_msi(revision)
            raise rule.refusal(errno.EINVAL, f"{device.address}: HW MSI region {device.hw_msi}")
