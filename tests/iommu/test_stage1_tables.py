"""The tables of a guest's stage 1, read as an SMMU reads them.

The walker is written from the Arm architecture reference manual (DDI 0487), D8.2 translation
process and D8.3 descriptor formats; the fields are those of the SMMUv3 specification (IHI 0070),
5.2 and 5.4.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi.errors import InputError
from vmm_msi.iommu.linux.guest_ram import Memory
from vmm_msi.iommu.linux.stage1 import Stage1Table, TableArena
from vmm_msi.types import Granule

BASE = 0x4000_0000
MEGABYTE = 1 << 20

CD_FIELDS = (
    {
        "T0SZ": (5, 0), "TG0": (7, 6), "IR0": (9, 8), "OR0": (11, 10), "SH0": (13, 12),
        "EPD1": (30, 30), "V": (31, 31), "IPS": (34, 32), "AA64": (41, 41), "R": (45, 45),
        "A": (46, 46), "ASET": (47, 47), "ASID": (63, 48),
    },
    {"TTB0": (51, 4)},
    {},
    {"Attr0": (7, 0), "Attr1": (15, 8)},
    {},
    {},
    {},
    {},
)  # fmt: skip
STE_FIELDS = (
    {"V": (0, 0), "Config": (3, 1), "S1Fmt": (5, 4), "S1ContextPtr": (55, 6), "S1CDMax": (63, 59)},
    {"S1DSS": (1, 0), "S1CIR": (3, 2), "S1COR": (5, 4), "S1CSH": (7, 6)},
)
PAGE_FIELDS = {
    "type": (1, 0), "AttrIndx": (4, 2), "NS": (5, 5), "AP[1]": (6, 6), "AP[2]": (7, 7),
    "SH": (9, 8), "AF": (10, 10), "nG": (11, 11), "address": (47, 12),
}  # fmt: skip

WRITE_BACK, INNER_SHAREABLE = 1, 3
PAGE_OR_TABLE = 3


def decoded(words, layout):
    """Split words into fields; no bit outside of them may be set."""
    decoded_fields = {}
    for word, fields in zip(words, layout, strict=True):
        left = word
        for name, (high, low) in fields.items():
            mask = (1 << high + 1) - (1 << low)
            decoded_fields[name] = (word & mask) >> low
            left &= ~mask
        assert left == 0, f"{word:#x} has bits in none of {list(fields)}"
    return decoded_fields


class Smmu:
    """Reads tables out of guest RAM."""

    def __init__(self, memory):
        self.memory = memory

    def words(self, ipa, count):
        assert BASE <= ipa <= BASE + self.memory.size - 8 * count
        data = ctypes.string_at(self.memory.address + ipa - BASE, 8 * count)
        return [int.from_bytes(data[at : at + 8], "little") for at in range(0, 8 * count, 8)]

    def descriptor(self, ste):
        """Decode the context descriptor that a stream table entry names."""
        pointer = decoded(ste, STE_FIELDS)["S1ContextPtr"] << 6
        return decoded(self.words(pointer, 8), CD_FIELDS)

    def walk(self, cd, iova):
        """Return the IPA of ``iova`` and whether it is writable, None for a fault."""
        page_bits = {0: 12, 1: 16, 2: 14}[cd["TG0"]]
        input_bits = 64 - cd["T0SZ"]
        if iova >> input_bits:
            return None
        index_bits = page_bits - 3
        level = 4 - -(-(input_bits - page_bits) // index_bits)
        table = cd["TTB0"] << 4
        top = input_bits
        while True:
            low = page_bits + (3 - level) * index_bits
            index = (iova & ((1 << top) - 1)) >> low
            (word,) = self.words(table + 8 * index, 1)
            if not word & 1:
                return None
            fields = decoded([word], [PAGE_FIELDS])
            output = fields.pop("address") << 12
            assert fields.pop("type") == PAGE_OR_TABLE, "a block, or reserved at level 3"
            assert output % (1 << page_bits) == 0
            if level == 3:
                writable = not fields.pop("AP[2]")
                accessible = {"AP[1]": 1, "AF": 1}
                normal = {"AttrIndx": 0, "SH": INNER_SHAREABLE, "NS": 0, "nG": 1}
                assert fields == accessible | normal
                return output | iova & ((1 << page_bits) - 1), writable
            assert not any(fields.values()), "attributes in a table descriptor"
            table, top, level = output, low, level + 1


@contextmanager
def ram(megabytes=1):
    memory = Memory(megabytes * MEGABYTE)
    try:
        yield memory
    finally:
        memory.close()


@st.composite
def programs(draw):
    """A granule and a sequence of (page, its output page, number of pages, writable)."""
    granule = draw(st.sampled_from(Granule))
    page_bits = granule.bit_length() - 1
    last = (1 << 48 - page_bits) - 1
    # A run of pages that starts just before a boundary of tables continues in the next one.
    boundary = st.builds(
        lambda level, number, before: (number << level * (page_bits - 3)) - before,
        st.integers(1, 2),
        st.integers(1, 3),
        st.integers(0, 3),
    )
    page = st.one_of(st.integers(0, 20), boundary, st.integers(last - 9, last))
    page |= st.integers(0, last)
    output = st.integers(0, (1 << 44 - page_bits) - 9)
    run = st.tuples(page.filter(lambda n: 0 <= n <= last), output, st.integers(1, 8), st.booleans())
    runs = [(p, o, min(n, last + 1 - p), w) for p, o, n, w in draw(st.lists(run, max_size=8))]
    return granule, runs


@given(programs(), st.data())
def test_a_walk_finds_every_mapping_and_no_other(program, data):
    granule, runs = program
    expected, mapped = {}, {}
    with ram(megabytes=4) as memory:
        arena, smmu = TableArena(memory, BASE), Smmu(memory)
        table, other = Stage1Table(arena, granule, 1), Stage1Table(arena, Granule.K4, 2)
        other.map(0, BASE, 4096)
        for page, output, count, writable in runs:
            overlaps = any(page + n in expected for n in range(count))
            assert table.overlaps(page * granule, count * granule) == overlaps
            if overlaps:
                continue
            base = page * granule
            table.map(base, output * granule, count * granule, writable=writable)
            expected |= {page + n: (output + n, writable) for n in range(count)}
            mapped[base] = range(page, page + count)
            if data.draw(st.booleans()):
                unmapped = data.draw(st.sampled_from(sorted(mapped)))
                assert table.unmap(unmapped)
                assert not table.unmap(unmapped)
                for number in mapped.pop(unmapped):
                    del expected[number]
        cd = smmu.descriptor(table.ste)
        near = {page + n for page, _output, count, _w in runs for n in range(-1, count + 1)}
        for page in near | {0, (1 << 48) // granule}:
            if page < 0:
                continue
            offset = 0x40
            result = None
            if page in expected:
                output, writable = expected[page]
                result = (output * granule + offset, writable)
            assert smmu.walk(cd, page * granule + offset) == result
        assert table.pages() == {
            (base, expected[pages[0]][0] * granule)
            for base, pages in mapped.items()
            if len(pages) == 1
        }
        assert smmu.walk(smmu.descriptor(other.ste), 0x40) == (BASE + 0x40, True)


@pytest.mark.parametrize(("granule", "tg0"), [("4K", 0b00), ("16K", 0b10), ("64K", 0b01)])
def test_context_descriptor(granule, tg0):
    with ram() as memory:
        arena, smmu = TableArena(memory, BASE), Smmu(memory)
        tables = [Stage1Table(arena, Granule.parse(granule), asid) for asid in (1, 0xFFFF)]
        roots = set()
        for asid, table in zip((1, 0xFFFF), tables, strict=True):
            cd = smmu.descriptor(table.ste)
            roots.add(cd.pop("TTB0") << 4)
            assert cd == {
                "V": 1,
                "AA64": 1,
                "T0SZ": 64 - 48,
                "TG0": tg0,
                "IR0": WRITE_BACK,
                "OR0": WRITE_BACK,
                "SH0": INNER_SHAREABLE,
                "EPD1": 1,
                "IPS": 0b100,
                "R": 1,
                "A": 1,
                "ASET": 1,
                "ASID": asid,
                "Attr0": 0xFF,
                "Attr1": 0x04,
            }
        assert len(roots) == 2
        assert all(root % table.granule == 0 for root in roots)


def test_stream_table_entry():
    with ram() as memory:
        arena = TableArena(memory, BASE)
        entries = [decoded(Stage1Table(arena, Granule.K4, n).ste, STE_FIELDS) for n in (1, 2)]
        pointers = [entry.pop("S1ContextPtr") << 6 for entry in entries]
        assert pointers == [BASE, BASE + 64]
        assert entries[0] == entries[1] == {
            "V": 1,
            "Config": 0b101,
            "S1Fmt": 0,
            "S1CDMax": 0,
            "S1DSS": 0,
            "S1CIR": WRITE_BACK,
            "S1COR": WRITE_BACK,
            "S1CSH": INNER_SHAREABLE,
        }  # fmt: skip


def test_full_guest_ram_is_refused_and_can_be_cleared():
    with ram() as memory:
        arena, smmu = TableArena(memory, BASE), Smmu(memory)
        table = Stage1Table(arena, Granule.K64, 1)
        # 16 times 64 KiB: descriptors, the root, and two tables for each of these.
        for number in range(7):
            table.map(number << 42, BASE, Granule.K64)
        assert smmu.walk(smmu.descriptor(table.ste), 6 << 42) == (BASE, True)
        with pytest.raises(InputError, match="guest RAM are full"):
            table.map(7 << 42, BASE, Granule.K64)
        arena.clear()
        assert not any(smmu.words(BASE, MEGABYTE // 8))
        fresh = Stage1Table(arena, Granule.K4, 1)
        assert smmu.walk(smmu.descriptor(fresh.ste), 0) is None


def test_relocate_changes_the_address_in_the_table():
    with ram() as memory:
        smmu = Smmu(memory)
        table = Stage1Table(TableArena(memory, BASE), Granule.K4, 1, lambda ipa: ipa + 0x1000_0000)
        table.map(0x1000, 0x2000, 0x1000)
        assert smmu.walk(smmu.descriptor(table.ste), 0x1000) == (0x1000_2000, True)
        assert table.pages() == {(0x1000, 0x2000)}
