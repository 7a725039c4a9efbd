"""placed: the guest's doorbell lies where the kernel's slot lands; the device gets the gIOVA.

An unmodified iommufd maps each host doorbell at a page of the software MSI window and writes that
address into the device. Where the VMM has its virtual ITS's doorbell page at that very address,
the guest's own mapping gIOVA -> gDB leads to the host's doorbell, and only the address in the
device is wrong: it is overwritten with the gIOVA. docs/strategies.md lists what that relies on.
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
    RefusedError,
    Session,
    Strategy,
    guest_doorbell,
)


class Placed(Strategy):
    """The strategy."""

    name = "placed"
    summary = "put the guest's doorbell where the kernel's slot lands, rewrite the MSI address"
    guest = "a virtual ITS whose doorbell page is the slot of its devices' host ITS"
    host = (
        "iommufd; root, to write the MSI address behind the kernel's back; all devices of a guest "
        "on one host ITS"
    )
    xml = "vSMMUs and hostdevs; QEMU cannot bind it"
    costs = "one S2 per physical SMMU, one MSI window page per physical ITS"

    def needs(self, _options: Options) -> Needs:
        """Require the kernel's slots and a write of the MSI address."""
        return Needs(
            interface=Capability.SW_MSI_SLOTS,
            capabilities=frozenset({Capability.SW_MSI_SLOTS, Capability.MSI_ADDRESS_WRITE}),
        )

    def vmm_msi_prepare_msi(self, session: Session, device: PciAddress) -> Iova:
        """Let the kernel pick a slot, and write the guest's gIOVA over it.

        :raise RefusedError: when the guest's doorbell is not where the slot is.
        """
        page_size = session.backend.page_size
        # The kernel writes an IPA of stage 2 into the device.
        slot = Ipa(session.backend.prepare_msi(device)).align_down(page_size)
        gdb = session.guest.gdb(session.guest_device(device))
        if gdb.align_down(page_size) != slot:
            raise RefusedError(
                f"{device}: the kernel maps its doorbell at {slot}, the guest has its own at "
                f"{gdb}; {_advice(session, device, slot)}"
            )
        return session.backend.program_msi(device, guest_doorbell(session, device))


def _advice(session: Session, device: PciAddress, slot: Ipa) -> str:
    """Return what to do: a virtual ITS takes 128 KiB, and begins at a multiple of 64 KiB."""
    base = slot.offset(-ITS_TRANSLATER_PAGE_OFFSET)
    own = session.guest_device(device).vits
    clashes = any(
        abs(vits.base - base) < 2 * ITS_TRANSLATER_PAGE_OFFSET
        for vits in session.guest.vits
        if vits.id != own
    )
    if base % ITS_TRANSLATER_PAGE_OFFSET or clashes:
        return "a virtual ITS does not fit there: assign devices of one host ITS only"
    return f"put the virtual ITS at {base}"
