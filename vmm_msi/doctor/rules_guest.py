"""Rules about a guest as a whole: its kind, its RAM, and XML that libvirt drops."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.doctor import simulated
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import at, is_session, subject
from vmm_msi.domxml import added_elements, prerequisites
from vmm_msi.domxml.guest_memory import HEADROOM, guest_ram, locking
from vmm_msi.domxml.placement import is_accelerated
from vmm_msi.domxml.prerequisites import Check
from vmm_msi.domxml.unread import unread
from vmm_msi.engine.binders import fatal_checks
from vmm_msi.types import ReservedKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_msi.doctor.case import Case
    from vmm_msi.domxml.guest_memory import Locking
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.prerequisites import Problem
    from vmm_msi.types import ReservedRegion

#: Regions that iommufd does not reserve: Linux ``drivers/iommu/iommufd/io_pagetable.c``
#: iopt_table_enforce_dev_resv_regions.
_RELAXED = ReservedKind.DIRECT_RELAXABLE


class _MissingPart(NamedTuple):
    """The finding about a part that a guest lacks.

    :param severities: if the strategies of the guest need the part, and if they do not; None for no
        finding.
    :param path: where in the definition the part belongs.
    """

    id: str
    severities: tuple[Severity, Severity | None]
    path: str
    effect: str
    remedy: str


_NOT_VIRT = "libvirt rejects the vSMMU: only QEMU's aarch64 board virt has an SMMUv3."
_MISSING_PARTS: Mapping[Check, _MissingPart] = {
    Check.ARCH: _MissingPart(
        "guest-arch",
        (Severity.ERROR, None),
        "os/type",
        _NOT_VIRT,
        "Define an aarch64 guest: <type arch='aarch64' machine='virt'>hvm</type>.",
    ),
    Check.MACHINE: _MissingPart(
        "guest-machine",
        (Severity.ERROR, None),
        "os/type",
        _NOT_VIRT,
        "Set machine='virt', or a version of it such as virt-11.1, in <os><type>.",
    ),
    Check.GIC: _MissingPart(
        "guest-gic",
        (Severity.ERROR, None),
        "features/gic",
        "The guest has no ITS, so its devices have no doorbell for their MSIs; an emulated guest "
        "gets GIC version 2 unless it sets one.",
        "Add <gic version='3'/> to <features>.",
    ),
    Check.ACPI: _MissingPart(
        "no-acpi",
        (Severity.ERROR, Severity.NOTE),
        "features/acpi",
        "The guest gets no RMR, so every MSI ends in an S1 fault; QEMU also rejects an accelerated "
        "vSMMU on a board with a device tree.",
        "Add <acpi/> to <features>, and firmware='efi' to <os>, which libvirt requires with it.",
    ),
    Check.FIRMWARE: _MissingPart(
        "acpi-without-uefi",
        (Severity.ERROR, Severity.NOTE),
        "os",
        "libvirt rejects the definition: ACPI requires UEFI on this architecture.",
        "Use <os firmware='efi'>, or set <loader> to a UEFI image.",
    ),
    Check.KVM: _MissingPart(
        "guest-kvm",
        (Severity.ERROR, None),
        ".",
        "QEMU exits at startup: SMMUv3 accel=on requires KVM with kernel-irqchip=on support.",
        "Use <domain type='kvm'> on an Arm host with /dev/kvm.",
    ),
}


def guest_kind(case: Case) -> Iterator[Finding]:
    """Yield what prevents the guest from having the vSMMUs that it has, or that it will get.

    A guest without a vSMMU and without a device to attach needs none of it, and one with an
    emulated vSMMU only a machine that has it.
    """
    if case.guest is None or not (case.needs_nesting or case.guest.placement.vsmmus):
        return
    xml = case.guest.xml
    needed = _needed_parts(case)
    if not case.needs_nesting:
        needed &= {Check.ARCH, Check.MACHINE}
    problems = {problem.check: problem for problem in prerequisites.problems(xml)}
    for check, part in _MISSING_PARTS.items():
        severity = part.severities[0 if check in needed else 1]
        if check not in problems or severity is None:
            continue
        if check is Check.FIRMWARE and not xml.acpi:
            continue  # the finding about ACPI asks for both
        evidence = _evidence(xml, part.path, problems[check])
        yield Finding(part.id, severity, subject(xml), (evidence,), part.effect, part.remedy)


def _needed_parts(case: Case) -> set[Check]:
    """Return the parts that the strategies of the guest need; all if no strategies are loaded."""
    if case.plugins is None:
        return set(Check)
    needs = simulated.needs(case, case.plugins).values()
    return fatal_checks(simulated.binder_of(case), needs)


def _evidence(xml: DomainXml, path: str, problem: Problem) -> Evidence:
    """Return the place of a problem, with the part of its text that describes the state."""
    element = xml.root.find(path)
    where = f"{xml.source}: /domain/{path}" if element is None else xml.path(element)
    return Evidence(where, problem.words.partition("; ")[0])


def part_gone(case: Case) -> Iterator[Finding]:
    """Yield the parts added by vmm-msi that were removed since."""
    if case.guest is None:
        return
    xml = case.guest.xml
    for part in added_elements.gone(case.guest.placement, case.guest.record):
        yield Finding(
            "part-gone",
            Severity.ERROR,
            subject(xml),
            (Evidence(xml.source, f"{part} is missing from the definition"),),
            "Some devices that the record lists behind nested vSMMUs are missing or not behind "
            "them.",
            f"Remove the rest with vmm-msi detach {xml.name}, and attach the devices again.",
        )


def xml_dropped(case: Case) -> Iterator[Finding]:
    """Yield the parts of the original definition that libvirt does not read."""
    if case.guest is None:
        return
    written = case.guest.written or case.guest.xml
    for part in unread(written):
        suggestion = part.intended
        remedy = f"Use {suggestion} instead" if suggestion else "Remove it"
        yield Finding(
            "xml-dropped",
            Severity.ERROR if suggestion else Severity.WARNING,
            subject(written),
            (at(written, part.element, str(part)),),
            "libvirt does not read it: it rejects the definition if it validates it, and silently "
            "drops this part otherwise.",
            f"{remedy}, and define guests with virsh define --validate.",
        )


def ram_in_reserved(case: Case) -> Iterator[Finding]:
    """Yield the guest's RAM that overlaps reserved IOVAs of a device."""
    if case.guest is None:
        return
    xml = case.guest.xml
    if not xml.kind.is_virt:
        return
    ram = list(guest_ram(xml))
    host = case.resolved_host
    seen: set[ReservedRegion] = set()
    for device in host.devices:
        for region in device.reserved:
            hit = next((r for r in ram if region.overlaps(r.base, r.size)), None)
            if hit is None or region in seen or region.kind is _RELAXED:
                continue
            seen.add(region)
            evidence = (
                at(xml, hit.element, f"RAM {hit.base:#x}-{hit.base + hit.size - 1:#x}"),
                Evidence(f"{host.source}: reserved regions of {device.address}", str(region)),
            )
            consequence = (
                "QEMU exits at startup or when the memory is hot-plugged: iommufd returns "
                "EADDRINUSE for a device whose reserved region is mapped, and does not map RAM "
                "there."
            )
            if region.kind in {ReservedKind.SW_MSI, ReservedKind.HW_MSI}:
                yield Finding(
                    "guest-ram-in-msi-window",
                    Severity.ERROR,
                    subject(xml),
                    evidence,
                    consequence,
                    "Move the RAM or the memory device out of the window; QEMU's own layout starts "
                    "at 0x40000000.",
                )
            else:
                yield Finding(
                    "guest-ram-reserved",
                    Severity.ERROR,
                    subject(xml),
                    evidence,
                    consequence,
                    f"Give the guest less RAM, so that it ends below {region.base:#x}, or use "
                    "another device.",
                )


