"""Read the devices that a definition adds to QEMU's command line by ``<qemu:commandline>``.

libvirt passes each ``<qemu:arg>`` on as one word (https://libvirt.org/drvqemu.html#pass-through-of-
arbitrary-qemu-commands) and knows nothing of the devices in them. QEMU (``system/vl.c``) reads
``-option`` and ``--option`` with the value in the next word, never ``-option=value``; the value of
``-device`` is JSON or a list of properties (``util/qemu-option.c`` opts_do_parse): the first may
lack its name, a comma in a value is doubled, and a later value of a property replaces an earlier
one. ``-machine`` adds to libvirt's own.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml.overrides import QEMU
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lxml.etree import _Element as Element

#: Limit of a value in characters; the command line of a real device has a few hundred.
MAX_VALUE = 1 << 16

#: The QEMU devices that are a PCI device of the host.
_VFIO = {"vfio-pci", "vfio-pci-nohotplug"}
_VSMMU = "arm-smmuv3"
_EXPANDER = "pxb-pcie"
_ROOT_PORT = "pcie-root-port"
# Buses, bridges and the vSMMU; other devices are endpoints.
_BRIDGES = {
    _EXPANDER, "pxb", _ROOT_PORT, "ioh3420", "x3130-upstream", "xio3130-downstream",
    "pcie-pci-bridge", "pci-bridge", "i82801b11-bridge", _VSMMU,
}  # fmt: skip
# Options that may change any device, also one of libvirt's own.
_CHANGING = {"readconfig", "set", "global"}
# Words in the value of such an option that concern these devices.
_CONCERNED = re.compile(r"vfio|smmu|iommu|pxb", re.IGNORECASE)
# One property: its name, unless it is a flag, and its value up to a single comma.
_PROPERTY = re.compile(r"(?:(?P<name>[^=,]*)=)?(?P<value>(?:[^,]|,,)*)(?:,|$)", re.DOTALL)
_DEVFN = re.compile(r"(?:0x)?([01]?[0-9a-f])(?:\.(?:0x)?([0-7]))?", re.IGNORECASE)
_NUMBER = re.compile(r"(0x)[0-9a-f]{1,2}|[0-9]{1,3}", re.IGNORECASE)
# QEMU hw/core/qdev-properties-system.c set_pci_host_devaddr: numbers as strtoul(3) reads them.
_HOST = re.compile(
    r"(?:(?:0x)?([0-9a-f]{1,8}):)?(?:0x)?([0-9a-f]{1,8}):(?:0x)?([0-9a-f]{1,8})\.([0-9]{1,8})",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class QemuDevice:
    """A ``-device`` in ``<qemu:commandline>``.

    :param driver: QEMU's name of the device.
    :param element: the ``<qemu:arg>`` with its properties.
    """

    driver: str
    properties: Mapping[str, str]
    element: Element = field(repr=False, compare=False)

    @property
    def id(self) -> str | None:
        """Name of the device, and of the bus of a bridge."""
        return self.properties.get("id")

    @property
    def bus(self) -> str:
        """QEMU's name of the bus that it is on; QEMU's default is the first one."""
        return self.properties.get("bus", "pcie.0")

    @property
    def is_assigned(self) -> bool:
        """Whether it is a PCI device of the host."""
        return self.driver in _VFIO

    @property
    def is_vsmmu(self) -> bool:
        """Whether it is a vSMMU."""
        return self.driver == _VSMMU

    @property
    def is_expander_bus(self) -> bool:
        """Whether its bus is a root bus."""
        return self.driver == _EXPANDER

    @property
    def is_root_port(self) -> bool:
        """Whether it is a root port."""
        return self.driver == _ROOT_PORT

    @property
    def devfn(self) -> int | None:
        """Device and function on its bus, device * 8 + function; None if QEMU chooses them.

        QEMU ``hw/core/qdev-properties-system.c`` set_pci_devfn.
        """
        match = _DEVFN.fullmatch(self.properties.get("addr", ""))
        return None if match is None else int(match[1], 16) * 8 + int(match[2] or "0", 16)

    @property
    def bus_nr(self) -> int | None:
        """The number of an expander bus; None if it is missing or unreadable."""
        match = _NUMBER.fullmatch(self.properties.get("bus_nr", ""))
        return None if match is None else int(match[0], 16 if match[1] else 10)

    @property
    def is_endpoint(self) -> bool:
        """Whether it is neither a bus, a bridge nor a vSMMU."""
        return self.driver not in _BRIDGES

    @property
    def host(self) -> PciAddress | None:
        """Address on the host of an assigned device; None if its properties do not have it.

        ``sysfsdev`` is a folder in sysfs, which has the name of the address for a PCI device; else
        ``host`` is the address (QEMU ``hw/vfio/pci.c`` vfio_pci_realize).
        """
        path = self.properties.get("sysfsdev")
        text = self.properties.get("host", "")
        if path is not None:
            text = posixpath.basename(posixpath.normpath(path))
        match = _HOST.fullmatch(text)
        if match is None:
            return None
        segment, bus, device = (int(part or "0", 16) for part in match.groups()[:3])
        function = int(match[4])
        if segment > 0xFFFF or bus > 0xFF or device > 0x1F or function > 7:
            return None
        return PciAddress(segment, bus, device, function)


class Unexamined(NamedTuple):
    """A part of the command line that may concern assigned devices and was not read.

    :param element: the ``<qemu:arg>``.
    """

    element: Element
    option: str
    reason: str

    def __str__(self) -> str:
        return f"-{self.option}: {self.reason}"


@dataclass(frozen=True, slots=True)
class QemuArguments:
    """The parts of ``<qemu:commandline>`` that concern assigned devices.

    :param devices: every ``-device``.
    :param machine_iommu: the ``iommu`` of ``-machine``, for all devices of pcie.0; None without.
    :param machine_element: the ``<qemu:arg>`` with it.
    """

    devices: tuple[QemuDevice, ...] = ()
    machine_iommu: str | None = None
    machine_element: Element | None = field(default=None, repr=False, compare=False)
    unexamined: tuple[Unexamined, ...] = ()


def qemu_arguments(root: Element) -> QemuArguments:
    """Return the devices on the command line of the guest with this ``<domain>``."""
    devices: list[QemuDevice] = []
    unexamined: list[Unexamined] = []
    iommu: tuple[str, Element] | None = None
    for option, value, element in _options(root):
        if option in _CHANGING:
            if option == "readconfig":
                unexamined.append(Unexamined(element, option, "the devices in that file"))
            elif _CONCERNED.search(value):
                unexamined.append(Unexamined(element, option, "what it changes"))
            continue
        properties = _properties(value, "driver" if option == "device" else "type")
        if properties is None:
            unexamined.append(Unexamined(element, option, "it is too long, or not valid JSON"))
        elif option != "device":
            if "iommu" in properties:
                iommu = properties["iommu"], element
        else:
            device = QemuDevice(properties.get("driver", ""), properties, element)
            devices.append(device)
            if device.is_assigned and device.host is None:
                reason = "a device of the host that neither host nor sysfsdev names by its address"
                unexamined.append(Unexamined(element, option, reason))
    return QemuArguments(
        tuple(devices),
        None if iommu is None else iommu[0],
        None if iommu is None else iommu[1],
        tuple(unexamined),
    )


def overridden_hostdevs(root: Element, name: str) -> set[Element]:
    """Return the ``<hostdev>`` of which ``<qemu:override>`` sets a property.

    libvirt names the device of the n-th ``<hostdev>`` without an alias of its own ``hostdevN``
    (``src/qemu/qemu_alias.c`` qemuAssignDeviceHostdevAlias).
    """
    aliases = {
        device.get("alias")
        for override in root.iterchildren(f"{QEMU}override")
        for device in override.iterchildren(f"{QEMU}device")
        for element in device.iterfind(f"{QEMU}frontend/{QEMU}property")
        if element.get("name") == name
    }
    hostdevs = enumerate(root.iterfind("devices/hostdev") if aliases else ())
    return {
        hostdev for number, hostdev in hostdevs if _alias(hostdev, f"hostdev{number}") in aliases
    }


def _alias(hostdev: Element, default: str) -> str:
    alias = hostdev.find("alias")
    return default if alias is None else alias.get("name", default)


def _options(root: Element) -> Iterator[tuple[str, str, Element]]:
    """Yield the options that matter, each with its value and the element of the value."""
    names = {"device", "machine", "M", *_CHANGING}
    words: Sequence[Element] = [
        word
        for command_line in root.iterchildren(f"{QEMU}commandline")
        for word in command_line.iterchildren(f"{QEMU}arg")
    ]
    index = 0
    while index + 1 < len(words):
        word = words[index].get("value", "")
        name = word[2:] if word.startswith("--") else word[1:]
        index += 1
        if not word.startswith("-") or name not in names:
            continue
        yield ("machine" if name == "M" else name), words[index].get("value", ""), words[index]
        index += 1


def _properties(value: str, first: str) -> dict[str, str] | None:
    """Return the properties in the value of an option; None if it cannot be read.

    :param first: the name of the first property where it is left out.
    """
    if len(value) > MAX_VALUE:
        return None
    if value.startswith("{"):
        return _from_json(value)
    properties: dict[str, str] = {}
    position = 0
    while position < len(value):
        match = _PROPERTY.match(value, position)
        if match is None or match.end() == position:
            break
        name, text = match["name"], match["value"].replace(",,", ",")
        if name is None and position == 0:
            name = first
        elif name is None:
            # A flag: util/qemu-option.c get_opt_name_value.
            name, text = (text[2:], "off") if text.startswith("no") else (text, "on")
        properties[name] = text
        position = match.end()
    return properties


def _from_json(value: str) -> dict[str, str] | None:
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    words = {True: "on", False: "off"}
    return {
        name: words[item] if isinstance(item, bool) else str(item)
        for name, item in document.items()
        if isinstance(item, (str, int, bool))
    }
