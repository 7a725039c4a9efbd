"""Events in logs of all kinds, on a host, in a guest: which device, address, stage, mapping."""

from __future__ import annotations

from dataclasses import replace

import pytest
from described_host import load_host
from event_lines import decoded, raw, words

from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.explain.configuration import MEANINGS
from vmm_msi.explain.event_text import EventText
from vmm_msi.explain.explainer import MAX_EXPLAINED, explain
from vmm_msi.explain.explanation import Subject
from vmm_msi.explain.log_context import LogContext
from vmm_msi.explain.log_lines import lines
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.samples import path as sample
from vmm_msi.types import Granule, Iova, Ipa, PciAddress, StreamId

A, B = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0001:01:00.0")
HOST = load_host(sample("eight-its-server.dtb"), Granule.K4)
#: What Linux calls the first SMMU of that host, whose StreamID 0x100 others have as well.
FIRST = "30000000.iommu"
FAULT = SmmuEvent(EventKind.F_TRANSLATION, 1, StreamId(0x100), Iova(0x800_0040))
WINDOW = "page 0 of the SW MSI window"

#: guest0 as vmm-msi attach leaves it: A by identity, B by multi-its:mode=vsmmu.
GUEST = """\
<domain type='kvm'>
  <name>guest0</name>
  <metadata>
    <vmm-msi:domain xmlns:vmm-msi="https://vmm-msi.org/xmlns/libvirt/domain/1" metadata="added">
      <vmm-msi:vsmmu pxb="3" bus-nr="16" smmu="0" pci-bus="yes" accelerated="yes"/>
      <vmm-msi:device host="0000:01:00.0" strategy="identity" backend="qemu" pxb="3" root-port="4"
          smmu="0" its="0">
        <vmm-msi:binding giova="0xfffff000" gdb="0x8090000" programmed="0x8000040"/>
      </vmm-msi:device>
      <vmm-msi:device host="0001:01:00.0" strategy="multi-its" backend="qemu" pxb="3"
          root-port="5" smmu="0" its="1">
        <vmm-msi:option name="mode" value="vsmmu"/>
        <vmm-msi:binding giova="0xffffe000" gdb="0x8090000" programmed="0x8001040"/>
      </vmm-msi:device>
    </vmm-msi:domain>
  </metadata>
  <memory unit='GiB'>4</memory>
  <os firmware='efi'><type arch='aarch64' machine='virt'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='3' model='pcie-expander-bus'><target busNr='16'/></controller>
    <controller type='pci' index='4' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
    </controller>
    <controller type='pci' index='5' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x03' slot='0x01' function='0x0'/>
    </controller>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </hostdev>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0001' bus='0x01' slot='0x00' function='0x0'/></source>
      <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>
    </hostdev>
    <iommu model='smmuv3'><driver pciBus='3' accel='on'/></iommu>
  </devices>
</domain>
"""


def context(*, host=HOST, in_guest=False, without=""):
    xml = DomainXml.parse(GUEST.replace(without, ""), "guest0.xml")
    return LogContext(host, guest_from_xml(xml), xml, in_guest)


def only(text, known=None):
    report = explain("\n".join(text) if isinstance(text, list) else text, known or LogContext())
    assert report.unrecognised == 0
    (line,) = report.lines
    return line.explanation


def prefixed(text, prefix):
    return [f"{prefix}{line}" for line in text]


