"""The pages that a simulated /dev/iommu maps for MSIs: the slots of the software MSI window.

Linux ``drivers/iommu/iommufd/driver.c``.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm_msi.iommu import rules
from vmm_msi.iommu.allocators import SwMsiSlots
from vmm_msi.types import Iova

if TYPE_CHECKING:
    from vmm_msi.errors import BackendError
    from vmm_msi.iommu.guest_msi import BoundMsi, MsiRequest
    from vmm_msi.iommu.sim.objects import FdGroup, IommufdDevice, PagingHwpt
    from vmm_msi.types import Granule, HostDevice, Pa


class MsiPages:
    """The part of a file descriptor that gives MSIs their addresses.

    :param page_size: PAGE_SIZE in bytes.
    """

    def __init__(self, page_size: Granule) -> None:
        self.slots = SwMsiSlots()
        self.page_size = page_size

    def sw_msi(self, group: FdGroup, device: HostDevice, doorbell: Pa) -> Iova:  # noqa: ARG002
        """Return the address that ``iommufd_sw_msi`` gives to a device of an attached group.

        :raise BackendError: EOVERFLOW when no slot is free; iommu_map's error.
        """
        page = doorbell.align_down(self.page_size)
        if group.hwpt is None or group.sw_msi_start is None:
            return Iova(doorbell)
        slot = self.slots.get(group.sw_msi_start, page, self.page_size)
        self._install(group.hwpt.paging, slot, page)
        group.required[slot] = page
        return slot.offset(doorbell - page)

    def _install(self, hwpt: PagingHwpt, slot: Iova, page: Pa) -> None:
        """``iommufd_sw_msi_install``: a raw iommu_map, once per table."""
        if slot not in hwpt.slots:
            hwpt.table.map(slot, page, self.page_size)
            hwpt.slots.add(slot)

    def _install_required(self, group: FdGroup, hwpt: PagingHwpt) -> None:
        """``iommufd_group_setup_msi``."""
        for slot, page in group.required.items():
            self._install(hwpt, slot, page)

    def _window_start(self, device: IommufdDevice) -> int | None:
        """Return the base of the MSI window of a device's group when the device is attached."""
        window = device.host.sw_msi_window
        return device.group.sw_msi_start if window is None else window.base

    def set_msi_binding(self, hwpt_id: int, value: int) -> None:  # noqa: ARG002
        """IOMMU_OPTION of IOMMU_OPTION_MSI_BINDING.

        :raise BackendError: EOPNOTSUPP, as ``iommufd_option`` answers to an unknown option.
        """
        raise _no_option()

    def msi_binding(self, hwpt_id: int) -> int:  # noqa: ARG002
        """Return the value of IOMMU_OPTION_MSI_BINDING.

        :raise BackendError: EOPNOTSUPP, as ``iommufd_option`` answers to an unknown option.
        """
        raise _no_option()

    def vdevice_msi(self, vdevice_id: int, request: MsiRequest) -> BoundMsi | None:  # noqa: ARG002
        """IOMMU_VDEVICE_MSI.

        :raise BackendError: ENOTTY, as ``iommufd_fops_ioctl`` answers to an unknown call.
        """
        raise rules.UNKNOWN_CALL.refusal(
            errno.ENOTTY, "IOMMU_VDEVICE_MSI: this kernel has no such call"
        )


def _no_option() -> BackendError:
    return rules.UNKNOWN_OPTION.refusal(
        errno.EOPNOTSUPP, "IOMMU_OPTION_MSI_BINDING: this kernel has no such option"
    )
