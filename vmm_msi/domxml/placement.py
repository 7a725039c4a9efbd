"""Map the devices of a guest to the vSMMUs that translate for them, as QEMU does."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, PCI_ROOT, ROOT_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
    """Return whether a vSMMU uses the stage 1 of a physical SMMU.

    A vSMMU of the whole machine never does: libvirt 12.8 accepts accel='on' without pciBus, and
    passes neither accel nor the properties that depend on it to QEMU.
    """
    return (
        iommu.model == "smmuv3" and iommu.driver.get("accel") == "on" and iommu.pci_bus is not None
    )


class Placement:
    """The buses of one libvirt domain and the devices that are plugged into them.

    A vSMMU with a ``pciBus`` serves the devices below that root bus, one without those of the
    whole machine (QEMU ``hw/arm/virt.c`` iommu=smmuv3). libvirt 12.8 writes the latter only for the
    first ``<iommu>`` of the definition.

    The domain must not be edited while this object is in use.

    :ivar vsmmus: the vSMMUs that QEMU gets.
    :ivar ignored: machine-wide vSMMUs that QEMU does not get, because another ``<iommu>`` is first.
    :raise DomainXmlError: when a number or an address cannot be read.
    """

    def __init__(self, domain: DomainXml) -> None:
        self.domain = domain
        self.controllers = domain.controllers()
        self.iommus = domain.iommus()
        self.vsmmus = tuple(
            iommu
            for position, iommu in enumerate(self.iommus)
            if iommu.model == "smmuv3" and (iommu.pci_bus is not None or not position)
        )
        self.ignored = tuple(
            iommu for iommu in self.iommus[1:] if iommu.model == "smmuv3" and iommu.pci_bus is None
        )
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
        self._vsmmu_on = {
            self.bus_of(iommu): iommu
            for iommu in reversed(self.vsmmus)
            if iommu.pci_bus is None or self.bus_of(iommu) is not None
        }

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

    def bus_of(self, iommu: IommuDevice) -> int | None:
        """Return the index of the controller of a vSMMU; None for the whole machine or no index."""
        bus = iommu.pci_bus
        return int(bus) if bus is not None and bus.isascii() and bus.isdecimal() else None

    def is_root(self, index: int) -> bool:
        """Return whether the bus of a controller is a root bus, which can have a vSMMU."""
        return index in self._roots

    def vsmmu_of(self, element: Element) -> IommuDevice | None:
        """Return the vSMMU that translates for a device; None also if it has no address."""
        address = self.domain.guest_address(element)
        root = None if address is None else self.root_bus(address.bus)
        own = None if root is None else self._vsmmu_on.get(root)
        return own or self._vsmmu_on.get(None)

    @cached_property
    def hostdevs(self) -> tuple[PciHostdev, ...]:
        """The assigned PCI devices in document order."""
        return self.domain.hostdevs()

    @cached_property
    def _assigned(self) -> Mapping[int, Sequence[PciHostdev]]:
        """The assigned devices behind each vSMMU, by the position of the vSMMU in ``vsmmus``."""
        assigned: dict[int, list[PciHostdev]] = {}
        for hostdev in self.hostdevs:
            iommu = self.vsmmu_of(hostdev.element)
            if iommu is not None:
                assigned.setdefault(self._position(iommu), []).append(hostdev)
        return assigned

    @cached_property
    def _emulated(self) -> Mapping[int, Sequence[Element]]:
        """The emulated devices behind each vSMMU, by the position of the vSMMU in ``vsmmus``."""
        devices = self.domain.root.find("devices")
        mine = {hostdev.element for hostdev in self.hostdevs}
        emulated: dict[int, list[Element]] = {}
        for element in () if devices is None else devices.iterchildren("*"):
            if element in mine or (element.tag == "controller" and element.get("type") == "pci"):
                continue
            if self.domain.guest_address(element) is None:
                continue
            iommu = self.vsmmu_of(element)
            if iommu is not None:
                emulated.setdefault(self._position(iommu), []).append(element)
        return emulated

    def _position(self, iommu: IommuDevice) -> int:
        return next(position for position, other in enumerate(self.vsmmus) if other is iommu)

    def behind(self, iommu: IommuDevice) -> Sequence[PciHostdev]:
        """Return the assigned devices that a vSMMU translates for."""
        return self._assigned.get(self._position(iommu), ())

    def emulated_behind(self, iommu: IommuDevice) -> Sequence[Element]:
        """Return the devices behind a vSMMU except assigned devices, buses and ports."""
        return self._emulated.get(self._position(iommu), ())

    def empty_vsmmus(self) -> Iterator[EmptyVsmmu]:
        """Yield the accelerated vSMMUs with which QEMU would exit."""
        for iommu in self.vsmmus:
            auto = tuple(name for name in _AUTO if iommu.driver.get(name, "auto") == "auto")
            if is_accelerated(iommu) and auto and not self.behind(iommu):
                yield EmptyVsmmu(iommu, auto)

    def free_ports(self, iommu: IommuDevice) -> Iterator[PciController]:
        """Yield the root ports of a vSMMU that a device can be plugged into."""
        for port in self.controllers:
            if port.model != ROOT_PORT or port.index in self._taken:
                continue
            if self.vsmmu_of(port.element) is iommu:
                yield port

    @cached_property
    def _taken(self) -> set[int]:
        """The indexes of the controllers that have a device on their bus."""
        return {
            address.bus
            for element in self.domain.devices.iterchildren("*")
            if (address := self.domain.guest_address(element)) is not None
        }
