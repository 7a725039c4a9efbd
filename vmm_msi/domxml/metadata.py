"""The record in a libvirt domain's ``<metadata>``: the elements that vmm-msi added, and why.

https://libvirt.org/formatdomain.html#general-metadata: one element per application, in a namespace
of its own. The namespace ends in the version of the record; the reader accepts one version, so that
an older vmm-msi never removes half of what a newer one added.
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

# The elements that libvirt writes before <metadata> (virDomainDefFormatInternalSetRootName).
_BEFORE_METADATA = ("name", "uuid", "genid", "title", "description")

# Elements that the record can mark as added.
_ADDED = ("iommufd", "iommu", "metadata", "devices", "gic", "gic-version")
_ADDED_FIELDS = {name: f"{name.replace('-', '_')}_added" for name in _ADDED}


@dataclass(frozen=True, slots=True)
class BindingRecord:
    """The doorbell binding of a device.

    :param giova: address that the guest's stage 1 maps to its doorbell.
    :param gdb: the guest's doorbell page.
    :param programmed: addresses that the device may have: one if it is certain, none if no address
        is written into it or nothing was simulated.
    :param outcome: verdict of the simulator; None if nothing was simulated.
    """

    giova: Iova | None = None
    gdb: Ipa | None = None
    programmed: tuple[Iova, ...] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class VsmmuRecord:
    """An added vSMMU.

    :param pxb: index of its pcie-expander-bus controller.
    :param bus_nr: first bus number behind that.
    :param smmu: id of its physical SMMU.
    :param its: id of its physical ITS; None if it serves every ITS.
    :param pci_bus: it is an ``<iommu>`` of its own; else the machine-wide one.
    :param accelerated: its ``<driver>`` has accel='on'.
    :param spare_ports: indexes of its free root ports.
    :param iommufd: id of the added iommufd object of its devices; None for that of the guest.
    """

    pxb: int
    bus_nr: int
    smmu: int
    its: int | None = None
    pci_bus: bool = True
    accelerated: bool = True
    spare_ports: tuple[int, ...] = ()
    iommufd: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """An assigned device.

    :param host: its address on the host.
    :param strategy: name of its strategy.
    :param backend: the binder: ``sim``, ``qemu`` or ``kernel``.
    :param pxb: the vSMMU in front of it, by :attr:`VsmmuRecord.pxb`.
    :param root_port: index of its root port.
    :param smmu: id of the physical SMMU.
    :param its: id of the physical ITS; None if it was not determined.
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
    """The elements that vmm-msi added to one libvirt domain.

    :param iommufd_added: vmm-msi added ``<iommufd>``.
    :param iommu_added: vmm-msi added the machine-wide ``<iommu>``.
    :param metadata_added: vmm-msi added ``<metadata>``.
    :param devices_added: vmm-msi added ``<devices>``.
    :param gic_added: vmm-msi added ``<gic version='3'/>``.
    :param gic_version_added: vmm-msi added the version to the ``<gic>`` of the user.
    """

    vsmmus: tuple[VsmmuRecord, ...] = ()
    devices: tuple[DeviceRecord, ...] = ()
    iommufd_added: bool = False
    iommu_added: bool = False
    metadata_added: bool = False
    devices_added: bool = False
    gic_added: bool = False
    gic_version_added: bool = False

    def device(self, host: PciAddress) -> DeviceRecord | None:
        """Return the record of the device at ``host``."""
        return next((device for device in self.devices if device.host == host), None)

    def vsmmu(self, smmu: int, its: int | None) -> VsmmuRecord | None:
        """Return the vSMMU of a physical SMMU and ITS."""
        return next((v for v in self.vsmmus if (v.smmu, v.its) == (smmu, its)), None)

    def behind(self, pxb: int) -> tuple[DeviceRecord, ...]:
        """Return the devices behind the vSMMU on expander bus ``pxb``."""
        return tuple(device for device in self.devices if device.pxb == pxb)


def read_record(domain: DomainXml) -> DomainRecord | None:
    """Return the record in ``domain``; None if vmm-msi added nothing.

    :raise DomainXmlError: when it has another version or an unknown form.
    """
    if domain.record is ...:
        element = _find(domain)
        domain.record = None if element is None else _RecordReader(domain.name).domain(element)
    return domain.record


