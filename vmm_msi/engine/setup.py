"""A libvirt guest on the model: which devices, which kernel, which strategies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.errors import RefusedError
from vmm_msi.host.join import host_of_functions, join
from vmm_msi.host.resolve import with_devices
from vmm_msi.iommu.profiles import newest_profile, profile_named

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from vmm_msi.config import Choice
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.plugins.hookspecs import Needs
    from vmm_msi.types import GuestDomain, HostTopology, PciAddress, PciFunction


def with_groups(
    host: HostTopology, devices: Iterable[PciAddress], nodes: Mapping[PciAddress, PciFunction]
) -> HostTopology:
    """List the devices in the topology, with libvirt's IOMMU groups where that has none.

    What neither the description nor libvirt has a group for gets one of its own.

    :param nodes: what libvirt knows of the devices.
    :raise TopologyError: when the description has no place for a device.
    """
    told = host_of_functions("libvirt", nodes.values())
    return with_devices(join((host, told), host.source), devices)


def group_notes(
    devices: Collection[PciAddress], nodes: Mapping[PciAddress, PciFunction]
) -> Iterator[str]:
    """Say which devices libvirt does not know, and what else is in the groups of the others."""
    for device in devices:
        node = nodes.get(device)
        if node is None:
            yield f"libvirt knows no host device {device}; the host description is believed"
            continue
        others = [str(member) for member in node.members if member not in devices]
        if others:
            yield (
                f"IOMMU group {node.iommu_group} of {device} has {', '.join(others)} too: no "
                "driver of the host may use what shares a group with an assigned device"
            )


def guest_of(old: DomainXml, choices: Mapping[PciAddress, Choice]) -> GuestDomain:
    """Return the guest with the devices that vmm-msi is responsible for."""
    guest = guest_from_xml(old, also=choices)
    devices = tuple(device for device in guest.devices if device.host in choices)
    return replace(guest, devices=devices)


def profile_for(needs: Mapping[Choice, Needs]) -> Profile:
    """Return one kernel profile on which all the strategies can run together.

    :raise RefusedError: when there is none.
    """
    named = {choice.profile: choice for choice in needs if choice.profile is not None}
    if len(named) > 1:
        raise RefusedError(f"strategies {', '.join(map(str, named.values()))}: name two kernels")
    if named:
        return profile_named(str(next(iter(named))))
    wanted = {need.interface for need in needs.values()}
    wanted.update(*(need.capabilities for need in needs.values()))
    profile = newest_profile(wanted)
    if profile is None:
        names = ", ".join(sorted({str(choice) for choice in needs}))
        raise RefusedError(
            f"strategies {names}: no modelled kernel can carry all of them out at once; use one "
            "strategy for the whole guest"
        )
    return profile
