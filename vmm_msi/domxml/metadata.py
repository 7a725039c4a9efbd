"""The record that vmm-msi keeps in a domain's ``<metadata>``: what it added, for whom and why.

https://libvirt.org/formatdomain.html#general-metadata: one element per application, in a namespace
of its own. The namespace ends in the version of the record; the reader knows one and refuses the
rest, so that an older vmm-msi never takes out half of what a newer one put in.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from lxml import etree

from vmm_msi.domxml import elements
from vmm_msi.errors import DomainXmlError, InputError
from vmm_msi.types import Address, Iova, Ipa, Outcome, PciAddress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml

NAMESPACE_BASE = "https://vmm-msi.org/xmlns/libvirt/domain/"
NAMESPACE = f"{NAMESPACE_BASE}1"
PREFIX = "vmm-msi"

AddressT = TypeVar("AddressT", bound=Address)

# What libvirt writes in front of <metadata> (virDomainDefFormatInternalSetRootName).
_BEFORE_METADATA = ("name", "uuid", "genid", "title", "description")

# Elements of which the record says that they were added.
_ADDED = ("iommufd", "iommu", "metadata", "devices")
_ADDED_FIELDS = {name: f"{name}_added" for name in _ADDED}


@dataclass(frozen=True, slots=True)
class BindingRecord:
    """What became of a device's doorbell.

    :param giova: address the guest's stage 1 maps to its doorbell.
    :param gdb: the guest's doorbell page.
    :param programmed: address that was written into the device.
    :param outcome: verdict of the modelled MSIs; None where nothing was modelled.
    """

    giova: Iova | None = None
    gdb: Ipa | None = None
    programmed: Iova | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class VsmmuRecord:
    """A vSMMU that was added.

    :param pxb: index of its pcie-expander-bus controller.
    :param bus_nr: first bus number behind that.
    :param smmu: id of the physical SMMU it stands for.
    :param its: id of the physical ITS it is kept for, None where ITSes are not kept apart.
    :param pci_bus: it is an ``<iommu>`` of its own; else the machine's one serves it.
    :param accelerated: its ``<driver>`` says accel='on'.
    :param spare_ports: indexes of its root ports that no device is plugged into.
    """

    pxb: int
    bus_nr: int
    smmu: int
    its: int | None = None
    pci_bus: bool = True
    accelerated: bool = True
    spare_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A device that was assigned.

    :param host: its address on the host.
    :param strategy: name of the strategy that was used for it.
    :param backend: who carries the binding out: ``sim`` or ``qemu``.
    :param pxb: the vSMMU it is behind, by :attr:`VsmmuRecord.pxb`.
    :param root_port: index of the root port it is plugged into.
    :param smmu: id of the physical SMMU.
    :param its: id of the physical ITS, None where it was not looked for.
    :param options: the strategy's options as text.
    """

    host: PciAddress
    strategy: str
    backend: str
    pxb: int
    root_port: int
    smmu: int
    its: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    binding: BindingRecord | None = None


@dataclass(frozen=True, slots=True)
class DomainRecord:
    """All that was added to one domain.

    :param iommufd_added: ``<iommufd>`` was not there before.
    :param iommu_added: the machine-wide ``<iommu>`` was not there before.
    :param metadata_added: ``<metadata>`` was not there before.
    :param devices_added: ``<devices>`` was not there before.
    """

    vsmmus: tuple[VsmmuRecord, ...] = ()
    devices: tuple[DeviceRecord, ...] = ()
    iommufd_added: bool = False
    iommu_added: bool = False
    metadata_added: bool = False
    devices_added: bool = False

    def device(self, host: PciAddress) -> DeviceRecord | None:
        """Return the record of the device at ``host``."""
        return next((device for device in self.devices if device.host == host), None)

    def vsmmu(self, smmu: int, its: int | None) -> VsmmuRecord | None:
        """Return the vSMMU that stands for ``smmu`` and is kept for ``its``."""
        return next((v for v in self.vsmmus if (v.smmu, v.its) == (smmu, its)), None)

    def behind(self, pxb: int) -> tuple[DeviceRecord, ...]:
        """Return the devices behind the vSMMU on expander bus ``pxb``."""
        return tuple(device for device in self.devices if device.pxb == pxb)


