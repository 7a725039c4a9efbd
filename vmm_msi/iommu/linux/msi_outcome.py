"""What became of an MSI, from where it came out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.types import Outcome, TraceStep, Verdict

if TYPE_CHECKING:
    from vmm_msi.iommu.linux.raise_msi import Arrival
    from vmm_msi.iommu.smmu_events import SmmuEvent
    from vmm_msi.types import HostDevice, HostTopology, Iova


def verdict_of(
    host: HostTopology,
    device: HostDevice,
    programmed: Iova,
    arrival: Arrival,
    page_size: int,
    vector: int = 0,
) -> Verdict:
    """Return the verdict on an MSI of ``device``.

    :param programmed: the address in the device.
    :param page_size: PAGE_SIZE of the running kernel.
    :param vector: which of its MSIs, and the data of it.
    """
    steps = [TraceStep("programmed", {"iova": str(programmed)})]
    outcome, reached, reason = Outcome.MISROUTED, None, ""
    if arrival.event is not None:
        outcome, reason = _fault(arrival.event)
        steps.append(_fault_step(arrival.event, programmed))
    elif arrival.interrupt:
        outcome, reached = Outcome.DELIVERED, device.its
        steps.append(TraceStep("its", {"its": reached, "interrupt": "eventfd"}))
    elif arrival.written is not None:
        page, offset, data = arrival.written
        its = host.itses[page]
        reached = its.id
        steps.append(TraceStep("doorbell", {"its": reached, "data": data}))
        if offset != its.doorbell & (page_size - 1):
            reason = f"it was written at {offset:#x} of the page, where no doorbell is"
        elif reached != device.its:
            reason = f"ITS {reached} does not know DeviceID {device.device_id}"
        elif data != vector:
            reason = f"EventID {vector} was sent and {data} came out"
        else:
            outcome = Outcome.DELIVERED
    elif not arrival.sent:
        reason = "MSIs are off in the device: something switched them off behind VFIO"
    else:
        reason = "no doorbell was written to and no fault was reported"
    return Verdict(
        device.address,
        0,
        device.vectors,
        outcome,
        reached,
        device.its,
        programmed,
        reason=reason,
        trace=tuple(steps),
    )


def _fault(event: SmmuEvent) -> tuple[Outcome, str]:
    outcome = Outcome.S2_FAULT if event.stage == 2 else Outcome.S1_FAULT
    return outcome, str(event)


def _fault_step(event: SmmuEvent, programmed: Iova) -> TraceStep:
    values: dict[str, str | int | None] = {"iova": str(programmed)}
    if event.ipa is not None:
        values["ipa"] = str(event.ipa)
    return TraceStep("s2" if event.stage == 2 else "s1", {**values, "fault": event.kind.name})
