"""The devices of a StreamID."""

from __future__ import annotations

from dataclasses import replace

import pytest
from described_host import load_host

from vmm_msi.host.resolve import resolve
from vmm_msi.host.streams import devices_of_stream, smmus_named
from vmm_msi.samples import path as sample
from vmm_msi.types import (
    DeviceId,
    Granule,
    HostDevice,
    HostTopology,
    Its,
    Pa,
    PciAddress,
    PciFunction,
    PciRoute,
    Smmu,
    StreamId,
)


def address(text):
    return PciAddress.parse(text)


LISTED = HostDevice(
    address("0000:05:00.0"), 0, StreamId(0x2000), (0,), DeviceId(0x500), 1, streams=4
)
HOST = HostTopology(
    source="x",
    granule=Granule.K4,
    smmus=(Smmu(0, Pa(0x905_0000)), Smmu(1, Pa(0x2B40_0000))),
    itses=(Its(0, Pa(0x808_0000)),),
    devices=(LISTED,),
    routes=(
        PciRoute(0, 0x000, 0xFFF, 0, 0x1000, (0,), 0),
        PciRoute(1, 0x100, 0x1FF, 1, 0x1100, (0,), 0x10000),
        PciRoute(2, 0x000, 0xFFFF, None, 0x0, (0,), 0x20000),
    ),
)


def devices_with(stream, smmus=None, host=HOST):
    return [str(device.address) for device in devices_of_stream(host, StreamId(stream), smmus)]


def test_a_listed_device_has_all_of_its_streams():
    assert devices_with(0x2000) == devices_with(0x2003) == ["0000:05:00.0"]
    assert devices_with(0x2004) == []


def test_devices_by_route():
    assert devices_with(0x1008) == ["0000:00:01.0"]
    assert devices_with(0x1100) == ["0000:01:00.0", "0001:01:00.0"]
    assert devices_with(0x1100, (1,)) == ["0001:01:00.0"]


def test_routes_without_an_smmu_have_no_stream():
    assert devices_with(0x10) == []


def test_a_listed_stream_overrides_the_route():
    """The list gives 0000:05:00.0 another StreamID than its route does."""
    assert devices_with(0x1500) == []


def test_absent_functions_are_left_out_unless_no_device_is_present():
    host = replace(HOST, functions=(PciFunction(address("0001:01:00.0")),))
    assert devices_with(0x1100, host=host) == ["0001:01:00.0"]
    assert devices_with(0x1008, host=host) == ["0000:00:01.0"]


def test_devices_behind_a_bridge_share_its_stream():
    bridge, first, second = (address(f"0001:01:{slot:02x}.0") for slot in (0, 1, 2))
    behind = tuple(
        PciFunction(device, dma_rids=(device.rid, bridge.rid)) for device in (first, second)
    )
    host = replace(HOST, functions=(PciFunction(bridge, dma_rids=(bridge.rid,)), *behind))
    assert devices_with(0x1100, (1,), host=host) == [str(bridge), str(first), str(second)]
    assert devices_with(0x1108, (1,), host=host) == [str(first)]


def test_a_route_with_one_stream_for_all():
    route = PciRoute(3, 0x100, 0x1FF, 0, 0x30, (0,), 0, one_stream=True)
    host = replace(HOST, routes=(route,))
    assert devices_with(0x30, host=host) == ["0003:01:00.0"]
    assert devices_with(0x31, host=host) == []
    present = tuple(PciFunction(address(f"0003:01:{slot:02x}.0")) for slot in (1, 2))
    assert devices_with(0x30, host=replace(host, functions=present)) == [
        "0003:01:01.0",
        "0003:01:02.0",
    ]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("2b400000.iommu", (1,)),
        ("9050000.iommu", (0,)),
        ("2b500000.iommu", (0, 1)),
        ("arm-smmu-v3.1.auto", (0, 1)),
        ("", (0, 1)),
    ],
)
def test_names_of_smmus(name, ids):
    assert smmus_named(HOST, name) == ids


@pytest.mark.parametrize("name", ["eight-its-server.dtb", "eight-its.toml", "two-its.toml"])
def test_every_device_has_its_own_stream(name):
    host = load_host(sample(name))
    addresses = [device.address for device in host.devices]
    addresses += [
        PciAddress.from_rid(route.segment, rid)
        for route in host.routes
        for rid in (route.first, route.last)
        if route.smmu is not None and route.its_group
    ]
    assert addresses
    for address in addresses:
        device = resolve(host, address)
        same = devices_of_stream(host, device.stream_id, (device.smmu,))
        assert address in [other.address for other in same]
