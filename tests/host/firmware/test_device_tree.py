"""Device trees: maps and masks as in of_map_id, addresses through buses, malformed properties."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from described_host import load_host
from host.firmware.dt_builder import its, node, parse, pci, refused, smmu
from host.shared import shared_data
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_msi.errors import TopologyError
from vmm_msi.host.resolve import resolve
from vmm_msi.types import Its, Pa, PciAddress, PciRoute, PciSegment, Smmu

FULL = "bus-range = <0 0xff>;"


def test_maps():
    host = parse(
        its(0),
        its(1),
        smmu(0),
        pci(
            0,
            FULL + "linux,pci-domain = <3>; iommu-map = <0x0 &smmu0 0x10000 0x8000>;"
            "msi-map = <0x0 &its1 0x30000 0x4000>, <0x4000 &its0 0x50000 0x8000>;",
        ),
    )
    assert host.itses == (Its(0, Pa(0x20000000)), Its(1, Pa(0x20040000)))
    assert host.smmus == (Smmu(0, Pa(0x30000000)),)
    assert host.routes == (
        PciRoute(3, 0x0000, 0x3FFF, 0, 0x10000, (1,), 0x30000),
        PciRoute(3, 0x4000, 0x7FFF, 0, 0x14000, (0,), 0x50000),
        PciRoute(3, 0x8000, 0xBFFF, None, 0x8000, (0,), 0x54000),
    )


def test_the_first_entry_of_an_id_counts():
    host = parse(
        its(0), its(1), pci(0, "msi-map = <0x100 &its0 0x0 0x100>, <0x0 &its1 0x1000 0x300>;")
    )
    assert host.routes == (
        PciRoute(0, 0x000, 0x0FF, None, 0x000, (1,), 0x1000),
        PciRoute(0, 0x100, 0x1FF, None, 0x100, (0,), 0x0),
        PciRoute(0, 0x200, 0x2FF, None, 0x200, (1,), 0x1200),
    )


def test_bus_range():
    host = parse(its(0), pci(0, "bus-range = <0xf8 0xfb>; msi-map = <0xf800 &its0 0xf800 0x800>;"))
    assert host.routes == (PciRoute(0, 0xF800, 0xFBFF, None, 0xF800, (0,), 0xF800),)


def test_msi_parent_without_cells():
    host = parse(its(0).replace("#msi-cells = <1>;", ""), pci(0, FULL + "msi-parent = <&its0>;"))
    assert host.routes == (PciRoute(0, 0, 0xFFFF, None, 0, (0,), 0),)


def test_msi_parent_with_cells_and_several():
    """The cells are for the host bridge itself; a device's DeviceID is its RequesterID."""
    host = parse(its(0), its(1), pci(0, FULL + "msi-parent = <&its1 0x4000>, <&its0 0x8000>;"))
    assert host.routes == (PciRoute(0, 0, 0xFFFF, None, 0, (1, 0), 0),)


def test_msi_map_before_msi_parent():
    host = parse(
        its(0), its(1), pci(0, "msi-parent = <&its0 0>; msi-map = <0x0 &its1 0x7000 0x100>;")
    )
    assert host.routes == (
        PciRoute(0, 0x000, 0x00FF, None, 0x000, (1,), 0x7000),
        PciRoute(0, 0x100, 0xFFFF, None, 0x100, (0,), 0x100),
    )


def test_mask_of_one_bus_bit():
    """RequesterIDs that differ in masked bits only share their IDs."""
    host = parse(its(0), pci(0, "msi-map-mask = <0xfeff>; msi-map = <0x0 &its0 0x1000 0x10000>;"))
    assert [(one.first, one.last, one.device_base) for one in host.routes[:4]] == [
        (0x000, 0x0FF, 0x1000),
        (0x100, 0x1FF, 0x1000),
        (0x200, 0x2FF, 0x1200),
        (0x300, 0x3FF, 0x1200),
    ]


def test_mask_of_the_function():
    host = parse(
        its(0),
        smmu(0),
        pci(
            0,
            "bus-range = <0 0>; msi-map = <0x0 &its0 0x0 0x10000>;"
            "iommu-map-mask = <0xfff8>; iommu-map = <0x0 &smmu0 0x40 0x100>;",
        ),
    )
    assert len(host.routes) == 32
    assert host.routes[2] == PciRoute(0, 0x10, 0x17, 0, 0x50, (0,), 0x10, one_stream=True)
    device = resolve(host, PciAddress.parse("00:02.5"))
    assert (device.stream_id, device.device_id) == (0x50, 0x15)


