"""Rules about the sources of a host: missing, unreadable or contradictory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import named, sysfs
from vmm_msi.errors import TopologyError
from vmm_msi.host.resolve import resolve
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case

#: Ranges of routes that a remedy lists.
_MAX_RANGES = 4


#: Classes of bridges to other PCI buses, whose header is not that of an endpoint: PCI, CardBus and
#: semi-transparent bridges (PCI Code and ID Assignment 1.7).
_WITHOUT_ENDPOINT = {0x0604, 0x0607, 0x0609}


def no_tables(case: Case) -> Iterator[Finding]:
    """Yield a finding if no source describes the SMMUs and ITSes of devices."""
    gaps = case.host.missing
    if gaps and not case.host.is_described:
        yield Finding(
            "no-tables",
            Severity.UNKNOWN,
            "host",
            tuple(Evidence(case.host.source, gap) for gap in gaps),
            "Which SMMU and ITS each device uses is unknown, so the checks of both are incomplete.",
            "Run vmm-msi doctor as root, or add the tables as another HOST: a folder with IORT and "
            "APIC, or a device tree.",
        )


def not_root(case: Case) -> Iterator[Finding]:
    """Yield a finding if files exist but could not be read."""
    if case.unreadable:
        yield Finding(
            "not-root",
            Severity.UNKNOWN,
            "host",
            case.unreadable,
            "The contents of these files were not checked: the findings may be incomplete.",
            "Run vmm-msi doctor as root, or capture the host as root and use the capture as HOST.",
        )


def table_errors(case: Case) -> Iterator[Finding]:
    """Yield a finding if firmware tables have errors that Linux tolerates."""
    if case.host.table_errors:
        yield Finding(
            "table-errors",
            Severity.WARNING,
            "firmware tables",
            tuple(Evidence(error.table, error.text) for error in case.host.table_errors),
            "Linux warns and uses the table as it is, so the SMMUs, ITSes and routes read from it "
            "are those that the kernel sees. If the table is a copy, it may be damaged.",
            "Compare a copy with the host's own table. If they are the same, look for a newer "
            "firmware and report the error to the vendor.",
        )


def disagree(case: Case) -> Iterator[Finding]:
    """Yield the facts on which the sources of the host disagree."""
    for disagreement in case.disagreements:
        yield Finding(
            "sources-disagree",
            Severity.WARNING,
            disagreement.subject,
            tuple(Evidence(*statement) for statement in disagreement.statements),
            "One source is wrong or describes another host, and a plan based on it may be wrong, "
            "too.",
            "Use a HOST that describes this machine as it runs now; if firmware and kernel "
            "disagree, trust the kernel and look for a newer firmware.",
        )


def device_missing(case: Case) -> Iterator[Finding]:
    """Yield the requested devices that the host does not have."""
    functions = [function.address for function in case.host.functions if not function.is_bridge]
    selected = set(case.devices)
    known = [
        address for address in functions or case.host.device_by_address if address not in selected
    ]
    for device in case.devices:
        where = case.missing_from(device)
        if where is None:
            continue
        near = sorted(known, key=lambda other: abs(_position(other) - _position(device)))[:4]
        yield Finding(
            "device-missing",
            Severity.ERROR,
            str(device),
            (Evidence(where, "no such PCI device"),),
            "libvirt refuses to start a guest with it: the host has no such PCI device.",
            f"Use a device from {_list_of_devices(case, near)}.",
        )


def _list_of_devices(case: Case, near: list[PciAddress]) -> str:
    """Return where devices are listed, with a few of them or the ranges that have routes."""
    program = "virsh nodedev-list --cap pci" if case.unlisted else "lspci -D"
    ranges = [
        f"{PciAddress.from_rid(route.segment, route.first)}-"
        f"{PciAddress.from_rid(route.segment, route.last)}"
        for route in case.host.routes[:_MAX_RANGES]
    ]
    if near:
        return f"{program}, such as {', '.join(map(str, sorted(near)))}"
    where = f"{program}, in {', '.join(ranges)}" if ranges else program
    return (
        f"{where}; virtual functions exist only after their driver has created them (sriov_numvfs)"
    )


def _position(address: PciAddress) -> int:
    return address.segment << 16 | address.rid


def bridge(case: Case) -> Iterator[Finding]:
    """Yield the requested devices that are bridges."""
    for device in case.devices:
        function = case.host.function_by_address.get(device)
        if function is None or not function.is_bridge:
            continue
        behind = [
            other.address
            for other in case.host.functions
            if not other.is_bridge and other.iommu_group == function.iommu_group is not None
        ]
        yield Finding(
            "device-is-bridge",
            Severity.ERROR,
            str(device),
            (sysfs(device, "class", f"{function.class_code:#08x}, a bridge"),),
            "libvirt refuses to start a guest with it: Non-endpoint PCI devices cannot be assigned "
            "to guests."
            if function.class_code is not None and function.class_code >> 8 in _WITHOUT_ENDPOINT
            else "It connects the host's own buses and is not a device for a guest.",
            f"Use a device behind it, such as {named(behind)}."
            if behind
            else "Use a device behind it: lspci -t shows them.",
        )


def device_unknown(case: Case) -> Iterator[Finding]:
    """Yield the devices that no source shows to have an SMMU and an ITS.

    Without this evidence, the silence of the other rules is not an all-clear.
    """
    if case.host.missing and not case.host.is_described:
        return  # no-tables
    for address, device, _function in case.selected:
        if device is not None and (device.smmu is None or not device.its_group):
            continue  # no-smmu, no-its
        if device is not None and device.its not in case.host.its_by_id:
            continue  # its-unknown
        try:
            resolve(case.host, address)
        except TopologyError as error:
            yield Finding(
                "device-unknown",
                Severity.UNKNOWN,
                str(address),
                (Evidence(case.host.source, str(error)),),
                f"Which SMMU and ITS {address} has is unknown, and so is whether its MSIs are "
                "delivered.",
                "Run vmm-msi doctor as root on the host itself, or add its tables as another HOST: "
                "a folder with IORT and APIC, a device tree, or a capture.",
            )
