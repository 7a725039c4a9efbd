"""Editing an IORT leaves its other nodes and routes as they were."""

from __future__ import annotations

import shutil
import struct
import subprocess

import pytest
from conftest import unavailable
from host.firmware.acpi_builder import iort, its_group, pmcg, rmr, root_complex, smmu_v3
from host.shared import shared_data
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi.errors import LabError, TopologyError
from vmm_msi.host.firmware.acpi import parse_acpi
from vmm_msi.host.firmware.iort import ItsGroup, Pmcg, RmrNode, SmmuNode, parse_iort
from vmm_msi.host.resolve import find_route
from vmm_msi.lab.machine.iort_edit import (
    DeviceIds,
    with_canwbs,
    with_its_groups,
    with_rmr,
    without_rmrs,
)

WINDOW = (0x800_0000, 0x10_0000)
NODES = (
    its_group(0),
    rmr(WINDOW, to=((0, 0xFFFF, 0, 3, 0),)),
    root_complex((0, 0xFFFF, 0, 3, 0)),
    smmu_v3((0, 0xFFFF, 0, 0, 0), base=0x2B600000),
    rmr(WINDOW, to=((0, 0xFF, 0, 3, 0),)),
)
(SMMU,) = parse_iort(iort(*NODES), "nodes").smmus
NODES = (*NODES, pmcg((0, 0, 7, 0, 1), reference=SMMU.offset))


def routes(table):
    return parse_acpi(table, None, "table").routes


def test_rmrs_between_other_nodes_are_removed():
    old = iort(*NODES)
    new = without_rmrs(old, "built")
    before, after = parse_iort(old, "old"), parse_iort(new, "new")
    assert [type(node) for node in after.nodes] == [
        type(node) for node in before.nodes if not isinstance(node, RmrNode)
    ]
    assert after.rmrs == ()
    assert routes(new) == routes(old)
    (counter,) = (node for node in after.nodes if isinstance(node, Pmcg))
    assert isinstance(after.by_offset[counter.reference], SmmuNode)


def test_edited_table_has_a_newer_revision():
    old = iort(*NODES)
    new = without_rmrs(old, "built")
    revisions = [struct.unpack_from("<I", table, 24)[0] for table in (old, new)]
    assert revisions[1] == revisions[0] + 1
    assert struct.unpack_from("<I", new, 4)[0] == len(new)
    assert sum(new) & 0xFF == 0


def test_table_without_rmrs_keeps_its_nodes():
    old = iort(*NODES[:1], root_complex((0, 0xFFFF, 0, 0, 0)))
    assert routes(without_rmrs(old, "built")) == routes(old)
    assert len(without_rmrs(old, "built")) == len(old)


def test_rmr_removal_and_canwbs_combine():
    new = with_canwbs(without_rmrs(iort(*NODES), "built"), "built")
    assert [root.canwbs for root in parse_iort(new, "new").root_complexes] == [True]


def test_rmrs_of_a_real_accelerated_guest_are_removed():
    path = shared_data("acpi/qemu-11.1-accel-guest-rmr/IORT")
    old = path.read_bytes()
    rmrs = parse_iort(old, "old").rmrs
    # So VFIO is refused inside the guest: the finding rmr-direct.
    assert [rmr.remap_permitted for rmr in rmrs] == [False] * len(rmrs) != []
    new = without_rmrs(old, str(path))
    assert parse_iort(new, "new").rmrs == ()
    assert routes(new) == routes(old)


def test_malformed_table_is_refused():
    with pytest.raises(TopologyError, match=r"^IORT: offset "):
        without_rmrs(iort(*NODES)[:-1], "IORT")


TOP = (0xFFF0_0000, 0x10_0000)


def test_one_stream_gets_another_rmr():
    old = iort(*NODES)
    new = with_rmr(old, "built", 0x11, *TOP)
    before, after = parse_iort(old, "old"), parse_iort(new, "new")
    assert after.nodes[: len(before.nodes)] == before.nodes
    added = after.nodes[-1]
    assert isinstance(added, RmrNode)
    assert added.ranges == (TOP,)
    (mapping,) = added.mappings
    assert (mapping.output_base, mapping.id_count) == (0x11, 0)
    assert isinstance(after.by_offset[mapping.target], SmmuNode)
    assert added.flags == before.rmrs[0].flags
    assert routes(new) == routes(old)


