"""What the interface for guest MSI bindings (``vmm_msi/lab/kernel``) adds to ``linux/iommufd.h``.

No released kernel has it.
"""

from __future__ import annotations

from ctypes import LittleEndianStructure, c_uint16, c_uint32, c_uint64

from vmm_msi.iommu.linux.uapi import io

IOMMU_VDEVICE_MSI = io(0x95)

IOMMU_OPTION_MSI_BINDING = 2
IOMMU_VDEVICE_MSI_USED = 1 << 0


class VdeviceMsi(LittleEndianStructure):
    """Argument of IOMMU_VDEVICE_MSI."""

    c_name = "iommu_vdevice_msi"
    _fields_ = [
        ("size", c_uint32),
        ("vdevice_id", c_uint32),
        ("op", c_uint16),
        ("page_shift", c_uint16),
        ("index", c_uint32),
        ("flags", c_uint32),
        ("__reserved", c_uint32),
        ("iova", c_uint64),
        ("gpa", c_uint64),
    ]
