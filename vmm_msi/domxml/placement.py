"""Which vSMMU of a guest translates for which of its devices, as QEMU takes it from the XML."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, PCI_ROOT, ROOT_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml, IommuDevice, PciController, PciHostdev

# QEMU takes from the first assigned device what is "auto", which is the default of each, and ends
# when there is none: hw/arm/smmuv3-accel.c smmuv3_accel_machine_done.
_AUTO = ("ats", "ril", "ssidsize")


class EmptyVsmmu(NamedTuple):
    """An accelerated vSMMU with no assigned device behind it, for which QEMU would end.

    :param auto: its properties that QEMU would have to take from a device.
    """

    iommu: IommuDevice
    auto: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"no assigned device is behind the accelerated vSMMU of controller "
            f"{self.iommu.pci_bus}, and QEMU would have to take {', '.join(self.auto)} from one"
        )


def is_accelerated(iommu: IommuDevice) -> bool:
    """Tell whether it uses the stage 1 of a physical SMMU."""
    return iommu.model == "smmuv3" and iommu.driver.get("accel") == "on"


class Placement:
    """Where the devices of one domain are plugged in; read once.

    A vSMMU with a ``pciBus`` serves the devices below that root bus, one without those of the
    whole machine (QEMU ``hw/arm/virt.c`` iommu=smmuv3).

    :raise DomainXmlError: when a number or an address cannot be read.
    """

    def __init__(self, domain: DomainXml) -> None:
        self.domain = domain
        self.controllers = domain.controllers()
        self.vsmmus = tuple(iommu for iommu in domain.iommus() if iommu.model == "smmuv3")
        self._roots = {
            controller.index
            for controller in self.controllers
            if controller.model in {PCI_ROOT, EXPANDER_BUS}
        } | {0}
        self._above = {
            controller.index: controller.address.bus
            for controller in self.controllers
            if controller.address is not None and controller.index not in self._roots
        }
        self._vsmmu_on = {iommu.pci_bus: iommu for iommu in reversed(self.vsmmus)}

    def root_bus(self, bus: int) -> int | None:
        """Return the index of the root bus that the bus of a controller is below of.

        :return: None where the controllers in the XML do not lead to one.
        """
        seen: set[int] = set()
        found: int | None = bus
        while found is not None and found not in self._roots and found not in seen:
            seen.add(found)
            found = self._above.get(found)
        return found if found in self._roots else None

    def is_root(self, index: int) -> bool:
        """Tell whether a vSMMU can be on the bus of a controller."""
        return index in self._roots

    def vsmmu_of(self, element: Element) -> IommuDevice | None:
        """Return the vSMMU that translates for a device; None also where it has no address."""
        address = self.domain.guest_address(element)
        root = None if address is None else self.root_bus(address.bus)
        own = None if root is None else self._vsmmu_on.get(str(root))
        return own or self._vsmmu_on.get(None)

    def behind(self, iommu: IommuDevice) -> Iterator[PciHostdev]:
        """Yield the assigned devices that a vSMMU translates for."""
        for hostdev in self.domain.hostdevs():
            if self.vsmmu_of(hostdev.element) is iommu:
                yield hostdev

    def emulated_behind(self, iommu: IommuDevice) -> Iterator[Element]:
        """Yield the devices behind a vSMMU that are neither assigned nor a bus or a port."""
        devices = self.domain.root.find("devices")
        mine = {hostdev.element for hostdev in self.domain.hostdevs()}
        for element in () if devices is None else devices.iterchildren("*"):
            if element in mine or (element.tag == "controller" and element.get("type") == "pci"):
                continue
            if self.domain.guest_address(element) is not None and self.vsmmu_of(element) is iommu:
                yield element

    def empty_vsmmus(self) -> Iterator[EmptyVsmmu]:
        """Yield the accelerated vSMMUs that QEMU would end for."""
        used = [self.vsmmu_of(hostdev.element) for hostdev in self.domain.hostdevs()]
        for iommu in self.vsmmus:
            auto = tuple(name for name in _AUTO if iommu.driver.get(name, "auto") == "auto")
            if is_accelerated(iommu) and iommu.pci_bus is not None and auto and iommu not in used:
                yield EmptyVsmmu(iommu, auto)

    def free_ports(self, iommu: IommuDevice) -> Iterator[PciController]:
        """Yield the root ports of a vSMMU that a device can be plugged into."""
        taken = {
            address.bus
            for element in self.domain.devices.iterchildren("*")
            if (address := self.domain.guest_address(element)) is not None
        }
        for port in self.controllers:
            if port.model != ROOT_PORT or port.index in taken:
                continue
            if self.vsmmu_of(port.element) is iommu:
                yield port
