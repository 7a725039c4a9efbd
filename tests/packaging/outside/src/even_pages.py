"""A third-party strategy, as a module of hook functions.

It binds like the strategy direct, with a stage 2 per device and one more option.
"""

from __future__ import annotations

from vmm_msi.plugins import (
    Capability,
    Iova,
    MsiAllocator,
    Needs,
    Options,
    PciAddress,
    PluginInfo,
    PluginKind,
    S2Pool,
    Session,
    guest_doorbell,
    hookimpl,
)


class EvenPagesOptions(Options, frozen=True):
    greeting: str = "hello"


@hookimpl
def vmm_msi_describe() -> PluginInfo:
    return PluginInfo(
        name="even-pages",
        kind=PluginKind.STRATEGY,
        summary="a stage 2 for every device",
        options=EvenPagesOptions,
        needs=lambda _options: Needs(
            interface=Capability.KERNEL_DOORBELL_MAP,
            capabilities=frozenset({Capability.DOORBELL_MAP, Capability.MSI_ADDRESS_WRITE}),
        ),
    )


@hookimpl
def vmm_msi_attach_device(session: Session, device: PciAddress) -> None:
    session.state(S2Pool).attach(session, device, device, allocator=MsiAllocator.CALLER)


@hookimpl
def vmm_msi_detach_device(session: Session, device: PciAddress) -> None:
    session.state(S2Pool).detach(session, device)


@hookimpl
def vmm_msi_bind_doorbell(session: Session, device: PciAddress) -> None:
    gdb = session.guest.gdb(session.guest_device(device))
    session.backend.map_doorbell(session.state(S2Pool).of(device), gdb, session.its_of(device))


@hookimpl
def vmm_msi_prepare_msi(session: Session, device: PciAddress) -> Iova:
    return session.backend.program_msi(device, guest_doorbell(session, device))
