"""Rules about a guest's vSMMUs and the devices behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor import simulated
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import at, is_session, subject
from vmm_msi.doctor.rule_helpers import MAX_NAMED, named
from vmm_msi.domxml.placement import is_accelerated
from vmm_msi.domxml.support import ARCH, DRIVER_VALUES
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.domxml.libvirt_domain import DomainXml, IommuDevice, PciHostdev
    from vmm_msi.domxml.placement import Placement


#: What puts a device behind an accelerated vSMMU, in place of one that serves other devices, too.
_OWN_BUS = (
    "Replace this <iommu>: add <controller type='pci' index='N' model='pcie-expander-bus'/>, a "
    "<controller type='pci' model='pcie-root-port'> on its bus, the <hostdev> on that port, and "
    "<iommu model='smmuv3'><driver pciBus='N' accel='on'/></iommu>. Once this <iommu> is removed, "
    "vmm-msi render --take-over --device {device} adds all of it."
)


#: QEMU's message, from ``hw/arm/smmuv3.c`` smmuv3_notify_flag_changed.
_MAP_NOTIFIER = "requires iommu MAP notifier which is not currently supported"


def no_accel(case: Case) -> Iterator[Finding]:
    """Yield assigned devices behind a vSMMU that QEMU emulates."""
    if case.guest is None:
        return
    xml, placement = case.guest.xml, case.guest.placement
    if xml.type == "test":
        return  # no QEMU runs it
    simulated_only = simulated.binder_of(case) is BinderKind.SIM
    for iommu in placement.vsmmus:
        if is_accelerated(iommu) or _ignored_properties(iommu):
            continue
        bus = placement.bus_of(iommu)
        on_expander = bus is not None and placement.is_root(bus) and bus != "0"
        for hostdev in placement.behind(iommu):
            yield Finding(
                "no-accel",
                Severity.WARNING if simulated_only else Severity.ERROR,
                str(hostdev.host),
                (_driver(xml, iommu, "accel"), _hostdev(xml, hostdev)),
                "QEMU exits at startup: an emulated SMMUv3 cannot notify VFIO of the guest's "
                f"mappings ({_MAP_NOTIFIER}).",
                _accel_remedy(iommu, hostdev, on_expander=on_expander),
            )


def _accel_remedy(iommu: IommuDevice, hostdev: PciHostdev, *, on_expander: bool) -> str:
    if iommu.element.tag != "iommu":
        return (
            "Add accel=on to its -device arm-smmuv3."
            if on_expander
            else "Remove it from <qemu:commandline>; vmm-msi attach gives the device a vSMMU."
        )
    if on_expander:
        return "Set accel='on' in the <driver> of its <iommu>."
    return _OWN_BUS.format(device=hostdev.host)


def accel_dropped(case: Case) -> Iterator[Finding]:
    """Yield vSMMUs of the whole machine whose acceleration libvirt drops."""
    if case.guest is None:
        return
    xml, placement = case.guest.xml, case.guest.placement
    for iommu in placement.vsmmus:
        names = _ignored_properties(iommu)
        if not names:
            continue
        behind = placement.behind(iommu)
        consequence = (
            f"Without pciBus, libvirt passes no {named(names)} to QEMU, only -machine "
            "iommu=smmuv3: an emulated vSMMU."
        )
        if behind:
            consequence += (
                f" With {named(hostdev.host for hostdev in behind)} behind it, QEMU exits at "
                f"startup: {_MAP_NOTIFIER}."
            )
        yield Finding(
            "xml-dropped",
            Severity.ERROR,
            subject(xml),
            (
                at(xml, iommu.element, " ".join(f"{n}='{iommu.driver[n]}'" for n in names)),
                _driver(xml, iommu, "pciBus"),
                *(_hostdev(xml, hostdev) for hostdev in behind[:MAX_NAMED]),
            ),
            consequence,
            _OWN_BUS.format(device=behind[0].host if behind else "ADDRESS"),
        )


def _ignored_properties(iommu: IommuDevice) -> list[str]:
    """Return the properties that libvirt drops because the vSMMU has no pciBus.

    Without accel='on' it rejects the others.
    """
    if iommu.pci_bus is not None or iommu.driver.get("accel") != "on":
        return []
    return [name for name in ("accel", *DRIVER_VALUES) if name in iommu.driver]


def not_behind_vsmmu(case: Case) -> Iterator[Finding]:
    """Yield assigned devices without a vSMMU."""
    if case.guest is None:
        return
    xml, placement = case.guest.xml, case.guest.placement
    other = next((iommu for iommu in placement.iommus if iommu.model != "smmuv3"), None)
    for hostdev in placement.hostdevs:
        if placement.vsmmu_of(hostdev.element) is not None:
            continue
        if hostdev.guest is None and hostdev.argument is None and placement.vsmmus:
            yield Finding(
                "hostdev-not-behind-vsmmu",
                Severity.UNKNOWN,
                str(hostdev.host),
                (at(xml, hostdev.element, "no <address>"),),
                "libvirt plugs it into the first free port, which may or may not be behind a vSMMU."
                "",
                "Give it the <address> of a root port behind the vSMMU of its physical SMMU.",
            )
        elif other is not None:
            yield _behind_other(xml, hostdev, other)
        else:
            yield Finding(
                "hostdev-not-behind-vsmmu",
                Severity.NOTE,
                str(hostdev.host),
                (_hostdev(xml, hostdev),),
                "Only the host translates its DMA, so the guest can neither confine it nor assign "
                "it to its own user space or nested guests; its MSIs need no strategy.",
                "If this is intended, nothing; otherwise vmm-msi render --take-over --device "
                f"{hostdev.host} puts it behind a vSMMU.",
            )


def _behind_other(xml: DomainXml, hostdev: PciHostdev, iommu: IommuDevice) -> Finding:
    """Return the finding about a device that an IOMMU of another model translates for."""
    if iommu.model == "virtio":
        consequence = (
            "The guest's virtio-iommu translates its DMA, and VFIO follows its mappings. Its MSIs "
            "need no strategy: the host programs the device, and QEMU reports the doorbell as a "
            "reserved region, which the guest does not map."
        )
    else:
        consequence = (
            f"The guest's IOMMU of model '{iommu.model}' translates its DMA. Its MSIs need no "
            "strategy of vmm-msi, which does not check them."
        )
    return Finding(
        "hostdev-not-behind-vsmmu",
        Severity.NOTE,
        str(hostdev.host),
        (at(xml, iommu.element, f"model='{iommu.model}'"), _hostdev(xml, hostdev)),
        consequence,
        "If this is intended, nothing; a nested SMMUv3, which needs no shadow tables, takes the "
        "place of this <iommu>: remove it, and use vmm-msi render --take-over."
        if xml.arch == ARCH
        else "No action needed.",
    )


def empty_vsmmu(case: Case) -> Iterator[Finding]:
    """Yield accelerated vSMMUs without an assigned device."""
    if case.guest is None:
        return
    xml = case.guest.xml
    for empty in case.guest.placement.empty_vsmmus():
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
    xml, placement = case.guest.xml, case.guest.placement
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
    xml, placement = case.guest.xml, case.guest.placement
    yield from _several_kinds(xml, placement)
    seen: set[str] = set()
    for iommu in placement.vsmmus:
        bus = iommu.pci_bus
        if bus is None:
            continue
        evidence = (_driver(xml, iommu, "pciBus"),)
        if not placement.is_root(placement.bus_of(iommu) or ""):
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


def _several_kinds(xml: DomainXml, placement: Placement) -> Iterator[Finding]:
    """Yield IOMMUs of the whole machine beside others; of these, libvirt writes only the first."""
    first, others = placement.iommus[:1], placement.iommus[1:]
    for iommu in first:
        is_virtio = iommu.model == "virtio"
        if not is_virtio and (iommu.model != "smmuv3" or iommu.pci_bus is not None):
            continue
        for other in others:
            if other.model == "smmuv3" and other.pci_bus is not None:
                message = (
                    f"virt machine already has {'virtio-iommu' if is_virtio else 'iommu=smmuv3'} "
                    "set. Doesn't support incompatible iommus."
                )
            elif other.model == "virtio" and not is_virtio:
                message = "virt machine does not support multiple IOMMUs."
            else:
                continue
            yield Finding(
                "misplaced-vsmmu",
                Severity.ERROR,
                subject(xml),
                (_model(xml, iommu), _model(xml, other)),
                f"libvirt accepts it, and QEMU exits at startup: {message}",
                "Remove the first of the two; devices that need a vSMMU get one with pciBus.",
            )
            break
    for iommu in placement.ignored:
        yield Finding(
            "xml-dropped",
            Severity.WARNING,
            subject(xml),
            (at(xml, iommu.element, "pciBus not set, and another <iommu> precedes it"),),
            "libvirt passes a vSMMU of the whole machine to QEMU only if it is the first <iommu>: "
            "devices that no other vSMMU serves have none.",
            "Remove it, or set pciBus to the bus of the devices that it is for.",
        )


def vsmmu_spans_smmus(case: Case) -> Iterator[Finding]:
    """Yield vSMMUs with devices of several physical SMMUs."""
    if case.guest is None:
        return
    xml, placement = case.guest.xml, case.guest.placement
    if xml.type == "test":
        return  # no QEMU runs it
    devices = case.resolved_host.device_by_address
    for iommu in placement.vsmmus:
        behind: dict[int, list[PciHostdev]] = {}
        for hostdev in placement.behind(iommu):
            device = devices.get(hostdev.host)
            if device is not None and device.smmu is not None:
                behind.setdefault(device.smmu, []).append(hostdev)
        if len(behind) < 2:
            continue
        names = [
            at(xml, hostdev.element, f"{hostdev.host}, behind host SMMU {smmu}")
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
    xml, placement = case.guest.xml, case.guest.placement
    for iommu in filter(is_accelerated, placement.vsmmus):
        for hostdev in placement.behind(iommu):
            if xml.uses_iommufd(hostdev):
                continue
            driver = hostdev.element.find("driver")
            own = None if driver is None else driver.get("iommufd")
            yield Finding(
                "hostdev-without-iommufd",
                Severity.ERROR,
                str(hostdev.host),
                (
                    Evidence(f"{xml.source}: /domain/iommufd", _whole_domain(xml)),
                    at(xml, hostdev.element, f"<driver>: {_setting('iommufd', own)}"),
                )
                if hostdev.argument is None
                else (at(xml, hostdev.element, "no property iommufd"),),
                "QEMU exits at startup: vfio-pci endpoint devices without an iommufd backend not "
                "allowed when using arm-smmuv3,accel=on.",
                "Add <iommufd enabled='yes'/> below <domain>, or <driver iommufd='yes'/> to its "
                "<hostdev>."
                if hostdev.argument is None
                else "Add -object iommufd,id=iommufd0, and iommufd=iommufd0 to its -device.",
            )


def iommufd_opener(case: Case) -> Iterator[Finding]:
    """Yield guests for which libvirt cannot open /dev/iommu."""
    if case.guest is None or not case.guest.placement.hostdevs:
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
    uses = xml.iommufd or any(map(xml.uses_iommufd, case.guest.placement.hostdevs))
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


def _model(xml: DomainXml, iommu: IommuDevice) -> Evidence:
    bus = "the whole machine" if iommu.pci_bus is None else f"bus {iommu.pci_bus}"
    return at(xml, iommu.element, f"model='{iommu.model}', for {bus}")


def _driver(xml: DomainXml, iommu: IommuDevice, name: str) -> Evidence:
    on_command_line = name == "pciBus" and iommu.element.tag != "iommu"
    shown = "primary-bus" if on_command_line else name
    return at(xml, iommu.element, _setting(shown, iommu.driver.get(name)))


def _setting(name: str, value: str | None) -> str:
    return f"{name} not set" if value is None else f"{name}='{value}'"


def _hostdev(xml: DomainXml, hostdev: PciHostdev) -> Evidence:
    if hostdev.argument is not None:
        bus = f"on the bus {hostdev.argument.bus}"
    elif hostdev.guest is None:
        bus = "no address in the guest"
    else:
        bus = f"on the bus of controller {hostdev.guest.bus}"
    return at(xml, hostdev.element, f"{hostdev.host}, {bus}")
