"""MADT and folders of ACPI tables."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from host.firmware.iort_builder import checksummed, iort, its_group, madt, resummed, root_complex
from host.shared import shared_data
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.madt import parse_madt
from vmm_msi.host.resolve import resolve
from vmm_msi.host.sources import load_host
from vmm_msi.types import Granule, Its, Pa, PciAddress, PciRoute

#: Structures without an ITS: GICR, MSI frame of a GICv2m, GICv5 IRS.
OTHERS = b"".join(
    struct.pack("<BB", kind, size) + bytes(size - 2)
    for kind, size in ((14, 16), (13, 24), (28, 32))
)


def v5_its(translator, base):
    return struct.pack("<BBBBIQ", 29, 16, 0, 0, translator, base)


def v5_frame(translator, number, base):
    return struct.pack("<BBHIIIQ", 30, 24, 0, translator, number, 0, base)


#: Two GICv5 ITSes, the first with two translate frames.
GICV5 = (
    v5_its(7, 0x2F120000)
    + v5_frame(7, 1, 0x2F130000)
    + v5_frame(7, 0, 0x2F140000)
    + v5_its(9, 0x3F120000)
    + v5_frame(9, 4, 0x3F130000)
)


def refused(data, text, offset):
    with pytest.raises(TopologyError) as caught:
        parse_madt(data, "APIC")
    message = str(caught.value)
    assert message.startswith(f"APIC: offset {offset:#x}: "), message
    assert text in message


def test_reads_itses_in_order_and_skips_the_rest():
    found = parse_madt(madt((3, 0x20000000), (0, 0x80020000000), extra=OTHERS), "APIC")
    assert found == (Its(3, Pa(0x20000000)), Its(0, Pa(0x80020000000)))


def test_a_madt_without_itses():
    assert parse_madt(madt(extra=OTHERS), "APIC") == ()


def test_the_translate_frames_of_gicv5_itses():
    """IORT ITS groups name the translate frames; the doorbell is their first register."""
    found = parse_madt(madt(extra=OTHERS + GICV5), "APIC")
    assert found == (
        Its(1, Pa(0x2F120000), translate_frame=Pa(0x2F130000)),
        Its(0, Pa(0x2F120000), translate_frame=Pa(0x2F140000)),
        Its(4, Pa(0x3F120000), translate_frame=Pa(0x3F130000)),
    )
    assert [str(its.doorbell) for its in found] == ["0x2f130000", "0x2f140000", "0x3f130000"]
    assert all(its.is_gicv5 for its in found)


def test_a_translate_frame_of_no_its_is_left_out():
    extra = v5_frame(8, 1, 0x2F130000) + v5_its(7, 0x2F120000)
    assert parse_madt(madt(extra=extra), "APIC") == ()


def test_frames_may_come_before_their_its():
    extra = v5_frame(7, 1, 0x2F130000) + v5_its(7, 0x2F120000)
    (found,) = parse_madt(madt(extra=extra), "APIC")
    assert (found.id, found.base) == (1, 0x2F120000)


def test_malformed_gicv5_structures():
    start = len(madt())
    config, frame = v5_its(7, 0x2F120000), v5_frame(7, 1, 0x2F130000)
    refused(madt(extra=b"\x1d\x0c" + bytes(10)), "GICv5 ITS structure has 16", start + 1)
    refused(madt(extra=b"\x1e\x10" + bytes(14)), "translate frame structure has 24", start + 1)
    refused(madt(extra=config + config), "GICv5 ITS 7 is listed twice", start + 16 + 4)
    refused(madt(extra=frame + frame), "ITS 1 is listed twice", start + 24 + 8)
    refused(madt((1, 0x20000000), extra=frame), "ITS 1 is listed twice", start + 20 + 8)
    refused(madt(extra=v5_its(7, 0x2F121000)), "not a multiple", start + 8)
    refused(madt(extra=v5_frame(7, 1, 1 << 52)), "not a multiple", start + 16)


def test_malformed_structures():
    good = madt((0, 0x20000000))
    its = len(good) - 20
    refused(madt(extra=b"\x7f\0"), "length 0", len(madt()) + 1)
    refused(madt(extra=b"\x7f\x01"), "length 1", len(madt()) + 1)
    refused(madt(extra=b"\x7f"), "truncated", len(madt()))
    refused(madt(extra=b"\x7f\x09\0"), "3 bytes of the table remain", len(madt()) + 1)
    refused(madt(extra=b"\x0f\x08" + bytes(6)), "GIC ITS structure has 20", len(madt()) + 1)
    refused(madt((0, 0x20000000), (0, 0x30000000)), "listed twice", its + 20 + 4)
    refused(madt((0, 0x20001000)), "not a multiple", its + 8)
    refused(madt((0, 1 << 52)), "not a multiple", its + 8)
    refused(good[:-1] + b"\x01", "checksum", 9)
    refused(checksummed(good[:40]), "at least 44", 4)
    refused(b"IORT" + good[4:], "signature", 0)


def test_truncated_at_every_byte():
    whole = madt((0, 0x20000000), (1, 0x20020000))
    for size in range(len(whole)):
        with pytest.raises(TopologyError, match="offset 0x"):
            parse_madt(whole[:size], "APIC")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_change_ends_in_itses_or_a_refusal(data):
    whole = bytearray(madt((10, 0x20000000), (11, 0x20020000), extra=OTHERS + GICV5))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(10, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(TopologyError):
        parse_madt(resummed(whole), "APIC")


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
