"""Memory that the firmware reserves for root ports, for devices that are plugged in later.

An expander bus has the memory that the firmware assigned to its ports at startup, and no more; when
a port without a prefetchable window gets a device, Linux takes the BARs of the other devices there
away (docs/libvirt.md). libvirt has no element for the property of QEMU's pcie-root-port that
reserves a window, so the XML overrides the QEMU device of the controller:
https://libvirt.org/drvqemu.html#overriding-properties-of-qemu-devices. libvirt names the device of
the controller with index n ``pci.n`` (``src/qemu/qemu_alias.c`` qemuAssignDeviceControllerAlias).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lxml import etree

from vmm_msi.domxml import elements

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml

#: The property of QEMU's pcie-root-port (QEMU ``hw/pci-bridge/gen_pcie_root_port.c``).
PROPERTY = "pref64-reserve"

_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
#: The prefix of names in libvirt's QEMU namespace.
QEMU = f"{{{_NAMESPACE}}}"


def reserve(domain: DomainXml, ports: Iterable[int], size: int) -> None:
    """Reserve ``size`` bytes for each root port that has no override yet."""
    override = domain.root.find(f"{QEMU}override")
    known = {device.get("alias") for device in _devices(domain)}
    for port in ports:
        if _alias(port) in known:
            continue
        if override is None:
            override = etree.Element(f"{QEMU}override", nsmap={"qemu": _NAMESPACE})
            elements.insert_after(domain.root, domain.root[-1], override)
        value = {"name": PROPERTY, "type": "unsigned", "value": str(size)}
        frontend = elements.build(f"{QEMU}frontend", {}, elements.build(f"{QEMU}property", value))
        device = elements.build(f"{QEMU}device", {"alias": _alias(port)}, frontend)
        elements.insert_after(override, override[-1] if len(override) else None, device)


def forget(domain: DomainXml, ports: Iterable[int]) -> None:
    """Remove the overrides of root ports that were removed."""
    aliases = set(map(_alias, ports))
    for device in [*_devices(domain)]:
        parent = device.getparent()
        if device.get("alias") in aliases and parent is not None:
            elements.remove(device)
            if len(parent) == 0:
                elements.remove(parent)


def move(domain: DomainXml, moves: Mapping[int, int]) -> None:
    """Adapt the overrides to controllers that get other indexes."""
    names = {_alias(old): _alias(new) for old, new in moves.items()}
    for device in _devices(domain):
        alias = device.get("alias", "")
        device.set("alias", names.get(alias, alias))


def _devices(domain: DomainXml) -> Iterator[Element]:
    return domain.root.iterfind(f"{QEMU}override/{QEMU}device")


def _alias(port: int) -> str:
    return f"pci.{port}"
