"""The model against recordings: real ones agree, and whatever is changed in one is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from event_lines import event_of
from hypothesis import given, settings
from recording.hand_made import NVME, recording, seen
from strategies import scenarios

from vmm_msi.config import Choice
from vmm_msi.engine.compare import compare
from vmm_msi.errors import UsageError
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.recording import (
    Log,
    Recording,
    Releases,
    SeenDevice,
    SeenEvent,
    SeenVector,
    Slot,
    recording_json,
)
from vmm_msi.recording.recorder import slots_of
from vmm_msi.recording.replay import replay
from vmm_msi.report.replay import to_json, to_lines
from vmm_msi.types import Iova, Outcome, PciAddress, StreamId

# vmm-msi lab guest --devices nvme,nvme --vsmmus 2 --record two-nvmes.json
# vmm-msi lab guest --no-rmr --record no-rmr.json
REAL = Path(__file__).parent
FAULT = SmmuEvent(EventKind.F_TRANSLATION, 1, StreamId(0x1100), Iova(0x8000040))


@pytest.fixture(scope="module")
def plugins():
    return PluginManager.load()


def replayed(plugins, made, choice=None):
    return replay(made, plugins, "first-in-group", choice)


def differs(plugins, made):
    found = replayed(plugins, made)
    assert not found.agrees
    return [*(t for each in found.devices for t in each.disagreements), *found.disagreements]


def without_rmr(event=FAULT, counts=(0, 0)):
    made = recording(devices=(seen(counts=counts),), events=(SeenEvent(NVME, Log.GUEST, event),))
    return replace(made, guest=replace(made.guest, honours_rmr=False))


def test_a_guest_of_two_drives_that_ran(plugins):
    found = replayed(plugins, recording_json.read(REAL / "two-nvmes.json"))
    assert [each.outcome for each in found.devices] == ["delivered", "delivered"]
    assert [each.verdict.programmed for each in found.devices] == [0x8000040, 0x8000040]
    assert found.agrees
    assert found.recording.unread == ()


def test_a_guest_without_rmr_that_ran(plugins):
    found = replayed(plugins, recording_json.read(REAL / "no-rmr.json"))
    (device,) = found.devices
    assert device.seen.interrupts == 0
    assert device.fault == FAULT
    assert (device.outcome, device.verdict.outcome) == ("s1-fault", Outcome.S1_FAULT)
    assert found.agrees


def test_the_healthy_one_by_hand(plugins):
    found = replayed(plugins, recording())
    assert found.agrees
    assert found.kernel == "linux-7.2"
    assert (found.devices[0].slot, found.devices[0].model_slot) == (0, 0)


def test_the_one_without_rmr_by_hand(plugins):
    assert replayed(plugins, without_rmr()).agrees


def test_a_wrong_slot(plugins):
    made = recording(slots=(Slot(Iova(0x8000000), 1),))
    assert differs(plugins, made) == [
        "slot at 0x8000000: recorded for ITS 1; the model has ITS 0 there"
    ]


def test_a_wrong_address(plugins):
    made = recording(devices=(seen(Iova(0x8001040)),), slots=(Slot(Iova(0x8001000), 0),))
    assert differs(plugins, made) == [
        (
            "it was programmed with 0x8001040, the model's with 0x8000040; a device that was "
            "unplugged before may have a slot that is not recorded"
        ),
        "slot at 0x8001000: recorded for ITS 0; the model uses no such slot",
        "slot at 0x8000000: the model has ITS 0 there; none is recorded",
    ]


def test_a_lost_interrupt(plugins):
    assert differs(plugins, recording(devices=(seen(counts=(0, 0)),))) == [
        "no interrupt was counted and no fault logged; on the model they are delivered"
    ]


def test_interrupts_that_cannot_have_come(plugins):
    made = replace(without_rmr(counts=(10, 1001)), events=())
    assert differs(plugins, made) == [
        (
            "1011 interrupts were counted; on the model they are s1-fault: F_TRANSLATION (stage 1) "
            "StreamID 0x1100, IOVA 0x8000040"
        )
    ]


def test_a_fault_at_another_address(plugins):
    made = without_rmr(replace(FAULT, iova=Iova(0x8001040)))
    assert differs(plugins, made) == [
        "the fault was at IOVA 0x8001040; on the model it is at 0x8000040"
    ]


def test_a_fault_at_another_stage(plugins):
    assert differs(plugins, without_rmr(replace(FAULT, stage=2))) == [
        (
            "F_TRANSLATION (stage 2) StreamID 0x1100, IOVA 0x8000040 was logged; on the model they "
            "are s1-fault: F_TRANSLATION (stage 1) StreamID 0x1100, IOVA 0x8000040"
        )
    ]


def test_a_fault_and_interrupts(plugins):
    assert differs(plugins, without_rmr(counts=(1, 0))) == [
        (
            "F_TRANSLATION (stage 1) StreamID 0x1100, IOVA 0x8000040 was logged, and 1 interrupts "
            "were counted; on the model all MSIs of a device are alike, here s1-fault"
        )
    ]


def test_a_fault_of_ordinary_dma_is_no_msi(plugins):
    event = replace(FAULT, iova=Iova(0x12345000))
    made = recording(events=(SeenEvent(NVME, Log.GUEST, event),))
    found = replayed(plugins, made)
    assert found.agrees
    assert found.devices[0].notes == (
        (
            "F_TRANSLATION (stage 1) StreamID 0x1100, IOVA 0x12345000 is of ordinary DMA; it was "
            "not compared"
        ),
    )


def test_a_host_that_counts_no_interrupt_of_a_guest(plugins):
    found = replayed(plugins, recording(devices=(seen(counts=(0, 0)),), vlpis=True))
    assert found.agrees
    assert found.devices[0].notes == (
        "the host's kernel gives MSIs to guests directly (GICv4) and counted none",
    )


def test_a_device_whose_msis_are_off(plugins):
    found = replayed(plugins, recording(devices=(SeenDevice(NVME, "identity"),), slots=()))
    assert found.agrees
    assert found.devices[0].notes == (
        "the guest had no MSI of it enabled; what becomes of one was not compared",
        "no address of an MSI was read; it was not compared",
    )


def test_slots_in_the_order_of_their_first_use(plugins):
    """Two drives on two ITSes: the one that came second in the XML was the first to be used."""
    other = PciAddress.parse("0000:21:00.0")
    made = recording()
    first = made.host.devices[0]
    second = replace(
        first, address=other, its_group=(1,), stream_id=StreamId(0x2100), iommu_group=2
    )
    guest = made.guest
    stage1 = replace(guest.stage1[0], id="second")
    both = replace(
        guest,
        stage1=(*guest.stage1, stage1),
        devices=(*guest.devices, replace(guest.devices[0], host=other, stage1="second")),
    )
    made = replace(
        made,
        host=replace(made.host, devices=(first, second)),
        guest=both,
        devices=(seen(Iova(0x8001040)), replace(seen(), address=other)),
        slots=(Slot(Iova(0x8000000), 1), Slot(Iova(0x8001000), 0)),
    )
    found = replayed(plugins, made)
    assert [each.verdict.programmed for each in found.devices] == [0x8001040, 0x8000040]
    assert found.agrees


def test_what_another_strategy_would_have_done(plugins):
    found = replayed(plugins, recording(), Choice.parse("host-cookie"))
    assert not found.agrees
    assert found.devices[0].disagreements == (
        (
            "1011 interrupts were counted; on the model they are s1-fault: F_TRANSLATION (stage 1) "
            "StreamID 0x1100, IOVA 0x8000040"
        ),
    )


def test_a_strategy_that_is_not_installed(plugins):
    with pytest.raises(UsageError, match="novel"):
        replayed(plugins, recording(devices=(seen(strategy="novel"),)))


def test_what_is_printed(plugins):
    assert list(to_lines(replayed(plugins, without_rmr()))) == [
        "recorded on Linux 7.2.12, libvirt 12.8.0, QEMU 11.1.2 by vmm-msi 0.1.0",
        "modelled on linux-7.2",
        "device        strategy            programmed  slot  ITS  outcome   agree?",
        "------------  --------  --------  ----------  ----  ---  --------  ------",
        "0000:11:00.0  identity  recorded  0x8000040   0     0    s1-fault",
        "              identity  model     0x8000040   0     -    s1-fault  yes",
        "the model agrees",
    ]


def test_what_programs_get(plugins):
    document = to_json(replayed(plugins, recording(slots=(Slot(Iova(0x8000000), 1),))))
    assert document["agrees"] is False
    assert document["disagreements"] == [
        "slot at 0x8000000: recorded for ITS 1; the model has ITS 0 there"
    ]
    assert document["devices"][0]["recorded"] == {
        "strategy": "identity",
        "programmed": ["0x8000040"],
        "slot": 0,
        "its": 0,
        "interrupts": 1011,
        "outcome": "delivered",
        "fault": None,
    }
    assert document["devices"][0]["model"] == {
        "strategy": "identity",
        "programmed": "0x8000040",
        "slot": 0,
        "its": 0,
        "outcome": "delivered",
        "reason": "",
    }


@settings(deadline=None, max_examples=60)
@given(scenarios())
def test_what_the_model_says_is_what_it_says_again(plugins, counts, scenario):
    """A recording of what the model made of a guest goes through a file and agrees with it."""
    for choice in plugins.choices():
        (result,) = compare(plugins, scenario, [choice], "first-in-group")
        made = of_model(scenario, choice, {each.device: each for each in result.verdicts})
        found = replayed(
            plugins, recording_json.decode(recording_json.encode(made), "run.json"), choice
        )
        assert found.agrees, (choice, found)
        counts["recordings of random scenarios that were replayed"] += 1


def of_model(scenario, choice, verdicts):
    """Return the recording that a host would make where the model is right."""
    host, guest = scenario.host, scenario.guest
    devices, events = [], []
    for address, verdict in verdicts.items():
        count = 5 if verdict.outcome is Outcome.DELIVERED else 0
        if verdict.outcome in (Outcome.S1_FAULT, Outcome.S2_FAULT):
            events.append(SeenEvent(address, Log.HOST, event_of(host, verdict)))
        programmed = verdict.programmed
        vectors = () if programmed is None else (SeenVector(0, programmed, count),)
        devices.append(SeenDevice(address, choice.strategy, {}, vectors))
    host = replace(
        host,
        devices=tuple(host.device_by_address[device.address] for device in devices),
        routes=(),
        functions=(),
    )
    slots = slots_of(devices, host)
    return Recording(Releases("0.1.0"), host, guest, tuple(devices), slots, tuple(events))
