"""The composition of ID mappings, compared with a per-ID walk like Linux's iort_node_map_id."""

from __future__ import annotations

import time
from bisect import bisect_right
from itertools import pairwise

import pytest
from host.firmware.acpi_builder import iort, its_group, iwb, named_component, root_complex, smmu_v3
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.iort import ItsGroup, NodeType, SmmuNode, parse_iort
from vmm_msi.host.firmware.iort_routes import routes
from vmm_msi.types import PciRoute

TENTATIVE = object()


def read(*nodes, **options):
    return parse_iort(iort(*nodes, **options), "IORT")


def linux_id_map(mapping, kind, rid, overlap):
    """iort_id_map: None for no match, else the ID and whether it is tentative."""
    if mapping.single:
        if kind in {NodeType.NAMED_COMPONENT, NodeType.IWB, NodeType.ROOT_COMPLEX}:
            return mapping.output_base, False
        return None
    if not mapping.input_base <= rid <= mapping.input_base + mapping.id_count:
        return None
    if overlap and rid != mapping.input_base:
        return None
    last = mapping.id_count > 0 and rid == mapping.input_base + mapping.id_count
    return mapping.output_base + rid - mapping.input_base, last


def linux_walk(table, rid, wanted):
    """iort_node_map_id from the segment's root complex to the first node of a type."""
    node, id_ = table.root_complexes[0], rid
    while True:
        if isinstance(node, wanted):
            return node, id_
        own = node.own_mapping if isinstance(node, SmmuNode) else None
        tentative = None
        for index, mapping in enumerate(node.mappings):
            if index == own:
                continue
            mapped = linux_id_map(mapping, node.type, id_, tentative is not None)
            if mapped is None:
                continue
            if not mapped[1]:
                tentative = mapping, mapped[0]
                break
            tentative = mapping, mapped[0]
        if tentative is None:
            return None
        node, id_ = table.by_offset[tentative[0].target], tentative[1]


def linux_route(table, rid):
    """Return Linux's result for one RequesterID: SMMU and StreamID, ITS group and DeviceID."""
    smmu, its = linux_walk(table, rid, SmmuNode), linux_walk(table, rid, ItsGroup)
    its_ids = its[0].its_ids if its else ()
    if smmu is None and not its_ids:
        return None
    return (
        None if smmu is None else (table.smmus.index(smmu[0]), smmu[1]),
        (its_ids, its[1]) if its_ids else None,
    )


def as_route(route, rid):
    return (
        None if route.smmu is None else (route.smmu, route.stream_of(rid)),
        (route.its_group, route.device_of(rid)) if route.its_group else None,
    )


def check(table):
    """Compare the ends of the ranges and a few RequesterIDs more."""
    composed = routes(table)
    assert all(low.last < high.first for low, high in pairwise(composed))
    edges = {0, 0xFFFF} | {edge for route in composed[:100] for edge in (route.first, route.last)}
    for mapping in (one for node in table.nodes for one in node.mappings):
        edges |= {mapping.input_base, mapping.input_last}
    rids = {edge + step for edge in edges for step in (-1, 0, 1)}
    firsts = [route.first for route in composed]
    for rid in (one for one in rids if 0 <= one <= 0xFFFF):
        at = bisect_right(firsts, rid) - 1
        mine = as_route(composed[at], rid) if at >= 0 and rid <= composed[at].last else None
        assert mine == linux_route(table, rid), hex(rid)


def test_root_complex_smmu_its_group():
    table = read(
        its_group(4, 2),
        smmu_v3((0, 0xFFFF, 0x20000, 0, 0)),
        root_complex((0x100, 0xFF, 0x1000, 1, 0), (0x8000, 0xFF, 0x3000, 0, 0), segment=2),
    )
    assert routes(table) == (
        PciRoute(2, 0x100, 0x1FF, 0, 0x1000, (4, 2), 0x21000),
        PciRoute(2, 0x8000, 0x80FF, None, 0x8000, (4, 2), 0x3000),
    )


def test_split_routes():
    """An SMMU's mappings split the ranges of the root complex."""
    table = read(
        its_group(0),
        its_group(1),
        smmu_v3((0, 0xFF, 0x100, 0, 0), (0x180, 0x7F, 0x900, 1, 0)),
        root_complex((0, 0x1FF, 0, 2, 0), (0x200, 0xFF, 0x100, 2, 0)),
    )
    assert routes(table) == (
        PciRoute(0, 0x000, 0x0FF, 0, 0x000, (0,), 0x100),
        PciRoute(0, 0x100, 0x17F, 0, 0x100, (), 0x100),
        PciRoute(0, 0x180, 0x1FF, 0, 0x180, (1,), 0x900),
        PciRoute(0, 0x200, 0x27F, 0, 0x100, (), 0x200),
        PciRoute(0, 0x280, 0x2FF, 0, 0x180, (1,), 0x900),
    )
    check(table)


