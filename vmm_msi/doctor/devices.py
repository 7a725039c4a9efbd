"""Which devices of a host are looked at where no guest says it, and the way each of them takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.host.resolve import find_route
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.types import HostDevice, HostTopology


def assignable(host: HostTopology) -> tuple[PciAddress, ...]:
    """Return the devices that could be given to a guest: all functions but bridges.

    Those that no SMMU translates count only where all are so: most hosts have a few of their own
    there. Where the source lists no functions, the devices are all that it lists.
    """
    if not host.functions:
        return tuple(device.address for device in host.devices)
    functions = [function for function in host.functions if not function.is_bridge]
    translated = [function for function in functions if function.iommu_group is not None]
    return tuple(function.address for function in translated or functions)


def with_routed(host: HostTopology, addresses: Iterable[PciAddress]) -> HostTopology:
    """Return ``host`` with the devices at ``addresses`` listed, as far as its routes tell of them.

    Unlike :func:`vmm_msi.host.resolve.with_devices` it lists a device that is behind no SMMU or has
    no ITS, too; one that no route has is left out.
    """
    devices = {device.address: device for device in host.devices}
    for address in addresses:
        if address not in devices:
            found = _by_routes(host, address)
            if found is not None:
                devices[address] = found
    return replace(host, devices=tuple(devices.values()))


def _by_routes(host: HostTopology, address: PciAddress) -> HostDevice | None:
    function = host.function_by_address.get(address)
    dma = address.rid if function is None or not function.dma_rids else function.dma_rids[0]
    msi = address.rid if function is None or function.msi_rid is None else function.msi_rid
    way, doorbell = find_route(host, address.segment, dma), find_route(host, address.segment, msi)
    if way is None or doorbell is None:
        return None
    group = -1 if function is None or function.iommu_group is None else function.iommu_group
    vectors = 1 if function is None or function.vectors is None else function.vectors
    interrupts = doorbell.device(PciAddress.from_rid(address.segment, msi), group)
    device = way.device(PciAddress.from_rid(address.segment, dma), group, vectors)
    return replace(
        device,
        address=address,
        its_group=interrupts.its_group,
        device_id=interrupts.device_id,
        streams=1 if function is None else max(1, len(function.dma_rids)),
    )


def representatives(host: HostTopology) -> tuple[PciAddress, ...]:
    """Return the first address of each SMMU and ITS group of each PCI segment.

    For a host of which only routes are known. Ranges without an SMMU or an ITS count where a
    segment has no others: often nothing is there.
    """
    found: dict[tuple[object, ...], PciAddress] = {}
    complete = {
        route.segment for route in host.routes if route.smmu is not None and route.its_group
    }
    for route in host.routes:
        if route.segment in complete and (route.smmu is None or not route.its_group):
            continue
        key = (route.segment, route.smmu, route.its_group)
        found.setdefault(key, PciAddress.from_rid(route.segment, route.first))
    return tuple(found.values())
