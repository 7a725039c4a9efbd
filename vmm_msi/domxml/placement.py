"""Map the devices of a guest to the vSMMUs that translate for them, as QEMU does."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, PCI_ROOT, ROOT_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml, IommuDevice, PciController, PciHostdev

# Properties that default to "auto": QEMU takes their values from the first assigned device and
# exits if there is no such device (hw/arm/smmuv3-accel.c smmuv3_accel_machine_done).
_AUTO = ("ats", "ril", "ssidsize")


class EmptyVsmmu(NamedTuple):
    """An accelerated vSMMU without an assigned device behind it, with which QEMU would exit.

    :param auto: its properties whose values QEMU would need from a device.
    """

    iommu: IommuDevice
    auto: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"no assigned device is behind the accelerated vSMMU of controller "
            f"{self.iommu.pci_bus}, from which QEMU would take {', '.join(self.auto)}"
        )


def is_accelerated(iommu: IommuDevice) -> bool:
    """Return whether a vSMMU uses the stage 1 of a physical SMMU."""
    return iommu.model == "smmuv3" and iommu.driver.get("accel") == "on"


class Placement:
    """The buses of one libvirt domain and the devices that are plugged into them.

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
        """Return the index of the root bus above the bus of a controller.

        :return: None if the controllers in the XML do not lead to a root bus.
        """
        seen: set[int] = set()
        index: int | None = bus
        while index is not None and index not in self._roots and index not in seen:
            seen.add(index)
            index = self._above.get(index)
        return index if index in self._roots else None

    def is_root(self, index: int) -> bool:
        """Return whether the bus of a controller is a root bus, which can have a vSMMU."""
        return index in self._roots

    def vsmmu_of(self, element: Element) -> IommuDevice | None:
        """Return the vSMMU that translates for a device; None also if it has no address."""
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
        """Yield the devices behind a vSMMU except assigned devices, buses and ports."""
        devices = self.domain.root.find("devices")
        mine = {hostdev.element for hostdev in self.domain.hostdevs()}
        for element in () if devices is None else devices.iterchildren("*"):
            if element in mine or (element.tag == "controller" and element.get("type") == "pci"):
                continue
            if self.domain.guest_address(element) is not None and self.vsmmu_of(element) is iommu:
                yield element

    def empty_vsmmus(self) -> Iterator[EmptyVsmmu]:
        """Yield the accelerated vSMMUs with which QEMU would exit."""
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
