"""A guest as strategies see it: its domain XML and the conventions of Linux in it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.types import (
    BindOrder,
    Granule,
    GuestDevice,
    GuestDomain,
    Ipa,
    MemoryRange,
    PciAddress,
    Stage1,
    Vits,
)
from vmm_msi.types.guest import FIRST_GIOVA, VIRT_ITS, own_stage1

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.domxml.libvirt_domain import DomainXml

#: Its doorbell page (gDB), known by the board alone.
VIRT_DOORBELL = Vits(0, VIRT_ITS).gdb
#: Base of RAM of QEMU's virt board (the same table, VIRT_MEM).
VIRT_RAM = Ipa(0x4000_0000)
_MIB = 1 << 20


def guest_from_xml(
    domain: DomainXml, also: Iterable[PciAddress] = (), order: BindOrder = BindOrder.INTERLEAVED
) -> GuestDomain:
    """Return the guest that ``domain`` describes.

    Each assigned PCI device has a stage 1 of its own with 4 KiB pages, takes its MSIs from the one
    vITS of QEMU's virt board and maps its doorbell at :data:`FIRST_GIOVA`. A guest with ACPI
    honours RMR nodes.

    :param also: host addresses of further devices.
    :raise DomainXmlError: when the memory size or an address cannot be read.
    """
    return guest_of([*(hostdev.host for hostdev in domain.assigned()), *also], domain, order)


def guest_of(
    hosts: Iterable[PciAddress], domain: DomainXml, order: BindOrder = BindOrder.INTERLEAVED
) -> GuestDomain:
    """Return the guest that ``domain`` describes, with the devices at ``hosts`` alone.

    :raise DomainXmlError: when the memory size cannot be read.
    """
    guest = virt_guest(domain.name, hosts, domain.memory)
    return replace(guest, order=order, honours_rmr=domain.acpi)


def virt_guest(name: str, hosts: Iterable[PciAddress], memory: int = 1 << 30) -> GuestDomain:
    """Return a guest on QEMU's virt board with the devices at ``hosts``, as Linux uses them.

    :param memory: its RAM in bytes, rounded up to MiB as libvirt's QEMU driver rounds it
        (``src/qemu/qemu_domain.c`` qemuDomainAlignMemorySizes).
    """
    size = -(-memory // _MIB) * _MIB
    unique = dict.fromkeys(hosts)
    return GuestDomain(
        name=name,
        vits=(Vits(0, VIRT_ITS),),
        stage1=tuple(Stage1(own_stage1(host), Granule.K4) for host in unique),
        devices=tuple(GuestDevice(host, own_stage1(host), 0, FIRST_GIOVA) for host in unique),
        memory=(MemoryRange(VIRT_RAM, size),),
    )