def test_only_the_kept_rmr_stays():
    new = without_rmrs(with_rmr(iort(*NODES), "built", 0x11, *TOP), "built", keep={TOP[0]})
    (rmr_node,) = parse_iort(new, "new").rmrs
    assert rmr_node.ranges == (TOP,)
    assert rmr_node.mappings[0].output_base == 0x11


def test_a_stream_without_an_rmr_gets_none():
    smmu = smmu_v3((0, 0xFFFF, 0, 0, 0), base=0x1000)
    table = iort(its_group(0), rmr(WINDOW, to=((0, 0xFF, 0, 2, 0),)), smmu)
    with pytest.raises(LabError, match="StreamID 0x1100 has no RMR"):
        with_rmr(table, "built", 0x1100, *TOP)


# ITS groups.

REAL = ("qemu-11.1-two-smmuv3-pxb", "qemu-11.1-smmuv3-legacy", "qemu-11.1-accel-guest-rmr")
DEVICES = (DeviceIds(0x1200, 0x12FF, 1), DeviceIds(0x2100, 0x21FF, 2), DeviceIds(0x1100, 0x11FF, 0))


def its_groups(table):
    """Return SMMU and ITS group of every RequesterID that a route covers."""
    host = parse_acpi(table, None, "table")
    return {
        rid: (route.smmu, route.its_group)
        for rid in range(0, 0x10000, 0x80)
        if (route := find_route(host, 0, rid)) is not None
    }


def check_groups(old, devices):
    """Check that the devices' IDs, and no others, lead to other ITSes."""
    new = with_its_groups(old, devices, "built")
    before, after = its_groups(old), its_groups(new)
    assert before.keys() == after.keys()
    for rid, (smmu, group) in before.items():
        own = [ids.its for ids in devices if ids.first <= rid <= ids.last]
        assert after[rid] == (smmu, tuple(own) if own and group else group)
    nodes, kept = parse_iort(new, "new").nodes, parse_iort(old, "old").nodes
    added = {its.its for its in devices} - {
        i for node in kept if isinstance(node, ItsGroup) for i in node.its_ids
    }
    assert len(nodes) == len(kept) + len(added)
    identifiers = [node.identifier for node in nodes if isinstance(node, ItsGroup)]
    assert len(set(identifiers)) == len(identifiers)
    assert sum(new) & 0xFF == 0
    return new


@pytest.mark.parametrize("name", REAL)
def test_devices_of_a_real_table_get_their_own_itses(name):
    old = (shared_data("acpi") / name / "IORT").read_bytes()
    check_groups(old, DEVICES)
    both = with_canwbs(check_groups(old, DEVICES), name)
    assert its_groups(both) == its_groups(with_its_groups(old, DEVICES, name))


def test_table_without_devices_for_other_itses_keeps_its_routes():
    old = iort(*NODES)
    assert routes(with_its_groups(old, (DeviceIds(0, 0xFF, 0),), "built")) == routes(old)
    assert routes(with_its_groups(old, (), "built")) == routes(old)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 15)), unique_by=lambda item: item[0]))
def test_any_buses_get_any_itses(buses):
    devices = [DeviceIds(bus << 8, (bus << 8) + 0xFF, its) for bus, its in buses]
    check_groups(iort(*NODES), devices)


def test_pmcg_still_names_its_smmu():
    new = with_its_groups(iort(*NODES), DEVICES, "built")
    (counter,) = (node for node in parse_iort(new, "new").nodes if isinstance(node, Pmcg))
    assert isinstance(parse_iort(new, "new").by_offset[counter.reference], SmmuNode)


@pytest.mark.parametrize("name", REAL)
def test_iasl_reads_the_groups_without_a_complaint(name, tmp_path):
    if shutil.which("iasl") is None:
        unavailable("no iasl: apt-get install acpica-tools")
    path = tmp_path / "IORT.aml"
    old = (shared_data("acpi") / name / "IORT").read_bytes()
    path.write_bytes(with_its_groups(old, DEVICES, name))
    done = subprocess.run(["iasl", "-d", path], capture_output=True, text=True, check=True)
    assert "Error" not in done.stderr
    listing = path.with_suffix(".dsl").read_text(encoding="utf-8")
    fields = listing[listing.index("*/") : listing.index("Raw Table Data")]
    assert "Incorrect checksum" not in fields
    assert fields.count("ItsCount") == 3
