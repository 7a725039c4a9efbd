"""identity: the guest maps the host's software MSI window 1:1, told so by an IORT RMR node.

What Linux 7.2 and QEMU 11 do. The kernel gives the n-th doorbell, in order of first use, the n-th
page of the window; an MSI passes stage 1 unchanged and finds that page at stage 2.
"""

from __future__ import annotations

from vmm_msi.plugins import (
    SW_MSI_WINDOW,
    Capability,
    Needs,
    Options,
    PciAddress,
    PluginInfo,
    PluginKind,
    RefusedError,
    S2Pool,
    Session,
    hookimpl,
    smmu_of,
)
from vmm_msi_plugins.common import (
    vmm_msi_detach_device,
    vmm_msi_prepare_msi,
)

__all__ = [
    "vmm_msi_detach_device",
    "vmm_msi_prepare_msi",
]


def _needs(_options: Options) -> Needs:
    return Needs(
        interface=Capability.SW_MSI_SLOTS,
        capabilities=frozenset({Capability.SW_MSI_SLOTS}),
        rmr=True,
        qemu=True,
    )


@hookimpl
def vmm_msi_describe() -> PluginInfo:
    """Describe the strategy."""
    return PluginInfo(
        name="identity",
        kind=PluginKind.STRATEGY,
        summary="map the host's MSI window 1:1 in the guest's stage 1 by an IORT RMR node",
        needs=_needs,
        guest="honours RMR nodes (ACPI), has no RAM at 0x8000000-0x80fffff",
        host="iommufd; its window must be QEMU's fixed RMR, 0x8000000-0x80fffff; 16 ITSes at most "
        "with 64K pages",
        xml="accelerated vSMMUs, iommufd, hostdevs; ACPI and UEFI must be on",
        costs="one S2 per physical SMMU, one MSI window page per physical ITS",
    )


@hookimpl
def vmm_msi_attach_domain(session: Session) -> bool:
    """Announce the window to the guest."""
    session.backend.advertise_rmr(SW_MSI_WINDOW)
    return True


@hookimpl
def vmm_msi_detach_domain(session: Session) -> bool:
    """Withdraw the announcement."""
    session.backend.withdraw_rmr()
    return True


def check_window(session: Session, device: PciAddress) -> None:
    """Check that the window the kernel uses for a device is the one the RMR announces.

    :raise RefusedError: when it is another.
    """
    window = session.backend.sw_msi_window(device)
    if window is None or (window.base, window.size) != (SW_MSI_WINDOW.base, SW_MSI_WINDOW.size):
        raise RefusedError(
            f"{device}: the host's MSI window is {window or 'missing'}, the RMR that the guest is "
            f"given is fixed at {SW_MSI_WINDOW}; direct or multi-its would work, where the kernel "
            "has their interface"
        )


@hookimpl
def vmm_msi_attach_device(session: Session, device: PciAddress) -> bool:
    """Attach to the one stage 2 of the device's SMMU."""
    check_window(session, device)
    session.state(S2Pool).attach(session, device, smmu_of(session, device))
    return True
