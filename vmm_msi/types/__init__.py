"""Frozen value types that all other modules use.

Addresses are of three types that never mix: :class:`Iova` before stage 1, :class:`Ipa` between the
stages (a guest physical address), :class:`Pa` after stage 2. "Domain" alone is never used: a
:class:`GuestDomain` is libvirt's, an IOMMU domain is the kernel's.
"""

from vmm_msi.types.address import (
    SW_MSI_WINDOW,
    Address,
    DeviceId,
    Granule,
    Iova,
    Ipa,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    StreamId,
)
from vmm_msi.types.binder import BinderKind
from vmm_msi.types.guest import (
    BindOrder,
    ContainerPer,
    GuestDevice,
    GuestDomain,
    MemoryRange,
    Scenario,
    Stage1,
    Stage1Mode,
    Vits,
)
from vmm_msi.types.host import (
    ITS_TRANSLATER_OFFSET,
    ITS_TRANSLATER_PAGE_OFFSET,
    Firmware,
    HostDevice,
    HostTopology,
    Its,
    PciRoute,
    PciSegment,
    ReservedMemory,
    Smmu,
    TableError,
)
from vmm_msi.types.pci_function import PciFunction
from vmm_msi.types.verdict import Costs, GuestPlan, Outcome, TraceStep, Verdict, VsmmuPlan

__all__ = [
    "ITS_TRANSLATER_OFFSET",
    "ITS_TRANSLATER_PAGE_OFFSET",
    "SW_MSI_WINDOW",
    "Address",
    "BindOrder",
    "BinderKind",
    "ContainerPer",
    "Costs",
    "DeviceId",
    "Firmware",
    "Granule",
    "GuestDevice",
    "GuestDomain",
    "GuestPlan",
    "HostDevice",
    "HostTopology",
    "Iova",
    "Ipa",
    "Its",
    "MemoryRange",
    "Outcome",
    "Pa",
    "PciAddress",
    "PciFunction",
    "PciRoute",
    "PciSegment",
    "ReservedKind",
    "ReservedMemory",
    "ReservedRegion",
    "Scenario",
    "Smmu",
    "Stage1",
    "Stage1Mode",
    "StreamId",
    "TableError",
    "TraceStep",
    "Verdict",
    "Vits",
    "VsmmuPlan",
]
