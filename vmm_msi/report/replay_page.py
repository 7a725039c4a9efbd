"""A replay as a page: each device as recorded and as simulated, and where the two differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.pages.blocks import Cell, Heading, Items, Page, Table, Text, Tone, cells
from vmm_msi.report.replay import recorded_outcome, recorded_releases

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_msi.pages.blocks import Block
    from vmm_msi.recording.replay import DeviceComparison, Replay


def to_page(replay: Replay, provenance: Mapping[str, str]) -> Page:
    """Return the replay as a page.

    :param provenance: what the caller adds to it: recording, version, date and command line.
    """
    recording = replay.recording
    facts = {
        "host": recording.host.source,
        "guest": recording.guest.name,
        "recorded on": recorded_releases(replay),
        "simulated kernel": replay.kernel,
    }
    return Page(
        f"Replay of guest {recording.guest.name}",
        tuple(_blocks(replay)),
        {**facts, **provenance},
        Table(
            "Devices",
            ("device", "source", "strategy", "programmed", "slot", "its", "outcome", "agrees"),
            tuple(row for device in replay.devices for row in _pair(replay, device, "")),
        ),
    )


def _blocks(replay: Replay) -> Iterator[Block]:
    if replay.agrees:
        yield Text("The simulator agrees with the recording.", Tone.GOOD)
    else:
        yield Text("The simulator does not agree with the recording.", Tone.BAD)
    yield Table(
        "Devices, as recorded and in the simulator",
        ("device", "source", "strategy", "programmed", "slot", "ITS", "outcome", "agrees"),
        tuple(row for device in replay.devices for row in _pair(replay, device, "-")),
    )
    differences = [
        f"{device.recorded.address}: {text}"
        for device in replay.devices
        for text in device.disagreements
    ]
    differences += replay.disagreements
    if differences:
        yield Heading("Differences")
        yield Items(tuple(differences))
    notes = [
        f"{device.recorded.address}: {text}" for device in replay.devices for text in device.notes
    ]
    notes += (f"not recorded: {text}" for text in replay.recording.unread)
    if notes:
        yield Heading("Notes")
        yield Items(tuple(notes))


def _pair(replay: Replay, device: DeviceComparison, unknown: str) -> Iterator[tuple[Cell, ...]]:
    """Yield the rows of a device: what was recorded, then what the simulator gives.

    :param unknown: the text of a cell without a value.
    """
    recorded, verdict = device.recorded, device.verdict
    agreement = Cell("no", Tone.BAD) if device.disagreements else Cell("yes", Tone.GOOD)
    yield cells(
        recorded.address,
        "recorded",
        recorded.strategy,
        ", ".join(map(str, recorded.programmed)) or unknown,
        unknown if device.slot is None else device.slot,
        device.its,
        recorded_outcome(device) or unknown,
        agreement,
    )
    yield cells(
        recorded.address,
        "simulator",
        replay.choices[recorded.address],
        verdict.programmed or unknown,
        unknown if device.simulated_slot is None else device.simulated_slot,
        unknown if verdict.its is None else verdict.its,
        verdict.outcome,
        agreement,
    )
