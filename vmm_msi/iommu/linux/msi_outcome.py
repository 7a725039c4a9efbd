"""The verdict on an MSI, from where it arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.types import Outcome, TraceStep, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.iommu.linux.raise_msi import Arrival
    from vmm_msi.iommu.smmu_events import SmmuEvent
    from vmm_msi.types import DeviceId, HostDevice, HostTopology, Iova


class _Msi(NamedTuple):
    """An MSI that was raised, and its arrival.

    :param expected_its: the device's ITS, and ``device_id`` its DeviceID there.
    :param its: the ITS whose witness page was written to; None if none was.
    :param doorbell: offset of that ITS's doorbell in its page.
    :param offset: offset of the write in the page, and ``data`` its data.
    """

    vector: int
    expected_its: int
    device_id: DeviceId
    event: SmmuEvent | None
    interrupt: bool
    sent: bool
    its: int | None = None
    doorbell: int = 0
    offset: int = 0
    data: int = 0


class _Rule(NamedTuple):
    """A line of the table of outcomes.

    :param reason: a format string with the fields of :class:`_Msi`.
    """

    applies: Callable[[_Msi], bool]
    outcome: Outcome
    reason: str = ""


#: The first rule that applies gives the outcome.
_RULES = (
    _Rule(lambda m: m.event is not None and m.event.stage == 2, Outcome.S2_FAULT, "{event}"),
    _Rule(lambda m: m.event is not None, Outcome.S1_FAULT, "{event}"),
    _Rule(lambda m: m.interrupt, Outcome.DELIVERED),
    _Rule(
        lambda m: m.its is None and not m.sent,
        Outcome.MISROUTED,
        "MSIs are off in the device: they were switched off without VFIO",
    ),
    _Rule(
        lambda m: m.its is None,
        Outcome.MISROUTED,
        "no doorbell was written to and no fault was reported",
    ),
    _Rule(
        lambda m: m.offset != m.doorbell,
        Outcome.MISROUTED,
        "written at {offset:#x} of the page, where no doorbell is",
    ),
    _Rule(
        lambda m: m.its != m.expected_its,
        Outcome.MISROUTED,
        "ITS {its} does not know DeviceID {device_id}",
    ),
    _Rule(
        lambda m: m.data != m.vector, Outcome.MISROUTED, "EventID {vector} was sent, {data} arrived"
    ),
    _Rule(lambda _: True, Outcome.DELIVERED),
)


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
    :param vector: number of the MSI, and its data.
    """
    msi = _msi(host, device, arrival, page_size, vector)
    rule = next(rule for rule in _RULES if rule.applies(msi))
    return Verdict(
        device.address,
        0,
        device.vectors,
        rule.outcome,
        device.its if arrival.interrupt else msi.its,
        device.its,
        programmed,
        reason=rule.reason.format(**msi._asdict()),
        trace=(TraceStep("programmed", {"iova": str(programmed)}), *_trace(msi, programmed)),
    )


def _msi(
    host: HostTopology, device: HostDevice, arrival: Arrival, page_size: int, vector: int
) -> _Msi:
    msi = _Msi(vector, device.its, device.device_id, arrival.event, arrival.interrupt, arrival.sent)
    if arrival.written is None:
        return msi
    page, offset, data = arrival.written
    its = host.itses[page]
    doorbell = its.doorbell & (page_size - 1)
    return msi._replace(its=its.id, doorbell=doorbell, offset=offset, data=data)


def _trace(msi: _Msi, programmed: Iova) -> list[TraceStep]:
    """Return the step of the trace at which the MSI arrived, if it did."""
    event = msi.event
    if event is not None:
        values: dict[str, str | int | None] = {"iova": str(programmed)}
        if event.ipa is not None:
            values["ipa"] = str(event.ipa)
        values["fault"] = event.kind.name
        return [TraceStep("s2" if event.stage == 2 else "s1", values)]
    if msi.interrupt:
        return [TraceStep("its", {"its": msi.expected_its, "interrupt": "eventfd"})]
    if msi.its is not None:
        return [TraceStep("doorbell", {"its": msi.its, "data": msi.data})]
    return []
