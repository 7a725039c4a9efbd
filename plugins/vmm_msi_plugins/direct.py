"""direct: iommu_map(gDB, hDB) at bind time, no allocator.

Robin Murphy's question of 2018: whoever knows the binding "could just as easily call
iommu_map()". It takes the host's doorbell at bind time, which the ITS selector supplies.
"""

from __future__ import annotations

from vmm_msi.plugins import (
    Capability,
    DoorbellMaps,
    Iova,
    Needs,
    Options,
    PciAddress,
    PluginInfo,
    PluginKind,
    S2Pool,
    Session,
    guest_doorbell,
    hookimpl,
    smmu_of,
)
from vmm_msi_plugins.common import (
    vmm_msi_detach_device,
    vmm_msi_unbind_doorbell,
)

__all__ = [
    "vmm_msi_detach_device",
    "vmm_msi_unbind_doorbell",
]


def _needs(_options: Options) -> Needs:
    return Needs(
        interface=Capability.KERNEL_DOORBELL_MAP,
        capabilities=frozenset({Capability.DOORBELL_MAP, Capability.MSI_ADDRESS_WRITE}),
    )


@hookimpl
def vmm_msi_describe() -> PluginInfo:
    """Describe the strategy."""
    return PluginInfo(
        name="direct",
        kind=PluginKind.STRATEGY,
        summary="map the guest's doorbell straight to the host's at stage 2",
        needs=_needs,
        guest="a virtual ITS of its own for each physical ITS its devices use",
        host="a kernel or a VMM that may map the doorbell; on iommufd a gDB outside of the MSI "
        "window",
        xml="vSMMUs and hostdevs; QEMU cannot carry it out",
        costs="one S2 per physical SMMU, one S2 mapping per virtual doorbell in each",
    )


@hookimpl
def vmm_msi_attach_device(session: Session, device: PciAddress) -> bool:
    """Attach to the one stage 2 of the device's SMMU."""
    smmu = smmu_of(session, device)
    session.state(S2Pool).attach(session, device, smmu, msi_cookie=False)
    return True


@hookimpl
def vmm_msi_bind_doorbell(session: Session, device: PciAddress) -> bool:
    """Map gDB -> hDB, unless a device with the same pair has."""
    session.state(DoorbellMaps).acquire(session, device, session.state(S2Pool).of(device))
    return True


@hookimpl
def vmm_msi_prepare_msi(session: Session, device: PciAddress) -> Iova:
    """Write the guest's gIOVA into the device."""
    return session.backend.program_msi(device, guest_doorbell(session, device))
