"""What is bound for a guest that runs: one element in its live ``<metadata>``, in our namespace.

It is written with VIR_DOMAIN_AFFECT_LIVE, so it is in the XML of that run alone: libvirt keeps it
when it is restarted itself and drops it when the guest stops
(https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainSetMetadata). What was *attached* is
in another element, in a namespace of its own (:mod:`vmm_msi.domxml.metadata`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lxml import etree

from vmm_msi.domxml import elements
from vmm_msi.errors import DomainXmlError, InputError
from vmm_msi.types import Iova, Outcome, PciAddress

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
    """A device of a guest that runs.

    :param strategy: the strategy with its options, as the command line takes it.
    :param by: who carries the binding out: ``sim``, or ``qemu``, where the outcome is what the
        model predicts.
    :param programmed: the address in the device; None where none was written.
    :param outcome: what becomes of its MSIs; None while the binding was begun and has not ended.
    """

    host: PciAddress
    strategy: str
    by: str
    programmed: Iova | None = None
    outcome: Outcome | None = None

    def is_same(self, other: BoundDevice) -> bool:
        """Tell whether ``other`` is the same device, bound in the same way."""
        return (self.host, self.strategy, self.by) == (other.host, other.strategy, other.by)


@dataclass(frozen=True, slots=True)
class BoundGuest:
    """All that is bound for one run of a guest.

    :param run: libvirt's id of the run, ``<domain id>``. An element that a saved guest brings back
        has the id of the run that was saved.
    :param selector: the ITS selector.
    :param devices: in the order in which they were bound.
    """

    run: int
    selector: str
    devices: tuple[BoundDevice, ...]


def read_bound(domain: DomainXml) -> BoundGuest | None:
    """Return what is bound for ``domain``, from its live XML; None where nothing is.

    :raise DomainXmlError: when the element is of another version or is not what this one writes.
    """
    found = None
    for child in domain.root.iterfind("metadata/*"):
        namespace = etree.QName(child).namespace or ""
        if namespace == NAMESPACE and found is None:
            found = child
        elif namespace.startswith(NAMESPACE_BASE):
            version = namespace.removeprefix(NAMESPACE_BASE)
            what = "there are two" if version == "1" else f"it is of version {version!r}"
            raise _error(domain.name, f"{what}; this vmm-msi reads one, of version '1'")
    if found is None:
        return None
    _expect(domain.name, found, "guest", {"run", "its-selector"}, set())
    devices = tuple(_device(domain.name, child) for child in found.iterchildren("*"))
    if len({device.host for device in devices}) != len(devices):
        raise _error(domain.name, "a device is there twice")
    run = found.get("run", "")
    if _NUMBER.fullmatch(run) is None:
        raise _error(domain.name, f"run is {run!r}, not a number")
    return BoundGuest(int(run), found.get("its-selector", ""), devices)


def bound_xml(bound: BoundGuest) -> str:
    """Return the element as libvirt takes it: without the namespace, which it adds itself."""
    attributes = {"run": str(bound.run), "its-selector": bound.selector}
    root = elements.build("guest", attributes)
    for device in bound.devices:
        values = {"host": device.host, "strategy": device.strategy, "by": device.by}
        values |= {"programmed": device.programmed, "outcome": device.outcome}
        known = {name: str(value) for name, value in values.items() if value is not None}
        root.append(elements.build("device", known))
    return etree.tostring(root, encoding="unicode")


def _device(guest: str, element: Element) -> BoundDevice:
    _expect(guest, element, "device", {"host", "strategy", "by"}, {"programmed", "outcome"})
    if len(element):
        raise _error(guest, "<device> has elements")
    by = element.get("by", "")
    if by not in {"sim", "qemu"}:
        raise _error(guest, f"by is {by!r}")
    outcome = element.get("outcome")
    if outcome is not None and outcome not in {*Outcome}:
        raise _error(guest, f"outcome {outcome!r} is unknown")
    programmed = element.get("programmed")
    if programmed is not None and _ADDRESS.fullmatch(programmed) is None:
        raise _error(guest, f"programmed is {programmed!r}, not an address")
    try:
        host = PciAddress.parse(element.get("host", ""))
    except InputError as error:
        raise _error(guest, str(error)) from None
    return BoundDevice(
        host=host,
        strategy=element.get("strategy", ""),
        by=by,
        programmed=None if programmed is None else Iova(int(programmed, 16)),
        outcome=None if outcome is None else Outcome(outcome),
    )


def _expect(guest: str, element: Element, name: str, needed: set[str], optional: set[str]) -> None:
    tag = etree.QName(element)
    if (tag.namespace, tag.localname) != (NAMESPACE, name):
        raise _error(guest, f"<{tag.localname}> is unknown there")
    found = {str(attribute) for attribute in element.attrib}
    if missing := sorted(needed - found):
        raise _error(guest, f"<{name}> lacks {', '.join(missing)}")
    if unknown := sorted(found - needed - optional):
        raise _error(guest, f"<{name}> has unknown attributes: {', '.join(unknown)}")


def _error(guest: str, what: str) -> DomainXmlError:
    return DomainXmlError(
        f"reading what is bound for {guest}: {what}; valid is what this vmm-msi writes: take the "
        f"element out with virsh metadata {guest} {NAMESPACE} --remove --live"
    )
