"""The simulated hardware: page tables, the SMMU's walk, events and TLB, the ITS."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from vmm_msi.errors import BackendError
from vmm_msi.iommu.sim.its import FIRST_LPI, LpiSpace, SimIts, table_sizes
from vmm_msi.iommu.sim.page_table import Access, PageTable
from vmm_msi.iommu.sim.smmu import (
    EventKind,
    SimSmmu,
    Stage1Config,
    Stage2Config,
    StreamTableEntry,
)
from vmm_msi.types import (
    DeviceId,
    Granule,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    Pa,
    PciAddress,
    StreamId,
)

ROOT = Ipa(0x4000_0000)
SID = StreamId(7)
GIOVA = Iova(0xFFFF_F040)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0x1001, 0x2000, 0x1000), errno.EINVAL),
        ((0x1000, 0x2001, 0x1000), errno.EINVAL),
        ((0x1000, 0x2000, 0x800), errno.EINVAL),
        ((0x1000, 0x2000, 0), errno.EINVAL),
        ((1 << 48, 0x2000, 0x1000), errno.ERANGE),
        ((0x1000, 1 << 48, 0x1000), errno.ERANGE),
        ((0x5000, 0x2000, 0x1000), errno.EEXIST),
        ((0x4000, 0x2000, 0x2000), errno.EEXIST),
        ((0x9000, 0x2000, 0x1000), errno.EEXIST),
        ((0x1000, 0x2000, 0x1000, Access.NONE), errno.EINVAL),
    ],
)
def test_map_refuses_with_linux_errno_and_changes_nothing(arguments, expected):
    table = PageTable(Granule.K4)
    table.map(0x5000, 0x9000, 0x1000)
    table.map(0x8000, 0x10000, 0x4000)
    with pytest.raises(BackendError) as refusal:
        table.map(*arguments)
    assert refusal.value.errno == expected
    assert table.pages() == {(0x5000, 0x9000)}
    assert table.lookup(0x4000) is None


def test_lookup_adds_the_offset_in_pages_and_ranges():
    table = PageTable(Granule.K64)
    table.map(0x10000, 0x20000, 0x10000, Access.READ)
    table.map(0x100000, 0x900000, 0x40000)
    assert table.lookup(0x10040).output == 0x20040
    assert table.lookup(0x10040).access is Access.READ
    assert table.lookup(0x13FFFF).output == 0x93FFFF
    assert table.lookup(0x140000) is None
    assert table.unmap(0x100000)
    assert not table.unmap(0x100000)
    assert table.lookup(0x100000) is None


def entry(*, s1_bits=48, s2_bits=48, vmid=1):
    s1 = Stage1Config(asid=3, table=PageTable(Granule.K4, s1_bits), root=ROOT)
    s2 = Stage2Config(vmid=vmid, table=PageTable(Granule.K4, s2_bits))
    s2.table.map(ROOT, 0x9_0000_0000, 0x10_0000)
    return StreamTableEntry(s1, s2)


def fault(configure, iova=GIOVA, **bits):
    smmu = SimSmmu()
    installed = entry(**bits)
    configure(installed.s1.table, installed.s2.table)
    smmu.install(SID, installed)
    walk = smmu.translate(SID, iova)
    assert walk.pa is None
    assert walk.event.stream_id == SID
    assert walk.event.iova == iova
    return walk.event.kind, walk.event.stage, walk.event.ipa


def test_events_of_stage_1():
    assert fault(lambda s1, s2: None) == (EventKind.F_TRANSLATION, 1, None)
    read_only = lambda s1, s2: s1.map(0xFFFFF000, 0x8090000, 4096, Access.READ)  # noqa: E731
    assert fault(read_only) == (EventKind.F_PERMISSION, 1, None)
    assert fault(lambda s1, s2: None, Iova(1 << 50)) == (EventKind.F_TRANSLATION, 1, None)

    def too_wide(s1, s2):
        s1.map(0xFFFFF000, 1 << 44, 4096)
        s1.output_bits = 44

    assert fault(too_wide) == (EventKind.F_ADDR_SIZE, 1, None)


def test_events_of_stage_2():
    ipa = Ipa(0x8090040)
    nothing = lambda s1, s2: s1.map(0xFFFFF000, 0x8090000, 4096)  # noqa: E731
    assert fault(nothing) == (EventKind.F_TRANSLATION, 2, ipa)

    def read_only(s1, s2):
        nothing(s1, s2)
        s2.map(0x8090000, 0x200010000, 4096, Access.READ)

    assert fault(read_only) == (EventKind.F_PERMISSION, 2, ipa)

    def too_wide(s1, s2):
        nothing(s1, s2)
        s2.map(0x8090000, 1 << 44, 4096)
        s2.output_bits = 44

    assert fault(too_wide) == (EventKind.F_ADDR_SIZE, 2, ipa)


def test_a_stage_1_table_outside_of_guest_ram_is_a_stage_2_fault_on_the_walk():
    smmu = SimSmmu()
    installed = entry()
    installed.s2.table.unmap(ROOT)
    smmu.install(SID, installed)
    event = smmu.translate(SID, GIOVA).event
    assert (event.kind, event.stage, event.ipa) == (EventKind.F_TRANSLATION, 2, ROOT)
    assert event.table_walk
    assert "stage 1 table walk" in str(event)


def test_a_stream_without_an_entry_aborts():
    event = SimSmmu().translate(SID, GIOVA).event
    assert (event.kind, event.stage) == (EventKind.C_BAD_STE, 0)


@pytest.mark.parametrize("invalidate", ["asid", "vmid"])
def test_the_tlb_is_stale_until_it_is_invalidated(invalidate):
    smmu = SimSmmu()
    installed = entry()
    installed.s1.table.map(0xFFFFF000, 0x8090000, 4096)
    installed.s2.table.map(0x8090000, 0x200010000, 4096)
    smmu.install(SID, installed)
    assert smmu.translate(SID, GIOVA).pa == Pa(0x200010040)
    installed.s2.table.unmap(0x8090000)
    assert smmu.translate(SID, GIOVA).pa == Pa(0x200010040)
    assert list(smmu.stale()) == [(SID, Iova(0xFFFFF000))]
    if invalidate == "asid":
        smmu.invalidate_asid(1, 3)
    else:
        smmu.invalidate_vmid(1)
    assert list(smmu.stale()) == []
    assert smmu.translate(SID, GIOVA).event.stage == 2


def test_an_invalidation_affects_its_vmid_and_asid_only():
    smmu = SimSmmu()
    for sid, vmid in ((1, 1), (2, 2)):
        installed = entry(vmid=vmid)
        installed.s1.table.map(0xFFFFF000, 0x8090000, 4096)
        installed.s2.table.map(0x8090000, 0x200010000, 4096)
        smmu.install(StreamId(sid), installed)
        smmu.translate(StreamId(sid), GIOVA)
        installed.s2.table.unmap(0x8090000)
    smmu.invalidate_asid(1, 4)
    assert len(list(smmu.stale())) == 2
    smmu.invalidate_vmid(1)
    assert [sid for sid, _ in smmu.stale()] == [2]


def host_device(bus, vectors=1, *, device_id=None, group=None):
    number = DeviceId(bus if device_id is None else device_id)
    address = PciAddress(0, bus, 0, 0)
    return HostDevice(address, 0, StreamId(bus), (0,), number, group or bus, vectors)


def test_its_translates_events_of_mapped_devices_only():
    its = SimIts(Its(0, Pa(0x2_0000_0000)), LpiSpace())
    one, two, three = host_device(1, 4), host_device(2, 2), host_device(3, 4)
    assert its.first_lpi(one, (0, 1, 2, 3)) is None
    for device in (one, two):
        assert its.map_device(device, device.vectors) == device.vectors
        its.enable(device)
    assert its.events_of(one) == (0, 1, 2, 3)
    assert its.first_lpi(one, its.events_of(one)) == FIRST_LPI
    assert its.first_lpi(two, its.events_of(two)) == FIRST_LPI + 4
    assert its.first_lpi(two, (0, 1, 2)) is None
    assert its.enabled() == {one.address, two.address}
    its.disable(one)
    assert its.first_lpi(one, (0,)) is None
    assert its.events_of(one) == its.events_of(three) == ()
    its.map_device(three, 4)
    its.enable(three)
    assert its.first_lpi(three, its.events_of(three)) == FIRST_LPI + 6
    its.map_device(one, 4)
    its.enable(one)
    assert its.first_lpi(one, its.events_of(one)) == FIRST_LPI


def test_devices_share_a_device_id_on_a_gicv3_its():
    """its_msi_prepare: the first one's table is used by the second, which may find it full."""
    its = SimIts(Its(0, Pa(0x2_0000_0000)), LpiSpace())
    first, second = host_device(1, 4, device_id=9), host_device(2, 2, device_id=9)
    its.map_device(first, 8)
    assert its.map_device(second, 2) == 8
    its.enable(first)
    its.enable(second)
    assert its.events_of(second) == (4, 5)
    assert its.first_lpi(second, its.events_of(second)) == FIRST_LPI + 4
    third = host_device(3, 3, device_id=9)
    its.map_device(third, 4)
    with pytest.raises(BackendError, match=r"^ENOSPC: .* only 2 events left .* has 3 MSIs"):
        its.enable(third)
    its.disable(second)
    its.enable(third)
    assert its.events_of(third) == (4, 5, 6)


