"""Read what a guest wrote into its MSIs, from the memory of a guest that is a table of bytes."""

import pytest
from doctor.cases import A, B
from doctor.guest_cases import rendered

from vmm_msi.domxml.guest_buses import guest_addresses
from vmm_msi.domxml.placement import Placement
from vmm_msi.types import Iova
from vmm_msi.watch.guest_msi import GuestMsiReader

ECAM = 0x40_1000_0000
BAR = 0x1030_0000
XML = rendered(A, B)
PLACES = {host: place for place, host in guest_addresses(Placement(XML)).items()}


def bytes_of(*words, size=4):
    return b"".join(word.to_bytes(size, "little") for word in words)


class Memory:
    """The physical address space of a guest: what is not set reads as ones, as QEMU has it."""

    def __init__(self, ecam=ECAM):
        self.parts = {ecam: bytes_of(0x0008_1B36).ljust(256, b"\0")}
        self.ecam = ecam
        self.reads = 0

    def function(self, host, capabilities, command=0x6, bar=BAR):
        config = bytearray(256)
        config[0:8] = bytes_of(0x0010_1B36, command)
        config[0x10:0x18] = bytes_of(bar | 4, size=8)
        at = 0x40
        config[0x34] = at
        for number, capability in enumerate(capabilities):
            config[at : at + len(capability)] = capability
            config[at + 1] = at + 0x20 if number + 1 < len(capabilities) else 0
            at += 0x20
        self.parts[self.ecam + PLACES[host].rid * 4096] = bytes(config)

    def table(self, *entries):
        self.parts[BAR + 0x2000] = b"".join(
            bytes_of(address & 0xFFFF_FFFF, address >> 32, 0, masked) for address, masked in entries
        )

    def __call__(self, address, size):
        self.reads += 1
        for base, data in self.parts.items():
            if base <= address < base + len(data):
                return data[address - base :][:size].ljust(size, b"\xff")
        return b"\xff" * size


def msix(entries, enabled=True):
    control = enabled << 15 | entries - 1
    return bytes([0x11, 0, *bytes_of(control, size=2), *bytes_of(0x2000, 0x3000)])


def msi(address, enabled=True):
    return bytes([0x05, 0, *bytes_of(0x80 | enabled, size=2), *bytes_of(address, size=8), 0, 0])


def test_unmasked_entries_come_first():
    memory = Memory()
    memory.function(A, [b"\x10\0", msix(4)])
    memory.table((0xFFFFE040, 1), (0xFFFFF040, 0), (0xFFFFF040, 0), (0, 1))
    reader = GuestMsiReader(XML, memory)
    assert reader.written(A) == (Iova(0xFFFFF040), Iova(0xFFFFE040))
    before = memory.reads
    assert reader.written(A) == (Iova(0xFFFFF040), Iova(0xFFFFE040))
    assert memory.reads - before == 2


def test_an_address_above_4_gib_and_masked_entries_alone():
    memory = Memory()
    memory.function(A, [msix(1)])
    memory.table((0x12_FFFF_F040, 1))
    assert GuestMsiReader(XML, memory).written(A) == (Iova(0x12_FFFF_F040),)


def test_the_msi_capability_once_it_is_enabled():
    memory = Memory()
    memory.function(A, [msi(0xFFFFF040), msix(1)])
    assert GuestMsiReader(XML, memory).written(A) == (Iova(0xFFFFF040),)
    memory.function(A, [msi(0xFFFFF040, enabled=False)])
    assert GuestMsiReader(XML, memory).written(A) == ()


@pytest.mark.parametrize(("command", "bar"), [(0x4, BAR), (0x6, 0)])
def test_a_table_that_is_not_in_the_address_space_is_not_read(command, bar):
    memory = Memory()
    memory.function(A, [msix(1)], command=command, bar=bar)
    assert GuestMsiReader(XML, memory).written(A) == ()


def test_a_table_is_read_once_msi_x_is_enabled():
    """While firmware sizes a BAR, the address of the table is that of something else."""
    memory = Memory()
    memory.function(A, [msix(1, enabled=False)])
    memory.table((0xFFFFF040, 0))
    assert GuestMsiReader(XML, memory).written(A) == ()


@pytest.mark.parametrize("address", [0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_F000, 0xFFFF_F044])
def test_an_address_that_is_not_that_of_a_doorbell(address):
    memory = Memory()
    memory.function(A, [msix(2)])
    memory.table((address, 0), (0xFFFFE040, 1))
    assert GuestMsiReader(XML, memory).written(A) == (Iova(0xFFFFE040),)


def test_a_device_that_is_not_there():
    memory = Memory()
    reader = GuestMsiReader(XML, memory)
    assert reader.written(A) is None
    assert GuestMsiReader(rendered(A), memory).written(B) is None
    memory.parts.clear()
    assert GuestMsiReader(XML, memory).written(A) is None


@pytest.mark.parametrize(
    ("gib", "ecam"),
    [(4, 0x40_1000_0000), (300, 0x4B_5000_0000), (4, 0x40_0000_0000), (4, 0x3F00_0000)],
)
def test_where_the_configuration_space_is(gib, ecam):
    xml = rendered(A, memory=gib << 30)
    memory = Memory(ecam)
    memory.function(A, [msi(0xFFFFF040)])
    assert GuestMsiReader(xml, memory).written(A) == (Iova(0xFFFFF040),)


def test_a_table_that_leads_nowhere():
    """The guest's registers are the guest's: no value makes the reader fail or read much."""
    nowhere = bytes([0x11, 0x40, 0xFF, 0xFF, *b"\xff" * 8])
    largest = bytes([0x11, 0x40, 0xFF, 0xFF, *bytes_of(0xFFFF_FFF8, 0)])
    reads = []
    memory = Memory()
    reader = GuestMsiReader(XML, lambda at, size: reads.append((at, size)) or memory(at, size))
    for capability, bar in ((nowhere, BAR), (largest, 0xFFFF_FFFF_FFFF_FFF0), (largest, BAR)):
        memory.function(A, [capability], bar=bar)
        reader.written(A)
    assert [read for read in reads[1:] if read[1] != 256] == [(BAR + 0xFFFF_FFF8, 1024)]
