"""The libvirt calls of one attach and one detach alone, the peer of vmm-msi's commands."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import libvirt  # noqa: TID251 - the calls alone are the peer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.types import PciAddress

_SECURE = libvirt.VIR_DOMAIN_XML_SECURE
_INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE


def _state(raw: libvirt.virConnect, guest: str) -> None:
    domain = raw.lookupByName(guest)
    domain.XMLDesc(_INACTIVE | _SECURE)
    domain.isActive()
    domain.isPersistent()
    domain.hasManagedSaveImage(0)
    with contextlib.suppress(libvirt.libvirtError):  # not every driver has snapshots
        domain.snapshotNum(0)


def _define(raw: libvirt.virConnect, definition: str) -> None:
    defined = raw.defineXMLFlags(definition, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    defined.XMLDesc(_INACTIVE | _SECURE)


def bare_attach(
    raw: libvirt.virConnect, guest: str, devices: Iterable[PciAddress], definition: str
) -> None:
    """Make the libvirt calls of attaching ``devices`` to a guest that is shut off.

    The host's name is left out, since a connection reads it only once.
    """
    if raw.getType() == "QEMU":
        raw.getVersion()
    raw.getLibVersion()
    _state(raw, guest)
    for device in devices:
        with contextlib.suppress(libvirt.libvirtError):  # the lab's daemon has no node devices
            name = f"pci_{device.segment:04x}_{device.bus:02x}_{device.device:02x}_0"
            raw.nodeDeviceLookupByName(name).XMLDesc(0)
    for domain in raw.listAllDomains(0):
        domain.ID()
        domain.XMLDesc(_INACTIVE)
    _define(raw, definition)


def bare_detach(raw: libvirt.virConnect, guest: str, definition: str) -> None:
    """Make the libvirt calls of detaching from a guest that is shut off."""
    _state(raw, guest)
    _define(raw, definition)
