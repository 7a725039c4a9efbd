"""Event records of an SMMUv3: as four words, and as Linux logs them."""

from __future__ import annotations

import itertools

import pytest

from vmm_msi.host.files.kernel_log import kernel_message
from vmm_msi.iommu.event_log import EventReader
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent, decode
from vmm_msi.types import Iova, Ipa, StreamId

STREAM, IOVA, IPA = 0x1100, 0xFFFF_8000_0040, 0xF_FEDC_BA98_7000
CLASSES = {"CD": 0, "TT": 1, "IN": 2}
#: Substream valid, SubstreamID; STAG, STALL, PnU, InD, RnW, NSIPA, ImplDef: all are ignored.
NOISE_0 = 1 << 11 | 0xABCDE << 12
NOISE_1 = 0x1234 | 1 << 31 | 1 << 33 | 1 << 34 | 1 << 35 | 0xFFFF << 48


def record(number, *, s2=0, kind=0, ipa=0, noisy=False):
    """Build an event record (IHI 0070, 7.3.13 F_TRANSLATION and similar ones)."""
    noise_0, noise_1 = (NOISE_0, NOISE_1) if noisy else (0, 0)
    return [number | STREAM << 32 | noise_0, s2 << 39 | kind << 40 | noise_1, IOVA, ipa]


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize(
    ("name", "number"),
    [("F_TRANSLATION", 0x10), ("F_ADDR_SIZE", 0x11), ("F_ACCESS", 0x12), ("F_PERMISSION", 0x13)],
)
class TestFaults:
    def test_stage_1(self, name, number, noisy):
        words = record(number, kind=CLASSES["IN"], ipa=0xFFF, noisy=noisy)
        expected = SmmuEvent(EventKind[name], 1, StreamId(STREAM), Iova(IOVA))
        assert decode(words) == expected
        assert str(decode(words)) == f"{name} (stage 1) StreamID 0x1100, IOVA 0xffff80000040"

    def test_stage_2_of_the_address(self, name, number, noisy):
        """The record has the IPA's page (bits 51:12); the offset is that of the input address."""
        words = record(
            number, s2=1, kind=CLASSES["IN"], ipa=IPA | 0xFFF0_0000_0000_0FFF, noisy=noisy
        )
        event = decode(words)
        assert event == SmmuEvent(
            EventKind[name], 2, StreamId(STREAM), Iova(IOVA), Ipa(IPA | 0x040)
        )
        assert str(event).endswith("IOVA 0xffff80000040, IPA 0xffedcba987040")

    def test_stage_2_of_a_stage_1_table(self, name, number, noisy):
        event = decode(record(number, s2=1, kind=CLASSES["TT"], ipa=IPA | 0x8, noisy=noisy))
        assert event == SmmuEvent(
            EventKind[name], 2, StreamId(STREAM), Iova(IOVA), Ipa(IPA), table_walk=True
        )
        assert str(event).startswith(f"{name} (stage 2 on a stage 1 table walk) StreamID 0x1100")

    def test_stage_2_of_the_context_descriptor(self, name, number, noisy):
        event = decode(record(number, s2=1, kind=CLASSES["CD"], ipa=IPA, noisy=noisy))
        assert (event.stage, event.table_walk) == (2, False)
        assert event.ipa is not None
        assert event.ipa >> 12 == IPA >> 12


@pytest.mark.parametrize(("name", "number"), [("C_BAD_STREAMID", 2), ("C_BAD_STE", 4)])
def test_configuration_error(name, number):
    """All bits above the StreamID are undefined."""
    event = decode([number | STREAM << 32, 1 << 39, 0, 0])
    assert event == SmmuEvent(EventKind[name], 0, StreamId(STREAM), Iova(0))
    assert str(event) == f"{name} (configuration) StreamID 0x1100, IOVA 0x0"


def test_a_fault_at_another_address_has_another_cause():
    fault = decode(record(0x10))
    assert fault.may_be_of(IOVA)
    assert not fault.may_be_of(IOVA + 4)
    assert decode([4 | STREAM << 32, 0, 0, 0]).may_be_of(IOVA)