def read_record(domain: DomainXml) -> DomainRecord | None:
    """Return the record in ``domain``, None where vmm-msi added nothing.

    :raise DomainXmlError: when it is of another version or is not what this version writes.
    """
    element = _find(domain)
    return None if element is None else _RecordReader(domain.name).domain(element)


def write_record(domain: DomainXml, record: DomainRecord | None) -> None:
    """Put ``record`` into ``domain`` in the place of the one that is there; None takes it out.

    The entries of other applications are left alone. ``<metadata>`` itself goes where the record
    that is taken out says it was added with it.
    """
    old = _find(domain)
    metadata = domain.root.find("metadata")
    if record is None:
        if old is None or metadata is None:
            return
        added = old.get("metadata") == "added"
        elements.take_out(old)
        if added and len(metadata) == 0:
            elements.take_out(metadata)
        return
    new = _element(record)
    if metadata is None:
        before = list(domain.root.iterchildren(*_BEFORE_METADATA))
        elements.put_after(domain.root, before[-1], elements.build("metadata", {}, new))
    elif old is None:
        elements.put_after(metadata, metadata[-1] if len(metadata) else None, new)
    else:
        previous = old.getprevious()
        elements.take_out(old)
        elements.put_after(metadata, previous, new)


def bare_record(record: DomainRecord) -> str:
    """Return the record as virDomainSetMetadata takes it: libvirt adds the namespace itself."""
    element = _element(record)
    for each in element.iter():
        each.tag = etree.QName(each).localname
    etree.cleanup_namespaces(element)
    return etree.tostring(element, encoding="unicode")


def _find(domain: DomainXml) -> Element | None:
    found = None
    for child in domain.root.iterfind("metadata/*"):
        namespace = etree.QName(child).namespace or ""
        if namespace == NAMESPACE:
            found = child
        elif namespace.startswith(NAMESPACE_BASE):
            raise DomainXmlError(
                f"reading the vmm-msi record of {domain.name}: it is of version "
                f"{namespace.removeprefix(NAMESPACE_BASE)!r}; this vmm-msi reads version '1'"
            )
    return found


def _element(record: DomainRecord) -> Element:
    root: Element = etree.Element(_tag("domain"), nsmap={PREFIX: NAMESPACE})
    for name, field_name in _ADDED_FIELDS.items():
        if getattr(record, field_name):
            root.set(name, "added")
    for vsmmu in record.vsmmus:
        root.append(_child("vsmmu", vsmmu))
    for device in record.devices:
        element = _child("device", device)
        for name, value in device.options.items():
            element.append(elements.build(_tag("option"), {"name": name, "value": value}))
        if device.binding is not None:
            element.append(_child("binding", device.binding))
        root.append(element)
    return root


# Of each kind of record the fields that are attributes, and their names there.
_ATTRIBUTES = {
    kind: [
        (field.name, field.name.replace("_", "-"))
        for field in dataclasses.fields(kind)
        if field.name not in {"options", "binding"}
    ]
    for kind in (VsmmuRecord, DeviceRecord, BindingRecord)
}


def _child(name: str, record: VsmmuRecord | DeviceRecord | BindingRecord) -> Element:
    attributes = {}
    for field_name, attribute in _ATTRIBUTES[type(record)]:
        value = getattr(record, field_name)
        if value is None or value == ():
            continue
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, tuple):
            text = " ".join(map(str, value))
        else:
            text = str(value)
        attributes[attribute] = text
    return elements.build(_tag(name), attributes)


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


