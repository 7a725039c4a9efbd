"""Map the devices of a guest to the vSMMUs that translate for them, as QEMU does."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, PCI_ROOT, ROOT_PORT, IommuDevice
from vmm_msi.domxml.qemu_arguments import qemu_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml, PciController, PciHostdev

# Properties that default to "auto": QEMU takes their values from the first assigned device and
# exits if there is no such device (hw/arm/smmuv3-accel.c smmuv3_accel_machine_done).
_AUTO = ("ats", "ril", "ssidsize")
# Further words for a switch on QEMU's command line (QEMU qapi/qapi-util.c qapi_bool_parse).
_SWITCH = {"yes": "on", "true": "on", "y": "on", "no": "off", "false": "off", "n": "off"}


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

    Devices on QEMU's command line are included. A bus is named by the index of its controller, or
    by QEMU's name of it if libvirt did not add it.

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
        self.arguments = qemu_arguments(domain.root)
        self._name_of = {_qemu_name(c): str(c.index) for c in self.controllers} | {"pcie.0": "0"}
        self._devices = {device.element: device for device in self.arguments.devices}
        listed = tuple(
            iommu
            for position, iommu in enumerate(self.iommus)
            if iommu.model == "smmuv3" and (iommu.pci_bus is not None or not position)
        )
        self.ignored = tuple(
            iommu for iommu in self.iommus[1:] if iommu.model == "smmuv3" and iommu.pci_bus is None
        )
        self.vsmmus = (*listed, *self._vsmmus_on_command_line())
        self._root_above: dict[str, str | None] = {}
        self._roots = {
            str(controller.index)
            for controller in self.controllers
            if controller.model in {PCI_ROOT, EXPANDER_BUS}
        } | {"0"}
        self._above = {
            str(controller.index): str(controller.address.bus)
            for controller in self.controllers
            if controller.address is not None and str(controller.index) not in self._roots
        }
        for device in self.arguments.devices:
            if device.id is not None and device.is_expander_bus:
                self._roots.add(device.id)
            elif device.id is not None and not device.is_endpoint:
                self._above.setdefault(device.id, self.bus_named(device.bus))
        self._vsmmu_on = {
            self.bus_of(iommu): iommu
            for iommu in reversed(self.vsmmus)
            if iommu.pci_bus is None or self.bus_of(iommu) is not None
        }

    def bus_named(self, qemu_name: str) -> str:
        """Return the bus that QEMU calls so."""
        return self._name_of.get(qemu_name, qemu_name)

    def _vsmmus_on_command_line(self) -> Iterator[IommuDevice]:
        for device in filter(lambda device: device.is_vsmmu, self.arguments.devices):
            properties = {name: _SWITCH.get(text, text) for name, text in device.properties.items()}
            bus = self.bus_named(properties.get("primary-bus", ""))
            yield IommuDevice("smmuv3", {**properties, "pciBus": bus}, device.element)
        element = self.arguments.machine_element
        if element is not None and self.arguments.machine_iommu == "smmuv3":
            yield IommuDevice("smmuv3", {}, element)

    def root_bus(self, bus: str) -> str | None:
        """Return the root bus above a bus.

        :return: None if the buses in the XML do not lead to a root bus.
        """
        seen: dict[str, None] = {}
        name: str | None = bus
        while name is not None and name not in self._roots and name not in seen:
            if name in self._root_above:
                name = self._root_above[name]
                break
            seen[name] = None
            name = self._above.get(name)
        root = name if name in self._roots else None
        self._root_above.update(dict.fromkeys(seen, root))
        return root

    def bus_of(self, iommu: IommuDevice) -> str | None:
        """Return the bus of a vSMMU; None for the whole machine."""
        bus = iommu.pci_bus
        # libvirt accepts leading zeros.
        return bus.lstrip("0") or "0" if bus is not None and bus.isdecimal() else bus

    def is_root(self, bus: str) -> bool:
        """Return whether a bus is a root bus, which can have a vSMMU."""
        return bus in self._roots

    def vsmmu_of(self, element: Element) -> IommuDevice | None:
        """Return the vSMMU that translates for a device; None also if it has no address."""
        root = self._root_of(element)
        own = None if root is None else self._vsmmu_on.get(root)
        return own or self._vsmmu_on.get(None)

    def _root_of(self, element: Element) -> str | None:
        """Return the root bus above a device; None also if it has no address."""
        device = self._devices.get(element)
        if device is not None:
            return self.root_bus(self.bus_named(device.bus))
        address = self.domain.guest_address(element)
        return None if address is None else self.root_bus(str(address.bus))

    @cached_property
    def hostdevs(self) -> tuple[PciHostdev, ...]:
        """The assigned PCI devices in document order, those on QEMU's command line last."""
        return self.domain.assigned()

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
        for device in self.arguments.devices:
            if device.is_assigned or not device.is_endpoint or "bus" not in device.properties:
                continue
            # Buses of other kinds, such as scsi.0, lead to no root bus.
            iommu = self.vsmmu_of(device.element) if self._root_of(device.element) else None
            if iommu is not None:
                emulated.setdefault(self._position(iommu), []).append(device.element)
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
        """Yield the accelerated vSMMUs with which QEMU would exit.

        None if words of QEMU's command line were not examined, which may add devices.
        """
        if self.arguments.unexamined:
            return
        for iommu in self.vsmmus:
            auto = tuple(name for name in _AUTO if iommu.driver.get(name, "auto") == "auto")
            if is_accelerated(iommu) and auto and not self.behind(iommu):
                yield EmptyVsmmu(iommu, auto)

    def free_ports(self, iommu: IommuDevice) -> Iterator[PciController]:
        """Yield the root ports of a vSMMU that a device can be plugged into."""
        for port in self.controllers:
            if port.model != ROOT_PORT or str(port.index) in self._taken:
                continue
            if self.vsmmu_of(port.element) is iommu:
                yield port

    @cached_property
    def _taken(self) -> set[str]:
        """The buses that have a device."""
        on_command_line = {self.bus_named(device.bus) for device in self.arguments.devices}
        return on_command_line | {
            str(address.bus)
            for element in self.domain.devices.iterchildren("*")
            if (address := self.domain.guest_address(element)) is not None
        }


def _qemu_name(controller: PciController) -> str:
    """Return QEMU's name of a controller: its alias (``src/qemu/qemu_alias.c``)."""
    alias = controller.element.find("alias")
    name = None if alias is None else alias.get("name")
    return name or f"pci.{controller.index}"
