"""Structures and ioctl numbers of ``linux/iommufd.h`` and ``linux/vfio.h``.

``tests/iommu/test_uapi.py`` compares sizes, offsets and numbers with the headers, by a compiled C
program. Little endian, as arm64 kernels and the SMMU's tables are.
"""

from __future__ import annotations

from ctypes import LittleEndianStructure, c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from typing import ClassVar

_IOMMUFD_TYPE = ord(";")
_VFIO_BASE = 100


def io(number: int) -> int:
    """Return ``_IO(';', number)``: both headers use that type."""
    return _IOMMUFD_TYPE << 8 | number


IOMMU_DESTROY = io(0x80)
IOMMU_IOAS_ALLOC = io(0x81)
IOMMU_IOAS_MAP = io(0x85)
IOMMU_IOAS_UNMAP = io(0x86)
IOMMU_OPTION = io(0x87)
IOMMU_HWPT_ALLOC = io(0x89)
IOMMU_GET_HW_INFO = io(0x8A)
IOMMU_HWPT_INVALIDATE = io(0x8D)
IOMMU_VIOMMU_ALLOC = io(0x90)
IOMMU_VDEVICE_ALLOC = io(0x91)
IOMMU_VEVENTQ_ALLOC = io(0x93)

VFIO_DEVICE_GET_REGION_INFO = io(_VFIO_BASE + 8)
VFIO_DEVICE_SET_IRQS = io(_VFIO_BASE + 10)
VFIO_DEVICE_BIND_IOMMUFD = io(_VFIO_BASE + 18)
VFIO_DEVICE_ATTACH_IOMMUFD_PT = io(_VFIO_BASE + 19)
VFIO_DEVICE_DETACH_IOMMUFD_PT = io(_VFIO_BASE + 20)

IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0
IOMMU_IOAS_MAP_WRITEABLE = 1 << 1
IOMMU_IOAS_MAP_READABLE = 1 << 2

IOMMU_OPTION_OP_SET = 0
IOMMU_OPTION_OP_GET = 1

IOMMU_HWPT_ALLOC_NEST_PARENT = 1 << 0
IOMMU_HWPT_DATA_ARM_SMMUV3 = 2
IOMMU_VIOMMU_TYPE_ARM_SMMUV3 = 1
IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = 1
IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 = 1
IOMMU_VEVENTQ_FLAG_LOST_EVENTS = 1 << 0
IOMMU_HW_INFO_TYPE_ARM_SMMUV3 = 2

VFIO_IRQ_SET_DATA_NONE = 1 << 0
VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2
VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5
VFIO_PCI_BAR0_REGION_INDEX = 0
VFIO_PCI_CONFIG_REGION_INDEX = 7
VFIO_PCI_MSI_IRQ_INDEX = 1
VFIO_PCI_MSIX_IRQ_INDEX = 2


class _Struct(LittleEndianStructure):
    """A structure that the kernel reads and writes."""

    #: Name of the structure in its header.
    c_name: ClassVar[str]


class Destroy(_Struct):
    """Argument of IOMMU_DESTROY."""

    c_name = "iommu_destroy"
    _fields_ = [("size", c_uint32), ("id", c_uint32)]


class IoasAlloc(_Struct):
    """Argument of IOMMU_IOAS_ALLOC."""

    c_name = "iommu_ioas_alloc"
    _fields_ = [("size", c_uint32), ("flags", c_uint32), ("out_ioas_id", c_uint32)]


class IoasMap(_Struct):
    """Argument of IOMMU_IOAS_MAP."""

    c_name = "iommu_ioas_map"
    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("ioas_id", c_uint32),
        ("__reserved", c_uint32),
        ("user_va", c_uint64),
        ("length", c_uint64),
        ("iova", c_uint64),
    ]


class IoasUnmap(_Struct):
    """Argument of IOMMU_IOAS_UNMAP; ``length`` returns the bytes unmapped."""

    c_name = "iommu_ioas_unmap"
    _fields_ = [
        ("size", c_uint32),
        ("ioas_id", c_uint32),
        ("iova", c_uint64),
        ("length", c_uint64),
    ]


class Option(_Struct):
    """Argument of IOMMU_OPTION; ``val64`` returns the value."""

    c_name = "iommu_option"
    _fields_ = [
        ("size", c_uint32),
        ("option_id", c_uint32),
        ("op", c_uint16),
        ("__reserved", c_uint16),
        ("object_id", c_uint32),
        ("val64", c_uint64),
    ]


class HwptAlloc(_Struct):
    """Argument of IOMMU_HWPT_ALLOC."""

    c_name = "iommu_hwpt_alloc"
    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("dev_id", c_uint32),
        ("pt_id", c_uint32),
        ("out_hwpt_id", c_uint32),
        ("__reserved", c_uint32),
        ("data_type", c_uint32),
        ("data_len", c_uint32),
        ("data_uptr", c_uint64),
        ("fault_id", c_uint32),
        ("__reserved2", c_uint32),
    ]