class _RecordReader:
    """Reads the record of the domain called ``name``; what it does not know it refuses."""

    def __init__(self, name: str) -> None:
        self._name = name

    def domain(self, element: Element) -> DomainRecord:
        self._expect(element, "domain", set(), {*_ADDED})
        vsmmus = []
        devices = []
        for child in element.iterchildren("*"):
            if child.tag == _tag("vsmmu"):
                vsmmus.append(self._vsmmu(child))
            else:
                devices.append(self._device(child))
        pxbs = {vsmmu.pxb for vsmmu in vsmmus}
        stray = next((device for device in devices if device.pxb not in pxbs), None)
        if stray is not None:
            raise self._error(f"device {stray.host} is behind vSMMU {stray.pxb}, which is missing")
        added = {f"{name}_added": element.get(name) == "added" for name in element.attrib}
        return DomainRecord(tuple(vsmmus), tuple(devices), **added)

    def _vsmmu(self, element: Element) -> VsmmuRecord:
        needed = {"pxb", "bus-nr", "smmu", "pci-bus", "accelerated"}
        self._expect(element, "vsmmu", needed, {"its", "spare-ports"})
        return VsmmuRecord(
            pxb=self._number(element, "pxb"),
            bus_nr=self._number(element, "bus-nr"),
            smmu=self._number(element, "smmu"),
            its=self._number(element, "its") if "its" in element.attrib else None,
            pci_bus=element.get("pci-bus") == "yes",
            accelerated=element.get("accelerated") == "yes",
            spare_ports=self._numbers(element, "spare-ports"),
        )

    def _device(self, element: Element) -> DeviceRecord:
        needed = {"host", "strategy", "backend", "pxb", "root-port", "smmu"}
        self._expect(element, "device", needed, {"its"})
        options = {}
        binding = None
        for child in element.iterchildren("*"):
            if child.tag == _tag("option"):
                self._expect(child, "option", {"name", "value"}, set())
                options[child.get("name", "")] = child.get("value", "")
            else:
                binding = self._binding(child)
        try:
            host = PciAddress.parse(element.get("host", ""))
        except InputError as error:
            raise self._error(str(error)) from None
        return DeviceRecord(
            host=host,
            strategy=element.get("strategy", ""),
            backend=element.get("backend", ""),
            pxb=self._number(element, "pxb"),
            root_port=self._number(element, "root-port"),
            smmu=self._number(element, "smmu"),
            its=self._number(element, "its") if "its" in element.attrib else None,
            options=options,
            binding=binding,
        )

    def _binding(self, element: Element) -> BindingRecord:
        known = {"giova", "gdb", "programmed", "outcome"}
        self._expect(element, "binding", set(), known)
        outcome = element.get("outcome")
        if outcome is not None and outcome not in {*Outcome}:
            raise self._error(f"outcome {outcome!r} is unknown")
        return BindingRecord(
            giova=self._address(element, "giova", Iova),
            gdb=self._address(element, "gdb", Ipa),
            programmed=self._address(element, "programmed", Iova),
            outcome=None if outcome is None else Outcome(outcome),
        )

    def _expect(self, element: Element, name: str, needed: set[str], optional: set[str]) -> None:
        if element.tag != _tag(name):
            raise self._error(f"<{etree.QName(element).localname}> is unknown there")
        found = {str(attribute) for attribute in element.attrib}
        if missing := sorted(needed - found):
            raise self._error(f"<{name}> lacks {', '.join(missing)}")
        if unknown := sorted(found - needed - optional):
            raise self._error(f"<{name}> has unknown attributes: {', '.join(unknown)}")

    def _number(self, element: Element, name: str) -> int:
        return self._decimal(element.get(name, ""), name)

    def _numbers(self, element: Element, name: str) -> tuple[int, ...]:
        return tuple(self._decimal(word, name) for word in element.get(name, "").split())

    def _decimal(self, text: str, name: str) -> int:
        if not (text.isascii() and text.isdigit()):
            raise self._error(f"{name} is {text!r}, not a number")
        return int(text)

    def _address(self, element: Element, name: str, kind: type[AddressT]) -> AddressT | None:
        text = element.get(name)
        if text is None:
            return None
        try:
            return kind(int(text, 16))
        except ValueError:
            raise self._error(f"{name} is {text!r}, not a hexadecimal address") from None

    def _error(self, what: str) -> DomainXmlError:
        return DomainXmlError(
            f"reading the vmm-msi record of {self._name}: {what}; valid is what this vmm-msi "
            "writes: was it edited by hand, or written by a newer one?"
        )
