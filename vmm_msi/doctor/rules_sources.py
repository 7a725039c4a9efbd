"""Rules about what a host was read from: what was not there, could not be read, or differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import missing_from

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.types import PciAddress


def no_tables(case: Case) -> Iterator[Finding]:
    """Yield that nothing tells of the way from devices to SMMUs and ITSes."""
    gaps = case.host.missing
    if gaps and not (case.host.routes or case.host.devices):
        yield Finding(
            "no-tables",
            Severity.UNKNOWN,
            "host",
            tuple(Evidence(case.host.source, gap) for gap in gaps),
            "Which SMMU and which ITS a device uses is not known, so that little is said of "
            "either.",
            "Run vmm-msi doctor as root, or name the tables beside this HOST: a folder with IORT "
            "and APIC, or a device tree.",
        )


def not_root(case: Case) -> Iterator[Finding]:
    """Yield the files that are there and could not be read."""
    if case.unreadable:
        yield Finding(
            "not-root",
            Severity.UNKNOWN,
            "host",
            case.unreadable,
            "What these files have was not looked at: what is found is not all that there is.",
            "Run vmm-msi doctor as root, or capture the host as root and name the capture.",
        )


def disagree(case: Case) -> Iterator[Finding]:
    """Yield what the sources about the host tell differently."""
    for disagreement in case.disagreements:
        yield Finding(
            "sources-disagree",
            Severity.WARNING,
            disagreement.subject,
            tuple(Evidence(*statement) for statement in disagreement.statements),
            "One of them is wrong or not of this host, and what is planned from it may be, too.",
            "Name a HOST of this machine as it runs now; where firmware and kernel disagree, "
            "believe the kernel and look for a newer firmware.",
        )


def device_missing(case: Case) -> Iterator[Finding]:
    """Yield devices that were asked for and that the host does not have."""
    functions = [each.address for each in case.host.functions if not each.is_bridge]
    there = functions or list(case.host.device_by_address)
    for device in case.devices:
        where = missing_from(case, device)
        if where is None:
            continue
        near = sorted(there, key=lambda other: abs(_place(other) - _place(device)))[:4]
        yield Finding(
            "device-missing",
            Severity.ERROR,
            str(device),
            (Evidence(where, "there is no such PCI device"),),
            f"libvirt refuses to start a guest with it: the host has no PCI device {device}.",
            f"Name a device that lspci -D shows, such as {', '.join(map(str, sorted(near)))}."
            if near
            else "Name a device that lspci -D shows; virtual functions are there once their driver "
            "made them (sriov_numvfs).",
        )


def _place(address: PciAddress) -> int:
    return address.segment << 16 | address.rid
