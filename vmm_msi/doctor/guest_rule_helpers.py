"""What rules about guests have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

    from vmm_msi.doctor.case import Case
    from vmm_msi.domxml.libvirt_domain import DomainXml


def subject(xml: DomainXml) -> str:
    """Return what findings call a guest."""
    return f"guest {xml.name}"


def at(xml: DomainXml, element: Element, what: str) -> Evidence:
    """Return what an element of a guest's definition says."""
    return Evidence(xml.path(element), what)


def is_session(case: Case) -> bool:
    """Tell whether the libvirt that was asked runs as a user without privileges."""
    return case.software.source.partition("?")[0].endswith(":///session")
