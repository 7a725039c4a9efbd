"""The calls of a machine that go to a file descriptor of /dev/iommu as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm_msi.iommu.vmm import Iommufd


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
