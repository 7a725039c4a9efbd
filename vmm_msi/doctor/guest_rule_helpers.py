"""Helpers that the rules about guests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

    from vmm_msi.doctor.case import Case
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.support import Gap

#: Finding about what lacks a feature, by the first word of its requirement.
_IDS = {
    "libvirt": "libvirt-too-old",
    "QEMU": "qemu-too-old",
    "arch": "guest-arch",
    "machine": "guest-machine",
    "type": "guest-kvm",
}


def subject(xml: DomainXml) -> str:
    """Return the name of a guest for findings."""
    return f"guest {xml.name}"


def at(xml: DomainXml, element: Element, value: str) -> Evidence:
    """Return evidence from an element of a guest's definition."""
    return Evidence(xml.path(element), value)


def is_session(case: Case) -> bool:
    """Return whether the selected libvirt is an unprivileged session."""
    return case.software.source.partition("?")[0].endswith(":///session")


def finding_id(gap: Gap) -> str:
    """Return the id of the finding that reports a gap."""
    program = gap.needs.partition(" ")[0]
    return _IDS.get(program, "domain-capabilities")
