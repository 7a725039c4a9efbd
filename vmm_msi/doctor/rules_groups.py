"""Rules about IOMMU groups and the drivers of their members."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import MAX_NAMED, named, nested_devices, sysfs
from vmm_msi.host.pci.vfio_drivers import host_driver_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.types import HostDevice, PciAddress, PciFunction

#: Kinds of functions by base class (PCI Code and ID Assignment 1.7, chapter 1).
_CLASSES = {
    0x01: "a storage controller: the host loses its disks",
    0x02: "a network controller: the host loses its links",
    0x03: "a display controller: the host loses its display",
    0x0C: "a serial bus controller: the host loses the devices plugged into it",
}


def mixed_its(case: Case) -> Iterator[Finding]:
    """Yield the IOMMU groups whose devices use different ITSes."""
    groups: dict[int, list[HostDevice]] = {}
    for _address, device, function in nested_devices(case):
        if device is None or not device.its_group:
            continue
        reported = None if function is None else function.iommu_group
        number = device.iommu_group if reported is None else reported
        if number >= 0:
            groups.setdefault(number, []).append(device)
    for number, devices in sorted(groups.items()):
        if len({device.its for device in devices}) < 2:
            continue
        yield Finding(
            "group-mixed-its",
            Severity.WARNING,
            f"IOMMU group {number}",
            tuple(
                Evidence(case.host.source, f"{device.address}: ITS {device.its}")
                for device in devices
            ),
            f"{named(device.address for device in devices)} share every translation but use "
            "different ITSes: multi-its refuses them, direct and coerced refuse the second one, "
            "and identity, which has a slot for each ITS, requires them behind one stage 1.",
            "Use devices whose group has a single ITS, or put these behind ports with ACS, so that "
            "each has a group of its own.",
        )


def _kind(function: PciFunction) -> str:
    return _CLASSES.get((function.class_code or 0) >> 16, "")


def host_driver(case: Case) -> Iterator[Finding]:
    """Yield the devices that have a host driver."""
    for address, _device, function in case.selected:
        driver = None if function is None else host_driver_of(function)
        if function is None or driver is None:
            continue
        kind = _kind(function)
        yield Finding(
            "host-driver",
            Severity.NOTE,
            str(address),
            (sysfs(address, "driver", driver),),
            f"With managed='yes', libvirt takes {address} from the host when the guest starts"
            + (f"; it is {kind}." if kind else "."),
            f"Make sure that the host does not need {address}, such as for its boot disk or your "
            "network connection; with managed='no', bind it to vfio-pci first.",
        )


def group_host_driver(case: Case) -> Iterator[Finding]:
    """Yield the devices with a host driver on another member of their group."""
    assigned = set() if case.guest is None else set(case.devices)
    #: The members with a host driver, by group: a group may have thousands.
    driven: dict[int | None, dict[PciAddress, PciFunction]] = {}
    for address, _device, function in case.selected:
        if function is None:
            continue
        if function.iommu_group not in driven:
            driven[function.iommu_group] = {
                member: other
                for member in function.members
                if member not in assigned
                if (other := case.host.function_by_address.get(member)) is not None
                and host_driver_of(other) is not None
                and not other.is_bridge
            }
        group = driven[function.iommu_group]
        count = len(group) - (address in group)
        if not count:
            continue
        others = list(
            islice((other for other in group.values() if other.address != address), MAX_NAMED)
        )
        names = named((other.address for other in others), count)
        yield Finding(
            "group-host-driver",
            Severity.ERROR if case.devices_selected else Severity.WARNING,
            str(address),
            tuple(sysfs(other.address, "driver", host_driver_of(other)) for other in others),
            f"QEMU cannot use {address} while host drivers are bound to {names} in its IOMMU group "
            f"{function.iommu_group}: the kernel refuses it with EPERM.",
            f"Assign {names} to the same guest, or unbind the host "
            f"{'driver' if count == 1 else 'drivers'} before the guest starts.",
        )