PREFIXES = [
    "",
    "[   12.345678] ",
    "[   12.345678][ T1234] ",
    "[Wed Nov 25 00:29:56 2026] ",
    "<3>[   12.345678] ",
    "kern  :err   : [   12.345678] ",
    "kern  :err   : [Wed Nov 25 00:29:56 2026] ",
    "3,812,12345678,-;",
    "3,812,12345678,-,caller=T42;",
    "Nov 25 00:29:56 host kernel: ",
    "Nov  5 00:29:56 host.example kernel: [   12.345678] ",
    "2026-11-25T00:29:56.123456+00:00 host kernel: [   12.345678] ",
    "2026-11-25T00:29:56+0000 host kernel: ",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_all_logs_are_removed(prefix):
    text = raw(FAULT) + decoded(FAULT, "0000:01:00.0")
    report = explain("\n".join(prefixed(text, prefix)), LogContext())
    (line,) = report.lines
    assert (line.line, line.count, report.unrecognised) == (1, 1, 0)
    assert line.text == "arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:"
    explanation = line.explanation
    assert explanation.what == (
        "event F_TRANSLATION at stage 1: the tables (the guest's, if it has the device behind a "
        "vSMMU) have no translation (unpriv data write)"
    )
    assert explanation.devices == (Subject(A),)
    assert (explanation.stream, explanation.stage, explanation.iova, explanation.ipa) == (
        0x100,
        1,
        0x800_0040,
        None,
    )
    assert explanation.iova_is == f"{WINDOW} (in 4K pages)"
    assert explanation.missing == "S1: 0x8000000 -> 0x8000000, of the window 0x8000000-0x80fffff"


def test_an_event_with_only_its_first_line():
    head = raw(FAULT)[0]
    report = explain(f"{head}\n{head}\n", LogContext())
    (line,) = report.lines
    assert (line.line, line.count, report.unrecognised) == (1, 2, 0)
    explanation = line.explanation
    assert (explanation.id, explanation.what) == (
        "smmu-F_TRANSLATION",
        "event F_TRANSLATION: the tables have no translation",
    )
    assert (
        explanation.why
        == "device, address and stage are in the lines after it, which are missing here"
    )
    (none,) = explain(head.replace("0x10", "0xfe"), LogContext()).lines
    assert none.explanation.id == "smmu-event-unknown"


def test_an_announced_event_is_the_decoded_one_after_it():
    """As ``dmesg | grep event`` shows it."""
    report = explain("\n".join([raw(FAULT)[0], *decoded(FAULT, "0000:01:00.0")]), LogContext())
    (line,) = report.lines
    assert (line.count, line.explanation.devices) == (1, (Subject(A),))


@pytest.mark.parametrize("before", range(1, 5))
def test_a_decoded_line_among_the_words_of_its_event(before):
    """A log that two programs wrote at once."""
    head, *rest = raw(FAULT)
    line, access = decoded(FAULT, "0000:01:00.0")
    text = [head, *rest[: before - 1], line, *rest[before - 1 :], access]
    report = explain("\n".join(text), LogContext())
    assert report.unrecognised == 0
    (explained,) = report.lines
    assert (explained.count, explained.explanation.devices) == (1, (Subject(A),))


def test_a_cut_off_event_is_not_merged_with_the_next():
    report = explain("\n".join([*raw(FAULT)[:3], *raw(FAULT)]), LogContext())
    assert [(line.line, line.explanation.stage) for line in report.lines] == [(1, None), (4, 1)]


S2 = SmmuEvent(EventKind.F_TRANSLATION, 2, StreamId(0x100), Iova(0xFFFF_F040), Ipa(0x809_0040))
WALK = SmmuEvent(
    EventKind.F_TRANSLATION, 2, StreamId(0x100), Iova(0xFFFF_F040), Ipa(0x4000_1000), True
)


@pytest.mark.parametrize("event", [FAULT, S2, WALK], ids=["s1", "s2", "walk"])
def test_words_and_decoded_lines_have_the_same_meaning(event):
    full = only(raw(event) + decoded(event, A))
    for text in (decoded(event, A), [*raw(event), decoded(event, A)[0]], raw(event)):
        explanation = only(text, context())
        assert (explanation.stage, explanation.iova, explanation.ipa) == (
            full.stage,
            full.iova,
            full.ipa,
        )
        assert explanation.devices == (context().subject(A),)
    assert full.stage == event.stage


def test_a_decoded_line_alone():
    explanation = only(decoded(S2, A)[0])
    assert (explanation.stage, explanation.ipa, explanation.devices) == (
        2,
        0x809_0000,
        (Subject(A),),
    )


def test_words_of_a_vevent():
    for text in (
        " ".join(f"{word:#x}" for word in words(FAULT)),
        " ".join(f"0x{word:016x}" for word in words(FAULT)),
        ", ".join(f"{word:016x}" for word in words(FAULT)),
    ):
        assert (only(text).stage, only(text).iova) == (1, 0x800_0040)


def test_a_device_unknown_to_the_driver():
    explanation = only(decoded(FAULT, "(unassigned sid)", FIRST), LogContext(HOST))
    assert [subject.address for subject in explanation.devices] == [A]


def test_the_host_gives_device_and_doorbell():
    explanation = only(raw(FAULT, FIRST), LogContext(HOST))
    assert explanation.devices == (Subject(A, None, "SMMU 0, ITS 0"),)
    assert explanation.iova_is == (
        f"{WINDOW}, which the kernel maps for MSIs of 0000:01:00.0 to ITS 0 (hDB 0x20010040)"
    )


def test_a_stream_of_several_smmus():
    explanation = only(raw(FAULT), LogContext(HOST))
    assert [str(subject.address) for subject in explanation.devices] == [
        "0000:01:00.0",
        "0002:01:00.0",
        "0004:01:00.0",
        "0006:01:00.0",
    ]
    assert [subject.address for subject in only(raw(FAULT), context()).devices] == [A]


def test_guest_and_record_are_named():
    (subject,) = only(raw(FAULT), context()).devices
    assert subject.note == "SMMU 0, ITS 0, in guest0, by identity, vSMMU on pxb 3"
    other = SmmuEvent(EventKind.F_TRANSLATION, 1, StreamId(0x108), Iova(0x1000))
    explanation = only(raw(other, FIRST), context())
    assert explanation.devices[0].note == "SMMU 0, ITS 0, not in guest0"
    assert explanation.what.startswith("event F_TRANSLATION at stage 1: the host's own tables have")
    assert explanation.why.startswith("the device is not in guest0")


@pytest.mark.parametrize(
    ("rid", "host"), [(0x1100, A), (0x1200, B), (0x1300, None)], ids=["port 4", "port 5", "none"]
)
def test_streams_in_a_guest(rid, host):
    known = context(in_guest=True)
    explanation = only(raw(replace(FAULT, stream_id=StreamId(rid))), known)
    (subject,) = explanation.devices
    assert (subject.guest_address, subject.address) == (PciAddress.from_rid(0, rid), host)
    named = only(decoded(replace(FAULT, stream_id=StreamId(rid)), subject.guest_address), known)
    assert named.devices == explanation.devices


# --- kinds of addresses -----------------------------------------------------------------------


def stage1(address, known=None):
    event = SmmuEvent(EventKind.F_TRANSLATION, 1, StreamId(0x100), Iova(address))
    return only(raw(event), known or context())


def stage2(address, known=None, kind=EventKind.F_TRANSLATION):
    event = SmmuEvent(kind, 2, StreamId(0x100), Iova(0xFFFF_F040), Ipa(address))
    return only(raw(event), known or context())


@pytest.mark.parametrize(
    ("address", "is_", "missing"),
    [
        (0x8002040, "page 2 of the SW MSI window, which", "S1: 0x8002000 -> 0x8002000, of the"),
        (0x8090040, "gDB, the doorbell of the guest's virtual ITS at 0x8080000", "S1: 0x8090000"),
        (0xFFFFF040, "the gIOVA that the guest maps", "S1: 0xfffff000 -> 0x8090000"),
        (0xFFFFE040, "the gIOVA of 0001:01:00.0", "S1 of the device: 0xffffe000 -> gDB"),
        (0xFFFFD040, "not a known doorbell, but", "S1 of the device: 0xffffd000"),
        (0x20010040, "hDB, the doorbell of the host's ITS 0", "S1: 0x20010000 -> 0x20010000"),
        (
            0x40000100,
            "as an IPA: RAM of guest0 (0x40000000-",
            "S1: 0x40000000 -> an IPA",
        ),
        (0x7654321000, "not a known doorbell", "S1: 0x7654321000 -> an IPA"),
    ],
)
def test_kinds_of_iovas(address, is_, missing):
    explanation = stage1(address)
    assert explanation.iova_is.startswith(is_)
    assert explanation.missing.startswith(missing)


@pytest.mark.parametrize(
    ("address", "is_", "missing"),
    [
        (0x8090040, "gDB, the doorbell", "S2: 0x8090000 (gDB) -> 0x20010040 (hDB, ITS 0)"),
        (0x8001040, "page 1 of the SW MSI", "S2: 0x8001000 -> 0x20010040 (hDB, ITS 0)"),
        (0x50000040, "RAM of guest0", "S2: 0x50000000 -> the guest's memory"),
        (0x20010040, "hDB, the doorbell of the host's ITS 0", "S2: 0x20010000 -> 0x20010000"),
        (0x10000040, "neither guest RAM nor a known doorbell", "S2: 0x10000000 -> no known target"),
    ],
)
def test_kinds_of_ipas(address, is_, missing):
    explanation = stage2(address)
    assert explanation.ipa_is.startswith(is_)
    assert explanation.missing == missing


def test_slots_have_the_page_size_of_the_host():
    """The 17th doorbell with 64K pages lies behind what the RMR covers."""
    known = replace(context(), host=replace(HOST, granule=Granule.K64))
    assert stage1(0x8010040, known).iova_is.startswith("page 1 of the SW MSI window")
    explanation = stage1(0x8100040, known)
    assert "page 16 of the SW MSI window" in explanation.iova_is
    assert "beyond the RMR" in explanation.iova_is
    assert explanation.remedies[0].what.startswith("use fewer pITSes in one guest")
    assert stage1(0x8100040).iova_is.startswith("not a known doorbell")


def test_with_64k_pages_the_tenth_slot_is_the_guests_doorbell_page():
    known = replace(context(), host=replace(HOST, granule=Granule.K64))
    assert stage1(0x8090040, known).iova_is.startswith(
        "gDB, the doorbell of the guest's virtual ITS at 0x8080000; also page 9 of the SW MSI"
    )
    assert stage1(0x8090040).iova_is == "gDB, the doorbell of the guest's virtual ITS at 0x8080000"


def test_permission_and_size():
    explanation = stage2(0x8090040, kind=EventKind.F_PERMISSION)
    assert explanation.missing == (
        "S2: 0x8090000 -> hDB, with write permission (IOMMU_IOAS_MAP_WRITEABLE)"
    )
    explanation = stage2(0xF_0000_0000_0000, kind=EventKind.F_ADDR_SIZE)
    assert [remedy.what for remedy in explanation.remedies] == [
        "vmm-msi attach guest0 0000:01:00.0 --vsmmu oas=44, the size that every pSMMU has"
    ]


def test_a_stage_1_table_without_stage_2_mapping():
    explanation = only(raw(WALK), context())
    assert "read for a stage 1 table" in explanation.what
    assert explanation.missing == "S2: 0x40001000 -> the guest's memory"


@pytest.mark.parametrize("kind", list(MEANINGS), ids=lambda kind: kind.name)
def test_configuration_errors(kind):
    event = SmmuEvent(kind, 0, StreamId(0x100), Iova(0))
    explanation = only(raw(event), context())
    assert explanation.id == f"smmu-{kind.name}"
    assert explanation.what.startswith(f"event {kind.name}: ")
    assert explanation.stage is None
    assert [subject.address for subject in explanation.devices] == [A]
    assert all("{" not in remedy.what for remedy in explanation.remedies)


def test_every_event_of_the_architecture_has_a_meaning():
    addressed = {"F_TRANSLATION", "F_ADDR_SIZE", "F_ACCESS", "F_PERMISSION"}
    assert {kind.name for kind in EventKind} == {kind.name for kind in MEANINGS} | addressed


def test_an_event_of_a_vendor():
    text = [line.replace("0x10 ", "0xe0 ") for line in raw(FAULT)]
    text[1] = text[1][:-2] + "e0"
    assert only(text).id == "smmu-event-unknown"


def test_a_trace_of_qemu():
    explanation = only("smmuv3_propagate_event F_TRANSLATION sid=0x1100")
    assert (explanation.id, explanation.stage, explanation.stream) == (
        "smmu-F_TRANSLATION",
        1,
        0x1100,
    )


# --- many lines ----------------------------------------------------------------------------------


def test_repeated_events_are_counted():
    other = replace(FAULT, iova=Iova(0x800_1040))
    text = [*raw(FAULT), "something else", *raw(other), *raw(FAULT), *raw(FAULT)]
    report = explain("\n".join(text), LogContext())
    assert [(f.explanation.iova, f.line, f.count) for f in report.lines] == [
        (0x800_0040, 1, 3),
        (0x800_1040, 7, 1),
    ]
    assert report.unrecognised == 1


def test_interleaved_events_of_two_smmus():
    other = replace(FAULT, iova=Iova(0x800_1040))
    first = raw(FAULT) + decoded(FAULT, A)
    second = raw(other, "arm-smmu-v3.1.auto") + decoded(other, B, "arm-smmu-v3.1.auto")
    mixed = [line for both in zip(first, second, strict=True) for line in both]
    report = explain("\n".join(mixed), LogContext())
    assert [(f.line, f.explanation.devices) for f in report.lines] == [
        (1, (Subject(A),)),
        (2, (Subject(B),)),
    ]


def test_suppressed_events_are_counted():
    report = explain("[  12.3] arm_smmu_evtq_thread: 37 callbacks suppressed", LogContext())
    assert (report.lines, report.suppressed, report.unrecognised) == ((), 37, 0)


def test_explanations_beyond_the_limit_are_counted():
    text = [
        line for i in range(MAX_EXPLAINED + 7) for line in raw(replace(FAULT, iova=Iova(i << 12)))
    ]
    report = explain("\n".join(text), LogContext())
    assert (len(report.lines), report.left_out) == (MAX_EXPLAINED, 7)


def test_a_cut_off_event_has_no_details():
    report = explain("\n".join(raw(FAULT)[:3]), LogContext())
    (line,) = report.lines
    explanation = line.explanation
    assert (explanation.devices, explanation.stream, explanation.stage, explanation.iova) == (
        (),
        None,
        None,
        None,
    )
    assert report.unrecognised == 0
    assert explain("\n".join(raw(FAULT)[2:]), LogContext()).unrecognised == 3


def test_an_event_is_returned_once():
    events = EventText()
    for line in lines("\n".join(raw(FAULT) + decoded(FAULT, A))):
        assert events.line(line, line.text) == len(line.text)
    assert events.take() == []
    assert len(events.end()) == 1
    assert events.end() == []
