"""Find the devices that may have a StreamID which an SMMU reports."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.types import HostDevice, HostTopology, PciRoute, StreamId

#: A platform device of a device tree is named after its address and its node: ``fd800000.iommu``
#: (Linux ``drivers/of/device.c`` of_device_make_bus_id).
_OF_NAME = re.compile(r"([0-9a-f]{1,16})\.\S+")


def smmus_named(host: HostTopology, name: str) -> tuple[int, ...]:
    """Return the ids of the SMMUs that Linux's driver may call ``name``.

    With a device tree the name has the address. With ACPI it is a running number over all platform
    devices that have none of their own (Linux ``drivers/acpi/arm64/iort.c``,
    PLATFORM_DEVID_AUTO), which no table contains: any SMMU may have it.
    """
    match = _OF_NAME.fullmatch(name)
    if match is not None:
        base = int(match[1], 16)
        named = tuple(smmu.id for smmu in host.smmus if smmu.base == base)
        if named:
            return named
    return tuple(smmu.id for smmu in host.smmus)


def devices_of_stream(
    host: HostTopology, stream: StreamId, smmus: tuple[int, ...] | None = None
) -> tuple[HostDevice, ...]:
    """Return the devices that an SMMU may know as ``stream``, listed ones first.

    Several SMMUs may have the same StreamID, each for a device of its own; and several devices
    behind one bridge may share one. If the host's operating system lists its functions, devices
    that it does not list are left out, unless no device would be left.

    :param smmus: ids of the SMMUs to search; None for all.
    """
    devices = {device.address: device for device in _candidates(host, stream, smmus)}
    present = [device for device in devices.values() if _is_present(host, device.address)]
    return tuple(present or devices.values())


def _candidates(
    host: HostTopology, stream: StreamId, smmus: tuple[int, ...] | None
) -> Iterator[HostDevice]:
    def is_selected(smmu: int | None) -> bool:
        return smmu is not None and (smmus is None or smmu in smmus)

    for device in host.devices:
        first = device.stream_id
        if is_selected(device.smmu) and first <= stream < first + device.streams:
            yield device
    listed = host.device_by_address
    for route in host.routes:
        if not is_selected(route.smmu):
            continue
        for rid in _rids(host, route, stream):
            address = PciAddress.from_rid(route.segment, rid)
            device = route.device(address, iommu_group=0)
            for alias_user in _functions_with(host, address):
                if alias_user not in listed:
                    yield replace(device, address=alias_user)


def _rids(host: HostTopology, route: PciRoute, stream: StreamId) -> Iterable[int]:
    """Return the RequesterIDs of a route that have a StreamID.

    If all of the route share one StreamID, these are the functions that are present, or the first
    RequesterID if no functions are listed.
    """
    distance = stream - route.stream_base
    if not route.one_stream:
        return [route.first + distance] if 0 <= distance <= route.last - route.first else ()
    if distance:
        return ()
    present = [
        function.address.rid
        for function in host.functions
        if function.address.segment == route.segment
        and route.first <= function.address.rid <= route.last
    ]
    return present or [route.first]


def _functions_with(host: HostTopology, address: PciAddress) -> tuple[PciAddress, ...]:
    """Return the functions whose DMA has the RequesterID of ``address``; a bridge has several."""
    functions = tuple(
        function.address
        for function in host.functions
        if function.address.segment == address.segment and address.rid in function.dma_rids
    )
    return functions or (address,)


def _is_present(host: HostTopology, address: PciAddress) -> bool:
    return address in host.device_by_address or address in host.function_by_address
