"""What was proposed for iommufd and VFIO, and not merged.

docs/kernels.md names the posting of each rule. "As posted" marks what the patches do and their
description does not say.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.iommu import rules
from vmm_msi.iommu.sim.iommufd import SimIommufd
from vmm_msi.iommu.sim.objects import IommufdDevice
from vmm_msi.types import Iova, ReservedKind, ReservedRegion

if TYPE_CHECKING:
    from vmm_msi.iommu.sim.core import IommuCore
    from vmm_msi.iommu.sim.objects import FdGroup, Hwpt
    from vmm_msi.types import HostDevice, HostTopology, Pa

_MIB = 1 << 20
_END = 1 << 64
_SIZE_MAX = _END - 1


class ProposedIommufd(SimIommufd):
    """A simulated /dev/iommu that also has the proposed options.

    :param file_window: the MSI window is moved for the file descriptor, as first posted; else for
        each device.
    """

    def __init__(
        self, host: HostTopology, core: IommuCore, first: int = 1, *, file_window: bool = False
    ) -> None:
        super().__init__(host, core, first)
        self._has_file_window = file_window
        #: IOMMU_OPTION_SW_MSI_START of each device that has it.
        self._starts: dict[int, int] = {}
        #: The same of the file descriptor.
        self._file_window: ReservedRegion | None = None
        #: The MSI address of each device that has one.
        self._msi_iovas: dict[int, Iova] = {}
        #: The device that each group was attached by, by the group's number.
        self._attached_by: dict[int, IommufdDevice] = {}

    def move_window(self, dev_id: int, window: ReservedRegion | None) -> None:
        """Set IOMMU_OPTION_SW_MSI_START, then _SIZE, of a device; None sets size 0.

        :raise BackendError: see :meth:`set_window_start`.
        """
        if window is not None:
            self.set_window_start(dev_id, window.base)
        self.set_window_size(dev_id, 0 if window is None else -(-window.size // _MIB))

    def set_window_start(self, dev_id: int, start: int) -> None:
        """IOMMU_OPTION of IOMMU_OPTION_SW_MSI_START: ``iommufd_option_sw_msi``.

        :raise BackendError: ENOENT for the id of no device; EBUSY for an attached one; EINVAL for
            an address that is not a multiple of 1 MiB; EOVERFLOW past the end; EADDRINUSE over a
            reserved region of the device.
        """
        device = self._detached(dev_id)
        size = 0 if device.window is None else device.window.size
        _check_window(device, start, size)
        self._starts[dev_id] = start
        if device.window is not None:
            device.window = replace(device.window, base=start)

    def set_window_size(self, dev_id: int, mebibytes: int) -> None:
        """IOMMU_OPTION of IOMMU_OPTION_SW_MSI_SIZE; 0 gives the device its own window back.

        :raise BackendError: EINVAL without a start, or for a size past 2^64; else as for the start.
        """
        device = self._detached(dev_id)
        size = mebibytes * _MIB
        if size > _SIZE_MAX:
            raise rules.WINDOW_PLACE.refusal(errno.EINVAL, f"an MSI window of {mebibytes} MiB")
        if not size:
            device.window = None
            return
        # Without a start it is PHYS_ADDR_MAX, which is not aligned.
        start = self._starts.get(dev_id, _SIZE_MAX)
        _check_window(device, start, size)
        device.window = ReservedRegion(start, size, ReservedKind.SW_MSI)

    def _detached(self, dev_id: int) -> IommufdDevice:
        device = self._get(dev_id, IommufdDevice)
        if dev_id in device.group.attached:
            raise rules.WINDOW_DETACHED.refusal(
                errno.EBUSY,
                f"{device.host.address}: is attached, so its MSI window cannot be moved; move it "
                "between bind and attach",
            )
        return device

    def set_file_window(self, window: ReservedRegion | None) -> None:
        """Set the options for the file descriptor, as first posted: nothing is checked.

        It counts for devices that are attached afterwards.
        """
        self._file_window = window

    def _window_start(self, device: IommufdDevice) -> int | None:
        """Return the window's base: as it was set, else the driver's.

        The device that its group is attached by decides (``iommufd_sw_msi`` asks the device of the
        attach handle). As posted, a group keeps the base that it got from the file descriptor.
        """
        group = device.group
        if self._has_file_window:
            if self._file_window is not None:
                return self._file_window.base
            decided = group.sw_msi_start is not None
        else:
            decided = group.hwpt is not None
        if decided:
            return group.sw_msi_start
        if device.window is not None:
            return device.window.base
        return super()._window_start(device)

    def _attach(self, device: IommufdDevice, hwpt: Hwpt) -> None:
        is_first = device.group.hwpt is None
        super()._attach(device, hwpt)
        if is_first:
            self._attached_by[device.group.core.number] = device

    def set_msi_iova(self, dev_id: int, iova: Iova | None) -> None:
        """VFIO_IRQ_SET_ACTION_PREPARE of all vectors: ``iommufd_device_set_msi_iova``.

        No value is refused: a wrong one is a fault of the guest's own device.
        """
        self._get(dev_id, IommufdDevice)
        if iova is None:
            self._msi_iovas.pop(dev_id, None)
        else:
            self._msi_iovas[dev_id] = iova

    def sw_msi(self, group: FdGroup, device: HostDevice, doorbell: Pa) -> Iova:
        """Return the address for a device of a group: in the preset page, or else in the slot.

        The slot is allocated and mapped in either case; a group without a window has neither. As
        posted, the preset address is that of the device that the group is attached by.
        ``msi_desc_set_iommu_msi_iova`` drops the bits below PAGE_SIZE.
        """
        slot = super().sw_msi(group, device, doorbell)
        first = self._attached_by.get(group.core.number)
        iova = None if first is None else self._msi_iovas.get(first.id)
        if iova is None or group.sw_msi_start is None:
            return slot
        return iova.align_down(self.page_size).offset(doorbell & (self.page_size - 1))


def _check_window(device: IommufdDevice, start: int, size: int) -> None:
    """``iommufd_option_sw_msi_test``."""
    action = f"{device.host.address}: moving its MSI window to {start:#x}"
    if start % _MIB:
        raise rules.WINDOW_PLACE.refusal(errno.EINVAL, f"{action}: not a multiple of 1 MiB")
    size = max(size, _MIB)
    if start + size > _END:
        raise rules.WINDOW_PLACE.refusal(
            errno.EOVERFLOW, f"{action}: {size:#x} bytes end past 2^64"
        )
    for region in device.host.reserved:
        replaced = region.kind in {ReservedKind.SW_MSI, ReservedKind.DIRECT_RELAXABLE}
        if not replaced and region.overlaps(start, size):
            raise rules.WINDOW_PLACE.refusal(errno.EADDRINUSE, f"{action}: overlaps {region}")