def test_an_id_count_that_is_one_too_high_yields_to_the_next_mapping():
    """Firmware that gives the number of IDs: the common ID of two mappings is of the second."""
    table = read(
        its_group(0),
        its_group(1),
        root_complex((0, 0x100, 0, 0, 0), (0x100, 0x100, 0x5000, 1, 0)),
    )
    assert routes(table) == (
        PciRoute(0, 0, 0xFF, None, 0, (0,), 0),
        PciRoute(0, 0x100, 0x200, None, 0x100, (1,), 0x5000),
    )
    check(table)


def test_single_mapping_of_a_root_complex():
    table = read(its_group(0), smmu_v3((0, 9, 0, 0, 0)), root_complex((7, 0, 5, 1, 1)))
    everything = PciRoute(0, 0, 0xFFFF, 0, 5, (0,), 5, one_stream=True, one_device=True)
    assert routes(table) == (everything,)
    check(table)


def test_single_mapping_of_an_smmu_is_for_itself():
    table = read(
        its_group(0),
        smmu_v3((0, 0, 0x77, 0, 1), (0, 0xFF, 0, 0, 0), revision=0),
        root_complex((0, 0xFF, 0, 1, 0)),
    )
    assert routes(table) == (PciRoute(0, 0, 0xFF, 0, 0, (0,), 0),)


def test_own_mapping_of_an_smmu_is_skipped():
    table = read(
        its_group(0),
        its_group(1),
        smmu_v3((0, 0xFF, 0, 1, 0), (0, 0xFF, 0, 0, 0), gsivs=(0, 0, 0, 0), index=0),
        root_complex((0, 0xFF, 0, 2, 0)),
    )
    assert routes(table) == (PciRoute(0, 0, 0xFF, 0, 0, (0,), 0),)
    check(table)


def test_the_first_root_complex_of_a_segment_counts():
    table = read(
        its_group(0),
        root_complex((0, 0xFF, 0, 0, 0)),
        root_complex((0x100, 0xFF, 0, 0, 0)),
        root_complex((0x200, 0xFF, 0, 0, 0), segment=1),
        named_component(to=[(0, 0, 0, 0, 1)]),
    )
    assert [(one.segment, one.first) for one in routes(table)] == [(0, 0), (1, 0x200)]


def test_through_an_iwb():
    table = read(its_group(0), iwb((0, 0xFF, 0x40, 0, 0)), root_complex((0, 0xFF, 0, 1, 0)))
    assert routes(table) == (PciRoute(0, 0, 0xFF, None, 0, (0,), 0x40),)


def test_too_many_pieces_are_refused():
    """Each segment has an SMMU that splits its RequesterIDs into thousands of pieces."""
    many = [(2 * at, 0, 0, 0, 0) for at in range(3000)]
    roots = [root_complex((0, 0xFFFF, 0, 1, 0), segment=segment) for segment in range(60)]
    with pytest.raises(TopologyError, match="pieces"):
        routes(read(its_group(0), smmu_v3(*many), *roots))


def test_tens_of_thousands_of_mappings_are_read_fast():
    many = [(at, 1, 2 * at, 0, 0) for at in range(3000)]
    nodes = [root_complex(*many, segment=segment) for segment in range(20)]
    started = time.process_time()
    assert len(routes(read(its_group(0), *nodes))) == 20 * 3000
    assert time.process_time() - started < 10


small = st.integers(0, 40)
mapping = st.tuples(small, st.integers(0, 12), small)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(mapping, st.integers(0, 4), st.booleans()), max_size=8),
    st.lists(st.tuples(mapping, st.integers(0, 2)), max_size=6),
    st.lists(st.tuples(mapping, st.integers(0, 1)), max_size=6),
    st.integers(0, 3),
)
def test_routes_agree_with_linux(root, first, second, index):
    """Random overlapping mappings: root complex to either SMMU, an SMMU to the other."""
    table = read(
        its_group(0, 1),
        its_group(2),
        smmu_v3(*[(*one, to, 0) for one, to in second], gsivs=(0, 0, 0, 0), index=index),
        smmu_v3(*[(*one, to, 0) for one, to in first], revision=0),
        root_complex(*[(*one, min(to, 3), int(single and to > 3)) for one, to, single in root]),
    )
    check(table)
