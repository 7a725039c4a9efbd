"""Replay: real recordings agree with the simulator, and every change in one is reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from event_lines import event_of
from hypothesis import given, settings
from random_scenarios import scenarios
from recording.hand_made import NVME, recorded, recording

from vmm_msi.config import Choice
from vmm_msi.engine.compare import compare
from vmm_msi.errors import UsageError
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.recording import (
    LogOrigin,
    RecordedBinding,
    RecordedDevice,
    RecordedEvent,
    RecordedVector,
    Recording,
    Releases,
    Slot,
    recording_json,
)
from vmm_msi.recording.recorder import slots_of
from vmm_msi.recording.replay import replay
from vmm_msi.report.replay import to_json, to_lines
from vmm_msi.types import Iova, Ipa, Outcome, Pa, PciAddress, StreamId

# vmm-msi lab guest --devices nvme,nvme --vsmmus 2 --record two-nvmes.json
# vmm-msi lab guest --no-rmr --record no-rmr.json
# vmm-msi lab guest --strategy direct --then wrong-giova,rebind --record direct.json
# withdrawn.json: vmm-msi record, for the withdrawn binding of lab/test_kernel_binder.py
REAL = Path(__file__).parent
FAULT = SmmuEvent(EventKind.F_TRANSLATION, 1, StreamId(0x1100), Iova(0x8000040))


@pytest.fixture(scope="module")
def plugins():
    return PluginManager.load()


def replayed(plugins, recording, choice=None):
    return replay(recording, plugins, "first-in-group", choice)


def test_recording_of_a_guest_that_the_kernel_bound(plugins):
    """The fault is of the wrong gIOVA, before vmm-msi watch repaired the binding."""
    real = recording_json.read(REAL / "direct.json")
    (device,) = real.devices
    binding = RecordedBinding(Iova(0xFFFFF000), Ipa(0x8090000), 12, Pa(0x8090000), used=True)
    assert (device.strategy, device.bindings) == ("direct", (binding,))
    assert [event.event.iova for event in real.events] == [0x100040]
    result = replayed(plugins, real)
    assert (result.agrees, result.kernel) == (True, "linux-7.2-bind")
    # The guest's own address is what the kernel has, not what Linux is expected to choose.
    moved = replace(binding, giova=Iova(0xFFEFF000))
    assert disagreements(plugins, replace(real, guest=_with_giova(real.guest, moved.giova)))


def test_recording_of_a_withdrawn_binding(plugins):
    """A guest without RMR and with two drives, of which one has no binding any more."""
    real = recording_json.read(REAL / "withdrawn.json")
    first, second = real.devices
    assert (len(first.bindings), second.bindings) == (1, ())
    assert [event.event.iova for event in real.events] == [0x8000040]
    result = replayed(plugins, real)
    assert (result.agrees, result.kernel) == (False, "linux-7.2-bind")
    bound, withdrawn = result.devices
    assert (bound.outcome, bound.disagreements) == ("delivered", ())
    assert (withdrawn.outcome, withdrawn.verdict.outcome) == ("s1-fault", Outcome.DELIVERED)
    assert withdrawn.disagreements[0] == (
        "programmed with 0x8000040, in the simulator with 0xfffff040; the kernel had no binding "
        "of its doorbell: see vmm-msi status"
    )


def _with_giova(guest, giova):
    return replace(guest, devices=tuple(replace(d, giova=giova) for d in guest.devices))


def disagreements(plugins, recording):
    result = replayed(plugins, recording)
    assert not result.agrees
    of_devices = (text for device in result.devices for text in device.disagreements)
    return [*of_devices, *result.disagreements]


def without_rmr(event=FAULT, counts=(0, 0)):
    events = (RecordedEvent(NVME, LogOrigin.GUEST, event),)
    changed = recording(devices=(recorded(counts=counts),), events=events)
    return replace(changed, guest=replace(changed.guest, honours_rmr=False))


def test_a_real_guest_with_two_drives(plugins):
    result = replayed(plugins, recording_json.read(REAL / "two-nvmes.json"))
    assert [device.outcome for device in result.devices] == ["delivered", "delivered"]
    assert [device.verdict.programmed for device in result.devices] == [0x8000040, 0x8000040]
    assert result.agrees
    assert result.recording.unread == ()


def test_a_real_guest_without_rmr(plugins):
    result = replayed(plugins, recording_json.read(REAL / "no-rmr.json"))
    (device,) = result.devices
    assert device.recorded.interrupts == 0
    assert device.fault == FAULT
    assert (device.outcome, device.verdict.outcome) == ("s1-fault", Outcome.S1_FAULT)
    assert result.agrees


def test_a_handwritten_recording(plugins):
    result = replayed(plugins, recording())
    assert result.agrees
    assert result.kernel == "linux-7.2"
    assert (result.devices[0].slot, result.devices[0].simulated_slot) == (0, 0)


def test_a_handwritten_recording_without_rmr(plugins):
    assert replayed(plugins, without_rmr()).agrees


def test_a_wrong_slot(plugins):
    changed = recording(slots=(Slot(Iova(0x8000000), 1),))
    assert disagreements(plugins, changed) == [
        "slot at 0x8000000: recorded for ITS 1, in the simulator for ITS 0"
    ]


def test_a_wrong_address(plugins):
    changed = recording(devices=(recorded(Iova(0x8001040)),), slots=(Slot(Iova(0x8001000), 0),))
    assert disagreements(plugins, changed) == [
        (
            "programmed with 0x8001040, in the simulator with 0x8000040; an unplugged device may "
            "still hold a slot that is not recorded"
        ),
        "slot at 0x8001000: recorded for ITS 0, unused in the simulator",
        "slot at 0x8000000: not recorded, in the simulator for ITS 0",
    ]


def test_a_lost_interrupt(plugins):
    assert disagreements(plugins, recording(devices=(recorded(counts=(0, 0)),))) == [
        "no interrupt was counted and no fault was logged; in the simulator its MSIs are delivered"
    ]


def test_interrupts_despite_a_simulated_fault(plugins):
    changed = replace(without_rmr(counts=(10, 1001)), events=())
    assert disagreements(plugins, changed) == [
        (
            "1011 interrupts were counted; in the simulator its MSIs are s1-fault: F_TRANSLATION "
            "(stage 1) StreamID 0x1100, IOVA 0x8000040"
        )
    ]


def test_a_fault_at_another_address(plugins):
    changed = without_rmr(replace(FAULT, iova=Iova(0x8001040)))
    assert disagreements(plugins, changed) == [
        "the fault was at IOVA 0x8001040, in the simulator it is at 0x8000040"
    ]


def test_a_fault_at_another_stage(plugins):
    assert disagreements(plugins, without_rmr(replace(FAULT, stage=2))) == [
        (
            "F_TRANSLATION (stage 2) StreamID 0x1100, IOVA 0x8000040 was logged; in the simulator "
            "its MSIs are s1-fault: F_TRANSLATION (stage 1) StreamID 0x1100, IOVA 0x8000040"
        )
    ]


def test_a_fault_and_interrupts(plugins):
    assert disagreements(plugins, without_rmr(counts=(1, 0))) == [
        (
            "F_TRANSLATION (stage 1) StreamID 0x1100, IOVA 0x8000040 was logged, but 1 interrupt "
            "was counted; in the simulator all MSIs of a device have one outcome, here s1-fault"
        )
    ]


def test_a_fault_of_ordinary_dma_is_not_compared(plugins):
    event = replace(FAULT, iova=Iova(0x12345000))
    changed = recording(events=(RecordedEvent(NVME, LogOrigin.GUEST, event),))
    result = replayed(plugins, changed)
    assert result.agrees
    assert result.devices[0].notes == (
        (
            "F_TRANSLATION (stage 1) StreamID 0x1100, IOVA 0x12345000 is from ordinary DMA and is "
            "not compared"
        ),
    )


def test_a_host_that_does_not_count_interrupts(plugins):
    result = replayed(plugins, recording(devices=(recorded(counts=(0, 0)),), vlpis=True))
    assert result.agrees
    assert result.devices[0].notes == (
        "the host delivers MSIs to the guest directly (GICv4), so its kernel counts none",
    )


def test_a_device_whose_msis_are_off(plugins):
    result = replayed(plugins, recording(devices=(RecordedDevice(NVME, "identity"),), slots=()))
    assert result.agrees
    assert result.devices[0].notes == (
        "the guest had enabled no MSI of the device, so its outcome is not compared",
        "no address of an MSI was read, so none is compared",
    )


def test_slots_in_the_order_of_their_first_use(plugins):
    """Two drives on two ITSes: the second one in the XML was used first."""
    other = PciAddress.parse("0000:21:00.0")
    changed = recording()
    first = changed.host.devices[0]
    second = replace(
        first, address=other, its_group=(1,), stream_id=StreamId(0x2100), iommu_group=2
    )
    guest = changed.guest
    stage1 = replace(guest.stage1[0], id="second")
    both = replace(
        guest,
        stage1=(*guest.stage1, stage1),
        devices=(*guest.devices, replace(guest.devices[0], host=other, stage1="second")),
    )
    changed = replace(
        changed,
        host=replace(changed.host, devices=(first, second)),
        guest=both,
        devices=(recorded(Iova(0x8001040)), replace(recorded(), address=other)),
        slots=(Slot(Iova(0x8000000), 1), Slot(Iova(0x8001000), 0)),
    )
    result = replayed(plugins, changed)
    assert [device.verdict.programmed for device in result.devices] == [0x8001040, 0x8000040]
    assert result.agrees


def test_outcomewith_another_strategy(plugins):
    result = replayed(plugins, recording(), Choice.parse("host-cookie"))
    assert not result.agrees
    assert result.devices[0].disagreements == (
        (
            "1011 interrupts were counted; in the simulator its MSIs are s1-fault: F_TRANSLATION "
            "(stage 1) StreamID 0x1100, IOVA 0x8000040"
        ),
    )


def test_a_strategy_that_is_not_installed(plugins):
    with pytest.raises(UsageError, match="novel"):
        replayed(plugins, recording(devices=(recorded(strategy="novel"),)))


def test_lines(plugins):
    assert list(to_lines(replayed(plugins, without_rmr()))) == [
        "recorded on Linux 7.2.12, libvirt 12.8.0, QEMU 11.1.2 by vmm-msi 0.1.0",
        "simulated kernel: linux-7.2",
        "device        strategy             programmed  slot  ITS  outcome   agree?",
        "------------  --------  ---------  ----------  ----  ---  --------  ------",
        "0000:11:00.0  identity  recorded   0x8000040   0     0    s1-fault",
        "              identity  simulator  0x8000040   0     -    s1-fault  yes",
        "the simulator agrees",
    ]


def test_json(plugins):
    document = to_json(replayed(plugins, recording(slots=(Slot(Iova(0x8000000), 1),))))
    assert document["agrees"] is False
    assert document["disagreements"] == [
        "slot at 0x8000000: recorded for ITS 1, in the simulator for ITS 0"
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


DEVICE = """
[[host.device]]
address = "{address}"
smmu = 0
its_group = [{its}]
iommu_group = {group}