def test_mask_that_ignores_all():
    host = parse(
        its(0), smmu(0), pci(0, "iommu-map-mask = <0x0>; iommu-map = <0x0 &smmu0 0x9 0x1>;")
    )
    assert host.routes == (PciRoute(0, 0, 0xFFFF, 0, 9, (), 0, one_stream=True),)
    assert {host.routes[0].stream_of(rid) for rid in (0, 7, 0xFFFF)} == {9}


def test_mask_that_clears_bits_of_an_entry():
    refused(
        [its(0), pci(0, "msi-map-mask = <0xff>; msi-map = <0x100 &its0 0x0 0x100>;")],
        "/pcie@40000000",
        "msi-map-mask 0xff clears bits of the entry from 0x100",
    )


def test_too_many_pieces():
    hosts = [
        pci(n, "msi-map-mask = <0xfffd>; msi-map = <0x0 &its0 0x0 0x10000>;") for n in range(12)
    ]
    refused([its(0), *hosts], "msi-map", "pieces")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 0xFFFF),
    st.lists(
        st.tuples(st.integers(0, 0x3FF), st.integers(0, 1), st.integers(0, 0xFFFF),
                  st.integers(0, 0x3FF)), max_size=5,
    ),
    st.integers(0, 3),
)  # fmt: skip
def test_maps_agree_with_of_map_id(mask, entries, bus):
    entries = [(base & mask, to, out, size) for base, to, out, size in entries]
    text = ", ".join(f"<{base:#x} &its{to} {out:#x} {size:#x}>" for base, to, out, size in entries)
    extra = f"bus-range = <{bus} 3>; msi-map-mask = <{mask:#x}>;"
    host = parse(its(0), its(1), pci(0, extra + (f"msi-map = {text};" if text else "")))
    firsts = [route.first for route in host.routes]
    for rid in range(0x500):
        expected = None
        if rid >> 8 in range(bus, 4):
            for base, to, out, size in entries:
                if base <= (rid & mask) < base + size:
                    expected = (to,), out + (rid & mask) - base
                    break
        at = bisect_right(firsts, rid) - 1
        mapped = None
        if at >= 0 and rid <= host.routes[at].last:
            route = host.routes[at]
            mapped = route.its_group, route.device_of(rid)
        assert mapped == expected, hex(rid)


def test_disabled_nodes_are_left_out():
    host = parse(
        its(0, extra='status = "disabled";'),
        its(1, extra='status = "okay";'),
        smmu(0, extra='status = "disabled";'),
        smmu(1, extra='status = "ok";'),
        pci(0, FULL + "msi-map = <0x0 &its0 0x0 0x10000>; iommu-map = <0x0 &smmu1 0x0 0x10000>;"),
        pci(1, FULL + "msi-map = <0x0 &its1 0x0 0x10000>; iommu-map = <0x0 &smmu0 0x0 0x10000>;"),
        pci(2, FULL + 'msi-map = <0x0 &its1 0x0 0x10000>; status = "fail";'),
    )
    assert [its.base for its in host.itses] == [0x20040000]
    assert [smmu.base for smmu in host.smmus] == [0x30040000]
    assert host.routes == (
        PciRoute(0, 0, 0xFFFF, 0, 0, (), 0),
        PciRoute(1, 0, 0xFFFF, None, 0, (0,), 0),
    )


def test_nodes_below_a_disabled_bus_are_left_out():
    bus = (
        'bus { status = "disabled"; #address-cells = <2>; #size-cells = <2>; ranges;'
        + its(0)
        + "};"
    )
    assert [one.base for one in parse(bus, its(1)).itses] == [0x20040000]


def test_no_its():
    """Such hosts are read; their devices are refused."""
    maps = "iommu-map = <0x0 &smmu0 0x0 0x10000>; msi-map = <0x0 &its0 0x0 0x10000>;"
    host = parse(its(0, extra='status = "disabled";'), smmu(0), pci(0, maps))
    assert host.itses == ()
    assert host.routes == (PciRoute(0, 0, 0xFFFF, 0, 0, (), 0),)
    with pytest.raises(TopologyError, match="it has no ITS for its MSIs; valid: none"):
        resolve(host, PciAddress.parse("00:01.0"))
    without = parse(its(0).replace("msi-controller;", ""), smmu(0), pci(0, maps))
    assert (without.itses, without.routes) == (host.itses, host.routes)


