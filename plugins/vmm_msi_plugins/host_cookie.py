"""host-cookie: the host is left alone. The baseline that must fail.

The host's kernel takes a page of its own software MSI window, maps it to the doorbell at stage 2
and writes it into the device. The guest never learns of it, so stage 1 has no entry for it.
"""

from __future__ import annotations

from vmm_msi.api import (
    Capability,
    Iova,
    Needs,
    Options,
    PciAddress,
    PluginInfo,
    PluginKind,
    S2Pool,
    Session,
    hookimpl,
    smmu_of,
)


def _needs(_options: Options) -> Needs:
    return Needs(interface=Capability.SW_MSI, capabilities=frozenset({Capability.SW_MSI}))


@hookimpl
def vmm_msi_describe() -> PluginInfo:
    """Describe the strategy."""
    return PluginInfo(
        name="host-cookie",
        kind=PluginKind.STRATEGY,
        summary="leave the host's MSI allocator alone: the baseline that faults in stage 1",
        needs=_needs,
        guest="nothing, which is why it fails",
        host="any kernel",
        xml="vSMMUs and hostdevs, no more",
        costs="one S2 per physical SMMU, one S2 mapping per physical ITS in each",
    )


@hookimpl
def vmm_msi_attach_device(session: Session, device: PciAddress) -> bool:
    """Attach to the one stage 2 of the device's SMMU."""
    session.state(S2Pool).attach(session, device, smmu_of(session, device))
    return True


@hookimpl
def vmm_msi_detach_device(session: Session, device: PciAddress) -> bool:
    """Detach."""
    session.state(S2Pool).detach(session, device)
    return True


@hookimpl
def vmm_msi_prepare_msi(session: Session, device: PciAddress) -> Iova:
    """Let the kernel pick."""
    return session.backend.prepare_msi(device)
