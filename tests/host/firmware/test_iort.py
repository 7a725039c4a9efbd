"""parse_iort: every node type and revision, and refusals that name the offset."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from host.firmware.acpi_builder import (
    TableNode,
    checksummed,
    iort,
    its_group,
    iwb,
    named_component,
    pmcg,
    resummed,
    rmr,
    root_complex,
    smmu_v2,
    smmu_v3,
    table,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.iort import (
    ItsGroup,
    NamedComponent,
    Pmcg,
    RmrNode,
    RootComplex,
    SmmuNode,
    parse_iort,
)
from vmm_msi.host.firmware.iort_host import smmus
from vmm_msi.host.firmware.iort_routes import routes


def full(revision=5):
    """An IORT with a node of every type."""
    return iort(
        its_group(0, 1),
        smmu_v3((0, 0xFFFF, 0, 0, 0), revision=min(revision, 5)),
        smmu_v2((0, 0xFFFF, 0, 0, 0)),
        root_complex((0, 0xFFFF, 0, 1, 0), revision=min(revision, 3), flags=4, ats=1),
        named_component(to=[(0, 0, 5, 2, 1)]),
        pmcg((0, 0, 9, 0, 1), reference=48, revision=min(revision, 1)),
        rmr((0x8000000, 0x100000), to=[(0, 0, 0x10, 1, 0)]),
        iwb((0, 0xFF, 0x100, 0, 0)),
        TableNode(99, b"unknown!"),
        revision=revision,
    )


def refused(data, text, offset):
    with pytest.raises(TopologyError) as caught:
        parse_iort(data, "IORT")
    message = str(caught.value)
    assert message.startswith(f"IORT: offset {offset:#x}: "), message
    assert text in message
    assert "\n" not in message


@pytest.mark.parametrize("revision", range(7))
def test_every_node_type_in_every_revision(revision):
    table = parse_iort(full(revision), "IORT")
    assert table.revision == revision
    its, smmu3, smmu2, root, named, group, reserved, wire, unknown = table.nodes
    assert isinstance(its, ItsGroup)
    assert its.its_ids == (0, 1)
    assert isinstance(smmu3, SmmuNode)
    assert (smmu3.base, smmu3.is_v3) == (0x2B600000, True)
    assert isinstance(smmu2, SmmuNode)
    assert (smmu2.base, smmu2.is_v3) == (0x2B400000, False)
    assert isinstance(root, RootComplex)
    assert (root.segment, root.coherent, root.canwbs, root.ats) == (0, True, True, 1)
    assert root.address_bits == (52 if revision else 0)
    assert root.mappings[0].target == smmu3.offset
    assert isinstance(named, NamedComponent)
    assert named.name == "\\_SB.DEV0"
    assert named.mappings[0].single
    assert isinstance(group, Pmcg)
    assert group.reference == its.offset
    assert isinstance(reserved, RmrNode)
    assert reserved.ranges == ((0x8000000, 0x100000),)
    assert table.rmrs == (reserved,)
    assert isinstance(wire, NamedComponent)
    assert wire.name == "\\_SB.IWB0"
    assert unknown.type == 99
    assert [smmu.nested for smmu in smmus(table)] == [True, False]


def test_nodes_may_start_after_a_gap():
    assert len(parse_iort(iort(its_group(0), gap=16), "IORT").nodes) == 1


def test_an_empty_table_has_no_nodes():
    assert parse_iort(table(b"IORT", struct.pack("<III", 0, 0, 0)), "IORT").nodes == ()


def test_truncated_at_every_byte():
    whole = full()
    for size in range(len(whole)):
        with pytest.raises(TopologyError, match=r"IORT: offset 0x"):
            parse_iort(whole[:size], "IORT")


def test_truncated_at_every_byte_with_a_matching_length():
    whole = full()
    for size in range(36, len(whole)):
        with pytest.raises(TopologyError, match=r"IORT: offset 0x"):
            parse_iort(checksummed(whole[:size]), "IORT")


def test_header():
    good = full()
    refused(b"XORT" + good[4:], "signature", 0)
    refused(good[:-1], "length", 4)
    refused(checksummed(good[:40]), "at least 48", 4)
    refused(bytes((4 << 20) + 1), "larger", 4 << 20)


def patched(at, form, value, data=None):
    data = bytearray(full() if data is None else data)
    struct.pack_into(form, data, at, value)
    return resummed(data)


def test_bad_offsets_and_counts():
    refused(patched(40, "<I", 20), "node offset", 40)
    refused(patched(40, "<I", 0xFFFFFFF0), "node offset", 40)
    refused(patched(36, "<I", 10), "9 of the 10 nodes", len(full()))
    refused(patched(49, "<H", 0), "node length 0", 49)
    refused(patched(49, "<H", 0xFFFF), "bytes of the table remain", 49)
    refused(patched(64, "<I", 0xFFFFFFFF), "ITS identifiers exceed the node", 68)
    # The SMMUv3 is the second node, at 0x4c; its mapping count and offset are at +8 and +12.
    smmu = 76
    refused(patched(smmu + 12, "<I", 20), "overlap", smmu + 20)
    refused(patched(smmu + 12, "<I", 0xFFFFFF00), "ID mappings exceed the node", smmu + 0xFFFFFF00)
    refused(patched(smmu + 1, "<H", 20), "at least 68", smmu + 1)


def tolerated(data):
    """Return the table and the errors in it that Linux tolerates."""
    errors = []
    read = parse_iort(data, "IORT", errors)
    assert {error.table for error in errors} == {"IORT"}
    return read, [error.text for error in errors]


def test_a_wrong_checksum_is_tolerated():
    good = full()
    read, errors = tolerated(good[:20] + bytes([good[20] ^ 0x10]) + good[21:])
    assert read == parse_iort(good, "IORT")
    (error,) = errors
    assert error.startswith("offset 0x9: wrong checksum: the sum of the bytes modulo 256 is 0x")


def test_bytes_after_the_table_are_tolerated():
    read, errors = tolerated(full() + b"\xff")
    assert read == parse_iort(full(), "IORT")
    assert errors == [f"offset {len(full()):#x}: 1 byte after the end of the table"]


@pytest.mark.parametrize("number", [2, 3, 0x10000000, 0xFFFFFFFF])
def test_surplus_id_mappings_are_tolerated(number):
    """Of the last node, so that they are beyond the end of the table, and of one before."""
    data = iort(its_group(0), smmu_v3((0, 0xFF, 0, 0, 0)), root_complex((0, 0xFF, 0, 1, 0)))
    good = parse_iort(data, "IORT")
    for node in good.nodes[1:]:
        read, errors = tolerated(patched(node.offset + 8, "<I", number, data))
        assert read == good
        (error,) = errors
        assert error.startswith(
            f"offset {node.offset + 8:#x}: {number} ID mappings, but the node has room for 1; "
        )


def test_id_mappings_without_an_offset_are_not_used():
    data = iort(its_group(0), root_complex((0, 0xFF, 0, 0, 0)))
    node = parse_iort(data, "IORT").nodes[1]
    read, errors = tolerated(patched(node.offset + 12, "<I", 0, data))
    assert read.nodes[1].mappings == ()
    assert errors == [f"offset {node.offset + 8:#x}: 1 ID mapping without an offset; none is used"]


def test_references():
    data = iort(its_group(0), root_complex((0, 0xFF, 0, 0, 0)))
    mapping = len(data) - 20
    refused(patched(mapping + 12, "<I", 0, data), "is not a node", mapping + 12)
    refused(patched(mapping + 12, "<I", 49, data), "is not a node", mapping + 12)
    refused(patched(mapping + 12, "<I", len(data), data), "is not a node", mapping + 12)
    refused(iort(root_complex((0, 0xFF, 0, 0, 0))), "of type 2", 48 + 36 + 12)


def test_id_ranges():
    data = iort(its_group(0), root_complex((0, 0xFF, 0, 0, 0)))
    mapping = len(data) - 20
    refused(patched(mapping + 4, "<I", 0xFFFFFFFF, patched(mapping, "<I", 1, data)), "input IDs",
            mapping)  # fmt: skip
    refused(patched(mapping + 8, "<I", 0xFFFFFFFF, data), "output IDs", mapping + 8)
    whole = patched(mapping + 4, "<I", 0xFFFFFFFF, data)
    assert parse_iort(whole, "IORT").nodes[1].mappings[0].input_last == 0xFFFFFFFF


def test_names_and_segments():
    refused(iort(TableNode(1, bytes(13) + b"AAA", revision=2)), "NUL", 48 + 29)
    refused(iort(TableNode(1, bytes(13) + b"\x80\0", revision=2)), "printable", 48 + 29)
    refused(iort(root_complex(segment=0x10000)), "PCI segment", 48 + 28)
    refused(iort(rmr((1 << 63, 1 << 63), ((1 << 64) - 1, 2))), "exceed 64 bits", 48 + 28 + 20)


def test_cycles_are_refused():
    loop = [
        smmu_v3((0, 0xFF, 0, 1, 0)),
        smmu_v3((0, 0xFF, 0, 2, 0)),
        smmu_v2((0, 0xFF, 0, 0, 0)),
        root_complex((0, 0xFF, 0, 0, 0)),
    ]
    refused(iort(*loop), "a cycle", 48 + 88 + 88 + 60 + 12)
    refused(iort(smmu_v3((0, 0xFF, 0, 0, 0))), "a cycle", 48 + 68 + 12)


def test_a_chain_of_thousands_of_nodes_is_not_a_cycle():
    count = 8000
    chain = [smmu_v3((0, 0xFFFF, 0, at + 1, 0)) for at in range(count)]
    table = parse_iort(iort(*chain, its_group(3), root_complex((0, 0xFFFF, 0, 0, 0))), "IORT")
    (route,) = routes(table)
    assert (route.smmu, route.its_group) == (0, (3,))


def test_own_mapping_of_an_smmu():
    """The ID mapping of an SMMUv3's own MSIs: iort_get_id_mapping_index."""

    def own(**options):
        node = smmu_v3((0, 0xFF, 0, 1, 0), (0, 0, 9, 1, 1), index=1, **options)
        return parse_iort(iort(node, its_group(0)), "IORT").smmus[0].own_mapping

    assert own(revision=4, gsivs=(1, 2, 3, 0)) == 1
    assert own(revision=4) is None
    assert own(revision=5) is None
    assert own(revision=5, flags=0x10) == 1
    assert own(revision=0, gsivs=(0, 0, 0, 0)) is None


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300))
def test_any_nodes_give_an_iort_or_a_refusal(body):
    data = table(b"IORT", struct.pack("<III", max(1, len(body) // 40), 48, 0) + body)
    with suppress(TopologyError):
        routes(parse_iort(data, "IORT"))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_change_gives_an_iort_or_a_refusal(data):
    whole = bytearray(full())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(10, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(TopologyError):
        routes(parse_iort(resummed(whole), "IORT"))
