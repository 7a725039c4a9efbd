"""Configuration spaces: known and unknown values, and cyclic lists of capabilities."""

from __future__ import annotations

import struct

import pytest
from host.host_files import config
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi.host.pci.config_space import ExpressType, PciConfig, read_config


def read(space, limit=None):
    """Read ``space``, of which a user other than root can read ``limit`` bytes."""
    seen = space if limit is None else space[:limit]
    return read_config(lambda offset, size: seen[offset : offset + size])


def test_an_endpoint():
    space = config(express=0, msix=65, msi=5, extended=(0x0001, 0x000F, 0x001B), subsystem=(1, 2))
    assert read(space) == PciConfig(
        is_bridge=False,
        subordinate=0,
        subsystem=(1, 2),
        is_express=True,
        express_type=ExpressType.ENDPOINT,
        vectors=65,
        ats=True,
        pasid=True,
    )


def test_a_bridge():
    parsed = read(config(bridge=(0, 1, 5), express=4, msi=0))
    assert (parsed.is_bridge, parsed.subordinate, parsed.subsystem) == (
        True,
        5,
        None,
    )
    assert (parsed.express_type, parsed.vectors) == (ExpressType.ROOT_PORT, 1)
    assert (parsed.ats, parsed.pasid) == (False, False)


@pytest.mark.parametrize(
    ("options", "vectors"),
    [({}, 0), ({"msi": 3}, 8), ({"msix": 2048}, 2048), ({"msix": 1, "msi": 5}, 1)],
)
def test_vectors(options, vectors):
    assert read(config(**options)).vectors == vectors


def test_conventional_pci_has_neither_ats_nor_pasid():
    parsed = read(config(msi=0, size=256))
    assert (parsed.is_express, parsed.express_type) == (False, None)
    assert (parsed.ats, parsed.pasid) == (False, False)


def test_an_express_function_with_256_bytes():
    parsed = read(config(express=0, msi=0, size=256))
    assert (parsed.is_express, parsed.ats, parsed.pasid) == (True, False, False)


def test_64_bytes_without_root():
    parsed = read(config(bridge=(0, 1, 5), express=4, msix=3, extended=(0x0F,)), 64)
    assert parsed == PciConfig(is_bridge=True, subordinate=5)
    # Without capabilities the header is all of it.
    assert read(config(), 64).vectors == 0


@pytest.mark.parametrize("size", [0, 63])
def test_no_header(size):
    assert read(config(), size) == PciConfig()


def test_a_cyclic_list_ends():
    space = bytearray(config(msi=2))
    space[0x41] = 0x40
    assert read(bytes(space)).vectors == 4
    struct.pack_into("<I", space, 0x100, 0x0F | 1 << 16 | 0x100 << 20)
    space[0x60:0x64] = bytes((0x10, 0, 2, 0))
    space[0x41] = 0x60
    reads = []

    def part(offset, size):
        reads.append(offset)
        return bytes(space[offset : offset + size])

    assert read_config(part).ats
    assert len(reads) < 1100


def test_truncated_extended_capabilities_are_unknown():
    space = config(express=0, extended=(0x01, 0x0F))[:0x142]
    parsed = read(space)
    assert (parsed.ats, parsed.pasid) == (None, None)


def test_a_removed_function():
    """All ones, the value of reads without an answer: no list continues at 0xff."""
    parsed = read(b"\xff" * 4096)
    assert (parsed.is_express, parsed.vectors) == (False, 0)


@given(st.binary(max_size=512), st.randoms())
def test_any_bytes(data, random):
    space = bytearray(data)
    for at in range(0x34, len(space), 7):
        space[at] = random.randrange(0x40, 0x100, 4)
    parsed = read(bytes(space))
    assert parsed.vectors is None or 0 <= parsed.vectors <= 2048
