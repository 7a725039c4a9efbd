"""Folders with the ACPI tables IORT and APIC."""

from __future__ import annotations

import pytest
from described_host import load_host
from host.firmware.acpi_builder import iort, its_group, madt, root_complex
from host.shared import shared_data

from vmm_msi.errors import TopologyError
from vmm_msi.host.resolve import resolve
from vmm_msi.types import Granule, Its, Pa, PciAddress, PciRoute


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "IORT").write_bytes(iort(its_group(5), root_complex((0, 0xFFFF, 0, 0, 0))))
    (tmp_path / "APIC").write_bytes(madt((5, 0x20000000)))
    return tmp_path


def test_a_folder(folder):
    host = load_host(folder, Granule.K64)
    assert host.granule is Granule.K64
    assert host.itses == (Its(5, Pa(0x20000000)),)
    assert host.routes == (PciRoute(0, 0, 0xFFFF, None, 0, (5,), 0),)


def test_a_missing_iort(folder):
    (folder / "IORT").unlink()
    with pytest.raises(TopologyError, match="IORT is missing; copy"):
        load_host(folder)


def test_an_unreadable_table(folder):
    (folder / "APIC").unlink()
    (folder / "APIC").mkdir()
    with pytest.raises(TopologyError, match="APIC: cannot be read: Is a directory"):
        load_host(folder)


def test_the_file_is_named(folder):
    (folder / "APIC").write_bytes(b"APIC")
    with pytest.raises(TopologyError, match=r"/APIC: offset 0x4: truncated"):
        load_host(folder)


@pytest.mark.parametrize(
    ("name", "smmus", "itses"),
    [
        ("qemu-11.1-accel-guest-rmr", 1, 0),
        ("qemu-11.1-smmuv3-legacy", 1, 0),
        ("qemu-11.1-two-smmuv3-pxb", 2, 1),
    ],
)
def test_real_tables(name, smmus, itses):
    host = load_host(shared_data(f"acpi/{name}"))
    assert (len(host.smmus), len(host.itses)) == (smmus, itses)
    assert {route.smmu for route in host.routes} == {None, *range(smmus)}
    assert {route.its_group for route in host.routes} == {(0,)}
    assert sum(route.last - route.first + 1 for route in host.routes) == 0x10000


def test_real_tables_of_two_smmus_resolve():
    host = load_host(shared_data("acpi/qemu-11.1-two-smmuv3-pxb"))
    assert [str(smmu.base) for smmu in host.smmus] == ["0xc000000", "0xc020000"]
    device = resolve(host, PciAddress.parse("0000:21:00.0"))
    assert (device.smmu, device.stream_id, device.its, device.device_id) == (1, 0x2100, 0, 0x2100)


def test_real_tables_without_apic_name_it():
    host = load_host(shared_data("acpi/qemu-11.1-smmuv3-legacy"))
    with pytest.raises(TopologyError, match="APIC is missing: copy /sys/firmware/acpi/tables/APIC"):
        resolve(host, PciAddress.parse("0000:00:01.0"))


def test_real_rmr():
    from vmm_msi.host.firmware.iort import parse_iort

    path = shared_data("acpi/qemu-11.1-accel-guest-rmr/IORT")
    (reserved,) = parse_iort(path.read_bytes(), str(path)).rmrs
    assert reserved.ranges == ((0x8000000, 0x100000),)
