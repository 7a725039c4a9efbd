"""Rules about a guest as a whole: what kind it is, where its RAM is, what of it libvirt drops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor import simulated
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import at, is_session, subject
from vmm_msi.domxml import added_elements, prerequisites
from vmm_msi.domxml.guest_memory import HEADROOM, guest_ram, locking
from vmm_msi.domxml.placement import Placement, is_accelerated
from vmm_msi.domxml.prerequisites import Check
from vmm_msi.domxml.unread import unread
from vmm_msi.provision.checks import fatal_checks
from vmm_msi.types import ReservedKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.prerequisites import Problem
    from vmm_msi.types import ReservedRegion

#: What iommufd does not reserve: Linux ``drivers/iommu/iommufd/io_pagetable.c``
#: iopt_table_enforce_dev_resv_regions.
_RELAXED = ReservedKind.DIRECT_RELAXABLE


def guest_kind(case: Case) -> Iterator[Finding]:
    """Yield what keeps the guest from having a nested vSMMU with MSIs at all."""
    if case.guest is None:
        return
    xml = case.guest.xml
    found = {problem.check: problem for problem in prerequisites.problems(xml)}
    fatal = set(Check)
    if case.plugins is not None:
        needed = simulated.needs(case, case.plugins).values()
        fatal = fatal_checks(simulated.binder_of(case), needed)
    told_by_acpi = bool({Check.ACPI, Check.FIRMWARE} & fatal)
    if Check.ARCH in found:
        yield Finding(
            "guest-arch",
            Severity.ERROR,
            subject(xml),
            (_place(xml, "os/type", found[Check.ARCH]),),
            "libvirt refuses the vSMMU: SMMUv3 is a device of QEMU's aarch64 board virt alone.",
            "Define an aarch64 guest: <type arch='aarch64' machine='virt'>hvm</type>.",
        )
    if Check.MACHINE in found:
        yield Finding(
            "guest-machine",
            Severity.ERROR,
            subject(xml),
            (_place(xml, "os/type", found[Check.MACHINE]),),
            "libvirt refuses the vSMMU: SMMUv3 is a device of QEMU's aarch64 board virt alone.",
            "Write machine='virt', or a version of it such as virt-11.1, into <os><type>.",
        )
    if Check.GIC in found:
        yield Finding(
            "guest-gic",
            Severity.ERROR,
            subject(xml),
            (_place(xml, "features/gic", found[Check.GIC]),),
            "The guest has no ITS, so that its devices have nowhere to send MSIs; libvirt fills in "
            "version 2 for an emulated guest that names none.",
            "Write <gic version='3'/> into <features>.",
        )
    if Check.ACPI in found:
        yield Finding(
            "no-acpi",
            Severity.ERROR if told_by_acpi else Severity.NOTE,
            subject(xml),
            (_place(xml, "features/acpi", found[Check.ACPI]),),
            "The guest is told of no RMR, so that each MSI ends in an S1 fault; QEMU also refuses "
            "an accelerated vSMMU on a board with a device tree.",
            "Put <acpi/> into <features>, and firmware='efi' into <os>, which libvirt asks for "
            "with it.",
        )
    if Check.FIRMWARE in found and xml.acpi:
        yield Finding(
            "acpi-without-uefi",
            Severity.ERROR if told_by_acpi else Severity.NOTE,
            subject(xml),
            (_place(xml, "os", found[Check.FIRMWARE]),),
            "libvirt refuses the definition: ACPI requires UEFI on this architecture.",
            "Write <os firmware='efi'>, or a <loader> with the image of a UEFI.",
        )
    if Check.KVM in found and Check.KVM in fatal:
        yield Finding(
            "guest-kvm",
            Severity.ERROR,
            subject(xml),
            (_place(xml, ".", found[Check.KVM]),),
            "QEMU ends at the start: SMMUv3 accel=on requires KVM with kernel-irqchip=on support.",
            "Write <domain type='kvm'>, on an Arm host with /dev/kvm.",
        )


def _place(xml: DomainXml, path: str, problem: Problem) -> Evidence:
    """Return where a problem is, with the part of its words that says what is there."""
    element = xml.root.find(path)
    where = f"{xml.source}: /domain/{path}" if element is None else xml.path(element)
    return Evidence(where, problem.words.partition("; ")[0])


def part_gone(case: Case) -> Iterator[Finding]:
    """Yield what vmm-msi added to the guest and somebody took out since."""
    if case.guest is None:
        return
    xml = case.guest.xml
    for part in added_elements.gone(xml):
        yield Finding(
            "part-gone",
            Severity.ERROR,
            subject(xml),
            (Evidence(xml.source, f"{part} is gone from the definition"),),
            "The devices that the record says are behind nested vSMMUs are not all there, or not "
            "behind them.",
            f"Take what is left out with vmm-msi detach {xml.name}, and attach the devices again.",
        )


def xml_dropped(case: Case) -> Iterator[Finding]:
    """Yield what libvirt does not read of the definition as it was written."""
    if case.guest is None:
        return
    written = case.guest.written or case.guest.xml
    for part in unread(written):
        meant = part.meant
        likely = f"Write {meant} instead" if meant else "Take it out"
        yield Finding(
            "xml-dropped",
            Severity.ERROR if meant else Severity.WARNING,
            subject(written),
            (at(written, part.element, str(part)),),
            "libvirt does not read it: a definition with it is refused where it is validated, and "
            "else loses it without a word.",
            f"{likely}, and define guests with virsh define --validate.",
        )


def ram_in_reserved(case: Case) -> Iterator[Finding]:
    """Yield the guest's RAM that lies where a device's IOVAs are reserved."""
    if case.guest is None:
        return
    xml = case.guest.xml
    if not xml.kind.is_virt:
        return
    ram = list(guest_ram(xml))
    host = simulated.resolved_host(case)
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
                "QEMU ends at the start, or when the memory is plugged in: iommufd gives "
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
                    "Move the RAM or the memory device away from the window; QEMU's own layout "
                    "begins at 0x40000000.",
                )
            else:
                yield Finding(
                    "guest-ram-reserved",
                    Severity.ERROR,
                    subject(xml),
                    evidence,
                    consequence,
                    f"Give the guest less RAM than reaches {region.base:#x}, or another device.",
                )


def memlock(case: Case) -> Iterator[Finding]:
    """Yield limits on locked memory that are below what assigned devices pin."""
    if case.guest is None or not case.guest.xml.hostdevs():
        return
    xml = case.guest.xml
    lock = locking(xml)
    ram = xml.root.find("memory")
    asked = xml.source if ram is None else xml.path(ram)
    pinned = Evidence(asked, f"{lock.needed} bytes, all of them pinned")
    enough = lock.needed + HEADROOM
    if lock.hard_limit is not None and lock.allowed is not None and lock.allowed < enough:
        short = lock.allowed < lock.needed
        yield Finding(
            "memlock",
            Severity.ERROR if short else Severity.WARNING,
            subject(xml),
            (at(xml, lock.hard_limit, f"{lock.allowed} bytes"), pinned),
            "Mapping the guest's RAM fails with ENOMEM when QEMU starts, and the limit is that of "
            "its memory cgroup, too."
            if short
            else "The limit is that of QEMU's memory cgroup, too, and leaves it less than the GiB "
            "that libvirt allows for beside the RAM; QEMU may be killed.",
            f"Take <hard_limit> out, so that libvirt sets the limit, or make it {enough} bytes or "
            "more.",
        )
        return
    has = case.software.daemon_locked_memory
    wanted = lock.allowed
    if is_session(case) and has is not None and wanted is not None and has < wanted:
        yield Finding(
            "memlock",
            Severity.ERROR,
            subject(xml),
            (Evidence(case.software.source, f"its daemon may lock {has} bytes"), pinned),
            f"libvirt cannot let QEMU lock {wanted} bytes: cannot limit locked memory of process.",
            f"Use qemu:///system, or raise the user's limit to {wanted} bytes (LimitMEMLOCK= of "
            "systemd, memlock in limits.conf).",
        )


def no_migration(case: Case) -> Iterator[Finding]:
    """Yield that a guest with an accelerated vSMMU cannot be moved, saved or snapshotted."""
    if case.guest is None:
        return
    xml = case.guest.xml
    iommu = next(filter(is_accelerated, xml.iommus()), None)
    if iommu is None:
        return
    yield Finding(
        "no-migration",
        Severity.NOTE,
        subject(xml),
        (at(xml, iommu.element, "accel='on'"),),
        "Migration, managed save and snapshots with memory are refused: Migration not supported "
        "with SMMUv3 accelerator mode enabled.",
        "Shut the guest down and attach its devices anew on the other host; snapshots of disks "
        "alone (--disk-only) work.",
    )


def hotplug_bar_loss(case: Case) -> Iterator[Finding]:
    """Yield vSMMUs with free ports for which no memory is reserved."""
    if case.guest is None:
        return
    xml = case.guest.xml
    if prerequisites.keeps_bars(xml):
        return
    placement = Placement(xml)
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
                        f"root ports {', '.join(free)} are free, and nothing reserves "
                        "prefetchable memory for them",
                    ),
                ),
                "When a device is plugged in there, a Linux guest takes the BARs of the other "
                "devices behind the same bus away, which then fail.",
                "Attach with --spare-ports and --spare-memory, or give the guest's kernel "
                "pci=hpiosize=0,hpmmioprefsize=0.",
            )
