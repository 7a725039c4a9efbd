"""Memory that QEMU's root ports have the firmware reserve, for devices that are plugged in later.

Behind an expander bus there is the memory that the firmware gave to the ports at the start, and no
more; Linux takes the BARs of the other devices there away when a port without a prefetchable window
gets a device (docs/libvirt.md). libvirt has no element for the property of QEMU's pcie-root-port
that reserves one, so it is written as an override of the device that libvirt makes of a controller:
https://libvirt.org/drvqemu.html#overriding-properties-of-qemu-devices. libvirt calls the device of
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
#: The namespace of what is QEMU's own, in front of a name.
QEMU = f"{{{_NAMESPACE}}}"


def reserve(domain: DomainXml, ports: Iterable[int], size: int) -> None:
    """Have ``size`` bytes reserved for each root port, unless something is said of that port."""
    override = domain.root.find(f"{QEMU}override")
    known = {device.get("alias") for device in _devices(domain)}
    for port in ports:
        if _alias(port) in known:
            continue
        if override is None:
            override = etree.Element(f"{QEMU}override", nsmap={"qemu": _NAMESPACE})
            elements.put_after(domain.root, domain.root[-1], override)
        value = {"name": PROPERTY, "type": "unsigned", "value": str(size)}
        frontend = elements.build(f"{QEMU}frontend", {}, elements.build(f"{QEMU}property", value))
        device = elements.build(f"{QEMU}device", {"alias": _alias(port)}, frontend)
        elements.put_after(override, override[-1] if len(override) else None, device)


def forget(domain: DomainXml, ports: Iterable[int]) -> None:
    """Take out what is said of root ports that are gone."""
    aliases = set(map(_alias, ports))
    for device in [*_devices(domain)]:
        parent = device.getparent()
        if device.get("alias") in aliases and parent is not None:
            elements.take_out(device)
            if len(parent) == 0:
                elements.take_out(parent)


def move(domain: DomainXml, moves: Mapping[int, int]) -> None:
    """Follow controllers that get other indexes."""
    names = {_alias(old): _alias(new) for old, new in moves.items()}
    for device in _devices(domain):
        alias = device.get("alias", "")
        device.set("alias", names.get(alias, alias))


def _devices(domain: DomainXml) -> Iterator[Element]:
    return domain.root.iterfind(f"{QEMU}override/{QEMU}device")


def _alias(port: int) -> str:
    return f"pci.{port}"
