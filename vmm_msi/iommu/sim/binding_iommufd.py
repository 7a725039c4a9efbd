"""A simulated /dev/iommu with the interface for guest MSI bindings.

The interface is the project's own patch of Linux 7.2, ``vmm_msi/lab/kernel``. Its rules for one
nest parent are in :mod:`vmm_msi.iommu.nest_bindings`; here they meet devices, groups and MSIs.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

from vmm_msi.errors import BackendError
from vmm_msi.iommu import rules
from vmm_msi.iommu.guest_msi import MsiOp
from vmm_msi.iommu.nest_bindings import NestBindings
from vmm_msi.iommu.sim.iommufd import SimIommufd
from vmm_msi.iommu.sim.objects import IommufdDevice, PagingHwpt, Vdevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmm_msi.iommu.guest_msi import BoundMsi, MsiRequest
    from vmm_msi.iommu.sim.core import IommuCore
    from vmm_msi.iommu.sim.iopt import IoPageTable
    from vmm_msi.iommu.sim.objects import FdGroup, Hwpt, Ioas, Object
    from vmm_msi.types import HostDevice, HostTopology, Iova, Pa, PciAddress


class BindingIommufd(SimIommufd):
    """A simulated open /dev/iommu of the patched kernel.

    :param on_unmap: called with the nest parent from which a doorbell page was unmapped.
    """

    def __init__(
        self,
        host: HostTopology,
        core: IommuCore,
        first: int = 1,
        *,
        on_unmap: Callable[[PagingHwpt], None] = lambda _hwpt: None,
    ) -> None:
        super().__init__(host, core, first)
        self._on_unmap = on_unmap
        #: Groups that no binding serves, as they are being moved.
        self._suspended: set[int] = set()

    def _paging_alloc(self, device: IommufdDevice, ioas: Ioas, *, nest_parent: bool) -> PagingHwpt:
        hwpt = super()._paging_alloc(device, ioas, nest_parent=nest_parent)
        if nest_parent:
            table = _Table(hwpt, self.page_size, self._on_unmap)
            hwpt.bindings = NestBindings(table, self.slots, self._retake)
        return hwpt

    def _nest_parents(self) -> Iterator[NestBindings]:
        for entry in self._objects.values():
            if isinstance(entry, PagingHwpt) and entry.bindings is not None:
                yield entry.bindings

    def _option(self, hwpt_id: int) -> NestBindings:
        bindings = self._get(hwpt_id, PagingHwpt).bindings
        if bindings is None:
            raise rules.BINDING_OPTION.refusal(
                errno.EINVAL, f"HWPT {hwpt_id}: is not a nest parent"
            )
        return bindings

    def set_msi_binding(self, hwpt_id: int, value: int) -> None:
        """IOMMU_OPTION of IOMMU_OPTION_MSI_BINDING.

        :raise BackendError: ENOENT for the id of no paging HWPT; EINVAL when it is not a nest
            parent; see :meth:`NestBindings.select`.
        """
        self._option(hwpt_id).select(value)

    def msi_binding(self, hwpt_id: int) -> int:
        """Return the value of IOMMU_OPTION_MSI_BINDING; see :meth:`set_msi_binding`."""
        return self._option(hwpt_id).allocator

    def vdevice_msi(self, vdevice_id: int, request: MsiRequest) -> BoundMsi | None:
        """IOMMU_VDEVICE_MSI; return the binding that a QUERY asks for.

        :raise BackendError: EOPNOTSUPP, see :meth:`MsiRequest.check`; ENOENT for the id of no
            vDEVICE; the errors of :class:`NestBindings`.
        """
        request.check()
        vdevice = self._get(vdevice_id, Vdevice)
        host, bindings = vdevice.device.host, self._bindings(vdevice)
        match request.op:
            case MsiOp.BIND:
                bindings.bind(host, request.iova, request.gpa, request.page_shift)
            case MsiOp.UNBIND:
                bindings.unbind(host.address, request.iova)
                self._update_withdrawn()
            case MsiOp.PREPARE:
                bindings.prepare(host)
            case MsiOp.QUERY:
                return bindings.query(host.address, request.index)
        return None

    @staticmethod
    def _bindings(vdevice: Vdevice) -> NestBindings:
        bindings = vdevice.viommu.hwpt.bindings
        if bindings is None:
            raise rules.VIOMMU_PARENT.refusal(
                errno.EINVAL, f"vDEVICE {vdevice.id}: is on no nest parent"
            )
        return bindings

    def sw_msi(self, group: FdGroup, device: HostDevice, doorbell: Pa) -> Iova:
        """Return the address of a binding for a device that has one, else that of its slot.

        :raise BackendError: see :meth:`NestBindings.pick` and :meth:`MsiPages.sw_msi`.
        """
        bindings = self._bindings_of(group, device.address)
        address = None if bindings is None else bindings.pick(device, doorbell)
        return super().sw_msi(group, device, doorbell) if address is None else address

    def _bindings_of(self, group: FdGroup, address: PciAddress) -> NestBindings | None:
        """Return the bindings that a device's address may come from.

        Those of its vDEVICE's nest parent, while its group is attached to that or to a nested HWPT
        on it.
        """
        device = group.devices.get(address)
        vdevice = None if device is None else device.vdevice
        if vdevice is None or group.hwpt is None or group.sw_msi_start is None:
            return None
        if group.core.number in self._suspended:
            return None
        hwpt = vdevice.viommu.hwpt
        return hwpt.bindings if hwpt is group.hwpt.paging else None

    def _attach(self, device: IommufdDevice, hwpt: Hwpt) -> None:
        group = device.group
        if group.hwpt in {None, hwpt}:
            self._check_attach(device, hwpt.paging)
        super()._attach(device, hwpt)
        self._resume([device])

    def _check_attach(self, device: IommufdDevice, hwpt: PagingHwpt) -> None:
        if hwpt.bindings is None:
            return
        attached = (
            other.host
            for group in self._groups.values()
            if group.hwpt is not None and group.hwpt.paging is hwpt
            for other in group.attached.values()
        )
        hwpt.bindings.check_attach(device.host, attached)

    def _replace(self, group: FdGroup, hwpt: Hwpt) -> None:
        """Move a group; to another table its MSIs go by their slots.

        ``iommufd_group_suspend_msi``, ``iommufd_group_resume_msi``: MSIs of attached devices go to
        their slots before, and take their addresses again afterwards.
        """
        old = group.hwpt
        if old is None or old.paging is hwpt.paging:
            super()._replace(group, hwpt)
            return
        devices = list(group.attached.values())
        try:
            for device in devices:
                self._check_attach(device, hwpt.paging)
            self._suspended.add(group.core.number)
            for device in devices:
                self._prepare(device)
            super()._replace(group, hwpt)
        finally:
            self._suspended.discard(group.core.number)
            self._resume(devices)

    def _resume(self, devices: Iterable[IommufdDevice]) -> None:
        """``iommufd_msi_resume``: a device that gets no address keeps its own."""
        for device in devices:
            with suppress(BackendError):
                self._prepare(device)

    def _prepare(self, device: IommufdDevice) -> None:
        """Make the MSIs of a device take their address again, if it has bindings."""
        if device.vdevice is None:
            return
        bindings = self._bindings(device.vdevice)
        if bindings.has_any(device.host.address):
            bindings.prepare(device.host)

    def _retake(self, host: HostDevice) -> bool:
        """Make the MSIs of an attached device take their address again."""
        group = self._core.group(host).handle
        device = None if group is None else group.devices.get(host.address)
        if group is None or device is None or device.id not in group.attached:
            return False
        self._core.retake_msis(host)
        return True

    def vdevice_alloc(self, viommu_id: int, dev_id: int, virt_id: int) -> int:
        """IOMMU_VDEVICE_ALLOC; see :meth:`SimIommufd.vdevice_alloc`."""
        number = super().vdevice_alloc(viommu_id, dev_id, virt_id)
        vdevice = self._get(number, Vdevice)
        self._bindings(vdevice).start(vdevice.device.host)
        return number

    def _update_withdrawn(self) -> None:
        for bindings in self._nest_parents():
            bindings.update_withdrawn()

    def _destroy(self, target: Object) -> None:
        if isinstance(target, Vdevice):
            device, bindings = target.device, self._bindings(target)
            device.vdevice = None
            if bindings.destroy(device.host.address):
                self._update_withdrawn()
        super()._destroy(target)


class _Table:
    """The stage 2 of a nest parent, for its bindings."""

    def __init__(
        self, hwpt: PagingHwpt, granule: int, on_unmap: Callable[[PagingHwpt], None]
    ) -> None:
        self._hwpt = hwpt
        self.granule = granule
        self._on_unmap = on_unmap

    @property
    def aperture(self) -> int:
        """The first IPA past its end."""
        return 1 << self._hwpt.filled.bits

    @property
    def _iopt(self) -> IoPageTable:
        return self._hwpt.ioas.iopt

    def reserve(self, page: int) -> None:
        """``iopt_reserve_iova``."""
        self._iopt.reserve(page, page + self.granule - 1, (self, page))

    def release(self, page: int) -> None:
        """``iopt_remove_reserved_iova``."""
        self._iopt.release((self, page))

    def map(self, address: int, output: int, size: int) -> None:
        """``iommu_map``."""
        self._hwpt.table.map(address, output, size)

    def unmap(self, address: int) -> bool:
        """``iommu_unmap``, which invalidates."""
        unmapped = self._hwpt.table.unmap(address)
        self._on_unmap(self._hwpt)
        return unmapped