def record_in(domain: DomainXml | None) -> DomainRecord:
    """Return the record in ``domain``; an empty one without a domain or a record.

    :raise DomainXmlError: when it has another version or an unknown form.
    """
    return (None if domain is None else read_record(domain)) or DomainRecord()


def write_record(domain: DomainXml, record: DomainRecord | None) -> None:
    """Replace the record in ``domain`` by ``record``; None removes it.

    The entries of other applications do not change. ``<metadata>`` itself is removed if the old
    record marks it as added and it is empty.
    """
    old = _find(domain)
    metadata = domain.root.find("metadata")
    if record is None:
        domain.record = None
        if old is None or metadata is None:
            return
        added = old.get("metadata") == "added"
        elements.remove(old)
        if added and len(metadata) == 0:
            elements.remove(metadata)
        return
    new = _element(record)
    domain.record = record
    if metadata is None:
        before = list(domain.root.iterchildren(*_BEFORE_METADATA))
        elements.insert_after(domain.root, before[-1], elements.build("metadata", {}, new))
    elif old is None:
        elements.insert_after(metadata, metadata[-1] if len(metadata) else None, new)
    else:
        previous = old.getprevious()
        elements.remove(old)
        elements.insert_after(metadata, previous, new)


def bare_record(record: DomainRecord) -> str:
    """Return the record without a namespace, for virDomainSetMetadata, which adds it."""
    element = _element(record)
    for node in element.iter():
        node.tag = etree.QName(node).localname
    etree.cleanup_namespaces(element)
    return etree.tostring(element, encoding="unicode")


def _find(domain: DomainXml) -> Element | None:
    record = None
    for child in domain.root.iterfind("metadata/*"):
        namespace = etree.QName(child).namespace or ""
        if namespace == NAMESPACE:
            record = child
        elif namespace.startswith(NAMESPACE_BASE):
            raise DomainXmlError(
                f"reading the vmm-msi record of {domain.name}: it has version "
                f"{namespace.removeprefix(NAMESPACE_BASE)!r}; this vmm-msi reads version '1'"
            )
    return record


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


# The fields of each kind of record that are attributes, and the names of the attributes.
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
    """Reader of the record in the libvirt domain ``name``; it refuses unknown parts."""

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
            raise self._error(f"the vSMMU {stray.pxb} of device {stray.host} is missing")
        added = {_ADDED_FIELDS[str(name)]: element.get(name) == "added" for name in element.attrib}
        return DomainRecord(tuple(vsmmus), tuple(devices), **added)

    def _vsmmu(self, element: Element) -> VsmmuRecord:
        needed = {"pxb", "bus-nr", "smmu", "pci-bus", "accelerated"}
        self._expect(element, "vsmmu", needed, {"its", "spare-ports", "iommufd"})
        return VsmmuRecord(
            pxb=self._number(element, "pxb"),
            bus_nr=self._number(element, "bus-nr"),
            smmu=self._number(element, "smmu"),
            its=self._number(element, "its") if "its" in element.attrib else None,
            pci_bus=element.get("pci-bus") == "yes",
            accelerated=element.get("accelerated") == "yes",
            spare_ports=self._numbers(element, "spare-ports"),
            iommufd=element.get("iommufd"),
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
            programmed=self._addresses(element, "programmed", Iova),
            outcome=None if outcome is None else Outcome(outcome),
        )

    def _expect(self, element: Element, name: str, needed: set[str], optional: set[str]) -> None:
        if element.tag != _tag(name):
            raise self._error(f"<{etree.QName(element).localname}> is unknown")
        present = {str(attribute) for attribute in element.attrib}
        if missing := sorted(needed - present):
            raise self._error(f"<{name}> lacks {', '.join(missing)}")
        if unknown := sorted(present - needed - optional):
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
        return None if text is None else self._hexadecimal(text, name, kind)

    def _addresses(self, element: Element, name: str, kind: type[AddressT]) -> tuple[AddressT, ...]:
        words = element.get(name, "").split()
        return tuple(self._hexadecimal(word, name, kind) for word in words)

    def _hexadecimal(self, text: str, name: str, kind: type[AddressT]) -> AddressT:
        try:
            return kind(int(text, 16))
        except ValueError:
            raise self._error(f"{name} is {text!r}, not a hexadecimal address") from None

    def _error(self, what: str) -> DomainXmlError:
        return DomainXmlError(
            f"reading the vmm-msi record of {self._name}: {what}; it was edited by hand, "
            "or a newer vmm-msi wrote it: restore it, or use that release"
        )
