"""A guest test as a page: what was predicted and what came, counts over time, vectors, faults."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from vmm_msi.pages.blocks import (
    Cell,
    Code,
    Heading,
    Items,
    Page,
    Picture,
    Section,
    Table,
    Terms,
    Text,
    Tone,
    cells,
)
from vmm_msi.pages.chart import Panel, Series, chart
from vmm_msi.pages.drawing import to_svg
from vmm_msi.quantity import quantity
from vmm_msi.report import lab_guest as text
from vmm_msi.types import Outcome
from vmm_msi.types.verdict import addresses_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_msi.lab.guest.result import DeviceRun, GuestTestResult, Phase
    from vmm_msi.pages.blocks import Block

#: Points of a course that formats without pictures print.
_SHOWN: Final = 6
_SEVERITIES: Final = {"error": Tone.BAD, "warning": Tone.WARNING, "note": Tone.QUIET}
_COLUMNS: Final = (
    "after",
    "device",
    "guest device",
    "driver",
    "work",
    "seconds",
    "operations",
    "interrupts",
)


def to_page(run: GuestTestResult, provenance: Mapping[str, str]) -> Page:
    """Return the test as a page.

    :param provenance: what the caller adds to the releases: version, date and command line.
    """
    devices = list(dict.fromkeys(device.host for phase in run.phases for device in phase.devices))
    return Page(
        f"Guest test of {quantity(len(devices), 'device')}",
        tuple(_blocks(run)),
        {**run.releases, **provenance},
        Table("Counts over time", _COLUMNS, tuple(_rows(run))),
    )


def _blocks(run: GuestTestResult) -> Iterator[Block]:
    if run.complete:
        yield Text("Every MSI reached its ITS and the guest.", Tone.GOOD)
    else:
        yield Text("An MSI was lost, or reached another ITS.", Tone.BAD)
    if not run.status_agrees:
        yield Text("vmm-msi status measured something else than the lab counted.", Tone.BAD)
    yield Heading("Predicted, and what came")
    if run.expected and not run.rmrs:
        yield Text(
            "The simulator predicted when the devices were attached; the RMRs were removed from "
            "the guest's IORT afterwards.",
            Tone.QUIET,
        )
    yield Table(
        "Prediction of the simulator at attach, and result after each action",
        ("device", "predicted", *(phase.after for phase in run.phases)),
        tuple(_predicted_rows(run)),
    )
    yield from _findings(run)
    for number, phase in enumerate(run.phases, 1):
        yield Section(f"After {phase.after}", tuple(_phase(phase)), f"phase-{number}")
    yield Heading("Faults")
    yield from _faults("host", run.host_faults)
    yield from _faults("guest", run.guest_faults)
    if run.explained:
        yield Section("Explanation of the faults", (Code(tuple(run.explained)),))
    yield Heading("The guest")
    yield Terms(tuple(_guest(run)))
    for title, lines in (
        ("Bindings in the emulated host's kernel", run.bindings),
        ("Log of vmm-msi watch", run.watch),
        ("Output of vmm-msi status", run.status),
    ):
        if lines:
            yield Section(title, (Code(tuple(lines)),), folded=True)


def _predicted_rows(run: GuestTestResult) -> Iterator[tuple[Cell, ...]]:
    results = [{device.host: device for device in phase.devices} for phase in run.phases]
    for host in dict.fromkeys(host for devices in results for host in devices):
        expected = run.expected.get(host)
        shown = "unknown"
        if expected is not None:
            at = f" at {addresses_text(expected.addresses)}" if expected.addresses else ""
            shown = f"{expected.outcome}{at}"
        came = (_came(devices.get(host)) for devices in results)
        tone = Tone.GOOD if shown.startswith(Outcome.DELIVERED) else None
        yield (Cell(str(host)), Cell(shown, tone), *came)


def _came(device: DeviceRun | None) -> Cell:
    """Return what became of a device's MSIs in one phase."""
    if device is None:
        return Cell("unplugged", Tone.QUIET)
    if device.guest is None:
        return Cell("not in the guest", Tone.BAD)
    if device.complete:
        return Cell(f"delivered: {quantity(device.arrived, 'interrupt')}", Tone.GOOD)
    if device.misrouted:
        places = ", ".join(f"{count} at {its}" for its, count in device.misrouted.items())
        return Cell(f"misrouted: {places}", Tone.BAD)
    faults = _new_faults(device)
    fault = f", {quantity(faults, 'fault')}" if faults else ""
    return Cell(
        f"{quantity(device.arrived, 'interrupt')} of {quantity(device.done, 'operation')}{fault}",
        Tone.BAD,
    )