def test_streams_have_32_bits():
    assert decode([0x10 | 0xFFFF_FFFF << 32, 0, 0, 0]).stream_id == 0xFFFF_FFFF


def test_an_unknown_event_is_refused():
    with pytest.raises(ValueError, match="is not a valid EventKind"):
        decode([0xE0, 0, 0, 0])


SMMU = "arm-smmu-v3.0.auto"
_SEQUENCE = itertools.count(800)


def logged(text, *, smmu=SMMU, tab="\\x09", caller=""):
    """Return a line of the driver in a record of /dev/kmsg (Linux kernel/printk/printk.c)."""
    text = text.replace("\t", tab)
    return (
        f"3,{next(_SEQUENCE)},12345678,-{caller};arm-smmu-v3 {smmu}: {text}\n"
        f" SUBSYSTEM=platform\n DEVICE=+platform:{smmu}\n"
    ).encode()


def dumped(words, **form):
    """Return the records that arm_smmu_dump_event writes for an event."""
    lines = [f"event 0x{words[0] & 0xFF:02x} received:", *(f"\t0x{word:016x}" for word in words)]
    lines += [
        f"event: F_TRANSLATION client: 0000:11:00.0 sid: 0x1100 ssid: 0x0 iova: {IOVA:#x} ipa: 0x0",
        'unpriv data write s2 "Input address caused fault" stag: 0x0',
    ]
    return [logged(line, **form) for line in lines]


OTHERS = [
    b"6,799,12345000,-;vfio-pci 0000:11:00.0: enabling device\n DEVICE=+pci:0000:11:00.0\n",
    b"4,798,12344000,c;arm_smmu_evtq_thread: 3 callbacks suppressed\n",
    b"6,797,12343000,-;\\x09\\xc3\\xa4;\\x5c\n",
    b"",
    b"\xff\x00;",
]


def feed(reader, record):
    """Read a record of /dev/kmsg; return the words of the event that it completes, if any."""
    line = reader.line(kernel_message(record))
    return None if line is None or not line.words else [*line.words]


def read(records):
    reader = EventReader()
    return [words for record in records if (words := feed(reader, record)) is not None]


FAULT = record(0x10, s2=1, kind=2, ipa=IPA)
OTHER_FAULT = record(0x13, kind=2)


@pytest.mark.parametrize("form", [{}, {"tab": "\t"}, {"caller": ",caller=T42"}])
def test_logged_events(form):
    records = dumped(FAULT, **form) + dumped(OTHER_FAULT, **form)
    assert read(records) == [FAULT, OTHER_FAULT]


@pytest.mark.parametrize("other", OTHERS)
def test_other_lines_between_those_of_an_event(other):
    records = [record for line in dumped(FAULT) for record in (other, line)]
    assert read(records) == [FAULT]


def test_interleaved_events_of_two_smmus():
    first, second = dumped(FAULT), dumped(OTHER_FAULT, smmu="arm-smmu-v3.1.auto")
    mixed = itertools.chain.from_iterable(zip(first, second, strict=True))
    assert read(mixed) == [FAULT, OTHER_FAULT]


def test_an_incomplete_event_is_ignored():
    assert read([*dumped(FAULT)[:3], *dumped(OTHER_FAULT)]) == [OTHER_FAULT]
    assert read([*dumped(FAULT)[2:], *dumped(OTHER_FAULT)]) == [OTHER_FAULT]


def test_an_event_with_overwritten_records_is_ignored():
    reader = EventReader()
    first, second = dumped(FAULT), dumped(OTHER_FAULT)
    for line in first[:4]:
        feed(reader, line)
    reader.clear()
    assert [feed(reader, line) for line in first[4:] + second].count(OTHER_FAULT) == 1


def test_words_without_an_announcement_are_ignored():
    assert read([logged("\t0x0000000000000010")] * 8) == []
    assert read([logged("unexpected PRI request received:"), *dumped(FAULT)[1:]]) == []


def test_records_of_programs_are_ignored():
    """A program that may write to /dev/kmsg writes as another facility."""
    records = [record.replace(b"3,", b"11,", 1) for record in dumped(FAULT)]
    assert read([*records, *dumped(OTHER_FAULT)]) == [OTHER_FAULT]