def memlock(case: Case) -> Iterator[Finding]:
    """Yield limits on locked memory below the amount that assigned devices pin."""
    if case.guest is None or not case.guest.placement.hostdevs:
        return
    xml = case.guest.xml
    known = [hostdev for hostdev in case.guest.placement.hostdevs if hostdev.argument is None]
    lock = locking(xml, len(known))
    enough = lock.needed + HEADROOM
    if lock.hard_limit is not None and lock.allowed is not None and lock.allowed < enough:
        is_fatal = lock.allowed < lock.needed
        yield Finding(
            "memlock",
            Severity.ERROR if is_fatal else Severity.WARNING,
            subject(xml),
            (at(xml, lock.hard_limit, f"{lock.allowed} bytes"), _pinned(xml, lock)),
            "Mapping the guest's RAM fails with ENOMEM when QEMU starts; the limit also applies to "
            "its memory cgroup."
            if is_fatal
            else "The limit also applies to QEMU's memory cgroup and leaves less than the 1 GiB "
            "that libvirt adds to the RAM; QEMU may be killed.",
            "Remove <hard_limit>, so that libvirt sets the limit, or raise it to at least "
            f"{enough} bytes.",
        )
        return
    limit = case.software.daemon_locked_memory
    required = lock.allowed
    if is_session(case) and limit is not None and required is not None and limit < required:
        yield Finding(
            "memlock",
            Severity.ERROR,
            subject(xml),
            (
                Evidence(case.software.source, f"its daemon may lock {limit} bytes"),
                _pinned(xml, lock),
            ),
            f"libvirt fails to raise QEMU's limit to {required} bytes: cannot limit locked memory "
            "of process.",
            f"Use qemu:///system, or raise the user's limit to {required} bytes (LimitMEMLOCK= of "
            "systemd, memlock in limits.conf).",
        )


