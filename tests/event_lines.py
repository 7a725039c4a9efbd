"""Write SMMU events as Linux logs them, for the explainer to read."""

from __future__ import annotations

from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import Iova, Ipa

SMMU = "arm-smmu-v3.0.auto"
_CLASS = {0: "CD fetch", 1: "Stage 1 translation table fetch", 2: "Input address caused fault"}


def words(event):
    """Return the four words of an event record (IHI 0070, 7.3)."""
    kind = 1 if event.table_walk else 2
    second = (event.stage == 2) << 39 | kind << 40 if event.stage else 0
    ipa = 0 if event.ipa is None else event.ipa & ~0xFFF
    return [event.kind | event.stream_id << 32, second, event.iova, ipa]


def raw(event, smmu=SMMU):
    """Return the lines of arm_smmu_dump_raw_event."""
    lines = [f"event 0x{event.kind:02x} received:", *(f"\t0x{word:016x}" for word in words(event))]
    return [f"arm-smmu-v3 {smmu}: {line}" for line in lines]


def decoded(event, client, smmu=SMMU):
    """Return the lines that arm_smmu_dump_event adds on newer kernels."""
    _first, second, iova, ipa = words(event)
    head = f"event: {event.kind.name} client: {client} sid: {event.stream_id:#x} ssid: 0x0"
    lines = [head]
    if event.stage:
        stage = 2 if second & 1 << 39 else 1
        lines = [
            f"{head} iova: {iova:#x} ipa: {ipa:#x}",
            f'unpriv data write s{stage} "{_CLASS[second >> 40 & 3]}" stag: 0x0',
        ]
    return [f"arm-smmu-v3 {smmu}: {line}" for line in lines]


def event_of(host, verdict):
    """Return the event that the simulator reports for a faulting MSI."""
    last = verdict.trace[-1]
    stage = {"s1": 1, "s2": 2}[last.step]
    ipa = last.values.get("ipa")
    device = host.device_by_address[verdict.device]
    return SmmuEvent(
        EventKind[last.values["fault"]],
        stage,
        device.stream_id,
        Iova(verdict.programmed),
        None if ipa is None else Ipa(int(ipa, 16)),
        table_walk=stage == 2 and ipa is None,
    )
