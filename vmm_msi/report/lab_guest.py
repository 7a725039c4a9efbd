"""Print the result of a guest test: its devices, their work, the interrupts that arrived."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from vmm_msi.quantity import quantity
from vmm_msi.report.columns import columns
from vmm_msi.terminal import WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.lab.guest.result import Counts, DeviceRun, GuestTestResult, Phase, StatusCheck
    from vmm_msi.report.system_documents import (
        CountsJson,
        GuestDeviceJson,
        LabGuestDocument,
        StatusCheckJson,
    )

#: Version of the JSON form; it goes up when a key changes its meaning or goes away.
SCHEMA: Final = 1

#: Columns of the tables of one phase: what devices did, which ITS they reached, what was measured.
HEAD: Final = (
    *("device", "in the guest", "driver", "work", "done"),
    *("reached the ITS", "reached the guest", "per second", "vectors"),
)
ITS_HEAD: Final = ("device", "its own ITS", "reached it", "reached another ITS")
CHECK_HEAD: Final = ("vmm-msi status", "MSI address", "interrupts", "faults", "as the lab counts")


def to_json(run: GuestTestResult) -> LabGuestDocument:
    """Return the run as JSON of schema 1."""
    return {
        "schema": SCHEMA,
        "releases": dict(run.releases),
        "rmrs": [
            {
                "base": f"{rmr.base:#x}",
                "size": f"{rmr.size:#x}",
                "remap_permitted": rmr.remap_permitted,
            }
            for rmr in run.rmrs
        ],
        "groups": [dict(group) for group in run.groups],
        "phases": [
            {"after": phase.after, "devices": [_json(device) for device in phase.devices]}
            for phase in run.phases
        ],
        "complete": run.complete,
        "predicted": [dict(finding) for finding in run.predicted],
        "expected": {
            str(device): {
                "outcome": expected.outcome,
                "possible_iovas": [str(iova) for iova in expected.addresses],
            }
            for device, expected in run.expected.items()
        },
        "host_faults": list(run.host_faults),
        "guest_faults": list(run.guest_faults),
        "explained": list(run.explained),
        "status": list(run.status),
        "status_agrees": run.status_agrees,
        "bindings": list(run.bindings),
        "watch": list(run.watch),
        "seconds": dict(run.seconds),
    }


def _json(device: DeviceRun) -> GuestDeviceJson:
    return {
        "host": str(device.host),
        "guest": None if device.guest is None else str(device.guest),
        "driver": device.driver,
        "work": device.work,
        "done": device.done,
        "seconds": device.seconds,
        "each": device.each,
        "vectors": [
            {"name": vector.name, "before": vector.before, "after": vector.after}
            for vector in device.vectors
        ],
        "its": None if device.its is None else str(device.its),
        "landed": {str(event): count for event, count in device.landed.items()},
        "misrouted": {str(its): count for its, count in device.misrouted.items()},
        "arrived": device.arrived,
        "complete": device.complete,
        "checks": [_check_json(check) for check in device.checks],
        "samples": [
            {"seconds": sample.seconds, "done": sample.done, "interrupts": sample.arrived}
            for sample in device.course
        ],
    }


def _check_json(check: StatusCheck) -> StatusCheckJson:
    return {
        "reported": None if check.reported is None else _counts_json(check.reported),
        "counted": [_counts_json(counts) for counts in check.counted],
        "agrees": check.agrees,
    }


def _counts_json(counts: Counts) -> CountsJson:
    addresses = counts.addresses
    return {
        "programmed_iovas": None if addresses is None else [str(iova) for iova in addresses],
        "interrupts": counts.interrupts,
        "faults": counts.faults,
    }


def to_lines(run: GuestTestResult, width: int = WIDTH) -> Iterator[str]:
    """Yield the lines of the report."""
    yield ", ".join(f"{name} {release}" for name, release in run.releases.items())
    ranges = [f"{rmr.base:#x}-{rmr.base + rmr.size - 1:#x}" for rmr in run.rmrs]
    yield f"the guest's RMR: {', '.join(dict.fromkeys(ranges)) or 'none'}"
    for group in run.groups:
        yield (
            f"the guest's IOMMU group {group['id']}: {', '.join(group['devices'])}; reserved "
            f"{'; '.join(group['reserved']) or 'nothing'}"
        )
    yield f"predicted by the doctor: {len(run.predicted) or 'nothing'}"
    for finding in run.predicted:
        yield f"  {finding['severity']} {finding['id']}: {finding['subject']}"
    for phase in run.phases:
        yield ""
        yield f"after {phase.after}:"
        yield from columns([list(HEAD), *map(device_row, phase.devices)], width)
        yield from _its_lines(phase, width)
        yield from _check_lines(phase, width)
    yield ""
    for whose, faults in (("host", run.host_faults), ("guest", run.guest_faults)):
        yield f"faults that the {whose}'s kernel logged: {len(faults) or 'none'}"
        counts = Counter(faults).items()
        yield from (f"  {quantity(count, 'time')}: {line}" for line, count in counts)
    if run.bindings:
        yield ""
        yield "bindings in the emulated host's kernel:"
        yield from (f"  {line}" for line in run.bindings)
    if run.watch:
        yield ""
        yield "vmm-msi watch logged:"
        yield from (f"  {line}" for line in run.watch)
    if run.explained:
        yield ""
        yield from run.explained
    if run.status:
        yield ""
        yield from run.status


def _its_lines(phase: Phase, width: int) -> Iterator[str]:
    if rows := its_rows(phase):
        yield ""
        yield from columns([list(ITS_HEAD), *rows], width)


def its_rows(phase: Phase) -> list[list[str]]:
    """Return which ITS each device's MSIs reached, if there are several."""
    rows = [
        [str(device.host), str(device.its), str(sum(device.landed.values())), _misrouted(device)]
        for device in phase.devices
        if device.its is not None
    ]
    are_several = len({row[1] for row in rows}) > 1
    return rows if are_several or any(device.misrouted for device in phase.devices) else []


