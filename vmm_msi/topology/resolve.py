"""From the PCI address of a device to its SMMU, StreamID, ITS and DeviceID."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.model import PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm_msi.model import HostDevice, HostTopology, PciRoute

_MAX_SHOWN = 6


def resolve(
    host: HostTopology, address: PciAddress, iommu_group: int | None = None, vectors: int = 1
) -> HostDevice:
    """Find the device at ``address``: among those the source lists, else by its routes.

    :param iommu_group: its IOMMU group where it is not listed; the default is one above the
        groups of the listed devices, so that it has a group of its own.
    :param vectors: number of its MSIs where it is not listed.
    :raise TopologyError: when the source does not have the address, or the device passes through
        no SMMU, has no ITS or one whose base is unknown.
    """
    device = host.device_by_address.get(address)
    if device is None:
        route = _find_route(host, address)
        group = _next_group(host.devices) if iommu_group is None else iommu_group
        device = route.device(address, group, vectors)
    _check(host, device)
    return device


def with_devices(host: HostTopology, addresses: Iterable[PciAddress]) -> HostTopology:
    """Return ``host`` with the devices at ``addresses`` listed, those listed already first.

    Each device that is added has an IOMMU group of its own and one vector.

    :raise TopologyError: as for :func:`resolve`.
    """
    devices = {device.address: device for device in host.devices}
    group = _next_group(host.devices)
    for address in addresses:
        known = address in devices
        devices.setdefault(address, resolve(host, address, iommu_group=group))
        group += not known
    return replace(host, devices=tuple(devices.values()))


def _next_group(devices: Iterable[HostDevice]) -> int:
    return 1 + max((device.iommu_group for device in devices), default=0)


def _find_route(host: HostTopology, address: PciAddress) -> PciRoute:
    position = bisect_right(
        host.routes, (address.segment, address.rid), key=lambda route: (route.segment, route.first)
    )
    if position:
        route = host.routes[position - 1]
        if route.segment == address.segment and route.first <= address.rid <= route.last:
            return route
    raise TopologyError(
        f"finding {address} in {host.source}: no route has it; "
        + _valid(host, address.segment, lambda _route: True)
    )


def _check(host: HostTopology, device: HostDevice) -> None:
    where = f"finding {device.address} in {host.source}"
    segment = device.address.segment
    if device.smmu is None:
        valid = _valid(host, segment, lambda route: route.smmu is not None)
        raise TopologyError(f"{where}: it passes through no SMMU; {valid}")
    if not device.its_group:
        valid = _valid(host, segment, lambda route: bool(route.its_group))
        raise TopologyError(f"{where}: its MSIs go to no ITS; {valid}")
    if device.its in host.its_by_id:
        return
    if not host.itses:
        raise TopologyError(
            f"{where}: the base of its ITS {device.its} is unknown: APIC is missing: copy "
            "/sys/firmware/acpi/tables/APIC next to IORT"
        )
    known = ", ".join(str(its.id) for its in host.itses[:_MAX_SHOWN])
    raise TopologyError(
        f"{where}: the base of its ITS {device.its} is unknown: APIC (MADT) has the ITSes {known}"
    )


def _valid(host: HostTopology, segment: int, wanted: Callable[[PciRoute], bool]) -> str:
    """Say which addresses would do, of the same segment if it has any."""
    routes = [route for route in host.routes if wanted(route)]
    near = [route for route in routes if route.segment == segment] or routes
    names = [
        f"{PciAddress.from_rid(route.segment, route.first)}-"
        f"{PciAddress.from_rid(route.segment, route.last)}"
        for route in near
    ]
    if not routes:
        names = [str(device.address) for device in host.devices]
    shown = ", ".join(names[:_MAX_SHOWN]) or "none"
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return f"valid are: {shown}{more}"
