"""A file descriptor of /dev/iommu, one method per ioctl.

``include/uapi/linux/iommufd.h`` describes them. An ioctl that the kernel refuses raises
:class:`~vmm_msi.errors.BackendError` with the kernel's errno and the name of the call.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import TYPE_CHECKING, Self

from vmm_msi.errors import BackendError
from vmm_msi.iommu.guest_msi import BoundMsi, MsiOp, MsiRequest
from vmm_msi.iommu.linux import bind_uapi, uapi

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The device node; iommufd itself requires no privilege but to read and write it.
IOMMU_NODE = "/dev/iommu"

#: Events that the kernel queues for a vEVENTQ before it drops some and reports the loss.
EVENT_QUEUE_DEPTH = 64

#: The likely causes of EOPNOTSUPP.
_NO_NESTING = "the SMMU may lack a stage (arm_smmu_domain_alloc_paging_flags)"
_NO_VIOMMU = (
    "the SMMU needs S2FWB, or CANWBS in the root complex's node of the IORT "
    "(arm_smmu_get_viommu_size)"
)
_NO_BINDINGS = "use a kernel with vmm-msi's interface for guest MSI bindings"


def ioctl(
    fd: int, number: int, name: str, argument: ctypes.Structure | bytearray, unsupported: str = ""
) -> None:
    """Make one ioctl; the kernel writes its results to ``argument``.

    :param name: the call and its object, for the error message.
    :param unsupported: the likely cause of EOPNOTSUPP, for the error message.
    :raise BackendError: when the kernel refuses it.
    """
    try:
        fcntl.ioctl(fd, number, argument)
    except OSError as error:
        reason = name
        if error.errno == errno.EOPNOTSUPP and unsupported:
            reason = f"{name}: {unsupported}"
        elif error.errno == errno.ENOTTY and number == bind_uapi.IOMMU_VDEVICE_MSI:
            reason = f"{name}: this kernel has no such call; {_NO_BINDINGS}"
        elif error.errno == errno.ENOTTY and number >= uapi.IOMMU_DESTROY:
            # iommufd_fops_ioctl; IOMMU_VEVENTQ_ALLOC is the newest of them.
            reason = f"{name}: this kernel has no such call; use Linux 6.15 or later"
        raise BackendError(error.errno or errno.EIO, reason) from error


class LinuxIommufd:
    """An open /dev/iommu of the running kernel; a context manager that closes it."""

    def __init__(self) -> None:
        try:
            self.fd = os.open(IOMMU_NODE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise BackendError(
                error.errno or errno.EIO,
                f"opening {IOMMU_NODE}: {error.strerror}; use a kernel with CONFIG_IOMMUFD "
                "(modprobe iommufd) and run as a user who may read and write that node",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; objects stay while a VFIO device is bound to it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def destroy(self, number: int) -> None:
        """IOMMU_DESTROY."""
        argument = uapi.Destroy(ctypes.sizeof(uapi.Destroy), number)
        ioctl(self.fd, uapi.IOMMU_DESTROY, f"IOMMU_DESTROY of object {number}", argument)

    def ioas_alloc(self) -> int:
        """IOMMU_IOAS_ALLOC; return the IOAS's id."""
        argument = uapi.IoasAlloc(ctypes.sizeof(uapi.IoasAlloc))
        ioctl(self.fd, uapi.IOMMU_IOAS_ALLOC, "IOMMU_IOAS_ALLOC", argument)
        return int(argument.out_ioas_id)

    def ioas_map(self, ioas_id: int, iova: int, size: int, address: int) -> None:
        """IOMMU_IOAS_MAP of memory at a fixed IOVA, for reading and writing.

        The kernel pins the pages.

        :param address: virtual address of the memory.
        """
        argument = uapi.IoasMap(
            ctypes.sizeof(uapi.IoasMap),
            uapi.IOMMU_IOAS_MAP_FIXED_IOVA
            | uapi.IOMMU_IOAS_MAP_READABLE
            | uapi.IOMMU_IOAS_MAP_WRITEABLE,
            ioas_id,
            user_va=address,
            length=size,
            iova=iova,
        )
        ioctl(
            self.fd, uapi.IOMMU_IOAS_MAP, f"IOMMU_IOAS_MAP of {iova:#x}, {size:#x} bytes", argument
        )

    def ioas_unmap(self, ioas_id: int, iova: int, size: int) -> int:
        """IOMMU_IOAS_UNMAP; return the number of bytes unmapped.

        ``0, 2**64 - 1`` unmaps everything.
        """
        argument = uapi.IoasUnmap(ctypes.sizeof(uapi.IoasUnmap), ioas_id, iova, size)
        name = f"IOMMU_IOAS_UNMAP of {iova:#x}, {size:#x} bytes"
        ioctl(self.fd, uapi.IOMMU_IOAS_UNMAP, name, argument)
        return int(argument.length)

    def hwpt_alloc(self, dev_id: int, pt_id: int, *, nest_parent: bool = True) -> int:
        """IOMMU_HWPT_ALLOC on an IOAS, without data; return the HWPT's id."""
        argument = uapi.HwptAlloc(
            ctypes.sizeof(uapi.HwptAlloc),
            uapi.IOMMU_HWPT_ALLOC_NEST_PARENT if nest_parent else 0,
            dev_id,
            pt_id,
        )
        name = f"IOMMU_HWPT_ALLOC on object {pt_id} for device {dev_id}"
        unsupported = _NO_NESTING if nest_parent else ""
        ioctl(self.fd, uapi.IOMMU_HWPT_ALLOC, name, argument, unsupported)
        return int(argument.out_hwpt_id)

    def hwpt_alloc_nested(self, dev_id: int, viommu_id: int, ste: Sequence[int]) -> int:
        """IOMMU_HWPT_ALLOC of a guest's stream table entry on a vIOMMU; return the HWPT's id.

        :param ste: the first two of its 64-bit words.
        """
        data = uapi.HwptArmSmmuv3((ctypes.c_uint64 * 2)(*ste))
        argument = uapi.HwptAlloc(
            ctypes.sizeof(uapi.HwptAlloc),
            0,
            dev_id,
            viommu_id,
            data_type=uapi.IOMMU_HWPT_DATA_ARM_SMMUV3,
            data_len=ctypes.sizeof(data),
            data_uptr=ctypes.addressof(data),
        )
        name = f"IOMMU_HWPT_ALLOC on vIOMMU {viommu_id} for device {dev_id}"
        ioctl(self.fd, uapi.IOMMU_HWPT_ALLOC, name, argument)
        return int(argument.out_hwpt_id)

    def hw_info(self, dev_id: int) -> uapi.HwInfoArmSmmuv3 | None:
        """IOMMU_GET_HW_INFO; return the SMMUv3's ID registers, None behind another IOMMU."""
        data = uapi.HwInfoArmSmmuv3()
        argument = uapi.HwInfo(
            ctypes.sizeof(uapi.HwInfo),
            0,
            dev_id,
            ctypes.sizeof(data),
            ctypes.addressof(data),
        )
        ioctl(self.fd, uapi.IOMMU_GET_HW_INFO, f"IOMMU_GET_HW_INFO of device {dev_id}", argument)
        if argument.out_data_type != uapi.IOMMU_HW_INFO_TYPE_ARM_SMMUV3:
            return None
        return data

    def viommu_alloc(self, dev_id: int, hwpt_id: int) -> int:
        """IOMMU_VIOMMU_ALLOC of type ARM_SMMUV3; return the vIOMMU's id."""
        argument = uapi.ViommuAlloc(
            ctypes.sizeof(uapi.ViommuAlloc), 0, uapi.IOMMU_VIOMMU_TYPE_ARM_SMMUV3, dev_id, hwpt_id
        )
        name = f"IOMMU_VIOMMU_ALLOC on HWPT {hwpt_id} for device {dev_id}"
        ioctl(self.fd, uapi.IOMMU_VIOMMU_ALLOC, name, argument, _NO_VIOMMU)
        return int(argument.out_viommu_id)

    def vdevice_alloc(self, viommu_id: int, dev_id: int, virt_id: int) -> int:
        """IOMMU_VDEVICE_ALLOC with a virtual StreamID; return the vDEVICE's id."""
        argument = uapi.VdeviceAlloc(
            ctypes.sizeof(uapi.VdeviceAlloc), viommu_id, dev_id, virt_id=virt_id
        )
        name = f"IOMMU_VDEVICE_ALLOC on vIOMMU {viommu_id} for device {dev_id}"
        ioctl(self.fd, uapi.IOMMU_VDEVICE_ALLOC, name, argument)
        return int(argument.out_vdevice_id)

    def veventq_alloc(self, viommu_id: int) -> tuple[int, int]:
        """IOMMU_VEVENTQ_ALLOC of SMMUv3 events; return the object's id and a file descriptor."""
        argument = uapi.VeventqAlloc(
            ctypes.sizeof(uapi.VeventqAlloc),
            0,
            viommu_id,
            uapi.IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
            EVENT_QUEUE_DEPTH,
        )
        name = f"IOMMU_VEVENTQ_ALLOC on vIOMMU {viommu_id}"
        ioctl(self.fd, uapi.IOMMU_VEVENTQ_ALLOC, name, argument)
        return int(argument.out_veventq_id), int(argument.out_veventq_fd)

    def invalidate(self, viommu_id: int, commands: Sequence[tuple[int, int]]) -> None:
        """IOMMU_HWPT_INVALIDATE with SMMUv3 commands of two 64-bit words (IHI 0070, 4.3, 4.4)."""
        data = (ctypes.c_uint64 * (2 * len(commands)))(
            *(word for command in commands for word in command)
        )
        argument = uapi.HwptInvalidate(
            ctypes.sizeof(uapi.HwptInvalidate),
            viommu_id,
            ctypes.addressof(data),
            uapi.IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
            16,
            len(commands),
        )
        name = f"IOMMU_HWPT_INVALIDATE on vIOMMU {viommu_id}"
        ioctl(self.fd, uapi.IOMMU_HWPT_INVALIDATE, name, argument)

    def set_msi_binding(self, hwpt_id: int, value: int) -> None:
        """IOMMU_OPTION_SET of IOMMU_OPTION_MSI_BINDING, for a nest parent."""
        self._msi_option(uapi.IOMMU_OPTION_OP_SET, hwpt_id, value)

    def msi_binding(self, hwpt_id: int) -> int:
        """IOMMU_OPTION_GET of IOMMU_OPTION_MSI_BINDING."""
        return self._msi_option(uapi.IOMMU_OPTION_OP_GET, hwpt_id)

    def _msi_option(self, op: int, hwpt_id: int, value: int = 0) -> int:
        argument = uapi.Option(
            ctypes.sizeof(uapi.Option),
            bind_uapi.IOMMU_OPTION_MSI_BINDING,
            op,
            object_id=hwpt_id,
            val64=value,
        )
        name = f"IOMMU_OPTION_MSI_BINDING of HWPT {hwpt_id}"
        ioctl(self.fd, uapi.IOMMU_OPTION, name, argument, _NO_BINDINGS)
        return int(argument.val64)

    @property
    def has_msi_bindings(self) -> bool:
        """Return whether the kernel has the interface for guest MSI bindings."""
        try:
            self.msi_binding(0)
        except BackendError as error:
            # No object has the id 0.
            return error.errno == errno.ENOENT
        return True

    def vdevice_msi(self, vdevice_id: int, request: MsiRequest) -> BoundMsi | None:
        """IOMMU_VDEVICE_MSI; return the binding that a QUERY asks for."""
        argument = bind_uapi.VdeviceMsi(
            ctypes.sizeof(bind_uapi.VdeviceMsi),
            vdevice_id,
            request.op,
            request.page_shift,
            request.index,
            request.flags,
            request.reserved,
            request.iova,
            request.gpa,
        )
        name = f"IOMMU_VDEVICE_MSI, op {request.op}, of vDEVICE {vdevice_id}"
        ioctl(self.fd, bind_uapi.IOMMU_VDEVICE_MSI, name, argument)
        if request.op != MsiOp.QUERY:
            return None
        used = bool(argument.flags & bind_uapi.IOMMU_VDEVICE_MSI_USED)
        return BoundMsi(argument.iova, argument.gpa, argument.page_shift, used)
