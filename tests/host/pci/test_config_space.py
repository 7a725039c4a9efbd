"""Configuration spaces: what is read of them, what is not known, and lists that go in circles."""

from __future__ import annotations

import struct

import pytest
from host.host_files import config
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi.host.pci.config_space import ExpressType, PciConfig, read_config


def read(space, limit=None):
    """Read ``space``, of which whoever is not root has ``limit`` bytes."""
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
    found = read(config(bridge=(0, 1, 5), express=4, msi=0))
    assert (found.is_bridge, found.subordinate, found.subsystem) == (True, 5, None)
    assert (found.express_type, found.vectors) == (ExpressType.ROOT_PORT, 1)
    assert (found.ats, found.pasid) == (False, False)


@pytest.mark.parametrize(
    ("options", "vectors"),
    [({}, 0), ({"msi": 3}, 8), ({"msix": 2048}, 2048), ({"msix": 1, "msi": 5}, 1)],
)
def test_vectors(options, vectors):
    assert read(config(**options)).vectors == vectors


def test_conventional_pci_has_neither_ats_nor_pasid():
    found = read(config(msi=0, size=256))
    assert (found.is_express, found.express_type) == (False, None)
    assert (found.ats, found.pasid) == (False, False)


def test_an_express_function_with_256_bytes():
    found = read(config(express=0, msi=0, size=256))
    assert (found.is_express, found.ats, found.pasid) == (True, False, False)


def test_who_is_not_root_reads_64_bytes():
    found = read(config(bridge=(0, 1, 5), express=4, msix=3, extended=(0x0F,)), 64)
    assert found == PciConfig(is_bridge=True, subordinate=5)
    # Without capabilities there is nothing more to read.
    assert read(config(), 64).vectors == 0


@pytest.mark.parametrize("size", [0, 63])
def test_no_header(size):
    assert read(config(), size) == PciConfig()


def test_a_list_that_goes_in_a_circle_ends():
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


def test_extended_capabilities_that_are_cut_short_are_not_known():
    space = config(express=0, extended=(0x01, 0x0F))[:0x142]
    found = read(space)
    assert (found.ats, found.pasid) == (None, None)


def test_a_function_that_is_gone():
    """All ones, as the bus answers for nobody: no capability list goes on through 0xff."""
    found = read(b"\xff" * 4096)
    assert (found.is_express, found.vectors) == (False, 0)


@given(st.binary(max_size=512), st.randoms())
def test_any_bytes(data, random):
    space = bytearray(data)
    for at in range(0x34, len(space), 7):
        space[at] = random.randrange(0x40, 0x100, 4)
    found = read(bytes(space))
    assert found.vectors is None or 0 <= found.vectors <= 2048
