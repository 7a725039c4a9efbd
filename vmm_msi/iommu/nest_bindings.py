"""The guest MSI bindings of a nest parent: the rules of iommufd's interface for them.

The interface is that of ``vmm_msi/lab/kernel``, whose functions are named here; docs/kernels.md has
the errors. The simulated kernel has these rules in its nest parents. A real kernel without the
interface has them with pages of memory in place of doorbells.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules
from vmm_msi.iommu.allocators import DoorbellTable, two_msi_domains
from vmm_msi.iommu.guest_msi import BoundMsi, MsiBinding
from vmm_msi.types import Iova, Ipa, Pa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm_msi.errors import Rule
    from vmm_msi.iommu.allocators import SwMsiSlots
    from vmm_msi.types import HostDevice, PciAddress

_PAGE_SHIFTS = range(12, 31)


class NestParentTable(DoorbellTable, Protocol):
    """The stage 2 of a nest parent, and the address space that it is filled from."""

    @property
    def aperture(self) -> int:
        """The first IPA past its end."""
        ...

    def reserve(self, page: int) -> None:
        """Reserve the page at an IPA, so that user space can map nothing there.

        :raise BackendError: EADDRINUSE when something is mapped there.
        """
        ...

    def release(self, page: int) -> None:
        """Undo :meth:`reserve`."""
        ...


@dataclass(eq=False)
class _Page:
    """A page of stage 2 with guest doorbells: ``struct iommufd_msi_page``.

    :param its: of the device that it was bound for first, which stands for its MSI domain.
    :param hdb: what it is mapped to.
    :param bindings: number of bindings in it.
    :param mapped: number of bindings that have it mapped.
    """

    base: Ipa
    its: int
    hdb: Pa | None = None
    bindings: int = 0
    mapped: int = 0


@dataclass(eq=False)
class _Binding:
    """A binding: ``struct iommufd_msi_binding``.

    :param hdb: the doorbell page that it leads to, once a device has used it.
    :param registrants: number of vDEVICEs that bound it; without any it serves no further device.
    :param users: number of vDEVICEs that bound it or use it.
    """

    giova: Iova
    gdb: Ipa
    page_shift: int
    page: _Page
    hdb: Pa | None = None
    registrants: int = 0
    users: int = 0


@dataclass(eq=False)
class _User:
    """A vDEVICE and a binding that it bound, or is served by: ``struct iommufd_msi_user``.

    :param update: number of the vDEVICE's update in which it was used last.
    """

    binding: _Binding
    is_registered: bool = False
    is_used: bool = False
    update: int = 0

    def register(self, registered: bool) -> None:
        """Count the vDEVICE among those that bound the binding, or no longer."""
        self.binding.registrants += registered - self.is_registered
        self.is_registered = registered


@dataclass(eq=False)
class _VdeviceBindings:
    """The bindings of a vDEVICE.

    :param users: the newest first.
    """

    device: HostDevice
    users: list[_User] = field(default_factory=list)
    updates: int = 0

    @property
    def registered(self) -> list[_User]:
        """Those that the vDEVICE bound."""
        return [user for user in self.users if user.is_registered]


class NestBindings:
    """The guest MSI bindings of one nest parent.

    :param slots: those of the file descriptor.
    :param retake: makes a device's MSIs that are set up take their address again, by :meth:`pick`;
        returns whether the device is attached, so that something translates them.
    """

    def __init__(
        self, table: NestParentTable, slots: SwMsiSlots, retake: Callable[[HostDevice], bool]
    ) -> None:
        self._table = table
        self._slots = slots
        self._retake = retake
        self.allocator = MsiBinding.DIRECT
        #: Every binding, the newest first.
        self._bindings: list[_Binding] = []
        self._pages: dict[Ipa, _Page] = {}
        self._vdevices: dict[PciAddress, _VdeviceBindings] = {}

    def select(self, value: int) -> None:
        """IOMMU_OPTION_MSI_BINDING.

        :raise BackendError: EOPNOTSUPP for an unknown allocator; EBUSY for another one while
            bindings exist.
        """
        if value not in MsiBinding.__members__.values():
            raise rules.BINDING_ALLOCATOR.refusal(
                errno.EOPNOTSUPP, f"IOMMU_OPTION_MSI_BINDING of {value}: is unknown"
            )
        if self._bindings and value != self.allocator:
            raise rules.BINDING_ALLOCATOR.refusal(
                errno.EBUSY,
                f"IOMMU_OPTION_MSI_BINDING of {value}: the nest parent has bindings; set it before "
                "the first one",
            )
        self.allocator = MsiBinding(value)

    def check_attach(self, device: HostDevice, attached: Iterable[HostDevice]) -> None:
        """``iommufd_msi_check_attach``: compare the MSI domain of a device with the attached ones.

        :raise BackendError: EINVAL if the allocator requires one and the device has another.
        """
        if self.allocator.one_msi_domain:
            _check_its(device, attached, rules.BINDING_ATTACH)

    def start(self, device: HostDevice) -> None:
        """``iommufd_msi_start_vdevice``: note a new vDEVICE."""
        self._vdevices.setdefault(device.address, _VdeviceBindings(device))

    def bind(self, device: HostDevice, giova: int, gdb: int, page_shift: int) -> None:
        """IOMMU_VDEVICE_MSI_OP_BIND: ``iommufd_msi_bind``.

        :raise BackendError: EINVAL for a page that is not valid; EINVAL for another MSI domain if
            the allocator requires one; EEXIST when gDB is a slot, or DIRECT has it bound for
            another MSI domain; EADDRINUSE when something is mapped there; with DIRECT the errors
            of :meth:`pick`. Nothing is changed.
        """
        self._check_page(giova, gdb, page_shift)
        vdevice = self._vdevices.setdefault(device.address, _VdeviceBindings(device))
        old = next((u for u in vdevice.registered if u.binding.giova == giova), None)
        binding = None
        if self.allocator is MsiBinding.DIRECT:
            if old and (old.binding.gdb, old.binding.page_shift) == (gdb, page_shift):
                return
        elif old is not None:
            return
        elif self.allocator.is_list:
            given_out = (b for b in self._bindings if b.registrants)
            binding = next((b for b in given_out if b.giova == giova), None)
        if self.allocator.one_msi_domain:
            bound = (v.device for v in self._vdevices.values() if v.registered)
            _check_its(device, bound, rules.BINDING_ITS)
        if binding is None:
            page = self._claim(device, Ipa(gdb).align_down(self._table.granule))
            binding = _Binding(Iova(giova), Ipa(gdb), page_shift, page)
            self._bindings.insert(0, binding)
        replaced = vdevice.registered
        user = self._register(vdevice, binding)
        if self.allocator is MsiBinding.DIRECT:
            self._switch(vdevice, user, replaced)

    def _check_page(self, giova: int, gdb: int, page_shift: int) -> None:
        action = f"binding {giova:#x} to {gdb:#x} with pages of 1 << {page_shift} bytes"
        if page_shift not in _PAGE_SHIFTS:
            raise rules.BINDING_ADDRESSES.refusal(
                errno.EINVAL, f"{action}: valid are 1 << 12 to 1 << 30"
            )
        size = 1 << page_shift
        if (giova | gdb) & (size - 1):
            raise rules.BINDING_ADDRESSES.refusal(
                errno.EINVAL, f"{action}: an address is not a multiple of the page"
            )
        if gdb + size > self._table.aperture:
            raise rules.BINDING_PAGE.refusal(
                errno.EINVAL, f"{action}: lies past the end of stage 2"
            )
        if self.allocator is MsiBinding.LIST_ONE_GRANULE and size > self._table.granule:
            raise rules.BINDING_PAGE.refusal(
                errno.EINVAL,
                f"{action}: the stage 1 page is larger than the stage 2 page of "
                f"{self._table.granule} bytes",
            )

    def _claim(self, device: HostDevice, base: Ipa) -> _Page:
        """``get_msi_page``: refer to the page of a gDB once more; reserve a new one.

        :raise BackendError: see :meth:`bind`.
        """
        page = self._pages.get(base)
        if page is None:
            if self._slots.has(base, self._table.granule):
                raise rules.BINDING_GDB.refusal(
                    errno.EEXIST, f"binding gDB {base}: a slot of the kernel's MSI window is there"
                )
            self._table.reserve(base)
            self._slots.add_gdb(base)
            page = self._pages[base] = _Page(base, device.its)
        elif self.allocator is MsiBinding.DIRECT and page.its != device.its:
            raise rules.BINDING_GDB.refusal(
                errno.EEXIST,
                f"binding gDB {base} for {device.address} on ITS {device.its}: it is bound for a "
                f"device on ITS {page.its}",
            )
        page.bindings += 1
        return page

    @staticmethod
    def _register(vdevice: _VdeviceBindings, binding: _Binding) -> _User:
        """``register_user``: a binding that serves the device already keeps its place."""
        user = next((user for user in vdevice.users if user.binding is binding), None)
        if user is None:
            user = _User(binding)
            binding.users += 1
            vdevice.users.insert(0, user)
        user.register(True)
        return user

    def _switch(self, vdevice: _VdeviceBindings, user: _User, replaced: list[_User]) -> None:
        """``bind_direct``: the binding replaces that of the vDEVICE."""
        for old in replaced:
            old.register(False)
        try:
            self._update(vdevice)
        except BackendError:
            user.register(False)
            for old in replaced:
                old.register(True)
            with suppress(BackendError):
                self._update(vdevice)
            self._reap(vdevice)
            raise

    def unbind(self, device: PciAddress, giova: int) -> None:
        """IOMMU_VDEVICE_MSI_OP_UNBIND: ``iommufd_msi_unbind``, ``withdraw``.

        :raise BackendError: ENOENT when the vDEVICE has no such binding; the errors of
            :meth:`pick` for a device that is served by it alone: nothing is changed.
        """
        vdevice = self._vdevices.get(device)
        registered = [] if vdevice is None else vdevice.registered
        user = next((user for user in registered if user.binding.giova == giova), None)
        if vdevice is None or user is None:
            raise rules.BINDING_UNBIND.refusal(
                errno.ENOENT, f"{device}: has no binding of {giova:#x}"
            )
        user.register(False)
        if not user.is_used or user.binding.registrants:
            self._reap(vdevice)
        else:
            try:
                self._update(vdevice)
            except BackendError:
                user.register(True)
                with suppress(BackendError):
                    self._update(vdevice)
                raise

    def update_withdrawn(self) -> None:
        """``update_withdrawn``: devices leave a binding that no vDEVICE binds any more."""
        for vdevice in list(self._vdevices.values()):
            if any(user.is_used and not user.binding.registrants for user in vdevice.users):
                with suppress(BackendError):
                    self._update(vdevice)

    def prepare(self, device: HostDevice) -> None:
        """IOMMU_VDEVICE_MSI_OP_PREPARE: ``iommufd_msi_prepare``.

        :raise BackendError: the errors of :meth:`pick`; the device keeps its address.
        """
        self.start(device)
        self._update(self._vdevices[device.address])

    def _update(self, vdevice: _VdeviceBindings) -> None:
        """``update_device``: bindings that the MSIs do not take again are no longer used."""
        vdevice.updates += 1
        if self._retake(vdevice.device):
            for user in vdevice.users:
                user.is_used = user.is_used and user.update == vdevice.updates
        self._reap(vdevice)

    def _reap(self, vdevice: _VdeviceBindings) -> None:
        """``reap_users``: forget bindings that the vDEVICE neither bound nor uses."""
        for user in list(vdevice.users):
            if user.is_registered or user.is_used:
                continue
            vdevice.users.remove(user)
            user.binding.users -= 1
            if not user.binding.users:
                self._free(user.binding)

    def _free(self, binding: _Binding) -> None:
        """``free_binding``, ``put_msi_page``."""
        page = binding.page
        self._bindings.remove(binding)
        if binding.hdb is not None:
            page.mapped -= 1
            if not page.mapped:
                self._table.unmap(page.base)
                page.hdb = None
        page.bindings -= 1
        if not page.bindings:
            self._table.release(page.base)
            self._slots.remove_gdb(page.base)
            del self._pages[page.base]

    def has_any(self, device: PciAddress) -> bool:
        """Return whether a vDEVICE has a binding, or is served by one."""
        return device in self._vdevices and bool(self._vdevices[device].users)

    def destroy(self, device: PciAddress) -> bool:
        """``iommufd_msi_destroy_vdevice``: withdraw all bindings of a vDEVICE, which is gone.

        :return: whether it had any.
        """
        vdevice = self._vdevices.pop(device, None)
        if vdevice is None or not vdevice.users:
            return False
        with suppress(BackendError):
            self._update(vdevice)
        for user in vdevice.users:
            user.register(False)
            user.is_used = False
        self._reap(vdevice)
        return True

    def pick(self, device: HostDevice, doorbell: Pa) -> Iova | None:
        """Return the address of a vDEVICE's MSIs to a doorbell; None for the slot.

        ``iommufd_msi_get``.

        :raise BackendError: ENOMEM when no binding is left for the doorbell; EEXIST when gDB is
            mapped; EINVAL when the page of stage 1 is not the part of the page of stage 2 with the
            doorbell; iommu_map's error.
        """
        vdevice = self._vdevices.setdefault(device.address, _VdeviceBindings(device))
        hdb = doorbell.align_down(self._table.granule)
        binding = self._choose(vdevice, hdb)
        if binding is None:
            return None
        self._map(binding, doorbell, hdb)
        self._use(vdevice, binding)
        size = min(1 << binding.page_shift, self._table.granule)
        return binding.giova.offset(doorbell & (size - 1))

    def _choose(self, vdevice: _VdeviceBindings, hdb: Pa) -> _Binding | None:
        """``iommufd_msi_choose``."""
        if self.allocator.is_list:
            candidates = [binding for binding in self._bindings if binding.registrants]
        else:
            candidates = [user.binding for user in vdevice.registered]
        if self.allocator is MsiBinding.DIRECT or not candidates:
            return next(iter(candidates), None)
        for wanted in (hdb, None):
            for binding in candidates:
                if binding.hdb == wanted:
                    return binding
        raise rules.CHOOSE_BINDING.refusal(
            errno.ENOMEM, f"No usable S1 MSI mapping found: no free binding for doorbell {hdb}"
        )

    def _map(self, binding: _Binding, doorbell: Pa, hdb: Pa) -> None:
        """``iommufd_msi_map``: map the page of a binding to a doorbell page, unless it is."""
        if binding.hdb == hdb:
            return
        between = (self._table.granule - 1) & -(1 << binding.page_shift)
        if binding.hdb is None and (binding.gdb ^ doorbell) & between:
            raise rules.BINDING_MAPPED.refusal(
                errno.EINVAL,
                f"mapping gDB {binding.gdb} to {doorbell}: they differ within a page of "
                f"{self._table.granule} bytes, so stage 1 maps another part of it",
            )
        page = binding.page
        is_shared = page.hdb == hdb and self._may_share(page)
        if binding.hdb is not None or (page.hdb is not None and not is_shared):
            raise rules.BINDING_MAPPED.refusal(
                errno.EEXIST, f"mapping gDB {page.base} to {hdb}: it is mapped to {page.hdb}"
            )
        if page.hdb is None:
            self._table.map(page.base, hdb, self._table.granule)
            page.hdb = hdb
        page.mapped += 1
        binding.hdb = hdb

    def _may_share(self, page: _Page) -> bool:
        """``iommufd_msi_may_share``: all with DIRECT, else if its bindings were withdrawn."""
        return self.allocator is MsiBinding.DIRECT or not any(
            binding.page is page and binding.hdb is not None and binding.registrants
            for binding in self._bindings
        )

    @staticmethod
    def _use(vdevice: _VdeviceBindings, binding: _Binding) -> None:
        """``iommufd_msi_use``."""
        user = next((user for user in vdevice.users if user.binding is binding), None)
        if user is None:
            user = _User(binding)
            binding.users += 1
            vdevice.users.append(user)
        user.is_used = True
        user.update = vdevice.updates

    def has_page(self, page: int) -> bool:
        """Return whether the page of a gDB is there, mapped to a doorbell."""
        mapped = self._pages.get(Ipa(page))
        return mapped is not None and mapped.hdb is not None

    def query(self, device: PciAddress, index: int) -> BoundMsi:
        """IOMMU_VDEVICE_MSI_OP_QUERY: ``query_vdevice``.

        :raise BackendError: ENOENT past the last binding of the vDEVICE.
        """
        vdevice = self._vdevices.get(device)
        registered = [] if vdevice is None else vdevice.registered
        if index >= len(registered):
            raise rules.BINDING_QUERY.refusal(
                errno.ENOENT, f"{device}: has no binding with number {index}"
            )
        user = registered[index]
        binding = user.binding
        return BoundMsi(binding.giova, binding.gdb, binding.page_shift, user.is_used)

    def __len__(self) -> int:
        return sum(bool(binding.registrants) for binding in self._bindings)

    def state(self) -> frozenset[tuple[Iova, Ipa, Pa | None]]:
        """Return the bindings, for comparison."""
        return frozenset((b.giova, b.gdb, b.hdb) for b in self._bindings)


def _check_its(device: HostDevice, others: Iterable[HostDevice], rule: Rule) -> None:
    """Check that devices have one MSI domain.

    :raise BackendError: EINVAL.
    """
    for other in others:
        if other.its != device.its:
            raise two_msi_domains(device, other, rule)
