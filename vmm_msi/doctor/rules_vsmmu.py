"""Rules about a guest's vSMMUs and the devices behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor import simulated
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import at, is_session, subject
from vmm_msi.domxml.placement import Placement, is_accelerated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.domxml.libvirt_domain import DomainXml, IommuDevice, PciHostdev


def no_accel(case: Case) -> Iterator[Finding]:
    """Yield assigned devices behind a vSMMU that QEMU emulates."""
    if case.guest is None:
        return
    xml = case.guest.xml
    placement = Placement(xml)
    for iommu in placement.vsmmus:
        for hostdev in () if is_accelerated(iommu) else placement.behind(iommu):
            yield Finding(
                "no-accel",
                Severity.ERROR,
                str(hostdev.host),
                (_driver(xml, iommu, "accel"), _hostdev(xml, hostdev)),
                "QEMU exits at startup: an emulated SMMUv3 cannot notify VFIO of the guest's "
                "mappings (requires iommu MAP notifier which is not currently supported).",
                "Set accel='on' in the <driver> of its <iommu>.",
            )


def not_behind_vsmmu(case: Case) -> Iterator[Finding]:
    """Yield assigned devices without a vSMMU."""
    if case.guest is None:
        return
    xml = case.guest.xml
    placement = Placement(xml)
    for hostdev in xml.hostdevs():
        if placement.vsmmu_of(hostdev.element) is not None:
            continue
        remedy = (
            "If this is intended, nothing; otherwise remove it, and put it behind a vSMMU with "
            "vmm-msi attach or vmm-msi render."
        )
        if hostdev.guest is None and placement.vsmmus:
            yield Finding(
                "hostdev-not-behind-vsmmu",
                Severity.UNKNOWN,
                str(hostdev.host),
                (at(xml, hostdev.element, "no <address>"),),
                "libvirt plugs it into the first free port, which may or may not be behind a vSMMU."
                "",
                "Give it the <address> of a root port behind the vSMMU of its physical SMMU.",
            )
            continue
        yield Finding(
            "hostdev-not-behind-vsmmu",
            Severity.NOTE,
            str(hostdev.host),
            (_hostdev(xml, hostdev),),
            "Only the host translates its DMA, so the guest can neither confine it nor assign it "
            "to its own user space or nested guests; its MSIs need no strategy.",
            remedy,
        )


def empty_vsmmu(case: Case) -> Iterator[Finding]:
    """Yield accelerated vSMMUs without an assigned device."""
    if case.guest is None:
        return
    xml = case.guest.xml
    for empty in Placement(xml).empty_vsmmus():
        yield Finding(
            "empty-vsmmu",
            Severity.ERROR,
            subject(xml),
            (at(xml, empty.iommu.element, str(empty)),),
            "QEMU exits at startup: arm-smmuv3 accel=on with 'auto' properties requires at least "
            "one cold-plugged VFIO device.",
            "Assign a device behind it, remove it, or set ats, ril, ssidsize and oas in its "
            "<driver>.",
        )


def emulated_behind_vsmmu(case: Case) -> Iterator[Finding]:
    """Yield emulated devices behind an accelerated vSMMU."""
    if case.guest is None:
        return
    xml = case.guest.xml
    placement = Placement(xml)
    for iommu in filter(is_accelerated, placement.vsmmus):
        for element in placement.emulated_behind(iommu):
            yield Finding(
                "emulated-behind-vsmmu",
                Severity.ERROR,
                subject(xml),
                (
                    at(xml, element, f"a <{element.tag!s}> behind the vSMMU below"),
                    _driver(xml, iommu, "accel"),
                ),
                "QEMU exits at startup: Emulated endpoint devices are not allowed when using "
                "arm-smmuv3,accel=on.",
                "Move it to a port of pcie.0, or remove its <address> so that libvirt chooses one.",
            )


def misplaced_vsmmu(case: Case) -> Iterator[Finding]:
    """Yield vSMMUs that are not on a root bus or share one."""
    if case.guest is None:
        return
    xml = case.guest.xml
    placement = Placement(xml)
    seen: set[str] = set()
    for iommu in placement.vsmmus:
        bus = iommu.pci_bus
        if bus is None:
            continue
        evidence = (_driver(xml, iommu, "pciBus"),)
        if not (bus.isdecimal() and placement.is_root(int(bus))):
            yield Finding(
                "misplaced-vsmmu",
                Severity.ERROR,
                subject(xml),
                evidence,
                "libvirt accepts it, and QEMU exits at startup: SMMU should be attached to a "
                "default PCIe root complex(pcie.0) or a pxb-pcie based root complex.",
                "Set pciBus to the index of a <controller model='pcie-expander-bus'>, which "
                "differs from its busNr.",
            )
        elif bus in seen:
            yield Finding(
                "misplaced-vsmmu",
                Severity.ERROR,
                subject(xml),
                evidence,
                "libvirt accepts it, and QEMU exits at startup: An iommu is already attached to "
                "this bus.",
                "Give each vSMMU an expander bus of its own.",
            )
        seen.add(bus)


def vsmmu_spans_smmus(case: Case) -> Iterator[Finding]:
    """Yield vSMMUs with devices of several physical SMMUs."""
    if case.guest is None:
        return
    xml = case.guest.xml
    placement = Placement(xml)
    devices = simulated.resolved_host(case).device_by_address
    for iommu in placement.vsmmus:
        behind: dict[int, list[PciHostdev]] = {}
        for hostdev in placement.behind(iommu):
            device = devices.get(hostdev.host)
            if device is not None and device.smmu is not None:
                behind.setdefault(device.smmu, []).append(hostdev)
        if len(behind) < 2:
            continue
        names = [
            Evidence(xml.path(hostdev.element), f"{hostdev.host}, behind host SMMU {smmu}")
            for smmu, hostdevs in behind.items()
            for hostdev in hostdevs
        ]
        yield Finding(
            "vsmmu-spans-smmus",
            Severity.ERROR,
            subject(xml),
            (_driver(xml, iommu, "pciBus"), *names),
            "libvirt and QEMU accept it; when the guest sets up a device of the second SMMU, its "
            "vSMMU fails with IOMMU_VDEVICE_ALLOC failed: Invalid argument in QEMU's log.",
            f"Give each SMMU a vSMMU of its own ({len(behind)} in total), as vmm-msi attach does.",
        )


def without_iommufd(case: Case) -> Iterator[Finding]:
    """Yield assigned devices behind an accelerated vSMMU that do not use iommufd."""
    if case.guest is None:
        return
    xml = case.guest.xml
    placement = Placement(xml)
    for iommu in filter(is_accelerated, placement.vsmmus):
        for hostdev in placement.behind(iommu):
            driver = hostdev.element.find("driver")
            own = None if driver is None else driver.get("iommufd")
            if own == "yes" or (own is None and xml.iommufd):
                continue
            yield Finding(
                "hostdev-without-iommufd",
                Severity.ERROR,
                str(hostdev.host),
                (
                    Evidence(f"{xml.source}: /domain/iommufd", _whole_domain(xml)),
                    at(xml, hostdev.element, f"<driver>: {_setting('iommufd', own)}"),
                ),
                "QEMU exits at startup: vfio-pci endpoint devices without an iommufd backend not "
                "allowed when using arm-smmuv3,accel=on.",
                "Add <iommufd enabled='yes'/> below <domain>, or <driver iommufd='yes'/> to its "
                "<hostdev>.",
            )


def iommufd_opener(case: Case) -> Iterator[Finding]:
    """Yield guests for which libvirt cannot open /dev/iommu."""
    if case.guest is None or not case.guest.xml.hostdevs():
        return
    xml = case.guest.xml
    element = xml.root.find("iommufd")
    group = xml.iommufd_fdgroup
    if element is not None and group is not None:
        yield Finding(
            "fdgroup-needs-opener",
            Severity.WARNING,
            subject(xml),
            (at(xml, element, f"fdgroup='{group}'"),),
            f"virsh start fails: file descriptor group '{group}' was not associated with the "
            "domain; only a program that opens /dev/iommu and passes it in on its own connection "
            "can start it.",
            "Start it with such a program (virDomainFDAssociate, vmm_msi.pass_iommufd), or remove "
            "fdgroup.",
        )
    uses = xml.iommufd or any(hostdev.iommufd for hostdev in xml.hostdevs())
    if uses and group is None and is_session(case):
        where = xml.source if element is None else xml.path(element)
        yield Finding(
            "missing-fdgroup",
            Severity.ERROR,
            subject(xml),
            (
                Evidence(where, "iommufd without an fdgroup"),
                Evidence(case.software.source, "unprivileged libvirt"),
            ),
            "The guest does not start: failed to set memory accounting for iommufd: Operation not "
            "permitted. This requires CAP_SYS_RESOURCE.",
            "Use qemu:///system, or have a program open /dev/iommu and pass it in as an fdgroup.",
        )


def _whole_domain(xml: DomainXml) -> str:
    return {True: "enabled='yes'", False: "enabled='no'", None: "missing"}[xml.iommufd]


def _driver(xml: DomainXml, iommu: IommuDevice, name: str) -> Evidence:
    return at(xml, iommu.element, _setting(name, iommu.driver.get(name)))


def _setting(name: str, value: str | None) -> str:
    return f"{name} not set" if value is None else f"{name}='{value}'"


def _hostdev(xml: DomainXml, hostdev: PciHostdev) -> Evidence:
    bus = "no address" if hostdev.guest is None else f"on the bus of controller {hostdev.guest.bus}"
    return at(xml, hostdev.element, f"{hostdev.host}, {bus}")
