"""Rules about physical ITSes and the devices that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import (
    has_no_devices,
    is_on,
    named,
    nested_devices,
    unsafe_parameter,
)
from vmm_msi.types import Firmware

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.types import HostTopology, Its, PciAddress


def no_its(case: Case) -> Iterator[Finding]:
    """Yield the devices without an ITS, or the host if no device of it has one."""
    remedy = "Use a device below a host bridge with an ITS"
    if case.host.firmware is Firmware.DEVICE_TREE:
        remedy += ", or a device tree whose host bridges have msi-map, if the board has an ITS."
    else:
        remedy += ", or have the firmware tables fixed."
    if has_no_devices(case) and not any(route.its_group for route in case.host.routes):
        yield Finding(
            "no-its",
            Severity.WARNING,
            "host",
            (Evidence(case.host.source, "no PCI device has an ITS"),),
            "No device of this host can be attached: a strategy has no physical ITS to map, and "
            "the kernel treats MSIs without an ITS as not isolated (EPERM).",
            remedy,
        )
    for address, device, _function in case.selected:
        if device is None or device.its_group:
            continue
        parameter = unsafe_parameter(case, address)
        if address in case.nested:
            consequence = (
                f"{address} cannot be attached: it has no physical ITS that a strategy could map, "
                "and the kernel treats MSIs without an ITS as not isolated (EPERM)."
            )
        elif is_on(case, parameter):
            continue
        else:
            consequence = (
                f"VFIO refuses {address} with EPERM: the kernel treats MSIs without an ITS as not "
                f"isolated, and {parameter} is off."
            )
        yield Finding(
            "no-its",
            Severity.ERROR if case.devices_selected else Severity.WARNING,
            str(address),
            (Evidence(case.host.source, f"no ITS group for RequesterID {address.rid:#x}"),),
            consequence,
            remedy,
        )


def its_unknown(case: Case) -> Iterator[Finding]:
    """Yield the ITSes of devices whose base address is unknown."""
    missing: dict[int, list[PciAddress]] = {}
    for address, device, _function in nested_devices(case):
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
                Evidence(case.host.source, f"ITSes with a known address: {known}"),
            ),
            f"The doorbell address of {named(devices)} is unknown, so vmm-msi does not attach "
            f"{'it' if len(devices) == 1 else 'them'}.",
            _its_remedy(case.host),
        )


def _its_remedy(host: HostTopology) -> str:
    """Return how to find out, or to fix, where an ITS is."""
    if host.missing or host.firmware is None:
        return f"{'; '.join(host.missing) or 'Add the ITS to the description of the host'}."
    return (
        "Use a device with a known ITS, or have the firmware tables fixed: they contradict each "
        "other."
    )


def _users(case: Case) -> Iterator[tuple[Its, list[PciAddress]]]:
    """Yield the ITSes of the nested devices, each with its devices."""
    addresses: dict[int, list[PciAddress]] = {}
    for address, device, _function in nested_devices(case):
        if device is not None and device.its_group:
            addresses.setdefault(device.its, []).append(address)
    for number in sorted(addresses):
        its = case.host.its_by_id.get(number)
        if its is not None:
            yield its, addresses[number]


def pre_its(case: Case) -> Iterator[Finding]:
    """Yield the ITSes behind a pre-ITS, which derives the DeviceID from the address."""
    for its, devices in _users(case):
        if its.pre_its is not None:
            yield Finding(
                "pre-its",
                Severity.WARNING,
                f"ITS {its.id}",
                (Evidence(case.host.source, f"a pre-ITS at {its.pre_its}"),),
                f"The doorbell of each device ({named(devices)}) is at {its.pre_its} plus four "
                "times its DeviceID: a strategy that maps the ITS's own page loses its MSIs.",
                "Use the strategy identity, with which the kernel chooses the right page, and see "
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
                "kernel maps it like that of a GICv3.",
                "No action needed; this has only been simulated, never run on hardware.",
            )


def several_in_group(case: Case) -> Iterator[Finding]:
    """Yield the ITS groups with several ITSes, of which Linux uses one."""
    groups: dict[tuple[int, ...], list[PciAddress]] = {}
    for address, device, _function in nested_devices(case):
        if device is not None and len(device.its_group) > 1:
            groups.setdefault(device.its_group, []).append(address)
    for group, devices in groups.items():
        yield Finding(
            "several-its-in-group",
            Severity.NOTE,
            f"ITSes {named(group)}",
            (Evidence(case.host.source, f"ITS group of {named(devices)}: {named(group)}"),),
            f"Linux sends the MSIs of {named(devices)} to ITS {group[0]}, the first of the group, "
            "and does not use the others.",
            "No action needed; an ITS selector that picks another one would lose the MSIs.",
        )