[[guest.device]]
host = "{address}"
stage1 = "{stage1}"
vits = 0
giova = 0xfffff000
"""


def test_a_refused_device_of_a_group_stays_behind_the_attached_one(plugins):
    """Device 3 is refused for its group's stage 1; the order of slots has device 4 before 2."""
    text = """
[host]
granule = "4K"
smmu = [{id = 0}]
its = [{id = 0, base = 0x200000000}, {id = 1, base = 0x200040000}]

[guest]
honours_rmr = true
vits = [{id = 0, base = 0x08080000}]
stage1 = [{id = "shared", granule = "4K"}, {id = "own", granule = "4K"}]
"""
    for number, (its, group, stage1) in enumerate(
        [(1, 1, "shared"), (0, 4, "own"), (0, 4, "shared"), (1, 1, "shared")], 1
    ):
        address = f"0000:0{number}:00.0"
        text += DEVICE.format(address=address, its=its, group=group, stage1=stage1)
    scenario = parse_scenario(text, "groups.toml")
    choice = Choice.parse("identity")
    (result,) = compare(plugins, scenario, [choice], "first-in-group")
    outcomes = [verdict.outcome for verdict in result.verdicts]
    assert outcomes == [Outcome.DELIVERED, Outcome.DELIVERED, Outcome.REFUSED, Outcome.DELIVERED]
    verdicts = {verdict.device: verdict for verdict in result.verdicts}
    assert replayed(plugins, simulated_recording(scenario, choice, verdicts), choice).agrees


