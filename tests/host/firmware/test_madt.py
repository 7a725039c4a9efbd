"""ITSes of a MADT, of a GICv3 and of a GICv5."""

from __future__ import annotations

from contextlib import suppress

import pytest
from host.firmware.acpi_builder import GICV5, OTHERS, checksummed, madt, resummed, v5_frame, v5_its
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.madt import parse_madt
from vmm_msi.types import Its, Pa, TableError


def refused(data, text, offset):
    with pytest.raises(TopologyError) as caught:
        parse_madt(data, "APIC")
    message = str(caught.value)
    assert message.startswith(f"APIC: offset {offset:#x}: "), message
    assert text in message


def test_itses_in_the_order_of_the_table():
    itses = parse_madt(madt((3, 0x20000000), (0, 0x80020000000), extra=OTHERS), "APIC")
    assert itses == (Its(3, Pa(0x20000000)), Its(0, Pa(0x80020000000)))


def test_a_madt_without_itses():
    assert parse_madt(madt(extra=OTHERS), "APIC") == ()


def test_the_translate_frames_of_gicv5_itses():
    """IORT ITS groups name the translate frames; the doorbell is their first register."""
    itses = parse_madt(madt(extra=OTHERS + GICV5), "APIC")
    assert itses == (
        Its(1, Pa(0x2F120000), translate_frame=Pa(0x2F130000)),
        Its(0, Pa(0x2F120000), translate_frame=Pa(0x2F140000)),
        Its(4, Pa(0x3F120000), translate_frame=Pa(0x3F130000)),
    )
    assert [str(its.doorbell) for its in itses] == ["0x2f130000", "0x2f140000", "0x3f130000"]
    assert all(its.is_gicv5 for its in itses)


def test_a_translate_frame_without_an_its_is_left_out():
    extra = v5_frame(8, 1, 0x2F130000) + v5_its(7, 0x2F120000)
    assert parse_madt(madt(extra=extra), "APIC") == ()


def test_frames_may_come_before_their_its():
    extra = v5_frame(7, 1, 0x2F130000) + v5_its(7, 0x2F120000)
    (its,) = parse_madt(madt(extra=extra), "APIC")
    assert (its.id, its.base) == (1, 0x2F120000)


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
    refused(checksummed(good[:40]), "at least 44", 4)
    refused(b"IORT" + good[4:], "signature", 0)


def test_a_wrong_checksum_is_tolerated():
    good = madt((0, 0x20000000))
    errors: list[TableError] = []
    assert parse_madt(good[:-1] + b"\1", "APIC", errors) == parse_madt(good, "APIC")
    assert [str(error) for error in errors] == [
        "APIC: offset 0x9: wrong checksum: the sum of the bytes modulo 256 is 0x1, not 0"
    ]


def test_truncated_at_every_byte():
    whole = madt((0, 0x20000000), (1, 0x20020000))
    for size in range(len(whole)):
        with pytest.raises(TopologyError, match="offset 0x"):
            parse_madt(whole[:size], "APIC")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_change_gives_itses_or_a_refusal(data):
    whole = bytearray(madt((10, 0x20000000), (11, 0x20020000), extra=OTHERS + GICV5))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(10, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(TopologyError):
        parse_madt(resummed(whole), "APIC")