def test_no_smmu_and_an_empty_tree():
    host = parse(its(0), pci(0, "msi-map = <0x0 &its0 0x0 0x10000>;"))
    with pytest.raises(TopologyError, match="it is not behind an SMMU; valid: none"):
        resolve(host, PciAddress.parse("00:01.0"))
    empty = parse()
    assert (empty.itses, empty.smmus, empty.routes, empty.segments) == ((), (), (), ())
    with pytest.raises(TopologyError, match="no route covers it; valid: none"):
        resolve(empty, PciAddress.parse("00:01.0"))


@pytest.mark.parametrize(
    "name",
    [
        "arm,smmu-v1", "arm,smmu-v2", "arm,mmu-400", "arm,mmu-401", "arm,mmu-500",
        "cavium,smmu-v2", "nvidia,smmu-500", "qcom,smmu-v2",
    ],
)  # fmt: skip
def test_smmus_before_version_3(name):
    """They are read as SMMUs that cannot nest, and share the numbers with SMMUv3s."""
    old = smmu(0).replace('"arm,smmu-v3"', f'"vendor,smmu", "{name}"')
    host = parse(old, smmu(1), pci(0, "iommu-map = <0x0 &smmu0 0x40 0x100>;"))
    assert host.smmus == (
        Smmu(0, Pa(0x30000000), nested=False, version=2),
        Smmu(1, Pa(0x30040000)),
    )
    assert host.routes == (PciRoute(0, 0, 0xFF, 0, 0x40, (), 0),)


TWO_CELLS = smmu(0).replace("#iommu-cells = <1>", "#iommu-cells = <2>")


def test_ids_of_two_cells():
    """StreamID and mask: the first is the StreamID, for one RequesterID each."""
    maps = "iommu-map = <0x0 &smmu0 0x7 0x3f 0x1>, <0x8 &smmu0 0x9 0x0 0x1>;"
    host = parse(TWO_CELLS, pci(0, maps))
    assert host.routes == (PciRoute(0, 0, 0, 0, 7, (), 0), PciRoute(0, 8, 8, 0, 9, (), 8))
    ranged = parse(TWO_CELLS, pci(0, "iommu-map = <0x0 &smmu0 0x7 0x3f 0x2>;"))
    assert ranged.routes == ()
    refused(
        [TWO_CELLS, pci(0, "iommu-map = <0x0 &smmu0 0x7 0x0 0x1 0x8>;")],
        "the last entry is truncated",
    )
    refused([TWO_CELLS, pci(0, "iommu-map = <0x0 &smmu0 0x7>;")], "has 3 numbers; the entry for")


def test_maps_from_before_the_second_cell():
    """Of one target, each entry of four numbers for one ID: of_check_bad_map."""
    maps = "iommu-map = <0x0 &smmu0 0x20 0x1>, <0x100 &smmu0 0x30 0x1>;"
    assert parse(TWO_CELLS, pci(0, maps)).routes == (
        PciRoute(0, 0, 0, 0, 0x20, (), 0),
        PciRoute(0, 0x100, 0x100, 0, 0x30, (), 0x100),
    )


def test_a_target_without_cells():
    """The RequesterID is the DeviceID."""
    none = its(0).replace("#msi-cells = <1>", "#msi-cells = <0>")
    host = parse(none, pci(0, "msi-map = <0x100 &its0 0x80>;"))
    assert host.routes == (PciRoute(0, 0x100, 0x17F, None, 0x100, (0,), 0x100),)
    many = its(0).replace("#msi-cells = <1>", "#msi-cells = <17>")
    refused([many, pci(0, "msi-map = <0x100 &its0 0x80>;")], "/its@20000000: #msi-cells is 17")


GICV5 = """
gic: interrupt-controller {{
    compatible = "arm,gic-v5"; #address-cells = <1>; #size-cells = <1>; ranges = <0 0 0 0xffffffff>;
    irs@2f1a0000 {{
        compatible = "arm,gic-v5-irs"; reg = <0x2f1a0000 0x10000>; reg-names = "ns-config";
        #address-cells = <1>; #size-cells = <1>; ranges;
        its@2f120000 {{
            compatible = "arm,gic-v5-its"; #address-cells = <1>; #size-cells = <1>; ranges;
            reg = <0x2f110000 0x10000>, <0x2f120000 0x10000>; reg-names = "s-config", "ns-config";
            frame0: msi-controller@2f130000 {{
                reg = <0x2f130000 0x10000>; reg-names = "ns-translate"; #msi-cells = <1>;
                msi-controller; {extra}
            }};
            frame1: msi-controller@2f150000 {{
                reg = <0x2f140000 0x10000>, <0x2f150000 0x10000>;
                reg-names = "s-translate", "ns-translate"; #msi-cells = <1>; msi-controller;
            }};
            frame2: msi-controller@2f160000 {{
                reg = <0x2f160000 0x10000>; reg-names = "s-translate"; msi-controller;
            }};
        }};
    }};
}};
"""


