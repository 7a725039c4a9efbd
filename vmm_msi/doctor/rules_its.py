"""Rules about physical ITSes and the devices that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import meant, named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.types import Its, PciAddress


def no_its(case: Case) -> Iterator[Finding]:
    """Yield the devices whose MSIs go to no ITS."""
    for address, device, _function in meant(case):
        if device is not None and not device.its_group:
            yield Finding(
                "no-its",
                Severity.ERROR if case.devices_selected else Severity.WARNING,
                str(address),
                (Evidence(case.host.source, f"no ITS group for RequesterID {address.rid:#x}"),),
                f"{address} cannot be attached: no strategy has a physical ITS to lead its MSIs "
                "to, and the kernel takes MSIs that reach none for not isolated (EPERM).",
                "Use a device below a host bridge with an ITS, or mend the firmware tables.",
            )


def its_unknown(case: Case) -> Iterator[Finding]:
    """Yield the ITSes that devices use and of which nobody says where they are."""
    missing: dict[int, list[PciAddress]] = {}
    for address, device, _function in meant(case):
        if device is not None and device.its_group and device.its not in case.host.its_by_id:
            missing.setdefault(device.its, []).append(address)
    for number, devices in sorted(missing.items()):
        known = named(its.id for its in case.host.itses) or "none"
        yield Finding(
            "its-unknown",
            Severity.UNKNOWN,
            f"ITS {number}",
            (
                Evidence(case.host.source, f"{named(devices)}: ITS {number}"),
                Evidence(case.host.source, f"ITSes whose place is known: {known}"),
            ),
            f"Where the doorbell of {named(devices)} is, is not known, and vmm-msi does not attach "
            "them.",
            "Put the table APIC of the same machine next to IORT: /sys/firmware/acpi/tables/APIC.",
        )


def _users(case: Case) -> Iterator[tuple[Its, list[PciAddress]]]:
    """Yield the ITSes that devices use, with these."""
    found: dict[int, list[PciAddress]] = {}
    for address, device, _function in meant(case):
        if device is not None and device.its_group:
            found.setdefault(device.its, []).append(address)
    for number in sorted(found):
        its = case.host.its_by_id.get(number)
        if its is not None:
            yield its, found[number]


def pre_its(case: Case) -> Iterator[Finding]:
    """Yield the ITSes behind a window that makes a DeviceID of the address."""
    for its, devices in _users(case):
        if its.pre_its is not None:
            yield Finding(
                "pre-its",
                Severity.WARNING,
                f"ITS {its.id}",
                (Evidence(case.host.source, f"a pre-ITS at {its.pre_its}"),),
                f"{named(devices)} each have a doorbell of their own at {its.pre_its} plus four "
                "times their DeviceID: a strategy that leads to the ITS's page loses their MSIs.",
                "Use the strategy identity, with which the kernel takes the right page, and see "
                "unsafe-interrupts-needed.",
            )


def gicv5(case: Case) -> Iterator[Finding]:
    """Yield the ITSes of a GICv5."""
    for its, devices in _users(case):
        if its.is_gicv5:
            yield Finding(
                "gicv5",
                Severity.NOTE,
                f"ITS {its.id}",
                (Evidence(case.host.source, f"a translate frame at {its.doorbell}"),),
                f"The doorbell of {named(devices)} is at the start of a page, {its.doorbell}; the "
                "kernel maps it as that of a GICv3.",
                "Nothing has to be done; it was only modelled, and never run on hardware.",
            )


def several_in_group(case: Case) -> Iterator[Finding]:
    """Yield the ITS groups that name several ITSes, of which Linux uses one."""
    groups: dict[tuple[int, ...], list[PciAddress]] = {}
    for address, device, _function in meant(case):
        if device is not None and len(device.its_group) > 1:
            groups.setdefault(device.its_group, []).append(address)
    for group, devices in groups.items():
        yield Finding(
            "several-its-in-group",
            Severity.NOTE,
            f"ITSes {named(group)}",
            (Evidence(case.host.source, f"ITS group of {named(devices)}: {named(group)}"),),
            f"Linux sends the MSIs of {named(devices)} to ITS {group[0]}, the first of the group, "
            "and leaves the others alone.",
            "Nothing has to be done; an ITS selector that picks another one would lose the MSIs.",
        )
