"""Rules about assigned devices: their other users, IOMMU groups and virtual functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor import simulated
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.guest_rule_helpers import subject
from vmm_msi.doctor.rule_helpers import sysfs
from vmm_msi.domxml.holdings import holdings
from vmm_msi.domxml.nodedev import node_name
from vmm_msi.host.pci.sysfs import DEVICES, GROUPS
from vmm_msi.host.pci.vfio_drivers import EVIDENCE_TEXT, vfio_evidence
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.types import PciAddress


def held_by_domain(case: Case) -> Iterator[Finding]:
    """Yield devices that another guest has, or whose physical or virtual function it has."""
    if case.guest is None:
        return
    name = case.guest.xml.name
    assigned = {hostdev.host for hostdev in case.guest.placement.hostdevs}
    for held in holdings(name, case.devices, case.guest.holders, case.host.function_by_address):
        problem, _, remedy = str(held).partition("; ")
        consequence = f"{problem[:1].upper()}{problem[1:]}"
        yield Finding(
            "held-by-domain",
            Severity.WARNING if held.device in assigned else Severity.ERROR,
            str(held.device),
            (Evidence(f"libvirt domain {held.holder}", f"{held.function} is assigned to it"),),
            f"{consequence}: the second of the two to be started fails, since the device is in use "
            f"by domain {held.holder}."
            if not held.kind
            else f"{consequence}.",
            f"{remedy[:1].upper()}{remedy[1:]}"
            f"{', or never run the two guests at once' if held.device in assigned else ''}.",
        )


def not_bound_to_vfio(case: Case) -> Iterator[Finding]:
    """Yield the devices that libvirt does not bind to VFIO, and that are not bound to it."""
    if case.guest is None or simulated.binder_of(case) is BinderKind.SIM:
        return
    is_complete = case.tree is not None or case.software.driver is not None
    for hostdev in case.guest.xml.assigned():
        function = case.host.function_by_address.get(hostdev.host)
        if hostdev.managed or hostdev.argument is not None or hostdev.host not in case.present:
            continue
        if function is None or vfio_evidence(function) is not None:
            continue
        if function.driver is None and not is_complete:
            continue
        problem = (
            "no driver"
            if function.driver is None
            else f"{function.driver}, not shown to be a VFIO driver"
        )
        yield Finding(
            "not-bound-to-vfio",
            Severity.ERROR,
            str(hostdev.host),
            (sysfs(hostdev.host, "driver", problem),),
            "libvirt refuses to start the guest: Unmanaged PCI device must be manually detached "
            "from the host.",
            f"Bind it to vfio-pci with virsh nodedev-detach {node_name(hostdev.host)}, or attach "
            "it managed, so that libvirt does.",
        )


def partial_group(case: Case) -> Iterator[Finding]:
    """Yield nested devices whose IOMMU group has members that are not nested."""
    functions = case.host.function_by_address
    nested = case.nested
    groups = _groups(case)
    unknown = []
    seen: set[int] = set()
    for device in nested:
        group = _group(case, device)
        if group is None:
            unknown.append(device)
            continue
        if group in seen:
            continue
        seen.add(group)
        function = functions.get(device)
        reported = () if function is None else function.members
        members = sorted({*reported, *groups[group]})
        others = [member for member in members if member not in nested]
        if not others:
            continue
        bridges = [m for m in others if m in functions and functions[m].is_bridge]
        names = ", ".join(map(str, others))
        where = f"{GROUPS}/{group}/devices" if reported else case.host.source
        alone = "Use a device that is alone in its group, such as in a slot or switch with ACS"
        yield Finding(
            "partial-group",
            Severity.ERROR,
            str(device),
            (Evidence(where, f"IOMMU group {group} has {names} besides {device}"),),
            f"The guest's SMMU fails when it sets up {device}: the kernel attaches the whole group "
            "and returns ENOENT for a member without a vDEVICE.",
            f"{alone}; {bridges[0]} is a bridge and cannot be assigned."
            if bridges
            else f"{alone}; assigning {names} as well helps only if the guest puts both behind one "
            "stage 1.",
        )
    if unknown and case.guest is not None:
        names = ", ".join(map(str, unknown))
        yield Finding(
            "partial-group",
            Severity.UNKNOWN,
            subject(case.guest.xml),
            (
                Evidence(
                    case.host.source,
                    f"IOMMU {'group' if len(unknown) == 1 else 'groups'} of {names} not reported",
                ),
            ),
            "If a group has other devices, the guest's SMMU fails when it sets these up.",
            "Run the doctor on the host itself or with a capture of it, or select its libvirt with "
            "--connect.",
        )


def _group(case: Case, device: PciAddress) -> int | None:
    """Return the IOMMU group of a device, from the system or the description."""
    function = case.host.function_by_address.get(device)
    if function is not None and function.iommu_group is not None:
        return function.iommu_group
    listed = case.host.device_by_address.get(device)
    return None if listed is None or listed.iommu_group < 0 else listed.iommu_group


def _groups(case: Case) -> dict[int, list[PciAddress]]:
    """Return the members of each IOMMU group, from all sources of the host."""
    groups: dict[int, list[PciAddress]] = {}
    for address in {**case.host.function_by_address, **case.host.device_by_address}:
        group = _group(case, address)
        if group is not None:
            groups.setdefault(group, []).append(address)
    return groups


def sriov(case: Case) -> Iterator[Finding]:
    """Yield physical functions with virtual ones, and virtual functions that need a token."""
    functions = case.host.function_by_address
    for device in case.present if case.guest is not None else ():
        function = functions.get(device)
        if function is None:
            continue
        folder = f"{DEVICES}/{device}"
        if function.virtual_functions:
            first = function.virtual_functions[0]
            yield Finding(
                "sr-iov-pf",
                Severity.WARNING,
                str(device),
                (
                    Evidence(
                        f"{folder}/virtfn0",
                        f"{first}, the first of {len(function.virtual_functions)}",
                    ),
                ),
                "Its virtual functions, including those in use, disappear when libvirt unbinds it "
                "from its host driver.",
                f"Assign virtual functions instead, or write 0 to {folder}/sriov_numvfs first.",
            )
        physical = functions.get(function.physical_function) if function.physical_function else None
        bound = None if physical is None else vfio_evidence(physical)
        if physical is not None and bound is not None:
            yield Finding(
                "vf-token",
                Severity.ERROR,
                str(device),
                (
                    Evidence(
                        f"{DEVICES}/{physical.address}/driver",
                        f"{physical.driver}, {EVIDENCE_TEXT[bound]}",
                    ),
                ),
                f"VFIO does not open {device} without the VF token of the user of its physical "
                f"function {physical.address}, and libvirt cannot supply one.",
                f"Return {physical.address} to its own driver: virsh nodedev-reattach.",
            )