def _pinned(xml: DomainXml, lock: Locking) -> Evidence:
    """Return evidence of the memory that assigned devices pin."""
    ram = xml.root.find("memory")
    where = xml.source if ram is None else xml.path(ram)
    return Evidence(where, f"{lock.needed} bytes, all pinned")


def no_migration(case: Case) -> Iterator[Finding]:
    """Yield a finding if an accelerated vSMMU blocks migration."""
    if case.guest is None:
        return
    xml = case.guest.xml
    iommu = next(filter(is_accelerated, case.guest.placement.vsmmus), None)
    if iommu is None:
        return
    yield Finding(
        "no-migration",
        Severity.NOTE,
        subject(xml),
        (at(xml, iommu.element, "accel='on'"),),
        "Migration, managed save and snapshots with memory are refused: Migration not supported "
        "with SMMUv3 accelerator mode enabled.",
        "Shut the guest down and attach its devices again on the other host; disk-only snapshots "
        "(--disk-only) work.",
    )


def hotplug_bar_loss(case: Case) -> Iterator[Finding]:
    """Yield vSMMUs with free ports and no reserved memory for them."""
    if case.guest is None:
        return
    xml = case.guest.xml
    if prerequisites.keeps_bars(xml):
        return
    placement = case.guest.placement
    for iommu in placement.vsmmus:
        if iommu.pci_bus is None:
            continue
        free = [str(port.index) for port in placement.free_ports(iommu)]
        if free:
            yield Finding(
                "hotplug-bar-loss",
                Severity.WARNING,
                subject(xml),
                (
                    at(
                        xml,
                        iommu.element,
                        f"free root ports without reserved prefetchable memory: {', '.join(free)}",
                    ),
                ),
                "When a device is hot-plugged there, a Linux guest releases the BARs of the other "
                "devices behind the same bus, which then fail.",
                "Attach with --spare-ports and --spare-memory, or boot the guest's kernel with "
                "pci=hpiosize=0,hpmmioprefsize=0.",
            )
