"""Further iommufd objects of a guest, one for each vSMMU that gets a stage 2 of its own.

QEMU keeps a stage 2 for each iommufd object and physical SMMU (``hw/vfio/iommufd.c``
iommufd_cdev_autodomains_get takes the first HWPT of the object that fits). libvirt has one iommufd
object for all devices, so a further one is an ``-object`` on QEMU's command line, and the QEMU
device of each ``<hostdev>`` that uses it gets another value of the property ``iommufd``
(:mod:`vmm_msi.domxml.overrides`). Such a ``<hostdev>`` has an alias of its own, since the ones that
libvirt assigns move when another device is removed; libvirt keeps aliases that start with ``ua-``
(``src/conf/domain_conf.c`` virDomainDeviceAliasIsUserAlias).
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

from lxml import etree

from vmm_msi.domxml import elements, overrides
from vmm_msi.domxml.overrides import NAMESPACE, QEMU

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.types import PciAddress

_PREFIX = "vmm-msi-iommufd"


def free_id(taken: Collection[str]) -> str:
    """Return an id of a QEMU object that is not taken."""
    number = 1
    while f"{_PREFIX}{number}" in taken:
        number += 1
    return f"{_PREFIX}{number}"


def alias_of(host: PciAddress) -> str:
    """Return the alias of the ``<hostdev>`` for a host device: letters, digits and hyphens."""
    return f"ua-vmm-msi-{str(host).replace(':', '-').replace('.', '-')}"


def add(domain: DomainXml, name: str) -> None:
    """Add the iommufd object called ``name`` to QEMU's command line."""
    # QEMU reads the value of -object as JSON if it starts with a brace.
    value = json.dumps({"qom-type": "iommufd", "id": name}, separators=(",", ":"))
    words = [elements.build(f"{QEMU}arg", {"value": word}) for word in ("-object", value)]
    commandline = domain.root.find(f"{QEMU}commandline")
    if commandline is not None:
        for word in words:
            last = commandline[-1] if len(commandline) else None
            elements.insert_after(commandline, last, word)
        return
    commandline = etree.Element(f"{QEMU}commandline", nsmap={"qemu": NAMESPACE})
    commandline.extend(words)
    override = domain.root.find(f"{QEMU}override")
    before = domain.root[-1] if override is None else override.getprevious()
    elements.insert_after(domain.root, before, commandline)


def use(domain: DomainXml, host: PciAddress, name: str) -> None:
    """Have the QEMU device of a ``<hostdev>`` use the iommufd object called ``name``."""
    overrides.add(domain, alias_of(host), "iommufd", "string", name)


def remove(domain: DomainXml, name: str) -> None:
    """Remove an iommufd object from QEMU's command line."""
    for option, value in [*_objects(domain)]:
        if _id(value) == name:
            elements.remove_with_parent(value)
            elements.remove_with_parent(option)


def stop_using(domain: DomainXml, host: PciAddress) -> None:
    """Remove the override of a ``<hostdev>`` that was removed."""
    overrides.remove(domain, {alias_of(host)})


def elements_by_id(domain: DomainXml) -> dict[str, Element]:
    """Return the iommufd objects on QEMU's command line: the element of each by its id."""
    return {name: value for _option, value in _objects(domain) if (name := _id(value)) is not None}


def used_by(domain: DomainXml, host: PciAddress) -> str | None:
    """Return the iommufd object that vmm-msi's override gives a ``<hostdev>``; None for none."""
    for device in overrides.devices(domain):
        if device.get("alias") != alias_of(host):
            continue
        for element in device.iterfind(f"{QEMU}frontend/{QEMU}property"):
            if element.get("name") == "iommufd":
                return element.get("value")
    return None


def _objects(domain: DomainXml) -> Iterator[tuple[Element, Element]]:
    """Yield the ``-object`` words that are iommufd objects in JSON, each with its value."""
    words = [*domain.root.iterfind(f"{QEMU}commandline/{QEMU}arg")]
    for option, value in pairwise(words):
        if option.get("value") == "-object" and _id(value) is not None:
            yield option, value


def _id(value: Element) -> str | None:
    try:
        properties = json.loads(value.get("value", ""))
    except (ValueError, RecursionError):
        return None
    if not isinstance(properties, dict) or properties.get("qom-type") != "iommufd":
        return None
    name = properties.get("id")
    return name if isinstance(name, str) else None
