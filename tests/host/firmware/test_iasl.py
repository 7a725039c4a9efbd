"""ACPI tables, compared field by field with the output of iasl.

The tables are built here, are real ones, or are compiled by iasl from source.
"""

from __future__ import annotations

import struct

import pytest
from described_host import load_host
from host.firmware.acpi_builder import (
    GICV5,
    OTHERS,
    TableNode,
    iort,
    its_group,
    iwb,
    madt,
    named_component,
    pmcg,
    rmr,
    root_complex,
    smmu_v2,
    smmu_v3,
    v5_frame,
    v5_its,
)
from host.firmware.acpica import compiled, disassembled
from host.shared import shared_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.hex_dump import dumped_tables
from vmm_msi.host.firmware.iort import parse_iort
from vmm_msi.host.firmware.iort_routes import routes
from vmm_msi.host.firmware.madt import parse_madt

pytestmark = pytest.mark.lab_root

FLAGS = "Flags (decoded below)"
MAPPING = ("Input base", "ID Count", "Output Base", "Output Reference")


class Printed:
    """A node in the output of iasl."""

    def __init__(self, fields):
        self.fields = fields
        self.offset = fields[0].offset

    def all(self, name):
        return [field for field in self.fields if field.name == name]

    def number(self, name):
        return self.all(name)[0].number

    def mappings(self):
        columns = [self.all(name) for name in MAPPING]
        for row in zip(*columns, strict=True):
            flags = [field for field in self.all(FLAGS) if field.offset == row[0].offset + 16]
            numbers = [field.number for field in row]
            yield (row[0].offset, *numbers, bool(flags[0].number & 1))

    def own_mapping(self):
        """iort_get_id_mapping_index of an SMMUv3."""
        wired = all(self.number(f"{name} GSIV") for name in ("Event", "PRI", "GERR", "Sync"))
        flagged = bool(self.number(FLAGS) & 0x10)
        revision = self.number("Revision")
        if revision == 0 or (not flagged if revision >= 5 else wired):
            return None
        index = self.number("Device ID Mapping Index")
        return index if index < self.number("Mapping Count") else None

    def own(self):
        """Return the fields of the node's own type, by the names that ours have."""
        kind, revision = self.number("Type"), self.number("Revision")
        if kind == 0:
            return {"its_ids": tuple(field.number for field in self.all("Identifiers"))}
        if kind == 1:
            return {"name": self.all("Device Name")[0].text}
        if kind == 2:
            return {
                "segment": self.number("PCI Segment Number"),
                "coherent": bool(self.number("Cache Coherency") & 1),
                "memory_flags": self.number("Memory Flags (decoded below)"),
                "ats": self.number("ATS Attribute"),
                "address_bits": self.number("Memory Size Limit") if revision else 0,
            }
        if kind in {3, 4}:
            return {
                "base": self.number("Base Address"),
                "model": self.number("Model"),
                "flags": self.number(FLAGS),
                "own_mapping": self.own_mapping() if kind == 4 else None,
            }
        if kind == 5:
            return {
                "base": self.number("Page 0 Base Address"),
                "reference": self.number("Node Reference"),
            }
        if kind == 6:
            pairs = zip(self.all("Base Address of RMR"), self.all("Length of RMR"), strict=True)
            ranges = tuple((base.number, size.number) for base, size in pairs)
            return {"flags": self.number(FLAGS), "ranges": ranges}
        assert kind == 7
        return {"name": self.all("IWB Device Name")[0].text}


def printed_nodes(fields):
    """Group the output of iasl by nodes, which start with type and length."""
    starts = [
        index
        for index, field in enumerate(fields)
        if field.name == "Type" and fields[index + 1].name == "Length"
    ]
    for start, end in zip(starts, [*starts[1:], len(fields)], strict=True):
        yield Printed(fields[start:end])


def check_iort(data, folder):
    """Compare every field of every node."""
    ours = parse_iort(data, "IORT")
    _text, fields = disassembled(data, folder)
    theirs = list(printed_nodes(fields))
    assert {field.name: field.number for field in fields[1:3]} == {
        "Table Length": len(data),
        "Revision": ours.revision,
    }
    assert len(ours.nodes) == len(theirs)
    for mine, their in zip(ours.nodes, theirs, strict=True):
        assert mine.offset == their.offset
        assert mine.type == their.number("Type")
        assert mine.revision == their.number("Revision")
        # Reserved in revision 0 of the table.
        assert mine.identifier == their.fields[3].number
        assert [tuple(mapping) for mapping in mine.mappings] == list(their.mappings())
        own = their.own()
        assert {name: getattr(mine, name) for name in own} == own
    return ours


