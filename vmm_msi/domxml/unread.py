"""Find parts of domain XML that libvirt does not read and silently drops if it does not validate.

Covers the elements of assignment behind a vSMMU as libvirt 12.8 reads them
(``src/conf/domain_conf.c``); every kind of entry was tried on its QEMU driver. Parts that libvirt
refuses, such as an attribute of another IOMMU's ``<driver>``, are not reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, ROOT_PORT
from vmm_msi.domxml.libvirt_values import ATTRIBUTES
from vmm_msi.domxml.overrides import QEMU

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml

_QEMU_ELEMENTS = {"commandline", "override"}


class Unread(NamedTuple):
    """A part of domain XML that libvirt does not read.

    :param element: the element, or the one with the attribute.
    :param attribute: name of the attribute; None for the whole element.
    :param intended: the similar part that libvirt does read; None if nothing is similar.
    """

    element: Element
    attribute: str | None
    intended: str | None

    def __str__(self) -> str:
        if self.attribute is None:
            return f"<{self.element.tag!s}>"
        return f"{self.attribute}='{self.element.get(self.attribute)}'"


def unread(domain: DomainXml) -> tuple[Unread, ...]:
    """Return the parts that libvirt would drop from a definition that it does not validate."""
    root = domain.root
    return (*_top(root), *_devices(root), *_features(root))


def _top(root: Element) -> Iterator[Unread]:
    for child in root.iterchildren("*"):
        namespace, _, name = str(child.tag).rpartition("}")
        if child.tag == "iommufd":
            yield from _attributes(child, ATTRIBUTES["iommufd"])
        elif not namespace and _normalised(name) == "iommufd":
            yield Unread(child, None, "<iommufd>")
        elif name in _QEMU_ELEMENTS and f"{namespace}}}" != QEMU:
            yield Unread(child, None, f"<qemu:{name}> with xmlns:qemu='{QEMU.strip('{}')}'")
    for parent in ("devices", "os", "memoryBacking"):
        for child in _grandchildren(root, parent, "iommufd"):
            yield Unread(child, None, "<iommufd> below <domain>")


def _devices(root: Element) -> Iterator[Unread]:
    for device in _grandchildren(root, "devices", "*"):
        tag = str(device.tag)
        if tag == "iommu" and device.get("model") == "smmuv3":
            yield from _iommu(device)
        elif tag == "hostdev" and device.get("type") == "pci":
            yield from _attributes(device, ATTRIBUTES["devices/hostdev"])
            yield from _children(device, {"driver", "source", "address"})
            driver = next(device.iterchildren("driver"), None)
            if driver is not None:
                yield from _attributes(driver, ATTRIBUTES["devices/hostdev/driver"])
        elif tag == "controller" and device.get("model") in {EXPANDER_BUS, ROOT_PORT}:
            yield from _children(device, {"target", "address"})
            for target in device.iterchildren("target"):
                yield from _attributes(target, ATTRIBUTES["devices/controller/target"])
                yield from _children(target, {"node"})
        elif tag not in {"iommu", "hostdev", "controller"}:
            yield from _misspelled(device, {"iommu", "hostdev", "controller"})


def _iommu(device: Element) -> Iterator[Unread]:
    yield from _attributes(device, ATTRIBUTES["devices/iommu"])
    yield from _children(device, {"driver"})
    for position, driver in enumerate(device.iterchildren("driver")):
        if position:
            yield Unread(driver, None, "one <driver> with all attributes")
        else:
            yield from _attributes(driver, ATTRIBUTES["devices/iommu/driver"])


def _features(root: Element) -> Iterator[Unread]:
    for gic in _grandchildren(root, "features", "gic"):
        yield from _attributes(gic, {"version"})


def _grandchildren(root: Element, parent: str, tag: str) -> Iterator[Element]:
    """Yield the children of the children of ``root``; a path in ``iterfind`` takes longer."""
    for child in root.iterchildren(parent):
        yield from child.iterchildren(tag)


def _attributes(element: Element, read: Collection[str]) -> Iterator[Unread]:
    for key in element.keys():  # noqa: SIM118, an element's items are its children
        name = str(key)
        if name not in read and "}" not in name:
            yield Unread(element, name, _similar(name, read))


def _children(element: Element, read: Collection[str]) -> Iterator[Unread]:
    for child in element.iterchildren("*"):
        yield from _misspelled(child, read)


def _misspelled(element: Element, read: Collection[str]) -> Iterator[Unread]:
    name = str(element.tag)
    similar = None if name in read else _similar(name, read)
    if similar is not None:
        yield Unread(element, None, f"<{similar}>")


def _similar(name: str, read: Collection[str]) -> str | None:
    wanted = _normalised(name)
    return min((known for known in read if _normalised(known) == wanted), default=None)


def _normalised(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
