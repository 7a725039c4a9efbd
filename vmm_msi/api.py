"""Everything a plugin needs, in one import. This module is the public API of the plugin contract.

``from vmm_msi.api import hookimpl, PluginInfo, PluginKind, Session``; docs/plugins.md has a
complete example.
"""

from vmm_msi.errors import BackendError, PluginError, RefusedError, VmmMsiError
from vmm_msi.hookspecs import (
    Action,
    Event,
    Needs,
    Options,
    PluginInfo,
    PluginKind,
    Session,
    hookimpl,
)
from vmm_msi.iommu.backend import Backend, BackendInfo, Capability, S2Handle
from vmm_msi.model import (
    SW_MSI_WINDOW,
    DeviceId,
    Granule,
    GuestDevice,
    GuestDomain,
    GuestPlan,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Smmu,
    Stage1,
    StreamId,
    Vits,
    VsmmuPlan,
)
from vmm_msi.strategy import DoorbellMaps, S2Pool, guest_doorbell, smmu_of

__all__ = [
    "SW_MSI_WINDOW",
    "Action",
    "Backend",
    "BackendError",
    "BackendInfo",
    "Capability",
    "DeviceId",
    "DoorbellMaps",
    "Event",
    "Granule",
    "GuestDevice",
    "GuestDomain",
    "GuestPlan",
    "HostDevice",
    "HostTopology",
    "Iova",
    "Ipa",
    "Its",
    "Needs",
    "Options",
    "Pa",
    "PciAddress",
    "PluginError",
    "PluginInfo",
    "PluginKind",
    "RefusedError",
    "ReservedKind",
    "ReservedRegion",
    "S2Handle",
    "S2Pool",
    "Session",
    "Smmu",
    "Stage1",
    "StreamId",
    "Vits",
    "VmmMsiError",
    "VsmmuPlan",
    "guest_doorbell",
    "hookimpl",
    "smmu_of",
]
