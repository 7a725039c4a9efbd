"""Memory that the firmware reserves for root ports, for devices that are plugged in later.

An expander bus has the memory that the firmware assigned to its ports at startup, and no more; when
a port without a prefetchable window gets a device, Linux takes the BARs of the other devices there
away (docs/libvirt.md). libvirt has no element for the property of QEMU's pcie-root-port that
reserves a window, so the XML overrides the QEMU device of the controller
(:mod:`vmm_msi.domxml.overrides`). libvirt names the device of the controller with index n ``pci.n``
(``src/qemu/qemu_alias.c`` qemuAssignDeviceControllerAlias).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml import overrides

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmm_msi.domxml.libvirt_domain import DomainXml

#: The property of QEMU's pcie-root-port (QEMU ``hw/pci-bridge/gen_pcie_root_port.c``).
PROPERTY = "pref64-reserve"


def reserve(domain: DomainXml, ports: Iterable[int], size: int) -> None:
    """Reserve ``size`` bytes for each root port that has no override yet."""
    known = {device.get("alias") for device in overrides.devices(domain)}
    for port in ports:
        if _alias(port) not in known:
            overrides.add(domain, _alias(port), PROPERTY, "unsigned", str(size))


def forget(domain: DomainXml, ports: Iterable[int]) -> None:
    """Remove the overrides of root ports that were removed."""
    overrides.remove(domain, set(map(_alias, ports)))


def move(domain: DomainXml, moves: Mapping[int, int]) -> None:
    """Adapt the overrides to controllers that get other indexes."""
    names = {_alias(old): _alias(new) for old, new in moves.items()}
    for device in overrides.devices(domain):
        alias = device.get("alias", "")
        device.set("alias", names.get(alias, alias))


def _alias(port: int) -> str:
    return f"pci.{port}"
