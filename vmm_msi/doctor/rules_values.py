"""Rules about values that libvirt or QEMU refuses, or that libvirt replaces with others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import at, subject
from vmm_msi.domxml.attribute_values import Kind
from vmm_msi.domxml.libvirt_values import LIBVIRT
from vmm_msi.domxml.support import DRIVER_VALUES

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
    for bad in case.guest.bad_values:
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


def qemu_refuses(case: Case) -> Iterator[Finding]:
    """Yield the properties of vSMMUs with which QEMU exits, though libvirt passes them on."""
    if case.guest is None:
        return
    xml = case.guest.xml
    for iommu in case.guest.placement.vsmmus:
        if iommu.pci_bus is None:
            continue
        for name, (_feature, words) in DRIVER_VALUES.items():
            value = iommu.driver.get(name)
            plain = value.lstrip("0") or "0" if value and value.isdecimal() else value
            if plain is None or plain in {*words, "auto"}:
                continue
            valid = f"{words[0]} to {words[-1]}" if len(words) > 2 else " or ".join(words)
            message = (
                "QEMU SMMUv3 model only implements auto, 44 bit, or 48 bit OAS"
                if name == "oas" and plain.isdecimal()
                else f"Parameter '{name}' does not accept value '{plain}'"
            )
            yield Finding(
                "qemu-refuses",
                Severity.ERROR,
                subject(xml),
                (at(xml, iommu.element, f"{name}='{value}'"),),
                f"libvirt passes it on, and QEMU exits at startup: {message}.",
                f"Use {valid}, or leave {name} out: QEMU then takes it from the physical SMMU.",
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
