"""Read the PCI assignment and the vSMMUs of a guest from its libvirt domain XML.

Follows https://libvirt.org/formatdomain.html; numbers and addresses are parsed as libvirt does
(``src/conf/domain_conf.c``, ``src/conf/device_conf.c`` virPCIDeviceAddressParseXML).
"""

from __future__ import annotations

import copy
import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm_msi.domxml import parse as _parse
from vmm_msi.domxml.original import Original
from vmm_msi.domxml.qemu_arguments import overridden_hostdevs, qemu_arguments
from vmm_msi.domxml.support import GuestKind
from vmm_msi.errors import DomainXmlError
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import EllipsisType

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.domxml.qemu_arguments import QemuDevice

PCI_ROOT = "pcie-root"
EXPANDER_BUS = "pcie-expander-bus"
ROOT_PORT = "pcie-root-port"

# libvirt src/util/virutil.c virScaleInteger: KB is 1000, K and KiB are 1024; case is ignored.
_UNITS = {"b": 1, "bytes": 1}
for _power, _letter in enumerate("kmgtpe", 1):
    _UNITS[_letter] = _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power


# The form in which libvirt writes an address, and a limit above its length.
_ADDRESS_LIMIT = 24
_WRITTEN_ADDRESS = re.compile("0x([0-9a-f]{4}):0x([0-9a-f]{2}):0x([01][0-9a-f]):0x([0-7])")


@dataclass(frozen=True, slots=True)
class PciController:
    """A ``<controller type='pci'>``.

    :param index: libvirt's index, by which addresses name its bus; None until libvirt chooses one.
    :param bus_nr: bus number of an expander bus; None until libvirt chooses one.
    :param node: guest NUMA cell of an expander bus.
    :param address: its own address.
    """

    index: int | None
    model: str
    bus_nr: int | None
    node: int | None
    address: PciAddress | None
    element: Element = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class IommuDevice:
    """An ``<iommu>``; ``driver`` holds the attributes of its ``<driver>``."""

    model: str
    driver: dict[str, str]
    element: Element = field(repr=False, compare=False)

    @property
    def pci_bus(self) -> str | None:
        """Index of its controller; None if it serves the whole machine.

        For a vSMMU on QEMU's command line: the index of its bus, or QEMU's name of it if libvirt
        did not add that bus.
        """
        return self.driver.get("pciBus")


@dataclass(frozen=True, slots=True)
class PciHostdev:
    """A ``<hostdev mode='subsystem' type='pci'>``, or an ``<interface type='hostdev'>``.

    :param host: address on the host.
    :param guest: address in the guest; the bus is a controller index.
    :param managed: libvirt binds it to vfio-pci.
    :param argument: QEMU's device, if ``<qemu:commandline>`` assigns it and libvirt does not.
    :param overridden: ``<qemu:override>`` selects iommufd.
    """

    host: PciAddress
    guest: PciAddress | None
    managed: bool
    element: Element = field(repr=False, compare=False)
    argument: QemuDevice | None = field(default=None, repr=False, compare=False)
    overridden: bool = False

    @property
    def iommufd(self) -> bool:
        """Whether its own ``<driver>``, or its property on QEMU's command line, selects iommufd."""
        if self.argument is not None:
            return "iommufd" in self.argument.properties
        driver = self.element.find("driver")
        return driver is not None and driver.get("iommufd") == "yes"


