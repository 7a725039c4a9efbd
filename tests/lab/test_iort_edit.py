"""Removing RMRs from an IORT leaves its other nodes as they were."""

from __future__ import annotations

import struct

import pytest
from host.firmware.acpi_builder import iort, its_group, pmcg, rmr, root_complex, smmu_v3
from host.shared import shared_data

from vmm_msi.errors import LabError, TopologyError
from vmm_msi.host.firmware.acpi import parse_acpi
from vmm_msi.host.firmware.iort import Pmcg, RmrNode, SmmuNode, parse_iort
from vmm_msi.lab.machine.iort_edit import with_canwbs, with_rmr, without_rmrs

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
