"""Properties of QEMU devices that a definition sets in ``<qemu:override>``.

https://libvirt.org/drvqemu.html#overriding-properties-of-qemu-devices: for what libvirt has no
element. The domain is marked as tainted (``custom-device``), and libvirt applies them at startup
only, not to a device that is plugged in (``src/qemu/qemu_command.c``
qemuBuildDeviceCommandlineHandleOverrides).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lxml import etree

from vmm_msi.domxml import elements

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml

#: libvirt's QEMU namespace, and the prefix of names in it.
NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
QEMU = f"{{{NAMESPACE}}}"


def add(domain: DomainXml, alias: str, name: str, kind: str, value: str) -> None:
    """Set a property of the QEMU device with an alias.

    :param kind: its type in libvirt's terms, such as ``unsigned`` or ``string``.
    """
    properties = {"name": name, "type": kind, "value": value}
    frontend = elements.build(f"{QEMU}frontend", {}, elements.build(f"{QEMU}property", properties))
    device = elements.build(f"{QEMU}device", {"alias": alias}, frontend)
    override = domain.root.find(f"{QEMU}override")
    if override is None:
        override = etree.Element(f"{QEMU}override", nsmap={"qemu": NAMESPACE})
        override.append(device)
        elements.insert_after(domain.root, domain.root[-1], override)
    else:
        elements.insert_after(override, override[-1] if len(override) else None, device)


def remove(domain: DomainXml, aliases: Collection[str]) -> None:
    """Remove the overrides of QEMU devices."""
    for device in [*devices(domain)]:
        if device.get("alias") in aliases:
            elements.remove_with_parent(device)


def devices(domain: DomainXml) -> Iterator[Element]:
    """Yield the elements of overridden QEMU devices."""
    return domain.root.iterfind(f"{QEMU}override/{QEMU}device")