class DomainXml:
    """A parsed domain XML.

    :param root: its ``<domain>`` element, edited in place, never regenerated.
    :param source: origin of the XML, for messages.
    :param original: the text of ``root``; unedited parts are printed as they are there.
    :ivar record: what vmm-msi added, for :mod:`vmm_msi.domxml.metadata` alone, which reads it once
        and writes it; ``...`` until then.
    :raise DomainXmlError: when the root is another element or the domain has no name.
    """

    def __init__(self, root: Element, source: str, original: Original | None = None) -> None:
        if root.tag != "domain":
            raise DomainXmlError(
                f"reading domain XML from {source}: the root element is <{root.tag!s}>; "
                "valid is <domain>"
            )
        self.root = root
        self.source = source
        self.name = (root.findtext("name") or "").strip()
        if not self.name:
            raise DomainXmlError(
                f"reading domain XML from {source}: it has no <name>, which libvirt requires"
            )
        self.record: DomainRecord | EllipsisType | None = ...
        self._original = original
        self._steps: dict[Element, dict[Element, str]] = {}

    @classmethod
    def parse(cls, text: str | bytes, source: str) -> DomainXml:
        """Parse ``text`` from ``source``.

        :raise DomainXmlError: see :func:`vmm_msi.domxml.parse.parse`.
        """
        root = _parse.parse(text, source)
        decoded = text if isinstance(text, str) else text.decode()
        return cls(root, source, Original.of(decoded, root))

    def copy(self) -> DomainXml:
        """Return a deep copy."""
        root = copy.deepcopy(self.root.getroottree()).getroot()
        original = self._original
        if original is not None:
            original = None if original.is_canonical(root) else original.for_copy(self.root, root)
        copied = DomainXml(root, self.source, original)
        copied.record = self.record
        return copied

    def __str__(self) -> str:
        if self._original is None:
            return _parse.serialise(self.root)
        return self._original.print(self.root)

    @property
    def uuid(self) -> str | None:
        """The UUID; None until libvirt generates one."""
        return self.root.findtext("uuid")

    @property
    def type(self) -> str:
        """The hypervisor type: ``kvm``, ``qemu``, ``test``."""
        return self.root.get("type", "")

    @property
    def arch(self) -> str | None:
        """The architecture of the guest."""
        return self._type("arch")

    @property
    def machine(self) -> str | None:
        """The machine type, for instance ``virt`` or ``virt-10.2``."""
        return self._type("machine")

    @property
    def kind(self) -> GuestKind:
        """Type, architecture and machine together."""
        element = self.root.find("os/type")
        arch, machine = (None, None) if element is None else map(element.get, ("arch", "machine"))
        return GuestKind(self.type or None, arch, machine)

    @property
    def emulator(self) -> str | None:
        """Path of the emulator; None if libvirt chooses."""
        return self.root.findtext("devices/emulator")

    @property
    def acpi(self) -> bool:
        """Whether the guest gets ACPI tables."""
        return self.root.find("features/acpi") is not None

    @property
    def firmware(self) -> bool:
        """Whether the guest boots UEFI, selected by name or as a loader image."""
        os = self.root.find("os")
        return os is not None and (os.get("firmware") == "efi" or os.find("loader") is not None)

    @property
    def gic_version(self) -> str | None:
        """The selected GIC version; None if libvirt chooses."""
        gic = self.root.find("features/gic")
        return None if gic is None else gic.get("version")

    @property
    def memory(self) -> int:
        """RAM in bytes, with that of memory devices.

        Without ``<memory>`` libvirt adds up the NUMA cells (``src/conf/domain_postparse.c``
        virDomainDefPostParseMemory).

        :raise DomainXmlError: when it is missing, not a number or in an unknown unit.
        """
        element = self.root.find("memory")
        size = 0 if element is None else self.size(element)
        if size:
            return size
        cells = self.root.findall("cpu/numa/cell[@memory]")
        if cells:
            devices = self.root.iterfind("devices/memory/target/size")
            return sum(map(self._cell_size, cells)) + sum(map(self.size, devices))
        if element is None:
            raise DomainXmlError(
                f"reading {self.name}: it has no <memory>; add <memory unit='KiB'>"
            )
        raise self._bad(element, "its text", element.text or "", "more than 0")

    def size(self, element: Element) -> int:
        """Return the bytes of an element with a number and a ``unit``, such as ``<memory>``.

        :raise DomainXmlError: when it is not a number or in an unknown unit.
        """
        return self._number(element, "its text", element.text or "", base=10) * self._unit(element)

    def _cell_size(self, cell: Element) -> int:
        return self._number(cell, "memory", cell.get("memory", ""), base=10) * self._unit(cell)

    def _unit(self, element: Element) -> int:
        unit = element.get("unit", "KiB").lower()
        if unit not in _UNITS:
            raise self._bad(element, "unit", element.get("unit", ""), "KiB, MiB, GiB")
        return _UNITS[unit]

    def number(self, element: Element, name: str) -> int:
        """Return the number in an attribute, parsed as libvirt does; 0 if it is missing.

        :raise DomainXmlError: when it is not a number.
        """
        return self._number(element, name, element.get(name, "0"))

    def path(self, element: Element) -> str:
        """Return the location of an element: the file or the guest, and its XPath."""
        names = []
        node = element
        while (parent := node.getparent()) is not None:
            steps = self._steps.get(parent)
            if steps is None or node not in steps:
                steps = self._steps[parent] = _steps_to_children(parent)
            names.append(steps[node])
            node = parent
        names.append(str(node.tag))
        return f"{self.source}: /{'/'.join(reversed(names))}"

    @property
    def devices(self) -> Element:
        """The ``<devices>`` element.

        :raise DomainXmlError: when the XML has none.
        """
        devices = next(self.root.iterchildren("devices"), None)
        if devices is None:
            raise DomainXmlError(
                f"reading {self.name}: it has no <devices>; libvirt writes one in every domain XML"
            )
        return devices

    @property
    def iommufd(self) -> bool | None:
        """Whether ``<iommufd>`` turns iommufd on for all devices; None where it is absent."""
        element = self.root.find("iommufd")
        return None if element is None else element.get("enabled") == "yes"

    @property
    def iommufd_fdgroup(self) -> str | None:
        """The group of file descriptors that ``<iommufd>`` takes /dev/iommu from."""
        element = self.root.find("iommufd")
        return None if element is None else element.get("fdgroup")

    def uses_iommufd(self, hostdev: PciHostdev) -> bool:
        """Return whether a device uses iommufd: its own setting, else that of the domain."""
        if hostdev.overridden or hostdev.argument is not None:
            return hostdev.overridden or hostdev.iommufd
        driver = hostdev.element.find("driver")
        own = None if driver is None else driver.get("iommufd")
        return own == "yes" if own is not None else self.iommufd is True

    def controllers(self) -> tuple[PciController, ...]:
        """Return the PCI controllers in document order."""
        return tuple(
            self._controller(element)
            for element in self.root.iterfind("devices/controller")
            if element.get("type") == "pci"
        )

    def iommus(self) -> tuple[IommuDevice, ...]:
        """Return the IOMMU devices in document order."""
        iommus = []
        for element in self.root.iterfind("devices/iommu"):
            driver = element.find("driver")
            attributes = {} if driver is None else {str(k): str(v) for k, v in driver.items()}
            iommus.append(IommuDevice(element.get("model", ""), attributes, element))
        return tuple(iommus)

    def hostdevs(self) -> tuple[PciHostdev, ...]:
        """Return the assigned PCI devices in document order."""
        hostdevs = []
        devices = next(self.root.iterchildren("devices"), None)
        overridden = overridden_hostdevs(self.root, "iommufd")
        for element in () if devices is None else devices.iterchildren("hostdev", "interface"):
            # In its own state libvirt keeps the device that a network gave to an interface here.
            actual = next(element.iterchildren("actual"), None)
            device = element if actual is None else actual
            source = device.find("source/address")
            if source is None or not _is_assigned_pci(device, source):
                continue
            hostdevs.append(
                PciHostdev(
                    host=self.pci_address(source),
                    guest=self.guest_address(element),
                    managed=device.get("managed") == "yes",
                    element=element,
                    overridden=element in overridden,
                )
            )
        return tuple(hostdevs)

    def assigned(self) -> tuple[PciHostdev, ...]:
        """Return the assigned PCI devices, with those that QEMU's command line assigns.

        The latter cannot be edited as a ``<hostdev>`` can.
        """
        return (
            *self.hostdevs(),
            *(
                PciHostdev(
                    device.host, None, managed=False, element=device.element, argument=device
                )
                for device in qemu_arguments(self.root).devices
                if device.is_assigned and device.host is not None
            ),
        )

    def on_bus(self, index: int) -> Iterator[Element]:
        """Yield the devices and controllers on the bus of controller ``index``."""
        for element in self.devices.iterchildren("*"):
            address = self.guest_address(element)
            if address is not None and address.bus == index:
                yield element

    def guest_address(self, element: Element) -> PciAddress | None:
        """Return the guest PCI address of a device; None if it has none yet."""
        address = next(element.iterchildren("address"), None)
        if address is None or address.get("type") != "pci" or address.get("bus") is None:
            return None
        return self.pci_address(address)

    def pci_address(self, element: Element) -> PciAddress:
        """Return the PCI address of an ``<address>``; missing attributes are 0.

        :raise DomainXmlError: when one is not a number or too large for a PCI address.
        """
        get = element.get
        texts = (get("domain", "0"), get("bus", "0"), get("slot", "0"), get("function", "0"))
        known = _known_address(*texts) if sum(map(len, texts)) < _ADDRESS_LIMIT else None
        if known is not None:
            return known
        limits = {"domain": 0xFFFF, "bus": 0xFF, "slot": 0x1F, "function": 7}
        part = {}
        for name, limit in limits.items():
            text = element.get(name, "0")
            part[name] = self._number(element, name, text)
            if part[name] > limit:
                raise self._bad(element, name, text, f"0 to {limit:#x}")
        return PciAddress(part["domain"], part["bus"], part["slot"], part["function"])

    def _controller(self, element: Element) -> PciController:
        target = next(element.iterchildren("target"), None)
        node = None if target is None else target.find("node")
        bus_nr = None if target is None else target.get("busNr")
        index = element.get("index")
        return PciController(
            index=None if index is None else self._number(element, "index", index, base=10),
            model=element.get("model", ""),
            bus_nr=None if bus_nr is None else self._number(element, "busNr", bus_nr),
            node=None if node is None else self._number(node, "its text", node.text or "", base=10),
            address=self.guest_address(element),
            element=element,
        )

    def _type(self, attribute: str) -> str | None:
        element = self.root.find("os/type")
        return None if element is None else element.get(attribute)

    def _number(self, element: Element, name: str, text: str, base: int = 0) -> int:
        """Return a number, parsed as strtoul(3) does.

        :param base: 0 parses 0x10 as 16 and 010 as 8, as libvirt does in most places.
        """
        digits = text.strip().lower()
        valid = "a number, decimal or with 0x" if not base else "a decimal number"
        if not base:
            base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
        try:
            value = int(digits, base)
        except ValueError:
            value = -1
        if value < 0 or "_" in digits:
            raise self._bad(element, name, text, valid)
        return value

    def _bad(self, element: Element, name: str, text: str, valid: str) -> DomainXmlError:
        return DomainXmlError(
            f"reading {self.name}: line {element.sourceline}: <{element.tag!s}>: {name} is "
            f"{text!r}; valid is {valid}"
        )


