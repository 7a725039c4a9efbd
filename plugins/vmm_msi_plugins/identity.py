"""identity: the guest maps the host's software MSI window 1:1, asked to by an IORT RMR node.

What Linux 7.2 and QEMU 11 do. The kernel gives the n-th doorbell, in order of first use, the n-th
page of the window; an MSI passes stage 1 unchanged and reaches that page at stage 2.
"""

from __future__ import annotations

from vmm_msi.plugins import (
    SW_MSI_WINDOW,
    Capability,
    Needs,
    Options,
    PciAddress,
    RefusedError,
    Session,
    Strategy,
)

#: The kernel's own addresses, and a guest that honours RMR nodes.
NEEDS = Needs(
    interface=Capability.SW_MSI_SLOTS,
    capabilities=frozenset({Capability.SW_MSI}),
    rmr=True,
    qemu=True,
)


class Identity(Strategy):
    """The strategy."""

    name = "identity"
    summary = "map the host's MSI window 1:1 in the guest's stage 1 by an IORT RMR node"
    guest = "honours RMR nodes (ACPI), has no RAM at 0x8000000-0x80fffff"
    host = (
        "iommufd; its window must be QEMU's fixed RMR, 0x8000000-0x80fffff; 16 ITSes at most with "
        "64K pages"
    )
    xml = "accelerated vSMMUs, iommufd, hostdevs; ACPI and UEFI must be on"
    costs = "one S2 per physical SMMU, one MSI window page per physical ITS"

    def needs(self, _options: Options) -> Needs:
        """Require the kernel's own addresses, and a guest that honours RMR nodes."""
        return NEEDS

    def vmm_msi_attach_domain(self, session: Session) -> None:
        """Advertise the window to the guest."""
        session.backend.advertise_rmr(SW_MSI_WINDOW)

    def vmm_msi_detach_domain(self, session: Session) -> None:
        """Withdraw the RMR node."""
        session.backend.withdraw_rmr()

    def vmm_msi_attach_device(self, session: Session, device: PciAddress) -> None:
        """Attach to the one stage 2 of the device's SMMU."""
        check_window(session, device)
        super().vmm_msi_attach_device(session, device)


def check_window(session: Session, device: PciAddress) -> None:
    """Check that the window the kernel uses for a device is the one the RMR node has.

    :raise RefusedError: when it is another.
    """
    window = session.backend.sw_msi_window(device)
    if window is None or (window.base, window.size) != (SW_MSI_WINDOW.base, SW_MSI_WINDOW.size):
        raise RefusedError(
            f"{device}: the host's MSI window is {window or 'missing'}, the guest's RMR is fixed "
            f"at {SW_MSI_WINDOW}; use direct or multi-its on a kernel with their interface"
        )