class HwptArmSmmuv3(_Struct):
    """A guest's stream table entry, as IOMMU_HWPT_ALLOC takes it."""

    c_name = "iommu_hwpt_arm_smmuv3"
    _fields_ = [("ste", c_uint64 * 2)]


class HwInfo(_Struct):
    """Argument of IOMMU_GET_HW_INFO."""

    c_name = "iommu_hw_info"
    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("dev_id", c_uint32),
        ("data_len", c_uint32),
        ("data_uptr", c_uint64),
        ("out_data_type", c_uint32),
        ("out_max_pasid_log2", c_uint8),
        ("__reserved", c_uint8 * 3),
        ("out_capabilities", c_uint64),
    ]


class HwInfoArmSmmuv3(_Struct):
    """ID registers of an SMMUv3."""

    c_name = "iommu_hw_info_arm_smmuv3"
    _fields_ = [
        ("flags", c_uint32),
        ("__reserved", c_uint32),
        ("idr", c_uint32 * 6),
        ("iidr", c_uint32),
        ("aidr", c_uint32),
    ]


class HwptInvalidate(_Struct):
    """Argument of IOMMU_HWPT_INVALIDATE; ``entry_num`` returns the number of applied entries."""

    c_name = "iommu_hwpt_invalidate"
    _fields_ = [
        ("size", c_uint32),
        ("hwpt_id", c_uint32),
        ("data_uptr", c_uint64),
        ("data_type", c_uint32),
        ("entry_len", c_uint32),
        ("entry_num", c_uint32),
        ("__reserved", c_uint32),
    ]


class ViommuAlloc(_Struct):
    """Argument of IOMMU_VIOMMU_ALLOC."""

    c_name = "iommu_viommu_alloc"
    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("type", c_uint32),
        ("dev_id", c_uint32),
        ("hwpt_id", c_uint32),
        ("out_viommu_id", c_uint32),
        ("data_len", c_uint32),
        ("__reserved", c_uint32),
        ("data_uptr", c_uint64),
    ]


class VdeviceAlloc(_Struct):
    """Argument of IOMMU_VDEVICE_ALLOC."""

    c_name = "iommu_vdevice_alloc"
    _fields_ = [
        ("size", c_uint32),
        ("viommu_id", c_uint32),
        ("dev_id", c_uint32),
        ("out_vdevice_id", c_uint32),
        ("virt_id", c_uint64),
    ]


class VeventqAlloc(_Struct):
    """Argument of IOMMU_VEVENTQ_ALLOC."""

    c_name = "iommu_veventq_alloc"
    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("viommu_id", c_uint32),
        ("type", c_uint32),
        ("veventq_depth", c_uint32),
        ("out_veventq_id", c_uint32),
        ("out_veventq_fd", c_uint32),
        ("__reserved", c_uint32),
    ]


class VeventHeader(_Struct):
    """What precedes each event read from a vEVENTQ."""

    c_name = "iommufd_vevent_header"
    _fields_ = [("flags", c_uint32), ("sequence", c_uint32)]


class VeventArmSmmuv3(_Struct):
    """An SMMUv3 event record with the virtual StreamID put in."""

    c_name = "iommu_vevent_arm_smmuv3"
    _fields_ = [("evt", c_uint64 * 4)]


class RegionInfo(_Struct):
    """Argument of VFIO_DEVICE_GET_REGION_INFO."""

    c_name = "vfio_region_info"
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    ]


class IrqSet(_Struct):
    """Head of the argument of VFIO_DEVICE_SET_IRQS; the data follows it."""

    c_name = "vfio_irq_set"
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
    ]


class DeviceBindIommufd(_Struct):
    """Argument of VFIO_DEVICE_BIND_IOMMUFD, without the optional token at its end."""

    c_name = "vfio_device_bind_iommufd"
    _fields_ = [
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iommufd", c_int32),
        ("out_devid", c_uint32),
    ]


class DeviceAttachIommufdPt(_Struct):
    """Argument of VFIO_DEVICE_ATTACH_IOMMUFD_PT, without the optional PASID at its end."""

    c_name = "vfio_device_attach_iommufd_pt"
    _fields_ = [("argsz", c_uint32), ("flags", c_uint32), ("pt_id", c_uint32)]


class DeviceDetachIommufdPt(_Struct):
    """Argument of VFIO_DEVICE_DETACH_IOMMUFD_PT, without the optional PASID at its end."""

    c_name = "vfio_device_detach_iommufd_pt"
    _fields_ = [("argsz", c_uint32), ("flags", c_uint32)]
