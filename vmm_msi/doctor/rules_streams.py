"""Rules about StreamIDs and what PCI hosts promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import Meant, meant, named, sysfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.types import PciAddress


def _streams(case: Case, each: Meant) -> tuple[int, Evidence] | None:
    """Return how many StreamIDs the kernel gives a device, and what says so."""
    if each.function is not None and each.function.dma_rids:
        rids = each.function.dma_rids
        words = "RequesterIDs " + ", ".join(f"{rid:#x}" for rid in rids)
        return len(rids), sysfs(each.address, "config", words)
    if each.device is None:
        return None
    count = each.device.streams
    words = f"{each.address}: {count} StreamIDs from {each.device.stream_id}"
    return count, Evidence(case.host.source, words)


def many(case: Case) -> Iterator[Finding]:
    """Yield the devices with several StreamIDs, by aliases and quirks."""
    for each in meant(case):
        found = _streams(case, each)
        if found is None or found[0] < 2:
            continue
        yield Finding(
            "many-streams",
            Severity.ERROR if case.devices_selected else Severity.WARNING,
            str(each.address),
            (found[1],),
            f"{each.address} cannot be behind a vSMMU: it has {found[0]} StreamIDs, and the kernel "
            "answers IOMMU_VDEVICE_ALLOC with EOPNOTSUPP.",
            "Use a PCI Express device without an alias, not below a bridge to conventional PCI, "
            "or run its guest without a vSMMU.",
        )


def shared(case: Case) -> Iterator[Finding]:
    """Yield the devices that have a StreamID together: only the first of them gets an SMMU."""
    users: dict[tuple[int, int], list[PciAddress]] = {}
    for function in case.host.functions:
        for rid in dict.fromkeys(function.dma_rids):
            users.setdefault((function.address.segment, rid), []).append(function.address)
    looked_at = set(case.devices)
    for (segment, rid), addresses in users.items():
        if len(addresses) < 2 or looked_at.isdisjoint(addresses):
            continue
        yield Finding(
            "shared-stream",
            Severity.ERROR if case.devices_selected else Severity.WARNING,
            named(addresses),
            tuple(
                sysfs(address, "config", f"RequesterID {rid:#x} in segment {segment}")
                for address in addresses
            ),
            f"{named(addresses)} write under one StreamID: the kernel takes the first for it and "
            "gives the others no IOMMU group (ENODEV).",
            "Use one of them alone, and none of a bridge to conventional PCI.",
        )


def ats_not_promised(case: Case) -> Iterator[Finding]:
    """Yield the devices with ATS below a PCI host that does not promise it."""
    promised = {segment.number: segment.ats for segment in case.host.segments}
    for address, _device, function in meant(case):
        if function is None or not function.ats or promised.get(address.segment) is not False:
            continue
        yield Finding(
            "ats-not-promised",
            Severity.NOTE,
            str(address),
            (
                sysfs(address, "config", "ATS capability"),
                Evidence(case.host.source, f"segment {address.segment}: ATS is not supported"),
            ),
            f"{address} has ATS and does not get to use it, with ats='on' in its vSMMU or "
            "without: each of its accesses is translated by the SMMU.",
            "Nothing has to be done; where the machine has ATS, look for a newer firmware.",
        )
