"""load_host's three forms, and devices by address: listed ones, routed ones, and errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from host.firmware.iort_builder import iort, its_group, madt, root_complex, smmu_v3

from vmm_msi import samples
from vmm_msi.errors import TopologyError
from vmm_msi.host.resolve import isolates_msis, resolve, with_devices
from vmm_msi.host.sources import load_host
from vmm_msi.types import (
    SW_MSI_WINDOW,
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
            "finding 0000:02:00.0 in host: no route has it; valid are: 0000:00:00.0-0000:00:1f.7, ",
        ),
        ("0002:00:00.0", "no route has it; valid are: 0002:01:00.0-0002:01:1f.7"),
        ("0001:00:00.0", "no route has it; valid are: 0000:00:00.0-0000:00:1f.7, "),
        (
            "0000:00:01.0",
            "passes through no SMMU; valid are: 0000:01:00.0-0000:01:1f.7, 0000:03:00.0",
        ),
        ("0000:03:00.0", "go to no ITS; valid are: 0000:00:00.0-0000:00:1f.7, 0000:01:00.0"),
        ("0002:01:00.0", "the base of its ITS 1 is unknown: APIC (MADT) has the ITSes 0"),
    ],
)
def test_errors_say_what_is_valid(text, message):
    with pytest.raises(TopologyError) as caught:
        resolve(HOST, address(text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_routes_at_all():
    host = load_host(samples.path("two-its.toml"))
    with pytest.raises(TopologyError, match=r"valid are: 0000:01:00.0, 0000:02:00.0"):
        resolve(host, address("0000:07:00.0"))


def test_with_devices():
    host = with_devices(HOST, [address("01:00.0"), address("01:00.1"), address("01:00.0")])
    assert [str(device.address) for device in host.devices] == ["0000:01:00.0", "0000:01:00.1"]
    assert [device.iommu_group for device in host.devices] == [1, 2]
    more = with_devices(host, [address("01:00.1"), address("01:01.0")])
    assert [device.iommu_group for device in more.devices] == [1, 2, 3]
    assert resolve(more, address("01:01.0")) == more.devices[2]
    assert HOST.devices == ()
    with pytest.raises(TopologyError, match="no SMMU"):
        with_devices(HOST, [address("00:00.0")])


def test_many_routes_are_cut_short():
    routes = tuple(PciRoute(0, at * 512, at * 512 + 9, 0, 0, (0,), 0) for at in range(100))
    host = HostTopology("host", Granule.K4, (Smmu(0),), (Its(0, Pa(0)),), routes=routes)
    with pytest.raises(TopologyError, match="and 94 more"):
        resolve(host, address("ff:1f.7"))


def test_forms_of_a_host(tmp_path):
    for name, text in (("host.txt", b"hello"), ("empty", b""), ("IORT", iort())):
        path = tmp_path / name
        path.write_bytes(text)
        with pytest.raises(
            TopologyError, match=r"a host is a \.toml file .* a folder with .* a capture"
        ):
            load_host(path)
    with pytest.raises(TopologyError, match="No such file"):
        load_host(tmp_path / "none")
    with pytest.raises(TopologyError, match="not a file name"):
        load_host(tmp_path / "a\0b")
    with pytest.raises(TopologyError, match="cannot be read"):
        load_host(tmp_path / "host.txt" / "below")


def test_unreadable(tmp_path, monkeypatch):
    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "host.dtb"
    path.write_bytes(b"")
    monkeypatch.setattr(type(path), "open", denied)
    with pytest.raises(TopologyError, match="cannot be read: Permission denied"):
        load_host(path)
    with pytest.raises(TopologyError, match="cannot be read: Permission denied"):
        load_host(tmp_path)


def test_acpi_folder_end_to_end(tmp_path):
    nodes = (its_group(1, 0), smmu_v3((0, 0xFFFF, 0x10000, 0, 0)))
    table = iort(*nodes, root_complex((0, 0xFFFF, 0x100, 1, 0), segment=4))
    (tmp_path / "IORT").write_bytes(table)
    (tmp_path / "APIC").write_bytes(madt((0, 0x20000000), (1, 0x20040000)))
    device = resolve(load_host(tmp_path), address("0004:01:00.0"))
    assert (device.smmu, device.stream_id, device.its, device.device_id) == (0, 0x200, 1, 0x10200)


def listing(*functions, **more):
    """Return the host with functions that its system lists."""
    return replace(HOST, functions=functions, **more)


def test_what_the_system_lists_is_used():
    function = PciFunction(address("01:02.3"), iommu_group=12, vectors=65, reserved=(HW_MSI,))
    device = resolve(listing(function), function.address)
    assert (device.iommu_group, device.vectors, device.reserved) == (12, 65, (HW_MSI,))
    assert resolve(listing(function), function.address, 3, 2).iommu_group == 3
    # What the caller says goes first, and the model wants one MSI of whoever has none.
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
            "its DMA also arrives as 0000:03:00.0, which is behind another SMMU; valid",
        ),
        ({"dma_rids": (0x113, 0x200)}, "it arrives as 0000:02:00.0: no route has it; valid are: 0"),
        ({"msi_rid": 0x300}, "its MSIs go to no ITS"),
    ],
)
def test_aliases_that_lead_elsewhere(function, message):
    place = address("01:02.3")
    with pytest.raises(TopologyError) as caught:
        resolve(listing(PciFunction(place, **function)), place)
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
    # What the kernel itself reserves has them in it, if it heeds them.
    told = PciFunction(address("01:02.3"), reserved=(SW_MSI_WINDOW,))
    assert resolve(replace(host, functions=(told,)), told.address).reserved == (SW_MSI_WINDOW,)


def test_groups_of_their_own_are_above_all_that_are_known():
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


def test_isolated_msis_behind_a_pre_its_or_nobody_knows():
    its = Its(0, Pa(0x20000000), pre_its=Pa(0x58000000))
    host = replace(HOST, itses=(its,))
    assert isolates_msis(host, address("01:00.0")) is False
    device = resolve(HOST, address("01:00.0"))
    assert isolates_msis(replace(HOST, routes=(), devices=(device,)), device.address) is True
    assert isolates_msis(replace(HOST, routes=()), device.address) is None
    alias = PciFunction(address("01:00.0"), msi_rid=0x300)
    assert isolates_msis(listing(alias), alias.address) is False
