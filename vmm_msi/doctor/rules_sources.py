"""Rules about what a host was read from: what was not there, could not be read, or differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case


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
    for each in case.disagreements:
        yield Finding(
            "sources-disagree",
            Severity.WARNING,
            each.subject,
            each.told,
            "One of them is wrong or not of this host, and what is planned from it may be, too.",
            "Name a HOST of this machine as it runs now; where firmware and kernel disagree, "
            "believe the kernel and look for a newer firmware.",
        )