def check_madt(data, folder):
    """Compare the ITSes; of a GICv5 the translate frames whose ITS is in the table."""
    _text, fields = disassembled(data, folder)
    starts = [i for i, field in enumerate(fields) if field.name == "Subtable Type"]
    gicv3, configured, frames = [], {}, []
    for start, end in zip(starts, [*starts[1:], len(fields)], strict=True):
        values = {field.name: field.value for field in fields[start:end]}
        kind = int(values["Subtable Type"].split()[0], 16)
        if kind == 0x0F:
            gicv3.append((int(values["Translation ID"], 16), int(values["Base Address"], 16), None))
        if kind == 0x1D:
            configured[int(values["Gic Its Id"], 16)] = int(values["Physical Base Address"], 16)
        if kind == 0x1E:
            frame = int(values["Its Translate Frame Physical Base Address"], 16)
            frames.append(
                (int(values["Its Translate Id"], 16), int(values["Linked Its Id"], 16), frame)
            )
    theirs = gicv3 + [(n, configured[to], frame) for n, to, frame in frames if to in configured]
    ours = [(its.id, its.base, its.translate_frame) for its in parse_madt(data, "APIC")]
    assert sorted(ours) == sorted(theirs)
    return ours


NODES = {
    "ITS group": its_group(4, 0, 0xFFFFFFFF),
    "named component": named_component(name="\\_SB.PCI0.NIC", to=[(0, 0, 5, 0, 1)]),
    "root complex": root_complex((0, 0xFFFF, 7, 0, 0), segment=3, flags=5, ats=1),
    "SMMUv2": smmu_v2((0, 0xFF, 0x100, 0, 0)),
    "SMMUv3": smmu_v3((1, 0xFF, 0x100, 0, 0), (0, 0, 9, 0, 1), index=1, gsivs=(1, 0, 3, 4)),
    "PMCG": pmcg((0, 0, 9, 0, 1), reference=48),
    "RMR": rmr((0x8000000, 0x100000), (0x90000000000, 1), to=[(0, 0, 0x10, 0, 0)]),
    "IWB": iwb((0, 0xFF, 0x100, 0, 0)),
}


@pytest.mark.parametrize("name", NODES)
def test_each_kind_of_node(name, tmp_path):
    check_iort(iort(its_group(0, 1), NODES[name], revision=6), tmp_path)


@pytest.mark.parametrize("revision", range(6))
def test_each_revision_of_an_smmuv3(revision, tmp_path):
    for flags in (0, 0x10, 0x1F):
        node = smmu_v3((0, 9, 0, 0, 0), revision=revision, flags=flags, gsivs=(0, 0, 0, 0), index=0)
        check_iort(iort(its_group(0), node), tmp_path)


@pytest.mark.parametrize("name", NODES)
def test_each_kind_of_node_compiled_by_iasl(name, tmp_path):
    """From source; an RMR then has its ranges before its ID mappings."""
    before = iort(its_group(0, 1), NODES[name], revision=6)
    text, _fields = disassembled(before, tmp_path)
    mine = check_iort(compiled(text, tmp_path), tmp_path).nodes[1]
    same = parse_iort(before, "IORT").nodes[1]
    assert (type(mine), mine.type, mine.revision) == (type(same), same.type, same.revision)
    assert [one[1:] for one in mine.mappings] == [one[1:] for one in same.mappings]


def test_one_of_each_in_one_table(tmp_path):
    check_iort(iort(its_group(0, 1), *NODES.values(), revision=6), tmp_path)


@pytest.mark.parametrize(
    "name", ["qemu-11.1-accel-guest-rmr", "qemu-11.1-smmuv3-legacy", "qemu-11.1-two-smmuv3-pxb"]
)
def test_real_tables(name, tmp_path):
    folder = shared_data(f"acpi/{name}")
    data = (folder / "IORT").read_bytes()
    table = check_iort(data, tmp_path)
    text, _fields = disassembled(data, tmp_path)
    again = check_iort(compiled(text, tmp_path), tmp_path)
    assert routes(again) == routes(table)
    if (folder / "APIC").exists():
        check_madt((folder / "APIC").read_bytes(), tmp_path)


@pytest.mark.parametrize("extra", [b"", OTHERS, GICV5, OTHERS + GICV5 + v5_frame(3, 8, 0x10000)])
def test_madts(extra, tmp_path):
    # iasl takes the low byte of an ITS id for a reserved one, which must be 0.
    data = madt((0x700, 0x20000000), (0x900, 0x80020000000), extra=extra)
    ours = check_madt(data, tmp_path)
    text, _fields = disassembled(data, tmp_path)
    built = compiled(text, tmp_path)
    assert check_madt(built, tmp_path) == ours


numbers = st.integers(0, 0xFFFFFFFF)
small = st.integers(0, 0x7FFFFFFF)
address = st.integers(0, (1 << 64) - 1)
names = st.text(st.sampled_from("ABCXYZ019_."), min_size=1, max_size=30).map(lambda s: "\\" + s)
#: iasl fails on a named component whose name needs no padding before the ID mappings.
padded = names.filter(lambda name: (29 + len(name) + 1) % 4)