@settings(deadline=None, max_examples=60)
@given(scenarios())
def test_recordings_of_simulated_guests_agree(plugins, counts, scenario):
    """A recording of a simulated guest is encoded, decoded and replayed, and agrees."""
    for choice in plugins.choices():
        (result,) = compare(plugins, scenario, [choice], "first-in-group")
        verdicts = {verdict.device: verdict for verdict in result.verdicts}
        data = recording_json.encode(simulated_recording(scenario, choice, verdicts))
        outcome = replayed(plugins, recording_json.decode(data, "run.json"), choice)
        assert outcome.agrees, (choice, outcome)
        counts["recordings of random scenarios that were replayed"] += 1


def simulated_recording(scenario, choice, verdicts):
    """Return the recording of a host that behaves like the simulator."""
    host, guest = scenario.host, scenario.guest
    devices, events = [], []
    for address, verdict in verdicts.items():
        count = 5 if verdict.outcome is Outcome.DELIVERED else 0
        if verdict.outcome in (Outcome.S1_FAULT, Outcome.S2_FAULT):
            events.append(RecordedEvent(address, LogOrigin.HOST, event_of(host, verdict)))
        programmed = verdict.programmed
        vectors = () if programmed is None else (RecordedVector(0, programmed, count),)
        devices.append(RecordedDevice(address, choice.strategy, {}, vectors))
    host = replace(
        host,
        devices=tuple(host.device_by_address[device.address] for device in devices),
        routes=(),
        functions=(),
    )
    slots = slots_of(devices, host)
    return Recording(Releases("0.1.0"), host, guest, tuple(devices), slots, tuple(events))
