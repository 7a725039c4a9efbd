"""Rules about the releases of libvirt and QEMU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.doctor import simulated
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import finding_id, subject
from vmm_msi.domxml.overrides import QEMU
from vmm_msi.domxml.support import (
    DRIVER_VALUES,
    REQUIREMENTS,
    Feature,
    GuestKind,
    Support,
    newest,
)
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vmm_msi.doctor.case import Case, Guest, Software
    from vmm_msi.domxml.support import Gap

    #: Returns where a feature is in XML, or what plans it.
    Place = Callable[[], str]

#: Features in the XML of a plan for QEMU.
_PLANNED = (Feature.SMMUV3, Feature.PCI_BUS, Feature.ACCEL, Feature.HOSTDEV_IOMMUFD)


def too_old(case: Case) -> Iterator[Finding]:
    """Yield releases that lack a feature of the guest's XML or of a plan for it."""
    software, required = case.software, _required(case)
    subject_name = "host" if case.guest is None else subject(case.guest.xml)
    unknown = _unknown(software, required)
    if unknown and (case.devices_selected or case.choice is not None):
        yield Finding(
            "libvirt-unknown",
            Severity.UNKNOWN,
            subject_name,
            (Evidence(case.host.source, f"{unknown} not reported"),),
            "Releases that are too old refuse the guest or silently drop parts of it.",
            "Select the libvirt that will start the guest with --connect, or name the releases "
            "with --libvirt and --qemu.",
        )
    kind = None if case.guest is None else case.guest.xml.kind
    newest_libvirt = newest().libvirt
    support = Support(software.libvirt or newest_libvirt, software.qemu, kind or GuestKind())
    # Other rules report what the guest's kind excludes.
    too_old = [gap for gap in support.missing(required) if finding_id(gap) == "libvirt-too-old"]
    if too_old:
        yield Finding(
            "libvirt-too-old",
            Severity.ERROR,
            subject_name,
            (Evidence(software.source_of("libvirt"), too_old[0].has), *_used(required, too_old)),
            f"{'; '.join(map(str, too_old))}: without validation, libvirt silently drops unknown "
            "XML.",
            f"Use libvirt {max(REQUIREMENTS[gap.feature].libvirt for gap in too_old)} or newer.",
        )
    # Also reported if libvirt is too old for the same feature.
    by_qemu = replace(support, libvirt=newest_libvirt)
    too_old = [gap for gap in by_qemu.missing(required) if finding_id(gap) == "qemu-too-old"]
    if too_old:
        needed = max(r for gap in too_old if (r := REQUIREMENTS[gap.feature].qemu) is not None)
        yield Finding(
            "qemu-too-old",
            Severity.ERROR,
            subject_name,
            (Evidence(software.source_of("qemu"), too_old[0].has), *_used(required, too_old)),
            f"{'; '.join(map(str, too_old))}.",
            f"Use QEMU {needed} or newer.",
        )


def capabilities(case: Case) -> Iterator[Finding]:
    """Yield what the host cannot do by libvirt's domain capabilities, if they were queried."""
    caps = case.software.caps
    if caps is None or case.guest is None or simulated.binder_of(case) is BinderKind.SIM:
        return
    lacks = {
        "assign PCI devices": caps.pci_hostdev,
        # Those for an emulated guest do not show it; it cannot have an accelerated vSMMU either.
        "assign them through iommufd": None if case.guest.xml.type == "qemu" else caps.iommufd,
        "give the guest a GICv3": caps.gic3,
        "give the guest a UEFI firmware": caps.efi,
    }
    missing = [action for action, able in lacks.items() if able is False]
    if missing:
        actions = " nor ".join(missing)
        yield Finding(
            "domain-capabilities",
            Severity.ERROR,
            subject(case.guest.xml),
            (
                Evidence(
                    f"{case.software.source}: domain capabilities",
                    f"cannot {actions}",
                ),
            ),
            f"By libvirt's domain capabilities this host cannot {actions}.",
            "Use a libvirt, a QEMU and a kernel that can, or --backend sim, which writes the XML "
            "and simulates the binding.",
        )


def _unknown(software: Software, required: Iterable[Feature]) -> str:
    """Return the releases that are unknown and matter, as text; empty without one."""
    needed = [REQUIREMENTS[feature].qemu for feature in required]
    libvirt = needed and software.libvirt is None
    qemu = any(needed) and software.qemu is None and software.driver in {None, "QEMU"}
    if libvirt and qemu:
        return "releases of libvirt and QEMU"
    return "release of libvirt" if libvirt else "release of QEMU" if qemu else ""


def _used(required: Mapping[Feature, Place], gaps: Iterable[Gap]) -> Iterator[Evidence]:
    for gap in gaps:
        yield Evidence(required[gap.feature](), REQUIREMENTS[gap.feature].xml)


def _required(case: Case) -> dict[Feature, Place]:
    """Return the required features, each with its place in the XML or the plan that needs it."""
    features: dict[Feature, Place] = {}
    if case.guest is not None:
        features = _features_in(case.guest)
    if case.plugins is None:
        return features
    if simulated.binder_of(case) is BinderKind.SIM:
        return features
    for choice, needs in simulated.needs(case, case.plugins).items():
        kernel = simulated.device_binder(case, choice, needs) is BinderKind.KERNEL
        for feature in _PLANNED if needs.qemu or kernel else ():
            if feature is Feature.HOSTDEV_IOMMUFD and Feature.DOMAIN_IOMMUFD in features:
                continue
            features.setdefault(feature, partial("XML that strategy {} writes".format, choice))
    return features


def _features_in(guest: Guest) -> dict[Feature, Place]:
    """Return the features that a definition uses, each with its first place."""
    xml = guest.written or guest.xml
    features: dict[Feature, Place] = {}
    attributes = {"pciBus": Feature.PCI_BUS, "accel": Feature.ACCEL}
    attributes |= {name: feature for name, (feature, _values) in DRIVER_VALUES.items()}
    for iommu in xml.iommus():
        if iommu.model == "smmuv3":
            place = partial(xml.path, iommu.element)
            features.setdefault(Feature.SMMUV3, place)
            for name in iommu.driver:
                if name in attributes:
                    features.setdefault(attributes[name], place)
    hostdevs = (hostdev for hostdev in guest.placement.hostdevs if hostdev.argument is None)
    first = next((hostdev for hostdev in hostdevs if hostdev.iommufd), None)
    if first is not None:
        features[Feature.HOSTDEV_IOMMUFD] = partial(guest.xml.path, first.element)
    whole = xml.root.find("iommufd")
    if whole is not None:
        features.setdefault(Feature.DOMAIN_IOMMUFD, partial(xml.path, whole))
        if xml.iommufd_fdgroup is not None:
            features.setdefault(Feature.FDGROUP, partial(xml.path, whole))
    override = xml.root.find(f"{QEMU}override")
    if override is not None:
        features.setdefault(Feature.OVERRIDE, partial(xml.path, override))
    return features
