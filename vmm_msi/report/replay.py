"""What ``replay`` found, as lines for people and as a document for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.report.columns import columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.recording.replay import Compared, Replay

#: Version of the JSON form; it goes up when a key changes its meaning or goes away.
SCHEMA = 1


def to_lines(replay: Replay) -> Iterator[str]:
    """Yield a row per device, then each disagreement in words."""
    releases = replay.recording.releases
    known = {"Linux": releases.linux, "libvirt": releases.libvirt, "QEMU": releases.qemu}
    ran = ", ".join(f"{name} {release}" for name, release in known.items() if release)
    yield f"recorded on {ran or 'unknown releases'} by vmm-msi {releases.vmm_msi}"
    yield f"modelled on {replay.kernel}"
    rows = [["device", "strategy", "", "programmed", "slot", "ITS", "outcome", "agree?"]]
    for each in replay.devices:
        choice = str(replay.choices[each.seen.address])
        seen = ", ".join(map(str, each.seen.programmed)) or "-"
        agree = "no" if each.disagreements else "yes"
        rows.append(
            [
                *(
                    str(each.seen.address),
                    each.seen.strategy,
                    "recorded",
                    seen,
                    _or_dash(each.slot),
                ),
                *(str(each.its), _seen(each), ""),
            ]
        )
        verdict = each.verdict
        rows.append(
            [
                *("", choice, "model", _or_dash(verdict.programmed), _or_dash(each.model_slot)),
                *(_or_dash(verdict.its), str(verdict.outcome), agree),
            ]
        )
    yield from columns(rows)
    for each in replay.devices:
        yield from (f"{each.seen.address}: {text}" for text in each.disagreements)
    yield from replay.disagreements
    for each in replay.devices:
        yield from (f"note: {each.seen.address}: {text}" for text in each.notes)
    yield from (f"note: not recorded: {text}" for text in replay.recording.unread)
    yield "the model agrees" if replay.agrees else "the model does not agree"


def to_json(replay: Replay) -> dict[str, object]:
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
                "device": str(each.seen.address),
                "recorded": {
                    "strategy": each.seen.strategy,
                    "programmed": [str(address) for address in each.seen.programmed],
                    "slot": each.slot,
                    "its": each.its,
                    "interrupts": each.seen.interrupts,
                    "outcome": each.outcome,
                    "fault": None if each.fault is None else str(each.fault),
                },
                "model": {
                    "strategy": str(replay.choices[each.seen.address]),
                    "programmed": _text(each.verdict.programmed),
                    "slot": each.model_slot,
                    "its": each.verdict.its,
                    "outcome": str(each.verdict.outcome),
                    "reason": each.verdict.reason,
                },
                "disagreements": list(each.disagreements),
                "notes": list(each.notes),
            }
            for each in replay.devices
        ],
        "disagreements": list(replay.disagreements),
        "not_recorded": list(replay.recording.unread),
    }


def _seen(each: Compared) -> str:
    if each.outcome == "delivered":
        return f"delivered, {each.seen.interrupts} interrupts"
    return _or_dash(each.outcome)


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)


def _or_dash(value: object | None) -> str:
    return "-" if value is None else str(value)