@st.composite
def nodes(draw):
    """Nodes of any type with ID mappings to earlier nodes that take IDs."""
    drawn, targets = [], []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.integers(0, 7))
        to = []
        if targets and kind:
            single = st.integers(0, 1)
            one = st.tuples(small, small, small, st.sampled_from(targets), single)
            to = draw(st.lists(one, max_size=4))
        revision = draw(st.integers(0, 5))
        if kind in {0, 3, 4, 7}:
            targets.append(len(drawn))
        if kind == 0:
            node = its_group(*draw(st.lists(numbers, min_size=1, max_size=5)))
        elif kind == 1:
            node = named_component(draw(padded), to)
        elif kind == 2:
            node = root_complex(
                *to,
                segment=draw(st.integers(0, 0xFFFF)),
                revision=draw(st.integers(1, 4)),
                flags=draw(st.integers(0, 255)),
                ats=draw(numbers),
            )
        elif kind == 3:
            node = smmu_v2(*to, base=draw(address))
            node.data += bytes(16)  # the two global interrupts, which iasl requires
        elif kind == 4:
            gsivs = draw(st.tuples(*[st.integers(0, 2)] * 4))
            node = smmu_v3(
                *to,
                base=draw(address),
                revision=revision,
                flags=draw(numbers),
                gsivs=gsivs,
                index=draw(st.integers(0, 5)),
            )
        elif kind == 5:
            node = pmcg(*to, reference=draw(numbers), revision=draw(st.integers(1, 2)))
        elif kind == 6:
            low = st.integers(0, (1 << 63) - 1)
            node = rmr(*draw(st.lists(st.tuples(low, low), min_size=1, max_size=4)), to=to)
            node.data = struct.pack("<I", draw(numbers)) + node.data[4:]
        else:
            node = iwb(*to, name=draw(names))
        node.identifier = draw(numbers)
        drawn.append(node)
    return drawn


quick = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(nodes(), st.sampled_from([0, 3, 5, 6, 7]))  # those that iasl supports
def test_random_tables(tmp_path, table_nodes, revision):
    check_iort(iort(*table_nodes, revision=revision), tmp_path)


frames = st.integers(0, (1 << 36) - 1).map(lambda number: number << 16)
ids = st.lists(st.integers(0, 40), max_size=6, unique=True)


@quick
@given(st.data())
def test_random_madts(tmp_path, data):
    numbers = data.draw(ids)
    split = data.draw(st.integers(0, len(numbers)))
    parts = [v5_its(number, data.draw(frames)) for number in data.draw(ids)]
    parts += [
        v5_frame(data.draw(st.integers(0, 40)), n, data.draw(frames)) for n in numbers[split:]
    ]
    parts += [OTHERS] * data.draw(st.integers(0, 2))
    gicv3 = [(number, data.draw(frames)) for number in numbers[:split]]
    check_madt(madt(*gicv3, extra=b"".join(data.draw(st.permutations(parts)))), tmp_path)


def test_nodes_of_an_unknown_type(tmp_path):
    """They may be of a later revision of the specification: both readers skip them."""
    data = iort(its_group(0), TableNode(99, b"unknown!"), its_group(1), revision=6)
    text, fields = disassembled(data, tmp_path)
    assert "Unknown IORT node type 0x63" in text
    assert [node.type for node in parse_iort(data, "IORT").nodes] == [0, 99, 0]
    assert [node.number("Type") for node in printed_nodes(fields)] == [0, 99, 0]


def test_the_raw_data_of_a_listing_is_the_table(tmp_path):
    nodes = (its_group(0), smmu_v3((0, 0xFFFF, 0, 0, 0)), root_complex((0, 0xFFFF, 0, 1, 0)))
    data = iort(*nodes)
    text, _fields = disassembled(data, tmp_path)
    assert dumped_tables(text.encode().splitlines(), [b"IORT"], "table.dsl") == {b"IORT": data}
    path = tmp_path / "table.dsl"
    assert load_host(path).routes == load_host(tmp_path / "table.aml").routes


def test_a_listing_without_raw_data_can_be_compiled(tmp_path):
    """As the message about it says."""
    data = iort(its_group(0), root_complex((0, 0xFFFF, 0, 0, 0)))
    text, _fields = disassembled(data, tmp_path)
    cut = text[: text.index("Raw Table Data")]
    (tmp_path / "table.dsl").write_text(cut, encoding="latin-1")
    with pytest.raises(TopologyError, match="run iasl on it and use the \\.aml file"):
        load_host(tmp_path / "table.dsl")
    assert parse_iort(compiled(cut, tmp_path), "IORT").nodes == parse_iort(data, "IORT").nodes
