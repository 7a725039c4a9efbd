"""Kinds of addresses in faults: a slot of the SW MSI window, a doorbell, guest RAM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from vmm_msi.types import SW_MSI_WINDOW, Granule, Ipa, Vits
from vmm_msi.types.guest import VIRT_ITS

if TYPE_CHECKING:
    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.types import HostDevice, PciAddress

#: Slots of one iommufd file descriptor (Linux ``drivers/iommu/iommufd/iommufd_private.h``
#: iommufd_sw_msi_maps: a bitmap of 64).
SLOTS = 64
#: Bytes of the frame that GITS_TRANSLATER is in (IHI 0069, 12.18).
_FRAME = 0x10000
#: Offset of the doorbell in its page, if it is that of a GICv3 ITS.
_OFFSET = 0x40


class AddressKind(Enum):
    """What an address belongs to."""

    #: A page of the SW MSI window, in the range of the guest's RMR.
    SLOT = auto()
    #: A slot of the kernel beyond the RMR.
    BEYOND_RMR = auto()
    #: The page with the doorbell of a virtual ITS.
    GDB = auto()
    #: The page with the doorbell of a physical ITS.
    HDB = auto()
    #: The address that the device's own stage 1 maps to its gDB.
    GIOVA = auto()
    #: The address that another device's stage 1 maps to its gDB.
    OTHER_GIOVA = auto()
    #: Guest RAM.
    RAM = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class DescribedAddress:
    """An address and what it belongs to.

    :param text: the description, for people.
    :param msi: by its offset in the page, it may be written by an MSI.
    :param owner: the device whose gIOVA it is.
    """

    kind: AddressKind
    text: str
    msi: bool = False
    owner: PciAddress | None = None


def describe_iova(address: int, device: HostDevice | None, context: LogContext) -> DescribedAddress:
    """Describe an address that a device used, before stage 1."""
    msi = address & 0xFFF == _doorbell_offset(device, context)
    described = _giova(address, device, context) or _physical(address, device, context)
    if described is not None and described.kind is AddressKind.RAM:
        # Stage 1 maps IOVAs as the guest likes; RAM is a guess for a device without a stage 1.
        described = replace(described, text=f"as an IPA: {described.text}") if not msi else None
    if described is None:
        text = "not a known doorbell"
        if msi:
            text += ", but its offset in the page is that of a doorbell: perhaps a gIOVA, or an "
            text += "ITS page of the host's DMA API"
        described = DescribedAddress(AddressKind.UNKNOWN, text)
    return replace(described, msi=msi)


def describe_ipa(address: int, device: HostDevice | None, context: LogContext) -> DescribedAddress:
    """Describe an address that stage 2 translates."""
    msi = address & 0xFFF == _doorbell_offset(device, context)
    unknown = DescribedAddress(AddressKind.UNKNOWN, "neither guest RAM nor a known doorbell")
    return replace(_physical(address, device, context) or unknown, msi=msi)


def vitses(context: LogContext) -> tuple[Vits, ...]:
    """Return the guest's virtual ITSes; that of QEMU's virt board if the guest is unknown."""
    return (Vits(0, VIRT_ITS),) if context.guest is None else context.guest.vits


def _physical(
    address: int, device: HostDevice | None, context: LogContext
) -> DescribedAddress | None:
    """Describe a doorbell, a slot or RAM."""
    for vits in vitses(context):
        if vits.gdb <= address < vits.gdb + _FRAME:
            text = f"gDB, the doorbell of the guest's virtual ITS at {vits.base}"
            slot = _slot(address, device, context)
            if slot is not None and context.granule is Granule.K64:
                # The tenth page of the window is QEMU's gDB page.
                text += f"; also {slot.text}"
            return DescribedAddress(AddressKind.GDB, text)
    if context.host is not None:
        for its in context.host.itses:
            if its.doorbell_page <= address < its.doorbell_page + _FRAME:
                text = f"hDB, the doorbell of the host's ITS {its.id}"
                return DescribedAddress(AddressKind.HDB, text)
    slot = _slot(address, device, context)
    if slot is not None:
        return slot
    for memory in () if context.guest is None else context.guest.memory:
        if memory.base <= address < memory.base + memory.size:
            last = Ipa(memory.base + memory.size - 1)
            text = f"RAM of {context.guest_name} ({memory.base}-{last})"
            return DescribedAddress(AddressKind.RAM, text)
    return None


def _slot(address: int, device: HostDevice | None, context: LogContext) -> DescribedAddress | None:
    window = context.window(device)
    page = context.granule or Granule.K4
    end = max(window.base + window.size, window.base + SLOTS * page)
    if not window.base <= address < end:
        return None
    number = (address - window.base) // page
    text = f"page {number} of the SW MSI window"
    if context.granule is None:
        text += " (in 4K pages)"
    its = context.its_of(device)
    if device is not None and its is not None:
        text += f", which the kernel maps for MSIs of {device.address} to ITS {its.id}"
        text += f" (hDB {its.doorbell})"
    if address <= SW_MSI_WINDOW.last or window.base != SW_MSI_WINDOW.base:
        return DescribedAddress(AddressKind.SLOT, text)
    return DescribedAddress(AddressKind.BEYOND_RMR, f"{text}, beyond the RMR ({SW_MSI_WINDOW})")


def _giova(address: int, device: HostDevice | None, context: LogContext) -> DescribedAddress | None:
    """Describe an address that a device's stage 1 maps to its gDB."""
    giovas: dict[PciAddress, int] = {}
    if context.guest is not None and context.xml is None:
        giovas = {guest_device.host: guest_device.giova for guest_device in context.guest.devices}
    for recorded in context.record.devices:
        if recorded.binding is not None and recorded.binding.giova is not None:
            giovas[recorded.host] = recorded.binding.giova
    page = address & ~0xFFF
    owners = [host for host, giova in giovas.items() if giova & ~0xFFF == page]
    if not owners:
        return None
    if device is not None and device.address in owners:
        text = "the gIOVA that the guest maps to the device's doorbell"
        return DescribedAddress(AddressKind.GIOVA, text, owner=device.address)
    text = f"the gIOVA of {owners[0]}"
    return DescribedAddress(AddressKind.OTHER_GIOVA, text, owner=owners[0])


def _doorbell_offset(device: HostDevice | None, context: LogContext) -> int:
    its = context.its_of(device)
    return _OFFSET if its is None else its.doorbell & 0xFFF
