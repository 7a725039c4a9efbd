"""What is at an address: a slot of the SW MSI window, a doorbell, guest RAM."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from vmm_msi.domxml.guest_domain import VIRT_ITS
from vmm_msi.types import SW_MSI_WINDOW, Granule, Ipa, Vits

if TYPE_CHECKING:
    from vmm_msi.explain.situation import Situation
    from vmm_msi.types import HostDevice, PciAddress

#: Slots of one iommufd file descriptor (Linux ``drivers/iommu/iommufd/iommufd_private.h``
#: iommufd_sw_msi_maps: a bitmap of 64).
SLOTS = 64
#: Bytes of the frame that GITS_TRANSLATER is in (IHI 0069, 12.18).
_FRAME = 0x10000
#: Offset of the doorbell in its page, where it is that of a GICv3 ITS.
_OFFSET = 0x40


class Place(Enum):
    """Kind of what is at an address."""

    #: A page of the SW MSI window that the guest is told of.
    SLOT = auto()
    #: A slot of the kernel that lies behind that window.
    BEYOND = auto()
    #: The page with the doorbell of a virtual ITS.
    GDB = auto()
    #: The page with the doorbell of a physical ITS.
    HDB = auto()
    #: What the device's own stage 1 maps to its gDB.
    GIOVA = auto()
    #: What another device's stage 1 maps to its gDB.
    OTHER_GIOVA = auto()
    #: Guest RAM.
    RAM = auto()
    #: Nothing that is known.
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class At:
    """What is at an address.

    :param words: what it is, for people.
    :param msi: it may be a write to a doorbell, by its offset in the page.
    :param owner: whose gIOVA it is.
    """

    place: Place
    words: str
    msi: bool = False
    owner: PciAddress | None = None


def at_iova(address: int, device: HostDevice | None, situation: Situation) -> At:
    """Tell what an address is that a device used, before stage 1."""
    msi = address & 0xFFF == _doorbell_offset(device, situation)
    found = _giova(address, device, situation)
    if found is None:
        found = _known(address, device, situation)
    if found is not None and found.place is Place.RAM:
        # Stage 1 gives IOVAs a meaning of their own; this is one for a device without it.
        found = None if msi else At(Place.RAM, f"as an IPA it would be {found.words}")
    if found is None:
        words = "nothing that is known to be a doorbell"
        if msi:
            words += ", but the offset in its page is that of one: perhaps a gIOVA of the guest"
        found = At(Place.UNKNOWN, words)
    return At(found.place, found.words, msi, found.owner)


def at_ipa(address: int, device: HostDevice | None, situation: Situation) -> At:
    """Tell what an address is that stage 2 was asked for."""
    msi = address & 0xFFF == _doorbell_offset(device, situation)
    found = _known(address, device, situation)
    if found is None:
        found = At(Place.UNKNOWN, "neither guest RAM nor a doorbell that is known")
    return At(found.place, found.words, msi)


def vitses(situation: Situation) -> tuple[Vits, ...]:
    """Return the guest's virtual ITSes; that of QEMU's virt board where no guest is known."""
    return (Vits(0, VIRT_ITS),) if situation.guest is None else situation.guest.vits


def _known(address: int, device: HostDevice | None, situation: Situation) -> At | None:
    for vits in vitses(situation):
        if vits.gdb <= address < vits.gdb + _FRAME:
            words = f"gDB, the doorbell of the guest's virtual ITS at {vits.base}"
            slot = _slot(address, device, situation)
            if slot is not None and situation.granule is Granule.K64:
                # The tenth page of the window is QEMU's gDB page.
                words += f"; also {slot.words}"
            return At(Place.GDB, words)
    if situation.host is not None:
        for its in situation.host.itses:
            if its.doorbell_page <= address < its.doorbell_page + _FRAME:
                return At(Place.HDB, f"hDB, the doorbell of the host's ITS {its.id}")
    found = _slot(address, device, situation)
    if found is not None:
        return found
    for memory in () if situation.guest is None else situation.guest.memory:
        if memory.base <= address < memory.base + memory.size:
            last = Ipa(memory.base + memory.size - 1)
            return At(Place.RAM, f"RAM of {situation.guest_name} ({memory.base}-{last})")
    return None


def _slot(address: int, device: HostDevice | None, situation: Situation) -> At | None:
    window = situation.window(device)
    page = situation.granule or Granule.K4
    behind = max(window.base + window.size, window.base + SLOTS * page)
    if not window.base <= address < behind:
        return None
    number = (address - window.base) // page
    words = f"page {number} of the SW MSI window"
    if situation.granule is None:
        words += " (by 4K pages)"
    if device is not None and device.its_group and situation.host is not None:
        its = situation.host.its_by_id.get(device.its)
        if its is not None:
            words += f", where the kernel leads MSIs of {device.address} to ITS {its.id}"
            words += f" (hDB {its.doorbell})"
    if address <= SW_MSI_WINDOW.last or window.base != SW_MSI_WINDOW.base:
        return At(Place.SLOT, words)
    return At(Place.BEYOND, f"{words}, behind what the RMR tells the guest ({SW_MSI_WINDOW})")


def _giova(address: int, device: HostDevice | None, situation: Situation) -> At | None:
    """Look among the addresses that stage 1 tables map to a gDB."""
    own = None if device is None else device.address
    known: dict[PciAddress, int] = {}
    if situation.guest is not None and situation.xml is None:
        known = {each.host: each.giova for each in situation.guest.devices}
    for recorded in situation.record.devices:
        if recorded.binding is not None and recorded.binding.giova is not None:
            known[recorded.host] = recorded.binding.giova
    page = address & ~0xFFF
    owners = [host for host, giova in known.items() if giova & ~0xFFF == page]
    if own in owners:
        return At(Place.GIOVA, "gIOVA, what the guest maps to its doorbell for it", True, own)
    if owners:
        return At(Place.OTHER_GIOVA, f"the gIOVA of {owners[0]}", True, owners[0])
    return None


def _doorbell_offset(device: HostDevice | None, situation: Situation) -> int:
    if device is not None and device.its_group and situation.host is not None:
        its = situation.host.its_by_id.get(device.its)
        if its is not None:
            return its.doorbell & 0xFFF
    return _OFFSET
