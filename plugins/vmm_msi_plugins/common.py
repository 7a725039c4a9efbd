"""Hook implementations that several strategies have in common.

A strategy takes one by importing it under its own name: pluggy registers every marked function
that it finds in a plugin's module.
"""

from __future__ import annotations

from vmm_msi.plugins import DoorbellMaps, Iova, PciAddress, S2Pool, Session, hookimpl, smmu_of


@hookimpl
def vmm_msi_attach_device(session: Session, device: PciAddress) -> bool:
    """Attach to the one stage 2 of the device's SMMU, with the kernel's own allocator in it."""
    session.state(S2Pool).attach(session, device, smmu_of(session, device))
    return True


@hookimpl
def vmm_msi_detach_device(session: Session, device: PciAddress) -> bool:
    """Detach; the last device takes its stage 2 with it."""
    session.state(S2Pool).detach(session, device)
    return True


@hookimpl
def vmm_msi_prepare_msi(session: Session, device: PciAddress) -> Iova:
    """Let the kernel pick the address."""
    return session.backend.prepare_msi(device)


@hookimpl
def vmm_msi_unbind_doorbell(session: Session, device: PciAddress) -> bool:
    """Unmap the doorbell in stage 2 when no other device uses it."""
    session.state(DoorbellMaps).release(session, device)
    return True
