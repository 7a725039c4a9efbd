"""The bindings of a running guest: one element in its live ``<metadata>``, in our namespace.

``watch`` writes it with VIR_DOMAIN_AFFECT_LIVE, so only the XML of that run contains it: libvirt
keeps it across its own restart and drops it when the guest stops
(https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainSetMetadata). The record of attached
devices is another element, in a namespace of its own (:mod:`vmm_msi.domxml.metadata`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lxml import etree

from vmm_msi.domxml import elements
from vmm_msi.errors import DomainXmlError, InputError
from vmm_msi.types import BinderKind, Iova, Outcome, PciAddress

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

    from vmm_msi.domxml.libvirt_domain import DomainXml

NAMESPACE_BASE = "https://vmm-msi.org/xmlns/libvirt/bound/"
NAMESPACE = f"{NAMESPACE_BASE}1"
PREFIX = "vmm-msi-bound"

_NUMBER = re.compile(r"[0-9]{1,10}")
_ADDRESS = re.compile(r"0x[0-9a-f]{1,16}")


@dataclass(frozen=True, slots=True)
class BoundDevice:
    """A device of a running guest.

    :param strategy: the strategy with its options, in the form of the command line.
    :param by: the binder: ``sim``; ``qemu`` or ``kernel``, for which the simulator predicts the
        outcome.
    :param programmed: the addresses that the device may have; none if none was written.
    :param outcome: the verdict about its MSIs; None until the binding is complete.
    """

    host: PciAddress
    strategy: str
    by: str
    programmed: tuple[Iova, ...] = ()
    outcome: Outcome | None = None

    def is_same(self, other: BoundDevice) -> bool:
        """Return whether ``other`` is the same device, bound by the same strategy and binder."""
        return (self.host, self.strategy, self.by) == (other.host, other.strategy, other.by)


@dataclass(frozen=True, slots=True)
class BoundGuest:
    """The bound devices of one run of a guest.

    :param run: libvirt's id of the run, ``<domain id>``. The element of a restored guest has the id
        of the saved run.
    :param selector: the ITS selector.
    :param devices: in the order in which they were bound.
    """

    run: int
    selector: str
    devices: tuple[BoundDevice, ...]


def read_bound(domain: DomainXml) -> BoundGuest | None:
    """Return the bound devices of ``domain``, from its live XML; None if it has none.

    :raise DomainXmlError: when the element has another version or an unknown form.
    """
    element = None
    for child in domain.root.iterfind("metadata/*"):
        namespace = etree.QName(child).namespace or ""
        if namespace == NAMESPACE and element is None:
            element = child
        elif namespace.startswith(NAMESPACE_BASE):
            version = namespace.removeprefix(NAMESPACE_BASE)
            what = "there are two elements" if version == "1" else f"it has version {version!r}"
            raise _error(domain.name, f"{what}; this vmm-msi reads one of version '1'")
    if element is None:
        return None
    _expect(domain.name, element, "guest", {"run", "its-selector"}, set())
    devices = tuple(_device(domain.name, child) for child in element.iterchildren("*"))
    if len({device.host for device in devices}) != len(devices):
        raise _error(domain.name, "it lists a device twice")
    run = element.get("run", "")
    if _NUMBER.fullmatch(run) is None:
        raise _error(domain.name, f"run is {run!r}, not a number")
    return BoundGuest(int(run), element.get("its-selector", ""), devices)


def bound_xml(bound: BoundGuest) -> str:
    """Return the element without a namespace: libvirt adds that itself."""
    attributes = {"run": str(bound.run), "its-selector": bound.selector}
    root = elements.build("guest", attributes)
    for device in bound.devices:
        values: dict[str, object] = {
            "host": device.host,
            "strategy": device.strategy,
            "by": device.by,
            "programmed": " ".join(map(str, device.programmed)) or None,
            "outcome": device.outcome,
        }
        known = {name: str(value) for name, value in values.items() if value is not None}
        root.append(elements.build("device", known))
    return etree.tostring(root, encoding="unicode")


def _device(guest: str, element: Element) -> BoundDevice:
    _expect(guest, element, "device", {"host", "strategy", "by"}, {"programmed", "outcome"})
    if len(element):
        raise _error(guest, "<device> has elements")
    by = element.get("by", "")
    if by not in {*BinderKind}:
        raise _error(guest, f"by is {by!r}")
    outcome = element.get("outcome")
    if outcome is not None and outcome not in {*Outcome}:
        raise _error(guest, f"outcome {outcome!r} is unknown")
    programmed = element.get("programmed", "").split()
    for address in programmed:
        if _ADDRESS.fullmatch(address) is None:
            raise _error(guest, f"programmed is {address!r}, not an address")
    try:
        host = PciAddress.parse(element.get("host", ""))
    except InputError as error:
        raise _error(guest, str(error)) from None
    return BoundDevice(
        host=host,
        strategy=element.get("strategy", ""),
        by=by,
        programmed=tuple(Iova(int(address, 16)) for address in programmed),
        outcome=None if outcome is None else Outcome(outcome),
    )


def _expect(guest: str, element: Element, name: str, needed: set[str], optional: set[str]) -> None:
    tag = etree.QName(element)
    if (tag.namespace, tag.localname) != (NAMESPACE, name):
        raise _error(guest, f"<{tag.localname}> is unknown")
    present = {str(attribute) for attribute in element.attrib}
    if missing := sorted(needed - present):
        raise _error(guest, f"<{name}> lacks {', '.join(missing)}")
    if unknown := sorted(present - needed - optional):
        raise _error(guest, f"<{name}> has unknown attributes: {', '.join(unknown)}")


def _error(guest: str, what: str) -> DomainXmlError:
    return DomainXmlError(
        f"reading the bound devices of {guest}: {what}; remove the element, then vmm-msi watch "
        f"writes a new one: virsh metadata {guest} {NAMESPACE} --remove --live"
    )
