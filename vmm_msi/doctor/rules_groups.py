"""Rules about IOMMU groups and who uses what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import meant, named, sysfs
from vmm_msi.host.pci.vfio_drivers import host_driver_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.types import HostDevice, PciFunction

#: What a function is, by its base class (PCI Code and ID Assignment 1.7, chapter 1).
_CLASSES = {
    0x01: "a storage controller: its disks go away from the host",
    0x02: "a network controller: the host loses its links",
    0x03: "a display controller: the host loses its picture",
    0x0C: "a controller of a serial bus: what is plugged in there goes away from the host",
}


def mixed_its(case: Case) -> Iterator[Finding]:
    """Yield the IOMMU groups whose devices use different ITSes."""
    groups: dict[int, list[HostDevice]] = {}
    for _address, device, function in meant(case):
        if device is None or not device.its_group:
            continue
        told = None if function is None else function.iommu_group
        number = device.iommu_group if told is None else told
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
            f"{named(device.address for device in devices)} share every translation and need "
            "different ITSes: multi-its refuses them, direct and coerced the second of them, and "
            "identity, which has a slot for each ITS, wants them behind one stage 1 of the guest.",
            "Use devices of groups that have one ITS, or put these behind ports with ACS, so that "
            "each has a group of its own.",
        )


def _kind(function: PciFunction) -> str:
    return _CLASSES.get((function.class_code or 0) >> 16, "")


def host_driver(case: Case) -> Iterator[Finding]:
    """Yield the devices that the host itself uses."""
    for address, _device, function in meant(case):
        driver = None if function is None else host_driver_of(function)
        if function is None or driver is None:
            continue
        kind = _kind(function)
        yield Finding(
            "host-driver",
            Severity.NOTE,
            str(address),
            (sysfs(address, "driver", driver),),
            f"With managed='yes' libvirt takes {address} from the host when the guest starts"
            + (f"; it is {kind}." if kind else "."),
            f"See that nothing of the host needs {address}, the disk it boots from or the link "
            "you are on; with managed='no' bind it to vfio-pci before.",
        )


def group_host_driver(case: Case) -> Iterator[Finding]:
    """Yield the groups of devices of which the host uses another member."""
    given = set() if case.guest is None else set(case.devices)
    for address, _device, function in meant(case):
        if function is None:
            continue
        others = [
            other
            for member in function.members
            if member != address and member not in given
            if (other := case.host.function_by_address.get(member)) is not None
            and host_driver_of(other) is not None
            and not other.is_bridge
        ]
        if not others:
            continue
        names = named(other.address for other in others)
        yield Finding(
            "group-host-driver",
            Severity.ERROR if case.devices_selected else Severity.WARNING,
            str(address),
            tuple(sysfs(other.address, "driver", host_driver_of(other)) for other in others),
            f"QEMU cannot take {address} while the host uses {names} of its IOMMU group "
            f"{function.iommu_group}: the kernel refuses it with EPERM.",
            f"Assign {names} to the same guest, or unbind it from its driver before the guest "
            "starts.",
        )