def test_devices_of_a_gicv5_do_not_share_a_device_id():
    """gicv5_its_msi_prepare: EBUSY, which is ENODEV for the caller."""
    its = SimIts(Its(0, Pa(0x2_0000_0000), Pa(0x2_0001_0000)), LpiSpace(gicv5=True))
    its.map_device(host_device(1, device_id=9), 1)
    its.map_device(host_device(1, device_id=9), 1)
    with pytest.raises(BackendError, match=r"^ENODEV \(EBUSY in the kernel\): ") as refusal:
        its.map_device(host_device(2, device_id=9), 1)
    assert (refusal.value.errno, refusal.value.inside) == (errno.ENODEV, errno.EBUSY)


def test_a_table_is_as_large_as_all_devices_with_the_device_id():
    """its_pci_msi_prepare: a power of two, of all functions behind one bridge, 32 for ID 0."""
    devices = (
        host_device(1, 5),
        host_device(2, 3, device_id=9, group=9),
        host_device(3, 6, device_id=9, group=9),
        host_device(4, 3, device_id=9),
        host_device(5, device_id=0),
        host_device(6, 33, device_id=0),
    )
    host = HostTopology("test", Granule.K4, (), (Its(0, Pa(0x2_0000_0000)),), devices)
    assert list(table_sizes(host).values()) == [8, 16, 16, 4, 32, 64]
    v5 = replace(host, itses=(Its(0, Pa(0x2_0000_0000), Pa(0x2_0001_0000)),))
    assert table_sizes(v5)[devices[4].address] == 1


def test_lpis_run_out():
    """its_lpi_alloc: half as many until they fit; without one left ENODEV for the caller."""
    lpis = LpiSpace()
    assert lpis.alloc(32768) == (8192, 32768)
    assert lpis.alloc(32768) == (40960, 16384)
    assert lpis.alloc(16384) == (57344, 8192)
    with pytest.raises(BackendError, match="ENOMEM"):
        lpis.alloc(1)
    its = SimIts(Its(0, Pa(0x2_0000_0000)), lpis)
    with pytest.raises(BackendError, match=r"^ENODEV \(ENOMEM in the kernel\): .* no LPI left"):
        its.map_device(host_device(1), 1)
    assert LpiSpace(gicv5=True).alloc(1 << 17) == (0, 1 << 17)
