"""Report a replay: as lines for people and as a document for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm_msi.pages.blocks import Cell
from vmm_msi.quantity import quantity
from vmm_msi.report.columns import columns
from vmm_msi.terminal import WIDTH, Line, Tone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.recording.replay import DeviceComparison, Replay
    from vmm_msi.report.documents import ReplayDocument

#: Version of the JSON document; it increases when a key changes its meaning or is removed.
SCHEMA: Final = 1


def to_lines(replay: Replay, width: int = WIDTH) -> Iterator[str]:
    """Yield a table with two rows per device, then each disagreement as a sentence."""
    yield f"recorded on {recorded_releases(replay)}"
    yield f"simulated kernel: {replay.kernel}"
    rows: list[list[str | Cell]] = [
        ["device", "strategy", "", "programmed", "slot", "ITS", "outcome", "agree?"]
    ]
    for device in replay.devices:
        recorded, verdict = device.recorded, device.verdict
        rows.append(
            [
                str(recorded.address),
                recorded.strategy,
                "recorded",
                ", ".join(map(str, recorded.programmed)) or "-",
                _or_dash(device.slot),
                str(device.its),
                recorded_outcome(device) or "-",
                "",
            ]
        )
        rows.append(
            [
                "",
                str(replay.choices[recorded.address]),
                "simulator",
                _or_dash(verdict.programmed),
                _or_dash(device.simulated_slot),
                _or_dash(verdict.its),
                str(verdict.outcome),
                Cell("no", Tone.BAD) if device.disagreements else Cell("yes", Tone.GOOD),
            ]
        )
    yield from columns(rows, width)
    for device in replay.devices:
        yield from (f"{device.recorded.address}: {text}" for text in device.disagreements)
    yield from replay.disagreements
    for device in replay.devices:
        yield from (f"note: {device.recorded.address}: {text}" for text in device.notes)
    yield from (f"note: not recorded: {text}" for text in replay.recording.unread)
    if replay.agrees:
        yield Line([("the simulator agrees", Tone.GOOD)])
    else:
        yield Line([("the simulator does not agree", Tone.BAD)])


def to_json(replay: Replay) -> ReplayDocument:
    """Return the document: addresses are hex strings."""
    releases = replay.recording.releases
    return {
        "schema": SCHEMA,
        "agrees": replay.agrees,
        "releases": {
            "linux": releases.linux,
            "libvirt": releases.libvirt,
            "qemu": releases.qemu,
            "vmm_msi": releases.vmm_msi,
        },
        "kernel": replay.kernel,
        "devices": [
            {
                "device": str(device.recorded.address),
                "recorded": {
                    "strategy": device.recorded.strategy,
                    "programmed": [str(address) for address in device.recorded.programmed],
                    "slot": device.slot,
                    "its": device.its,
                    "interrupts": device.recorded.interrupts,
                    "outcome": device.outcome,
                    "fault": None if device.fault is None else str(device.fault),
                },
                "model": {
                    "strategy": str(replay.choices[device.recorded.address]),
                    "programmed": _text(device.verdict.programmed),
                    "slot": device.simulated_slot,
                    "its": device.verdict.its,
                    "outcome": device.verdict.outcome.value,
                    "reason": device.verdict.reason,
                },
                "disagreements": list(device.disagreements),
                "notes": list(device.notes),
            }
            for device in replay.devices
        ],
        "disagreements": list(replay.disagreements),
        "not_recorded": list(replay.recording.unread),
    }


def recorded_releases(replay: Replay) -> str:
    """Return the releases that a recording was made on and by."""
    releases = replay.recording.releases
    named = {"Linux": releases.linux, "libvirt": releases.libvirt, "QEMU": releases.qemu}
    stack = ", ".join(f"{name} {release}" for name, release in named.items() if release)
    return f"{stack or 'unknown releases'} by vmm-msi {releases.vmm_msi}"


def recorded_outcome(device: DeviceComparison) -> str:
    """Return the recorded outcome of a device's MSIs, with their number if they arrived.

    :return: empty if the recording does not show it.
    """
    if device.outcome == "delivered":
        return f"delivered, {quantity(device.recorded.interrupts, 'interrupt')}"
    return device.outcome or ""


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)


def _or_dash(value: object | None) -> str:
    return "-" if value is None else str(value)
