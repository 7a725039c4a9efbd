"""A healthy host, and ways to break one part of it.

Two SMMUs, two ITSes, and for each of them devices in PCI segments of their own: A and A2 behind
SMMU 0 with ITS 0, B behind SMMU 1 with ITS 1. Each is in an IOMMU group of its own.
"""

from __future__ import annotations

from dataclasses import replace

from vmm_msi.doctor.case import Case, KernelFacts, SmmuHardware, Software
from vmm_msi.doctor.finding import Evidence
from vmm_msi.domxml.support import Version
from vmm_msi.types import (
    SW_MSI_WINDOW,
    DeviceId,
    Granule,
    HostDevice,
    HostTopology,
    Its,
    Pa,
    PciAddress,
    PciFunction,
    PciSegment,
    Smmu,
    StreamId,
)

A, A2, B = PciAddress(0, 1, 0, 0), PciAddress(0, 2, 0, 0), PciAddress(1, 1, 0, 0)

SMMUS = (Smmu(0, Pa(0x2B40_0000)), Smmu(1, Pa(0x2B50_0000)))
ITSES = (Its(0, Pa(0x3004_0000)), Its(1, Pa(0x3006_0000)))

OPTIONS = {
    "ARM_SMMU_V3": "y",
    "ARM_SMMU_V3_IOMMUFD": "y",
    "IOMMUFD": "m",
    "VFIO": "m",
    "VFIO_DEVICE_CDEV": "y",
    "VFIO_PCI": "m",
}


def host_device(address, smmu=0, its=(0,), group=10, **fields):
    rid = address.segment << 16 | address.rid
    return HostDevice(address, smmu, StreamId(rid), tuple(its), DeviceId(rid), group, **fields)


def function(address, smmu=0, group=10, **fields):
    """A network function of 8 MSIs, bound to vfio-pci and alone in its group."""
    defaults = {
        "iommu_group": group,
        "members": (address,),
        "driver": "vfio-pci",
        "smmu": SMMUS[smmu].base,
        "class_code": 0x020000,
        "vectors": 8,
        "ats": False,
        "pasid": False,
        "dma_rids": (address.rid,),
        "msi_rid": address.rid,
        "reserved": (SW_MSI_WINDOW,),
    }
    return PciFunction(address, **{**defaults, **fields})


def hardware(**fields):
    """Features of an SMMU that supports nesting, as the kernel reports them."""
    line = Evidence("/var/log/kern.log", "arm-smmu-v3 arm-smmu-v3.0.auto: ias 48-bit, oas 48-bit")
    return SmmuHardware(
        **{"stage1": True, "stage2": True, "s2fwb": True, "evidence": (line,), **fields}
    )


HOST = HostTopology(
    source="host",
    granule=Granule.K4,
    smmus=SMMUS,
    itses=ITSES,
    devices=(
        host_device(A),
        host_device(A2, group=11),
        host_device(B, smmu=1, its=(1,), group=12),
    ),
    functions=(function(A), function(A2, group=11), function(B, smmu=1, group=12)),
    segments=(PciSegment(0, ats=True, canwbs=False), PciSegment(1, ats=True, canwbs=False)),
)

HEALTHY = Case(
    host=HOST,
    kernel=KernelFacts(
        release="7.2.0",
        options=OPTIONS,
        options_from="/boot/config-7.2.0",
        parameters={
            "iommufd.allow_unsafe_interrupts": "N",
            "vfio_iommu_type1.allow_unsafe_interrupts": "N",
            "vfio.enable_unsafe_noiommu_mode": "N",
        },
        log=(),
        smmus={0: hardware(), 1: hardware()},
    ),
    software=Software(
        libvirt=Version(12, 8, 0), qemu=Version(11, 1, 0), driver="QEMU", source="qemu:///system"
    ),
    devices=(A, A2, B),
)


def with_host(case, **fields):
    return replace(case, host=replace(case.host, **fields))


def with_kernel(case, **fields):
    return replace(case, kernel=replace(case.kernel, **fields))


def with_option(case, name, value):
    """Set an option of the kernel; None disables it."""
    options = {**case.kernel.options, name: value}
    return with_kernel(case, options={k: v for k, v in options.items() if v is not None})


def with_parameter(case, name, value):
    return with_kernel(case, parameters={**case.kernel.parameters, name: value})


def with_hardware(case, smmu, **fields):
    changed = replace(case.kernel.smmus[smmu], **fields)
    return with_kernel(case, smmus={**case.kernel.smmus, smmu: changed})


def with_function(case, address, **fields):
    """Change the function at an address, or add one."""
    known = case.host.function_by_address
    changed = replace(known.get(address) or function(address), **fields)
    return with_host(case, functions=tuple({**known, address: changed}.values()))


def with_device(case, address, **fields):
    """Change the device at an address, or add one."""
    known = case.host.device_by_address
    changed = replace(known.get(address) or host_device(address), **fields)
    return with_host(case, devices=tuple({**known, address: changed}.values()))