def _misrouted(device: DeviceRun) -> str:
    counts = (f"{count} at {its}" for its, count in device.misrouted.items())
    return ", ".join(counts) or "none"


def _check_lines(phase: Phase, width: int) -> Iterator[str]:
    if rows := check_rows(phase):
        yield ""
        yield from columns([list(CHECK_HEAD), *rows], width)


def check_rows(phase: Phase) -> list[list[str]]:
    """Return what ``vmm-msi status`` measured before the work and after it."""
    return [
        [str(device.host), *map(_change, *map(_cells, device.checks)), _verdict(device)]
        for device in phase.devices
        if device.checks
    ]


def _cells(check: StatusCheck) -> list[str]:
    if check.reported is None:
        return ["?"] * 3
    counts = _counts_json(check.reported)
    addresses = counts["programmed_iovas"]
    shown = "?" if addresses is None else ", ".join(addresses) or "none"
    numbers = (counts["interrupts"], counts["faults"])
    return [shown, *("?" if number is None else str(number) for number in numbers)]


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before}->{after}"


def _verdict(device: DeviceRun) -> str:
    return "yes" if all(check.agrees for check in device.checks) else "no"


def device_row(device: DeviceRun) -> list[str]:
    """Return the cells of a device under :data:`HEAD`."""
    if device.guest is None:
        return [str(device.host), "not in the guest", *[""] * 7]
    rate = device.arrived / device.seconds if device.seconds else 0.0
    return [
        str(device.host),
        str(device.guest),
        device.driver or "none",
        device.work,
        str(device.done),
        str(sum(device.landed.values())),
        str(device.arrived),
        f"{rate:.0f}",
        ", ".join(f"{v.name} {v.before}->{v.after}" for v in device.vectors),
    ]
