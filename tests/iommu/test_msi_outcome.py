"""The verdict on an MSI of a real device, for each way in which it can arrive."""

from __future__ import annotations

import pytest

from vmm_msi.iommu.linux.msi_outcome import verdict_of
from vmm_msi.iommu.linux.raise_msi import Arrival
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import (
    DeviceId,
    Granule,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    Outcome,
    Pa,
    PciAddress,
    Smmu,
    StreamId,
)

STREAM = StreamId(0x1100)
PROGRAMMED = Iova(0xFFFF_F040)
DEVICE = HostDevice(PciAddress(0, 0x11, 0, 0), 0, STREAM, (0,), DeviceId(0x1100), 3, 4)
HOST = HostTopology(
    "test",
    Granule.K4,
    (Smmu(0),),
    (Its(0, Pa(0x2_0000_0000)), Its(5, Pa(0x2_0100_0000))),
    (DEVICE,),
)
S1_EVENT = SmmuEvent(EventKind.F_TRANSLATION, 1, STREAM, PROGRAMMED)
S2_EVENT = SmmuEvent(EventKind.F_PERMISSION, 2, STREAM, PROGRAMMED, Ipa(0x809_0040))
CONFIGURATION_EVENT = SmmuEvent(EventKind.C_BAD_STE, 0, STREAM, Iova(0))

DELIVERED, MISROUTED = Outcome.DELIVERED, Outcome.MISROUTED


@pytest.mark.parametrize(
    ("arrival", "outcome", "its", "reason"),
    [
        (Arrival(event=S1_EVENT), Outcome.S1_FAULT, None, str(S1_EVENT)),
        (Arrival(event=S2_EVENT, logged=True), Outcome.S2_FAULT, None, str(S2_EVENT)),
        (Arrival(event=CONFIGURATION_EVENT), Outcome.S1_FAULT, None, str(CONFIGURATION_EVENT)),
        (Arrival(interrupt=True), DELIVERED, 0, ""),
        (Arrival(written=(0, 0x40, 2)), DELIVERED, 0, ""),
        (Arrival(written=(0, 0x44, 2)), MISROUTED, 0, "written at 0x44 of the page"),
        (Arrival(written=(1, 0x40, 2)), MISROUTED, 5, "ITS 5 does not know DeviceID 0x1100"),
        (Arrival(written=(0, 0x40, 3)), MISROUTED, 0, "EventID 2 was sent, 3 arrived"),
        (Arrival(sent=False), MISROUTED, None, "MSIs are off in the device"),
        (Arrival(), MISROUTED, None, "no doorbell was written to"),
    ],
)
def test_outcome(arrival, outcome, its, reason):
    verdict = verdict_of(HOST, DEVICE, PROGRAMMED, arrival, 0x1000, vector=2)
    assert (verdict.outcome, verdict.its, verdict.expected_its) == (outcome, its, 0)
    assert verdict.reason.startswith(reason)
    assert bool(verdict.reason) == bool(reason)
    assert (verdict.device, verdict.count, verdict.programmed) == (DEVICE.address, 4, PROGRAMMED)


@pytest.mark.parametrize(
    ("arrival", "last"),
    [
        (Arrival(event=S1_EVENT), ("s1", {"iova": "0xfffff040", "fault": "F_TRANSLATION"})),
        (
            Arrival(event=S2_EVENT),
            ("s2", {"iova": "0xfffff040", "ipa": "0x8090040", "fault": "F_PERMISSION"}),
        ),
        (Arrival(interrupt=True), ("its", {"its": 0, "interrupt": "eventfd"})),
        (Arrival(written=(1, 0x40, 7)), ("doorbell", {"its": 5, "data": 7})),
        (Arrival(), ("programmed", {"iova": "0xfffff040"})),
    ],
)
def test_trace(arrival, last):
    first, *_, step = (None, *verdict_of(HOST, DEVICE, PROGRAMMED, arrival, 0x1000).trace)
    assert first is None
    assert (step.step, dict(step.values)) == last
