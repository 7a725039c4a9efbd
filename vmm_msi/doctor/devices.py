"""Select the devices of a host that the doctor examines, and complete them from routes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.host.resolve import find_route
from vmm_msi.types import PciAddress, PciRoute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.types import HostDevice, HostTopology


def assignable(host: HostTopology) -> tuple[PciAddress, ...]:
    """Return the devices that could be assigned to a guest: all functions but bridges.

    Devices without an SMMU are skipped if any other device has one: most hosts have a few of their
    own. If the source lists no functions, these are all devices that it lists.
    """
    if not host.functions:
        return tuple(device.address for device in host.devices)
    functions = [function for function in host.functions if not function.is_bridge]
    translated = [function for function in functions if function.iommu_group is not None]
    return tuple(function.address for function in translated or functions)


def with_routed(host: HostTopology, addresses: Iterable[PciAddress]) -> HostTopology:
    """Return ``host`` with the devices at ``addresses`` listed, as far as it describes them.

    Unlike :func:`vmm_msi.host.resolve.with_devices` it also lists devices without an SMMU or an
    ITS, such as those of a PCI host for which firmware names neither. Left out are devices that the
    host may not have, and those that its kernel reports an IOMMU group for and that its tables do
    not have.
    """
    devices = {device.address: device for device in host.devices}
    for address in addresses:
        if address not in devices:
            device = _routed(host, address)
            if device is not None:
                devices[address] = device
    return replace(host, devices=tuple(devices.values()))


def _routed(host: HostTopology, address: PciAddress) -> HostDevice | None:
    function = host.function_by_address.get(address)
    segment = address.segment
    dma_rid = address.rid if function is None or not function.dma_rids else function.dma_rids[0]
    msi_rid = address.rid if function is None or function.msi_rid is None else function.msi_rid
    dma_route = find_route(host, segment, dma_rid)
    msi_route = find_route(host, segment, msi_rid)
    if (dma_route is None or msi_route is None) and not _is_known(host, address):
        return None
    if dma_route is None and function is not None and function.iommu_group is not None:
        return None
    group = -1 if function is None or function.iommu_group is None else function.iommu_group
    vectors = 1 if function is None else function.vectors or 1
    streams = dma_route or PciRoute(segment, dma_rid, dma_rid, None, dma_rid, (), dma_rid)
    devices = msi_route or PciRoute(segment, msi_rid, msi_rid, None, msi_rid, (), msi_rid)
    msi_device = devices.device(PciAddress.from_rid(segment, msi_rid), group)
    return replace(
        streams.device(PciAddress.from_rid(segment, dma_rid), group, vectors),
        address=address,
        its_group=msi_device.its_group,
        device_id=msi_device.device_id,
        streams=1 if function is None else max(1, len(function.dma_rids)),
    )


def _is_known(host: HostTopology, address: PciAddress) -> bool:
    """Return whether the tables of a host describe a PCI host that has, or may have, a device."""
    if host.firmware is None:
        return False
    if address in host.function_by_address:
        return True
    segments = {segment.number for segment in host.segments}
    return not host.functions and not host.devices and address.segment in segments


def representatives(host: HostTopology) -> tuple[PciAddress, ...]:
    """Return the first address of each SMMU and ITS group of each PCI segment.

    For a host of which only routes are known. Ranges without an SMMU or an ITS are skipped if the
    segment has others: often they have no devices.
    """
    first: dict[tuple[object, ...], PciAddress] = {}
    complete = {
        route.segment for route in host.routes if route.smmu is not None and route.its_group
    }
    for route in host.routes:
        if route.segment in complete and (route.smmu is None or not route.its_group):
            continue
        key = (route.segment, route.smmu, route.its_group)
        first.setdefault(key, PciAddress.from_rid(route.segment, route.first))
    return tuple(first.values())
