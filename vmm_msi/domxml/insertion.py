"""Insert the controllers, vSMMUs and assigned devices of a plan, each where libvirt writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml import elements, iommufd_objects
from vmm_msi.domxml.libvirt_domain import ROOT_PORT
from vmm_msi.errors import DomainXmlError
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.buses import GuestBuses
    from vmm_msi.domxml.libvirt_domain import DomainXml, PciController
    from vmm_msi.domxml.support import XmlLayout

# The elements that libvirt writes after <hostdev> and after <iommu>
# (src/conf/domain_conf.c virDomainDefFormatInternalSetRootName).
_AFTER_IOMMU = ("vsock", "crypto", "pstore")
_AFTER_HOSTDEV = (
    "redirdev", "redirfilter", "hub", "watchdog", "memballoon", "rng", "nvram", "panic", "shmem",
    "memory", "iommu", *_AFTER_IOMMU,
)  # fmt: skip


def check_iommus(domain: DomainXml, layout: XmlLayout) -> None:
    """Refuse the combinations that libvirt refuses in ``src/conf/domain_validate.c``."""
    for iommu in domain.iommus():
        if iommu.model != "smmuv3":
            raise DomainXmlError(
                f"adding a vSMMU to {domain.name}: it has an <iommu model='{iommu.model}'>; "
                "only smmuv3 is compatible with it; remove that first"
            )
        if layout.pci_bus and iommu.pci_bus is None:
            raise DomainXmlError(
                f"adding a vSMMU to {domain.name}: it has an <iommu model='smmuv3'> without "
                "pciBus, which serves the whole machine; remove that (or detach the devices "
                "that were attached with it) first"
            )
        if not layout.pci_bus and iommu.pci_bus is not None:
            raise DomainXmlError(
                f"adding a vSMMU to {domain.name}: it has an <iommu> with pciBus, which this "
                "libvirt or QEMU does not support; use one <iommu model='smmuv3'/>"
            )


def add_root_port(domain: DomainXml, buses: GuestBuses, pxb: int) -> int:
    """Add a root port to an expander bus; return its index."""
    buses.take_bus(pxb)
    index = buses.take_index(pxb)
    slot = buses.take_slot(pxb)
    address = _guest_address(PciAddress(0, pxb, slot, 0))
    add_controller(domain, index, ROOT_PORT, address)
    return index


def add_controller(domain: DomainXml, index: int, model: str, child: Element) -> None:
    """Add a PCI controller with one child element."""
    attributes = {"type": "pci", "index": str(index), "model": model}
    controllers = domain.devices.findall("controller")
    previous = controllers[-1] if controllers else _before(domain, ("interface", *_AFTER_HOSTDEV))
    elements.insert_after(domain.devices, previous, elements.build("controller", attributes, child))


def add_iommu(domain: DomainXml, driver: Mapping[str, str]) -> None:
    """Add an ``<iommu model='smmuv3'>`` with the attributes of its ``<driver>``."""
    children = [elements.build("driver", driver)] if driver else []
    iommus = domain.iommus()
    previous = iommus[-1].element if iommus else _before(domain, _AFTER_IOMMU)
    elements.insert_after(
        domain.devices, previous, elements.build("iommu", {"model": "smmuv3"}, *children)
    )


def add_hostdev(
    domain: DomainXml,
    host: PciAddress,
    port: int,
    layout: XmlLayout,
    *,
    iommufd: bool,
    own: str | None = None,
) -> None:
    """Add a ``<hostdev>``.

    :param iommufd: with an element of its own for iommufd.
    :param own: id of the iommufd object in place of libvirt's.
    """
    managed = "yes" if layout.managed else "no"
    attributes = {"mode": "subsystem", "type": "pci", "managed": managed}
    source = elements.build("source", {}, elements.build("address", _address(host)))
    children = [source, _guest_address(PciAddress(0, port, 0, 0))]
    if iommufd:
        children.insert(0, elements.build("driver", {"iommufd": "yes"}))
    if own is not None:
        alias = {"name": iommufd_objects.alias_of(host)}
        children.insert(-1, elements.build("alias", alias))
        iommufd_objects.use(domain, host, own)
    hostdevs = domain.devices.findall("hostdev")
    previous = hostdevs[-1] if hostdevs else _before(domain, _AFTER_HOSTDEV)
    elements.insert_after(
        domain.devices, previous, elements.build("hostdev", attributes, *children)
    )


def remove_controller(domain: DomainXml, controller: PciController | None, model: str) -> None:
    """Remove a controller, unless it is missing or of another model.

    :raise DomainXmlError: when another element is plugged into it.
    """
    if controller is None or controller.index is None or controller.model != model:
        return
    other = next(domain.on_bus(controller.index), None)
    if other is not None:
        raise DomainXmlError(
            f"removing the {model} {controller.index} from {domain.name}: the <{other.tag!s}> on "
            f"line {other.sourceline} is plugged into it; give that another address first"
        )
    elements.remove(controller.element)


def _before(domain: DomainXml, following: tuple[str, ...]) -> Element | None:
    """Return the child of ``<devices>`` before the first element of ``following``."""
    first = next(domain.devices.iterchildren(*following), None)
    if first is not None:
        return first.getprevious()
    return domain.devices[-1] if len(domain.devices) else None


def _guest_address(address: PciAddress) -> Element:
    return elements.build("address", {"type": "pci", **_address(address)})


def _address(address: PciAddress) -> dict[str, str]:
    return {
        "domain": f"{address.segment:#06x}",
        "bus": f"{address.bus:#04x}",
        "slot": f"{address.device:#04x}",
        "function": f"{address.function:#x}",
    }
