"""Rules about attributes whose values libvirt refuses, or replaces with others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import at, subject
from vmm_msi.domxml.attribute_values import Kind, bad_values
from vmm_msi.domxml.libvirt_values import LIBVIRT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.domxml.attribute_values import BadValue


def libvirt_refuses(case: Case) -> Iterator[Finding]:
    """Yield the values with which libvirt rejects the definition, and those that it replaces.

    Definitions that libvirt returns have none.
    """
    if case.guest is None or case.guest.written is None:
        return
    xml = case.guest.written
    for bad in bad_values(xml):
        evidence = (at(xml, bad.element, str(bad)),)
        if bad.problem.message is None:
            yield Finding(
                "xml-dropped",
                Severity.ERROR,
                subject(xml),
                evidence,
                f"libvirt {LIBVIRT} rejects the value if it validates the definition, and replaces "
                "it with its default otherwise.",
                _remedy(bad),
            )
        else:
            yield Finding(
                "libvirt-refuses",
                Severity.ERROR,
                subject(xml),
                evidence,
                f"libvirt {LIBVIRT} rejects the definition: {bad.problem.message.rstrip('.')}. "
                "Until it is fixed, the other checks of the guest cannot run.",
                _remedy(bad),
            )


def _remedy(bad: BadValue) -> str:
    if bad.problem.intended is not None:
        return f"Use {bad.attribute}='{bad.problem.intended}'."
    needs = bad.known.needs
    if bad.value is None:
        return f"Add {bad.attribute}; valid: {bad.known.valid()}."
    if bad.known.kind is Kind.NEVER:
        return "Remove it."
    if needs is not None and bad.problem.message == needs[1]:
        return f"Add {needs[0]}, or remove it."
    return f"Use a valid value: {bad.known.valid()}."