def test_gicv5():
    """Each translate frame of the non-secure world is an ITS; frames are the targets of maps."""
    maps = "msi-map = <0x0 &frame1 0x100 0x80>, <0x80 &frame0 0x0 0x80>, <0x100 &frame2 0x0 0x80>;"
    host = parse(GICV5.format(extra=""), pci(0, maps))
    assert host.itses == (
        Its(0, Pa(0x2F120000), translate_frame=Pa(0x2F130000)),
        Its(1, Pa(0x2F120000), translate_frame=Pa(0x2F150000)),
    )
    assert [str(one.doorbell) for one in host.itses] == ["0x2f130000", "0x2f150000"]
    assert host.routes == (
        PciRoute(0, 0x00, 0x7F, None, 0x00, (1,), 0x100),
        PciRoute(0, 0x80, 0xFF, None, 0x80, (0,), 0x0),
    )
    fewer = parse(GICV5.format(extra='status = "disabled";'), pci(0, maps))
    assert [str(one.doorbell) for one in fewer.itses] == ["0x2f150000"]


def test_a_pre_its():
    window = "socionext,synquacer-pre-its = <0x58000000 0x200000>;"
    host = parse(its(0, extra=window), its(1))
    assert [one.pre_its for one in host.itses] == [Pa(0x58000000), None]
    refused([its(0, extra="socionext,synquacer-pre-its = <1>;")], "has 1 numbers, not address")


def test_ats():
    host = parse(
        pci(0, "ats-supported; linux,pci-domain = <4>; bus-range = <0 9>;"),
        pci(1, "ats-supported; linux,pci-domain = <2>;"),
        pci(2, "linux,pci-domain = <4>; bus-range = <10 19>;"),
    )
    assert host.segments == (PciSegment(2, ats=True), PciSegment(4, ats=False))


def test_segments():
    """linux,pci-domain, else the lowest free number."""
    msi = "msi-map = <0x0 &its0 0x0 0x10000>;"
    host = parse(
        its(0),
        pci(0, msi),
        pci(1, msi + "linux,pci-domain = <0>;"),
        pci(2, msi),
        pci(3, msi + "linux,pci-domain = <1>;"),
    )
    assert sorted(route.segment for route in host.routes) == [0, 1, 2, 3]
    refused([its(0), pci(0, msi + "linux,pci-domain = <0x10000>;")], "linux,pci-domain 0x10000")


def test_two_hosts_of_one_segment():
    half = "linux,pci-domain = <7>; msi-map = <0x0 &its0 0x0 0x10000>; bus-range = <{} {}>;"
    host = parse(its(0), pci(0, half.format(0, 127)), pci(1, half.format(128, 255)))
    assert host.routes == (PciRoute(7, 0, 0xFFFF, None, 0, (0,), 0),)
    other = half.replace("&its0 0x0", "&its0 0x50000")
    parts = [its(0), pci(0, half.format(0, 128)), pci(1, other.format(128, 255))]
    refused(parts, "linux,pci-domain 7", "bus-range")


def test_bridges_are_not_hosts():
    bridge = 'pcie@0,0 { device_type = "pci"; reg = <0 0 0 0 0>; #address-cells = <3>; '
    bridge += "#size-cells = <2>; ranges; };"
    host = parse(its(0), pci(0, "msi-map = <0x0 &its0 0x0 0x10000>;" + bridge))
    assert [route.segment for route in host.routes] == [0]


def test_addresses_through_buses():
    inner = its(0, base=0x1000000) + smmu(0, base=0x2000000)
    inner = inner.replace("reg = <0x0 ", "reg = <").replace(" 0x0 0x20000>", " 0x20000>")
    middle = f"bus@0 {{ #address-cells = <1>; #size-cells = <1>; ranges; {inner} }};"
    middle = f"""outer {{ #address-cells = <1>; #size-cells = <1>;
        ranges = <0x0 0x4 0x0 0x800000>, <0x800000 0x8 0x50000000 0x4000000>; {middle} }};"""
    host = parse(middle)
    assert host.itses[0].base == 0x8_50000000 + 0x1000000 - 0x800000
    assert host.smmus[0].base == 0x8_50000000 + 0x2000000 - 0x800000


