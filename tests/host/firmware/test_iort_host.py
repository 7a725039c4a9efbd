"""SMMUs, PCI segments and reserved memory of an IORT."""

from __future__ import annotations

import struct

import pytest
from described_host import load_host
from host.firmware.acpi_builder import iort, its_group, madt, rmr, root_complex, smmu_v2, smmu_v3
from host.shared import shared_data

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.acpi import parse_acpi
from vmm_msi.host.firmware.iort import parse_iort
from vmm_msi.host.firmware.iort_host import reserved_memory, segments, smmus
from vmm_msi.host.resolve import resolve
from vmm_msi.types import (
    SW_MSI_WINDOW,
    Granule,
    Pa,
    PciAddress,
    PciSegment,
    ReservedKind,
    ReservedMemory,
    ReservedRegion,
    Smmu,
)


def read(*nodes, **options):
    return parse_iort(iort(*nodes, **options), "IORT")


def test_smmus_of_both_versions():
    assert smmus(read(smmu_v2(base=0x1000), smmu_v3(base=0x20000))) == (
        Smmu(0, Pa(0x1000), nested=False, version=2),
        Smmu(1, Pa(0x20000)),
    )


def test_segments():
    table = read(
        root_complex(segment=3, ats=1),
        root_complex(segment=0, flags=4),
        root_complex(segment=1, ats=2, flags=3),
    )
    assert segments(table) == (
        PciSegment(3, ats=True, canwbs=False),
        PciSegment(0, ats=False, canwbs=True),
        PciSegment(1, ats=False, canwbs=False),
    )


def test_the_first_root_complex_stands_for_its_segment():
    table = read(root_complex(ats=1), root_complex(flags=4), root_complex(ats=1, segment=2))
    assert segments(table) == (
        PciSegment(0, ats=True, canwbs=False),
        PciSegment(2, ats=True, canwbs=False),
    )


def test_reserved_memory_of_each_smmu():
    """An ID mapping to another node does not count."""
    node = rmr(
        (0x8000000, 0x100000),
        (0x9000000, 0x10000),
        to=[(0, 3, 0x100, 1, 0), (0, 0, 0x7, 2, 1), (0, 0xFF, 0, 0, 0)],
    )
    regions = reserved_memory(read(its_group(0), smmu_v3(), smmu_v2(), node), Granule.K4)
    assert regions == (
        ReservedMemory(0x8000000, 0x100000, 0, 0x100, 0x103, relaxable=True),
        ReservedMemory(0x9000000, 0x10000, 0, 0x100, 0x103, relaxable=True),
        ReservedMemory(0x8000000, 0x100000, 1, 0x7, 0x7, relaxable=True),
        ReservedMemory(0x9000000, 0x10000, 1, 0x7, 0x7, relaxable=True),
    )


def test_remapping_that_is_not_permitted():
    node = rmr((0x8000000, 0x10000), to=[(0, 0, 0x7, 0, 0)])
    node.data = struct.pack("<I", 0x22) + node.data[4:]
    (region,) = reserved_memory(read(smmu_v3(), node), Granule.K4)
    assert not region.relaxable


@pytest.mark.parametrize(
    ("pair", "granule", "expected"),
    [
        ((0x8001200, 0x300), Granule.K4, (0x8001000, 0x1000)),
        ((0x8001200, 0xE01), Granule.K4, (0x8001000, 0x2000)),
        ((0x8001200, 0x300), Granule.K64, (0x8000000, 0x10000)),
        ((0x8010000, 0x8000), Granule.K4, (0x8010000, 0x8000)),
        ((0x8010000, 0x8000), Granule.K64, (0x8010000, 0x10000)),
    ],
)
def test_ranges_are_widened_to_pages(pair, granule, expected):
    table = read(smmu_v3(), rmr(pair, to=[(0, 0, 0, 0, 0)]))
    (region,) = reserved_memory(table, granule)
    assert (region.base, region.size) == expected


def test_nodes_that_reserve_no_memory():
    """An empty range, a node without ID mappings, a table of a revision before E.d."""
    one = (0, 0, 0, 0, 0)
    assert reserved_memory(read(smmu_v3(), rmr((0x10000, 0), to=[one])), Granule.K4) == ()
    assert reserved_memory(read(smmu_v3(), rmr((0x10000, 0x10000))), Granule.K4) == ()
    assert reserved_memory(read(smmu_v3(), rmr(to=[one])), Granule.K4) == ()
    node = rmr((0x10000, 0x10000), to=[one])
    assert reserved_memory(read(smmu_v3(), node, revision=3), Granule.K4) == ()


def test_too_many_pairs_are_refused():
    ranges = [(0x10000, 0x10000)] * 1500
    node = rmr(*ranges, to=[(0, 0, 0, 0, 0)] * 1500)
    with pytest.raises(TopologyError, match="IORT: the RMR nodes have 2250000 pairs"):
        reserved_memory(read(smmu_v3(), node), Granule.K4)


def test_msis_that_bypass_the_smmu():
    """Those of a HiSilicon Hi161x: the translation frames of the ITS group are reserved."""
    table = iort(
        its_group(5, 9, 6),
        smmu_v3((0, 0xFFFF, 0, 0, 0), model=1),
        smmu_v3((0, 0xFFFF, 0, 0, 0)),
        root_complex((0, 0xFF, 0, 1, 0), (0x100, 0xFF, 0, 2, 0), (0x200, 0xFF, 0, 0, 0)),
    )
    host = parse_acpi(table, madt((5, 0x20000000), (6, 0x30000000)), "host")
    frames = tuple(
        ReservedRegion(base, 0x10000, ReservedKind.HW_MSI) for base in (0x20010000, 0x30010000)
    )
    assert [route.reserved for route in host.routes] == [frames, (), ()]
    device = resolve(host, PciAddress(0, 0, 1, 0))
    assert device.reserved == (SW_MSI_WINDOW, *frames)
    assert device.hw_msi == frames[0]
    assert resolve(host, PciAddress(0, 1, 1, 0)).hw_msi is None
    assert parse_acpi(table, None, "host").routes[0].reserved == ()


def test_a_real_rmr():
    """QEMU's fixed RMR, for a guest with an accelerated SMMU."""
    host = load_host(shared_data("acpi/qemu-11.1-accel-guest-rmr"))
    (region,) = host.reserved_memory
    assert (region.base, region.size, region.smmu) == (0x8000000, 0x100000, 0)
    assert host.segments == (PciSegment(0, ats=False, canwbs=False),)


def test_messages_name_the_table():
    good = iort(its_group(0))
    (error,) = parse_acpi(good + b"\0", None, "host.tar").table_errors
    assert str(error) == f"host.tar/IORT: offset {len(good):#x}: 1 byte after the end of the table"
    with pytest.raises(TopologyError, match=r"^host\.tar/APIC: offset 0x0: truncated"):
        parse_acpi(good, b"", "host.tar")
