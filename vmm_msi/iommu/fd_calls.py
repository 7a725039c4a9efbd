"""The calls of a machine that go to a file descriptor of /dev/iommu as they are."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from vmm_msi.errors import BackendError
from vmm_msi.iommu.guest_msi import BoundMsi, MsiOp, MsiRequest

if TYPE_CHECKING:
    from vmm_msi.iommu.vmm import Iommufd

#: Widths of the fields of IOMMU_VDEVICE_MSI's argument.
_U16 = (1 << 16) - 1
_U32 = (1 << 32) - 1


class FdCalls(ABC):
    """Part of a :class:`~vmm_msi.iommu.call_sequence.Machine`, simulated or real."""

    @abstractmethod
    def _fd(self, fd: int) -> Iommufd[Any]:
        """Return an open file descriptor.

        :raise BackendError: EBADF for one that is not open.
        """

    def ioas_alloc(self, fd: int) -> int:
        """IOMMU_IOAS_ALLOC."""
        return self._fd(fd).ioas_alloc()

    def ioas_unmap(self, fd: int, ioas: int, iova: int, size: int) -> int:
        """IOMMU_IOAS_UNMAP."""
        return self._fd(fd).ioas_unmap(ioas, iova, size)

    def hwpt_alloc(self, fd: int, dev_id: int, ioas: int, *, nest_parent: bool) -> int:
        """IOMMU_HWPT_ALLOC on an IOAS."""
        return self._fd(fd).hwpt_alloc(dev_id, ioas, nest_parent=nest_parent)

    def viommu_alloc(self, fd: int, dev_id: int, hwpt: int) -> int:
        """IOMMU_VIOMMU_ALLOC."""
        return self._fd(fd).viommu_alloc(dev_id, hwpt)

    def vdevice_alloc(self, fd: int, viommu: int, dev_id: int, virt_id: int) -> int:
        """IOMMU_VDEVICE_ALLOC."""
        return self._fd(fd).vdevice_alloc(viommu, dev_id, virt_id)

    def destroy(self, fd: int, number: int) -> None:
        """IOMMU_DESTROY."""
        self._fd(fd).destroy(number)

    def set_msi_binding(self, fd: int, hwpt: int, value: int) -> None:
        """IOMMU_OPTION of IOMMU_OPTION_MSI_BINDING."""
        self._fd(fd).set_msi_binding(hwpt, value)

    def msi_binding(self, fd: int, hwpt: int) -> int:
        """Return IOMMU_OPTION_MSI_BINDING."""
        return self._fd(fd).msi_binding(hwpt)

    def msi_bind(self, fd: int, vdevice: int, iova: int, gpa: int, page_shift: int) -> None:
        """IOMMU_VDEVICE_MSI_OP_BIND."""
        request = MsiRequest(MsiOp.BIND, page_shift=page_shift & _U16, iova=iova, gpa=gpa)
        self._fd(fd).vdevice_msi(vdevice, request)

    def msi_unbind(self, fd: int, vdevice: int, iova: int) -> None:
        """IOMMU_VDEVICE_MSI_OP_UNBIND."""
        self._fd(fd).vdevice_msi(vdevice, MsiRequest(MsiOp.UNBIND, iova=iova))

    def msi_prepare(self, fd: int, vdevice: int) -> None:
        """IOMMU_VDEVICE_MSI_OP_PREPARE."""
        self._fd(fd).vdevice_msi(vdevice, MsiRequest(MsiOp.PREPARE))

    def msi_query(self, fd: int, vdevice: int, index: int) -> BoundMsi:
        """IOMMU_VDEVICE_MSI_OP_QUERY."""
        request = MsiRequest(MsiOp.QUERY, index=index & _U32)
        binding = self._fd(fd).vdevice_msi(vdevice, request)
        if binding is None:
            raise BackendError(errno.EPROTO, f"vDEVICE {vdevice}: QUERY returned nothing")
        return binding

    def vdevice_msi(
        self,
        fd: int,
        vdevice: int,
        msi_op: int,
        page_shift: int,
        index: int,
        flags: int,
        reserved: int,
        iova: int,
        gpa: int,
    ) -> None:
        """IOMMU_VDEVICE_MSI with any values."""
        request = MsiRequest(
            msi_op & _U16,
            page_shift & _U16,
            index & _U32,
            flags & _U32,
            reserved & _U32,
            iova,
            gpa,
        )
        self._fd(fd).vdevice_msi(vdevice, request)
