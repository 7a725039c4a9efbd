"""The flattened format of a device tree, compared with libfdt's checks."""

from __future__ import annotations

import random
import re
import struct
from collections import Counter
from contextlib import suppress

import libfdt
import pytest
from host.firmware.dt_builder import board, dtb, its, pci, refused, smmu
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware import fdt
from vmm_msi.host.firmware.device_tree import parse_devicetree


def blob():
    return dtb(
        board(its(0), smmu(0), pci(0, "msi-map = <0 &its0 0 0x10000>; iommu-map = <0 &smmu0 0 9>;"))
    )


def test_truncated_anywhere():
    whole = blob()
    for size in range(len(whole)):
        with pytest.raises(TopologyError):
            parse_devicetree(whole[:size], "board.dtb")


def test_truncated_with_a_matching_size():
    whole = blob()
    for size in range(40, len(whole)):
        truncated = whole[:4] + struct.pack(">I", size) + whole[8:size]
        with pytest.raises(TopologyError):
            parse_devicetree(truncated, "board.dtb")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_change_gives_a_host_or_a_refusal(data):
    whole = bytearray(blob())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(TopologyError):
        parse_devicetree(bytes(whole), "board.dtb")


def field(whole, offset):
    return struct.unpack_from(">I", whole, offset)[0]


def mutants(count):
    """Return device trees with damaged words in their header and structure block."""
    whole = blob()
    structure, size = field(whole, 8), field(whole, 36)
    offsets = [*range(4, 40, 4), *range(structure, structure + size, 4)]
    chance = random.Random(0)  # noqa: S311 - the same damage in every run
    for _ in range(count):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2))):
            word = chance.choice([*range(12), 0xFF, size, len(whole), 1 << 31, 0xFFFFFFFF])
            struct.pack_into(">I", damaged, chance.choice(offsets), word)
        yield bytes(damaged)


STRICTER = re.compile(r"version \d+; the oldest|property name of more|not UTF-8")


def verdict(damaged):
    try:
        fdt.read_nodes(damaged, "board.dtb")
    except TopologyError as error:
        return "too much" if STRICTER.search(str(error)) else "malformed"
    return "valid"


def test_libfdt_accepts_and_rejects_the_same_blobs():
    """Except names of properties and old versions, which only this reader rejects."""
    verdicts = Counter()
    for damaged in mutants(5000):
        ours = verdict(damaged)
        theirs = libfdt.fdt_check_full(bytearray(damaged), len(damaged))
        assert ours == "too much" or (ours == "valid") == (theirs == 0), theirs
        verdicts[ours] += 1
    assert min(verdicts["valid"], verdicts["malformed"]) > 500
    assert verdicts["too much"] < 500


def malformed():
    """Return damaged words: offset, value, offset of the error, reason."""
    whole = blob()
    size, structure, strings = len(whole), field(whole, 8), field(whole, 12)
    end = structure + field(whole, 36)
    return {
        "compatible": (24, 18, 24, "it requires a reader of version 18"),
        "structure": (8, size, 8, "the structure block is not within the "),
        "strings": (12, 39, 12, "the strings block is not within the "),
        "reservations": (16, size + 1, 16, "the memory reservation block is not within the "),
        "no end of reservations": (16, size - 8, size - 8, "the memory reservation block does not"),
        "name of the root": (structure + 4, 0x61000000, structure, "the root node has a name"),
        "end without begin": (structure, 2, structure, "token 0x2 is out of place"),
        "unknown token": (structure, 7, structure, "token 0x7 is out of place"),
        "no end of a node": (end - 8, 4, end - 4, "token 0x9 is out of place"),
        "more than a root": (end - 4, 4, end - 4, "token 0x4 is out of place"),
        "no end": (36, field(whole, 36) - 4, end - 4, "the structure block ends within the tree"),
        "size of a value": (structure + 12, 1 << 31, end, "the structure block ends within the "),
        "name of a property": (
            structure + 16, size, strings + size, "a property name does not end within the strings",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", malformed())
def test_a_malformed_blob_is_refused_with_the_offset(case):
    offset, word, error_offset, reason = malformed()[case]
    damaged = bytearray(blob())
    struct.pack_into(">I", damaged, offset, word)
    expected = f"board.dtb: not a valid device tree: offset {error_offset:#x}: {reason}"
    with pytest.raises(TopologyError, match=f"^{re.escape(expected)}"):
        parse_devicetree(bytes(damaged), "board.dtb")


def test_size_and_depth_are_bounded():
    with pytest.raises(TopologyError, match="larger than"):
        parse_devicetree(blob() + bytes(fdt.MAX_SIZE), "board.dtb")
    deep = "n {" * 70 + "};" * 70
    refused([its(0), deep], "deeper than 64")
    name = "p" * 300
    refused([f"{name} = <1>;", its(0)], "offset 0x", "property name")


def test_names_that_are_not_utf_8_and_old_versions():
    with pytest.raises(TopologyError, match="not UTF-8"):
        parse_devicetree(blob().replace(b"msi-controller", b"\xffsi-controller"), "board.dtb")
    odd = blob().replace(b"its@20000000", b"\xffts@20000000")
    assert parse_devicetree(odd, "board.dtb").itses
    with pytest.raises(TopologyError, match="offset 0x14: version 16"):
        parse_devicetree(blob()[:20] + struct.pack(">I", 16) + blob()[24:], "board.dtb")


def test_a_padded_blob_is_read():
    assert parse_devicetree(blob() + bytes(64), "board.dtb").itses
