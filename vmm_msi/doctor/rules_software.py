"""Rules about the libvirt and the QEMU that are to run a guest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.doctor import simulated
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import subject
from vmm_msi.domxml.reserve import QEMU
from vmm_msi.domxml.support import DRIVER_VALUES, REQUIREMENTS, Feature, GuestKind, Support
from vmm_msi.provision.definition_file import newest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmm_msi.doctor.case import Case
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.support import Gap

#: What a plan that QEMU carries out has in its XML.
_PLANNED = (Feature.SMMUV3, Feature.PCI_BUS, Feature.ACCEL, Feature.HOSTDEV_IOMMUFD)


def too_old(case: Case) -> Iterator[Finding]:
    """Yield releases that lack what the guest's XML, or a plan for it, is made of."""
    software = case.software
    whose = "host" if case.guest is None else subject(case.guest.xml)
    if software.libvirt is None:
        if case.guest is not None or case.choice is not None:
            yield Finding(
                "libvirt-unknown",
                Severity.UNKNOWN,
                whose,
                (Evidence(case.host.source, "nothing tells which libvirt and QEMU are there"),),
                "A release that is too old refuses the guest, or drops parts of it without a word.",
                "Name the libvirt that is to start it with --connect.",
            )
        return
    wanted = _wanted(case)
    kind = None if case.guest is None else case.guest.xml.kind
    support = Support(software.libvirt, software.qemu, kind or GuestKind())
    # Of what the guest's kind excludes, other rules tell.
    old = [gap for gap in support.missing(wanted) if gap.needs.startswith("libvirt ")]
    if old:
        yield Finding(
            "libvirt-too-old",
            Severity.ERROR,
            whose,
            (Evidence(software.source, old[0].has), *_places(wanted, old)),
            f"{'; '.join(map(str, old))}: without validation it drops what it does not know.",
            f"Use libvirt {max(REQUIREMENTS[gap.feature].libvirt for gap in old)} or newer.",
        )
    # Also where libvirt is too old for the same.
    by_qemu = replace(support, libvirt=newest().libvirt)
    old = [gap for gap in by_qemu.missing(wanted) if gap.needs.startswith("QEMU ")]
    if old:
        needed = max(r for gap in old if (r := REQUIREMENTS[gap.feature].qemu) is not None)
        yield Finding(
            "qemu-too-old",
            Severity.ERROR,
            whose,
            (Evidence(software.source, old[0].has), *_places(wanted, old)),
            f"{'; '.join(map(str, old))}.",
            f"Use QEMU {needed} or newer.",
        )


def _places(wanted: Mapping[Feature, str], gaps: Iterable[Gap]) -> Iterator[Evidence]:
    for gap in gaps:
        yield Evidence(wanted[gap.feature], REQUIREMENTS[gap.feature].xml)


def _wanted(case: Case) -> dict[Feature, str]:
    """Return the features that are needed, and where: in the XML, else for a plan."""
    found: dict[Feature, str] = {}
    if case.guest is not None:
        found = _written(case.guest.written or case.guest.xml)
    if case.plugins is None:
        return found
    for choice, needs in simulated.needs(case, case.plugins).items():
        for feature in _PLANNED if needs.qemu else ():
            if feature is Feature.HOSTDEV_IOMMUFD and Feature.DOMAIN_IOMMUFD in found:
                continue
            found.setdefault(feature, f"what strategy {choice} writes")
    return found


def _written(xml: DomainXml) -> dict[Feature, str]:
    """Return the features that a definition uses, and the first place of each."""
    found: dict[Feature, str] = {}
    attributes = {"pciBus": Feature.PCI_BUS, "accel": Feature.ACCEL}
    attributes |= {name: feature for name, (feature, _values) in DRIVER_VALUES.items()}
    for iommu in xml.iommus():
        if iommu.model == "smmuv3":
            place = xml.path(iommu.element)
            found.setdefault(Feature.SMMUV3, place)
            for name in iommu.driver:
                if name in attributes:
                    found.setdefault(attributes[name], place)
    for hostdev in xml.hostdevs():
        if hostdev.iommufd:
            found.setdefault(Feature.HOSTDEV_IOMMUFD, xml.path(hostdev.element))
    whole = xml.root.find("iommufd")
    if whole is not None:
        found.setdefault(Feature.DOMAIN_IOMMUFD, xml.path(whole))
        if xml.iommufd_fdgroup is not None:
            found.setdefault(Feature.FDGROUP, xml.path(whole))
    override = xml.root.find(f"{QEMU}override")
    if override is not None:
        found.setdefault(Feature.OVERRIDE, xml.path(override))
    return found