@functools.lru_cache(1024)
def _known_address(domain: str, bus: str, slot: str, function: str) -> PciAddress | None:
    """Return an address in the form that libvirt writes (``%.4x``, ``%.2x``), else None.

    It is cached: a document names the same few addresses many times.
    """
    match = _WRITTEN_ADDRESS.fullmatch(f"{domain}:{bus}:{slot}:{function}")
    return None if match is None else PciAddress(*(int(part, 16) for part in match.groups()))


def _steps_to_children(parent: Element) -> dict[Element, str]:
    """Return the step of an XPath to each child, all at once: a device may be one of thousands."""
    numbers: dict[object, int] = {}
    children = [*parent.iterchildren("*")]
    for child in children:
        numbers[child.tag] = numbers.get(child.tag, 0) + 1
    several = {tag for tag, number in numbers.items() if number > 1}
    numbers = {}
    steps = {}
    for child in children:
        numbers[child.tag] = numbers.get(child.tag, 0) + 1
        local = str(child.tag).rpartition("}")[2]
        name = f"{child.prefix}:{local}" if child.prefix else local
        steps[child] = f"{name}[{numbers[child.tag]}]" if child.tag in several else name
    return steps


def _is_assigned_pci(element: Element, source: Element) -> bool:
    if element.tag in {"interface", "actual"}:
        return element.get("type") == "hostdev" and source.get("type") == "pci"
    return element.get("type") == "pci" and element.get("mode", "subsystem") == "subsystem"
