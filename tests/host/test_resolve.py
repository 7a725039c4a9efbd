"""Devices by address: listed ones, routed ones, and errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from described_host import load_host

from vmm_msi import samples
from vmm_msi.errors import TopologyError
from vmm_msi.host.resolve import isolates_msis, resolve, with_devices
from vmm_msi.types import (
    SW_MSI_WINDOW,
    Firmware,
    Granule,
    HostTopology,
    Its,
    Pa,
    PciAddress,
    PciFunction,
    PciRoute,
    ReservedKind,
    ReservedMemory,
    ReservedRegion,
    Smmu,
)

HW_MSI = ReservedRegion(0xC6010000, 0x10000, ReservedKind.HW_MSI)


def address(text):
    return PciAddress.parse(text)


HOST = HostTopology(
    "host",
    Granule.K4,
    (Smmu(0), Smmu(1)),
    (Its(0, Pa(0x20000000)),),
    routes=(
        PciRoute(0, 0x0000, 0x00FF, None, 0x0000, (0,), 0x0000),
        PciRoute(0, 0x0100, 0x01FF, 0, 0x8000, (0, 1), 0x90000),
        PciRoute(0, 0x0300, 0x03FF, 1, 0x0000, (), 0x0000),
        PciRoute(2, 0x0100, 0x01FF, 1, 0x0300, (1,), 0x0000),
    ),
    firmware=Firmware.ACPI,
)


def test_by_route():
    device = resolve(HOST, address("0000:01:02.3"), vectors=9)
    assert (device.smmu, device.stream_id, device.its_group) == (0, 0x8013, (0, 1))
    assert (device.device_id, device.iommu_group, device.vectors) == (0x90013, 1, 9)
    assert resolve(HOST, address("01:00.0"), iommu_group=7).iommu_group == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0000:02:00.0",
            "finding 0000:02:00.0 in host: no route covers it; valid: 0000:00:00.0-0000:00:1f.7, ",
        ),
        ("0002:00:00.0", "no route covers it; valid: 0002:01:00.0-0002:01:1f.7"),
        ("0001:00:00.0", "no route covers it; valid: 0000:00:00.0-0000:00:1f.7, "),
        (
            "0000:00:01.0",
            "is not behind an SMMU; valid: 0000:01:00.0-0000:01:1f.7, 0000:03:00.0",
        ),
        (
            "0000:03:00.0",
            "it has no ITS for its MSIs; valid: 0000:00:00.0-0000:00:1f.7, 0000:01:00.0",
        ),
        ("0002:01:00.0", "the base of its ITS 1 is unknown: APIC (MADT) has the ITSes 0"),
    ],
)
def test_errors_list_valid_addresses(text, message):
    with pytest.raises(TopologyError) as caught:
        resolve(HOST, address(text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_host_without_routes():
    host = load_host(samples.path("two-its.toml"))
    with pytest.raises(TopologyError, match=r"valid: 0000:01:00.0, 0000:02:00.0"):
        resolve(host, address("0000:07:00.0"))


def test_with_devices():
    host = with_devices(HOST, [address("01:00.0"), address("01:00.1"), address("01:00.0")])
    assert [str(device.address) for device in host.devices] == ["0000:01:00.0", "0000:01:00.1"]
    assert [device.iommu_group for device in host.devices] == [1, 2]
    more = with_devices(host, [address("01:00.1"), address("01:01.0")])
    assert [device.iommu_group for device in more.devices] == [1, 2, 3]
    assert resolve(more, address("01:01.0")) == more.devices[2]
    assert HOST.devices == ()
    with pytest.raises(TopologyError, match="not behind an SMMU"):
        with_devices(HOST, [address("00:00.0")])


def test_a_long_list_of_routes_is_shortened():
    routes = tuple(PciRoute(0, at * 512, at * 512 + 9, 0, 0, (0,), 0) for at in range(100))
    host = HostTopology("host", Granule.K4, (Smmu(0),), (Its(0, Pa(0)),), routes=routes)
    with pytest.raises(TopologyError, match="and 94 more"):
        resolve(host, address("ff:1f.7"))


def listing(*functions, **more):
    """Return the host with functions that its system lists."""
    return replace(HOST, functions=functions, **more)


def test_functions_that_the_system_lists_are_used():
    function = PciFunction(address("01:02.3"), iommu_group=12, vectors=65, reserved=(HW_MSI,))
    device = resolve(listing(function), function.address)
    assert (device.iommu_group, device.vectors, device.reserved) == (12, 65, (HW_MSI,))
    assert resolve(listing(function), function.address, 3, 2).iommu_group == 3
    # The caller's values go first; a device without MSIs counts as one with 1 vector.
    assert resolve(listing(function), function.address, 3, 2).vectors == 2
    assert resolve(listing(replace(function, vectors=0)), function.address).vectors == 1


def test_aliases():
    function = PciFunction(address("01:02.3"), dma_rids=(0x113, 0x100, 0x100, 0x1FF), msi_rid=0x1FF)
    device = resolve(listing(function), function.address)
    assert (device.stream_id, device.streams, device.device_id) == (0x8013, 3, 0x900FF)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            {"dma_rids": (0x113, 0x300)},
            "its DMA also has the RequesterID of 0000:03:00.0, which is behind another SMMU",
        ),
        (
            {"dma_rids": (0x113, 0x200)},
            "its RequesterID becomes that of 0000:02:00.0: no route covers it; valid: 0",
        ),
        ({"msi_rid": 0x300}, "it has no ITS for its MSIs"),
    ],
)
def test_aliases_without_a_common_smmu(function, message):
    device = address("01:02.3")
    with pytest.raises(TopologyError) as caught:
        resolve(listing(PciFunction(device, **function)), device)
    assert message in str(caught.value)


def test_reserved_memory_of_the_stream_ids():
    memory = (
        ReservedMemory(0xA0000000, 0x10000, 0, 0x8000, 0x8012),
        ReservedMemory(0xB0000000, 0x10000, 0, 0x8013, 0x8013),
        ReservedMemory(0xC0000000, 0x10000, 0, 0x8010, 0x8020, relaxable=True),
        ReservedMemory(0xD0000000, 0x10000, 1, 0x8013, 0x8013),
    )
    host = listing(reserved_memory=memory)
    assert resolve(host, address("01:02.3")).reserved == (
        SW_MSI_WINDOW,
        ReservedRegion(0xB0000000, 0x10000, ReservedKind.DIRECT),
        ReservedRegion(0xC0000000, 0x10000, ReservedKind.DIRECT_RELAXABLE),
    )
    # The kernel's own list includes them if the kernel honours them.
    function = PciFunction(address("01:02.3"), reserved=(SW_MSI_WINDOW,))
    assert resolve(replace(host, functions=(function,)), function.address).reserved == (
        SW_MSI_WINDOW,
    )


def test_new_groups_have_numbers_above_all_known_groups():
    functions = (
        PciFunction(address("01:00.0"), iommu_group=4),
        PciFunction(address("01:09.0"), iommu_group=30),
    )
    host = with_devices(listing(*functions), [address("01:01.0"), address("01:00.0")])
    assert [device.iommu_group for device in host.devices] == [31, 4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("01:00.0", True), ("00:01.0", True), ("03:00.0", False), ("02:00.0", False)],
)
def test_isolated_msis(text, expected):
    assert isolates_msis(HOST, address(text)) is expected


def test_isolated_msis_with_a_pre_its_or_an_unknown_its():
    its = Its(0, Pa(0x20000000), pre_its=Pa(0x58000000))
    host = replace(HOST, itses=(its,))
    assert isolates_msis(host, address("01:00.0")) is False
    device = resolve(HOST, address("01:00.0"))
    assert isolates_msis(replace(HOST, routes=(), devices=(device,)), device.address) is True
    assert isolates_msis(replace(HOST, routes=()), device.address) is None
    missing = replace(device, its_group=(1, 0))
    assert isolates_msis(replace(HOST, devices=(missing,)), device.address) is False
    assert isolates_msis(replace(HOST, itses=(), devices=(device,)), device.address) is None
    alias = PciFunction(address("01:00.0"), msi_rid=0x300)
    assert isolates_msis(listing(alias), alias.address) is False
