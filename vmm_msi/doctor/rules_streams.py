"""Rules about StreamIDs and ATS of PCI hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import (
    named,
    nested_devices,
    sysfs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case, SelectedDevice
    from vmm_msi.types import PciAddress


def _streams(case: Case, selected: SelectedDevice) -> tuple[int, Evidence] | None:
    """Return how many StreamIDs the kernel assigns to a device, and the evidence."""
    if selected.function is not None and selected.function.dma_rids:
        rids = selected.function.dma_rids
        listed = "RequesterIDs " + ", ".join(f"{rid:#x}" for rid in rids)
        return len(rids), sysfs(selected.address, "config", listed)
    if selected.device is None:
        return None
    count = selected.device.streams
    listed = f"{selected.address}: {count} StreamIDs from {selected.device.stream_id}"
    return count, Evidence(case.host.source, listed)


def many(case: Case) -> Iterator[Finding]:
    """Yield the devices with several StreamIDs, due to aliases and quirks."""
    for selected in nested_devices(case):
        count, evidence = _streams(case, selected) or (0, None)
        if evidence is None or count < 2:
            continue
        yield Finding(
            "many-streams",
            Severity.ERROR if case.devices_selected else Severity.WARNING,
            str(selected.address),
            (evidence,),
            f"{selected.address} cannot be behind a vSMMU: it has {count} StreamIDs, and the "
            "kernel rejects IOMMU_VDEVICE_ALLOC with EOPNOTSUPP.",
            "Use a PCI Express device that has no alias and is not below a bridge to conventional "
            "PCI, or run its guest without a vSMMU.",
        )


def shared(case: Case) -> Iterator[Finding]:
    """Yield the devices that share a StreamID: the SMMU driver accepts only the first."""
    users: dict[tuple[int, int], list[PciAddress]] = {}
    for function in case.host.functions:
        for rid in dict.fromkeys(function.dma_rids):
            users.setdefault((function.address.segment, rid), []).append(function.address)
    selected = set(case.devices)
    for (segment, rid), addresses in users.items():
        if len(addresses) < 2 or selected.isdisjoint(addresses):
            continue
        yield Finding(
            "shared-stream",
            Severity.ERROR if case.devices_selected else Severity.WARNING,
            named(addresses),
            tuple(
                sysfs(address, "config", f"RequesterID {rid:#x} in segment {segment}")
                for address in addresses
            ),
            f"{named(addresses)} share a StreamID: the kernel assigns it to the first of them, and "
            "the others get no IOMMU group (ENODEV).",
            "Use at most one of them, or a device that is not below a bridge to conventional PCI.",
        )


def ats_not_promised(case: Case) -> Iterator[Finding]:
    """Yield the devices with ATS below a PCI host that does not support it."""
    promised = {segment.number: segment.ats for segment in case.host.segments}
    for address, _device, function in case.selected:
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
            f"{address} cannot use its ATS, with or without ats='on' in its vSMMU: the SMMU "
            "translates every access.",
            "No action needed; if the hardware supports ATS, look for a newer firmware.",
        )