def _new_faults(device: DeviceRun) -> int:
    counted = [check.counted[1].faults for check in device.checks]
    first, last = (counted[0], counted[-1]) if counted else (None, None)
    return 0 if first is None or last is None else last - first


def _findings(run: GuestTestResult) -> Iterator[Block]:
    if run.predicted:
        yield Table(
            "Findings of vmm-msi doctor before the start",
            ("finding", "severity", "subject"),
            tuple(
                (
                    Cell(str(finding["id"])),
                    Cell(str(finding["severity"]), _SEVERITIES.get(str(finding["severity"]))),
                    Cell(str(finding["subject"])),
                )
                for finding in run.predicted
            ),
        )
    else:
        yield Text("vmm-msi doctor found nothing before the start.")


def _phase(phase: Phase) -> Iterator[Block]:
    *head, _vectors = text.HEAD
    rows = [cells(*text.device_row(device)[:-1]) for device in phase.devices]
    yield Table("Operations and interrupts", tuple(head), tuple(rows))
    yield from _course(phase)
    vectors = [
        cells(device.host, vector.name, vector.before, vector.after, vector.after - vector.before)
        for device in phase.devices
        for vector in device.vectors
    ]
    if vectors:
        head = ["device", "vector", "before", "after", "new"]
        yield Table("Vectors, as the guest counts them", tuple(head), tuple(vectors))
    its_rows = text.its_rows(phase)
    if its_rows:
        yield Table("ITS that the MSIs reached", text.ITS_HEAD, tuple(cells(*r) for r in its_rows))
    if checks := text.check_rows(phase):
        shown = tuple(
            (*cells(*row[:-1]), Cell(row[-1], Tone.GOOD if row[-1] == "yes" else Tone.BAD))
            for row in checks
        )
        yield Table(
            "Measured by vmm-msi status, before the work and after it", text.CHECK_HEAD, shown
        )


def _course(phase: Phase) -> Iterator[Block]:
    """Yield the counts over time of the devices that have samples."""
    devices = [device for device in phase.devices if device.course]
    if not devices:
        return
    title = f"Operations and interrupts over time, after {phase.after}"
    panels = [
        Panel(
            str(device.host),
            (
                Series("operations", _points(device, "done"), "quiet"),
                Series("interrupts", _points(device, "arrived")),
            ),
        )
        for device in devices
    ]
    yield Picture(
        to_svg(chart(title, panels), alone=False),
        f"{title}: as the guest counts them, since the work on the device began",
        tuple(f"{device.host}: interrupts {_in_words(device)}" for device in devices),
    )


def _points(device: DeviceRun, count: str) -> tuple[tuple[float, float], ...]:
    return tuple((sample.seconds, getattr(sample, count)) for sample in device.course)


def _in_words(device: DeviceRun) -> str:
    course = device.course
    step = max(1, -(-(len(course) - 1) // (_SHOWN - 1)))
    shown = [*course[:-1:step], course[-1]]
    return ", ".join(f"{sample.arrived} after {sample.seconds:.2f} s" for sample in shown)


def _faults(whose: str, lines: Sequence[str]) -> Iterator[Block]:
    if not lines:
        yield Text(f"The {whose}'s kernel logged no fault.")
        return
    yield Text(f"The {whose}'s kernel logged {quantity(len(lines), 'fault')}:", Tone.BAD)
    counts = Counter(lines).items()
    yield Items(tuple(f"{quantity(count, 'time')}: {line}" for line, count in counts))


def _guest(run: GuestTestResult) -> Iterator[tuple[str, str]]:
    ranges = [f"{rmr.base:#x}-{rmr.base + rmr.size - 1:#x}" for rmr in run.rmrs]
    yield "RMR", ", ".join(dict.fromkeys(ranges)) or "none"
    for group in run.groups:
        members = ", ".join(group["devices"])
        yield f"IOMMU group {group['id']}", f"{members}; reserved {'; '.join(group['reserved'])}"
    yield "duration", ", ".join(f"{part} {seconds:.1f} s" for part, seconds in run.seconds.items())


def _rows(run: GuestTestResult) -> Iterator[tuple[Cell, ...]]:
    """Yield a row for each sample, and for the end of each device's work."""
    for phase in run.phases:
        for device in phase.devices:
            end = (device.seconds, device.done, device.arrived)
            for seconds, done, arrived in device.course or (end,):
                yield cells(
                    *(phase.after, device.host, device.guest or "", device.driver or ""),
                    *(device.work, f"{seconds:.3f}", done, arrived),
                )
