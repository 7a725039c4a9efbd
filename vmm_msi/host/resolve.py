"""Find the SMMU, StreamID, ITS and DeviceID of a PCI address."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.types import Firmware, PciAddress, PciFunction, ReservedKind, ReservedRegion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm_msi.types import HostDevice, HostTopology, PciRoute

_MAX_SHOWN = 6


def resolve(
    host: HostTopology,
    address: PciAddress,
    iommu_group: int | None = None,
    vectors: int | None = None,
) -> HostDevice:
    """Find the device at ``address``: among the listed devices, else by the routes.

    By the routes, its SMMU is that of its own RequesterID, its StreamIDs are those of all
    RequesterIDs of its DMA, its ITS and DeviceID those of the RequesterID of its MSIs. If its
    aliases are unknown, its own RequesterID stands for all.

    :param iommu_group: its IOMMU group if it is not listed; the default is the one that the host's
        system reports, else a new number, so that the group has this device alone.
    :param vectors: number of its MSIs if it is not listed; the default is the number in its
        configuration space, and 1 if that is unknown or 0.
    :raise TopologyError: when the source does not have the address, or the device is not behind an
        SMMU, has no ITS or one whose base is unknown.
    """
    device = host.device_by_address.get(address)
    if device is None:
        function = host.function_by_address.get(address) or PciFunction(address)
        if iommu_group is None:
            iommu_group = function.iommu_group
        if iommu_group is None:
            iommu_group = _next_group(host)
        device = _device(host, function, iommu_group, vectors or function.vectors or 1)
    _check(host, device)
    return device


def with_devices(host: HostTopology, addresses: Iterable[PciAddress]) -> HostTopology:
    """Return ``host`` with the devices at ``addresses`` listed after those that it lists already.

    An added device whose IOMMU group is unknown gets a group of its own.

    :raise TopologyError: as for :func:`resolve`.
    """
    devices = {device.address: device for device in host.devices}
    new_group = _next_group(host)
    for address in addresses:
        if address in devices:
            continue
        function = host.function_by_address.get(address)
        group = None if function is None else function.iommu_group
        devices[address] = resolve(host, address, iommu_group=new_group if group is None else group)
        new_group += group is None
    return replace(host, devices=tuple(devices.values()))


def isolates_msis(host: HostTopology, address: PciAddress) -> bool | None:
    """Return whether a device can raise its own interrupts only.

    Linux ``kernel/irq/msi.c`` msi_device_has_isolated_msi: its MSIs go through an ITS without a
    pre-ITS in front of it. A device whose ITS firmware does not have has no MSI domain at all. VFIO
    refuses other devices unless unsafe interrupts are allowed.

    :return: None if the ITS of its MSIs is unknown.
    """
    device = host.device_by_address.get(address)
    if device is not None:
        group = device.its_group
    elif host.routes:
        function = host.function_by_address.get(address)
        rid = address.rid if function is None or function.msi_rid is None else function.msi_rid
        route = find_route(host, address.segment, rid)
        group = () if route is None else route.its_group
    else:
        return None
    if not group:
        return False
    its = host.its_by_id.get(group[0])
    if its is None:
        return False if host.itses else None
    return its.isolates_msis


def reserved_memory(host: HostTopology, smmu: int, streams: Iterable[int]) -> list[ReservedRegion]:
    """Return the regions that firmware requires mapped 1:1 for StreamIDs of an SMMU."""
    stream_ids = list(streams)
    return [
        ReservedRegion(
            memory.base,
            memory.size,
            ReservedKind.DIRECT_RELAXABLE if memory.relaxable else ReservedKind.DIRECT,
        )
        for memory in host.reserved_memory
        if memory.smmu == smmu
        and any(memory.first_stream <= stream <= memory.last_stream for stream in stream_ids)
    ]


def find_route(host: HostTopology, segment: int, rid: int) -> PciRoute | None:
    """Return the route that covers a RequesterID; None if no route does."""
    position = bisect_right(
        host.routes, (segment, rid), key=lambda route: (route.segment, route.first)
    )
    if position:
        route = host.routes[position - 1]
        if route.segment == segment and route.first <= rid <= route.last:
            return route
    return None


def streams_of(host: HostTopology, function: PciFunction) -> dict[int, None]:
    """Return the StreamIDs of a function in the order in which Linux finds them.

    :raise TopologyError: when no route covers one of its RequesterIDs, or one is behind another
        SMMU.
    """
    streams: dict[int, None] = {}
    address = function.address
    own = _route(host, address, address.rid)
    for rid in function.dma_rids or (address.rid,):
        route = _route(host, address, rid)
        if route.smmu != own.smmu:
            raise TopologyError(
                f"finding {address} in {host.source}: its DMA also has the RequesterID of "
                f"{PciAddress.from_rid(address.segment, rid)}, which is behind another SMMU; use a "
                "device behind one SMMU"
            )
        streams[route.stream_of(rid)] = None
    return streams


def _device(
    host: HostTopology, function: PciFunction, iommu_group: int, vectors: int
) -> HostDevice:
    address = function.address
    route = _route(host, address, address.rid)
    device = route.device(address, iommu_group, vectors)
    streams = streams_of(host, function)
    if function.msi_rid is not None and function.msi_rid != address.rid:
        msi_route = _route(host, address, function.msi_rid)
        device = replace(
            device, its_group=msi_route.its_group, device_id=msi_route.device_of(function.msi_rid)
        )
    reserved = function.reserved
    if reserved is None and route.smmu is not None:
        reserved = (*device.reserved, *reserved_memory(host, route.smmu, streams))
    return replace(
        device,
        streams=len(streams),
        reserved=device.reserved if reserved is None else reserved,
    )


def _next_group(host: HostTopology) -> int:
    """Return a number above those of all known IOMMU groups."""
    groups = [device.iommu_group for device in host.devices]
    groups += [
        function.iommu_group for function in host.functions if function.iommu_group is not None
    ]
    return 1 + max(groups, default=0)


def _route(host: HostTopology, address: PciAddress, rid: int) -> PciRoute:
    route = find_route(host, address.segment, rid)
    if route is not None:
        return route
    where = f"finding {address} in {host.source}"
    if not host.is_described and host.missing:
        raise TopologyError(f"{where}: {'; '.join(host.missing)}")
    if rid != address.rid:
        alias = PciAddress.from_rid(address.segment, rid)
        where += f": its RequesterID becomes that of {alias}"
    valid = _valid(host, address.segment, lambda _route: True)
    raise TopologyError(f"{where}: no route covers it; {valid}")


def _check(host: HostTopology, device: HostDevice) -> None:
    where = f"finding {device.address} in {host.source}"
    segment = device.address.segment
    if device.smmu is None:
        valid = _valid(host, segment, lambda route: route.smmu is not None)
        raise TopologyError(f"{where}: it is not behind an SMMU; {valid}")
    if not device.its_group:
        valid = _valid(host, segment, lambda route: bool(route.its_group))
        raise TopologyError(f"{where}: it has no ITS for its MSIs; {valid}")
    if device.its in host.its_by_id:
        return
    where += f": the base of its ITS {device.its} is unknown"
    if host.missing:
        raise TopologyError(f"{where}: {'; '.join(host.missing)}")
    known = ", ".join(str(its.id) for its in host.itses[:_MAX_SHOWN]) or "none"
    table = "APIC (MADT) has" if host.firmware is Firmware.ACPI else "known are"
    raise TopologyError(f"{where}: {table} the ITSes {known}")


def _valid(host: HostTopology, segment: int, suits: Callable[[PciRoute], bool]) -> str:
    """Return a list of the valid addresses, of the same segment if it has any."""
    routes = [route for route in host.routes if suits(route)]
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
    return f"valid: {shown}{more}"