def test_addresses_that_no_bus_translates():
    bus = "bus {{ #address-cells = <2>; #size-cells = <2>; {}" + its(0).replace("{", "{{")
    bus = bus.replace("};", "}};") + "}};"
    refused([bus.format("")], "/bus/its@20000000", "/bus has no ranges")
    refused([bus.format("ranges = <0 0 0 0 0 0x1000>;")], "in none of the ranges of /bus")
    refused([bus.format("ranges = <0 0 0>;")], "/bus: ranges has 3 numbers")
    refused([its(0).replace("reg =", "other =")], "has no reg")
    refused([its(0).replace("0x0 0x20000>", ">")], "reg has 2 numbers")
    refused([its(0, base=0x20001000)], "not a multiple of 0x10000")
    nine = "bus { #address-cells = <9>; #size-cells = <2>; ranges;" + its(0) + "};"
    refused([nine], "/bus: #address-cells is 9")


def test_references_to_missing_nodes():
    refused([its(0), pci(0, "msi-map = <0x0 0x99 0x0 0x100>;")], "phandle 0x99, which no node has")
    refused([its(0), pci(0, "iommu-map = <0x0 0x99 0x0 0x100>;")], "iommu-map has phandle 0x99")
    refused([its(0), pci(0, "msi-parent = <0x99>;")], "msi-parent has phandle 0x99")
    refused(
        [its(0), pci(0, "msi-parent = <&its0>;")], "ends within the arguments for /its@20000000"
    )


def test_references_to_other_nodes():
    """A PCI host may be its own MSI controller, as that of a Raspberry Pi 4: it has no ITS."""
    assert parse(its(0), pci(0, "msi-parent = <&pcie0>;")).routes == ()
    assert parse(its(0), pci(0, "msi-map = <0x0 &pcie0 0x0 0x100>;")).routes == ()
    assert parse(its(0), pci(0, "iommu-map = <0x0 &pcie0 0x0 0x100>;")).routes == ()


def test_a_phandle_of_two_nodes():
    twice = its(0, extra="phandle = <1>;") + its(1, extra="phandle = <1>;")
    refused([twice], "/its@20040000: phandle 0x1 is also that of /its@20000000")


def test_malformed_properties():
    msi = "msi-map = <0x0 &its0 0x0 0x10000>;"
    refused([its(0), pci(0, msi + "bus-range = <1>;")], "bus-range [1]")
    refused([its(0), pci(0, msi + "bus-range = <2 1>;")], "bus-range [2, 1]")
    refused([its(0), pci(0, msi + "bus-range = <0 0x100>;")], "bus-range [0, 256]")
    refused([its(0), pci(0, msi + "linux,pci-domain = <1 2>;")], "linux,pci-domain has 2 numbers")
    refused([its(0), pci(0, "msi-map = <0x0 &its0 0x0>;")], "msi-map has 3 numbers")
    refused([its(0), pci(0, "msi-map;")], "msi-map has 0 numbers")
    refused([its(0), pci(0, "msi-map = [00 01];")], "msi-map has 2 bytes")
    refused([its(0), pci(0, "msi-map = <0xffff0000 &its0 0x0 0x10001>;")], "exceed 32 bits")


def test_other_msi_controllers_and_iommus():
    """The range of a GICv2m frame has no ITS, that of another IOMMU no SMMU."""
    frame = node('v2m: frame@{base:x} {{ compatible = "arm,gic-v2m-frame"; {extra} }};', 0, 0x1000)
    host = parse(
        its(0),
        frame,
        pci(0, "msi-map = <0x0 &v2m 0x0 0x100>, <0x100 &its0 0x0 0x100>;"),
        pci(1, "msi-map = <0x0 &its0 0x0 0x100>; iommu-map = <0x0 &v2m 0x0 0x100>;"),
    )
    assert [(route.segment, route.first, route.smmu) for route in host.routes] == [
        (0, 0x100, None),
        (1, 0, None),
    ]


def test_real_hip07_board():
    """A HiSilicon D05: eight ITSes, four enabled SMMUs, a PCI host that is not behind one."""
    host = load_host(shared_data("dt/hip07-d05.dtb"))
    assert [str(its.base) for its in host.itses] == [
        "0x4c000000", "0x6c000000", "0xc6000000", "0x8c6000000",
        "0x4004c000000", "0x4006c000000", "0x400c6000000", "0x408c6000000",
    ]  # fmt: skip
    assert len(host.smmus) == 4
    (route,) = host.routes
    assert route == PciRoute(0, 0xF800, 0xFFFF, None, 0xF800, (2,), 0xF800)
    with pytest.raises(TopologyError, match="is not behind an SMMU; valid: none"):
        resolve(host, PciAddress.parse("f8:00.0"))
