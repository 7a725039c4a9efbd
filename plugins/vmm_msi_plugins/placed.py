"""placed: the guest's doorbell is put where the kernel's slot lands, and the device told so.

An unmodified iommufd maps each host doorbell at a page of the software MSI window and wants the
device to write there. Where the VMM has its virtual ITS's doorbell page at that very address, the
guest's own mapping gIOVA -> gDB leads to the host's doorbell, and only the address in the device
is wrong: it is overwritten with the gIOVA. docs/strategies.md tells what that rests on.
"""

from __future__ import annotations

from vmm_msi.plugins import (
    ITS_TRANSLATER_PAGE_OFFSET,
    Capability,
    Iova,
    Ipa,
    Needs,
    Options,
    PciAddress,
    PluginInfo,
    PluginKind,
    RefusedError,
    Session,
    guest_doorbell,
    hookimpl,
)
from vmm_msi_plugins.common import (
    vmm_msi_attach_device,
    vmm_msi_detach_device,
)

__all__ = [
    "vmm_msi_attach_device",
    "vmm_msi_detach_device",
]


def _needs(_options: Options) -> Needs:
    return Needs(
        interface=Capability.SW_MSI_SLOTS,
        capabilities=frozenset({Capability.SW_MSI_SLOTS, Capability.MSI_ADDRESS_WRITE}),
    )


@hookimpl
def vmm_msi_describe() -> PluginInfo:
    """Describe the strategy."""
    return PluginInfo(
        name="placed",
        kind=PluginKind.STRATEGY,
        summary="put the guest's doorbell where the kernel's slot lands, rewrite the MSI address",
        needs=_needs,
        guest="a virtual ITS whose doorbell page is the slot of its devices' host ITS",
        host="iommufd; root, to write the MSI address behind the kernel's back; all devices of a "
        "guest on one host ITS",
        xml="vSMMUs and hostdevs; QEMU cannot carry it out",
        costs="one S2 per physical SMMU, one MSI window page per physical ITS",
    )


@hookimpl
def vmm_msi_prepare_msi(session: Session, device: PciAddress) -> Iova:
    """Let the kernel pick a slot, and write the guest's gIOVA over it.

    :raise RefusedError: when the guest's doorbell is not where the slot is.
    """
    page_size = session.backend.page_size
    # The kernel takes an IPA of stage 2 for the address that the device is to write to.
    slot = Ipa(session.backend.prepare_msi(device)).align_down(page_size)
    gdb = session.guest.gdb(session.guest_device(device))
    if gdb.align_down(page_size) != slot:
        raise RefusedError(
            f"{device}: the kernel maps its doorbell at {slot}, the guest has its own at {gdb}; "
            f"{_advice(session, device, slot)}"
        )
    return session.backend.program_msi(device, guest_doorbell(session, device))


def _advice(session: Session, device: PciAddress, slot: Ipa) -> str:
    """Return what would work: a virtual ITS takes 128 KiB, and begins at a multiple of 64 KiB."""
    base = slot.offset(-ITS_TRANSLATER_PAGE_OFFSET)
    own = session.guest_device(device).vits
    clashes = any(
        abs(vits.base - base) < 2 * ITS_TRANSLATER_PAGE_OFFSET
        for vits in session.guest.vits
        if vits.id != own
    )
    if base % ITS_TRANSLATER_PAGE_OFFSET or clashes:
        return "no virtual ITS has room there: devices of one host ITS alone would work"
    return f"a virtual ITS at {base} would work"
