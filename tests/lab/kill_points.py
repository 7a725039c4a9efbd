"""Kill ``vmm-msi watch`` at random moments while a guest starts, works, is reset and changes."""

from __future__ import annotations

import os

from lab.watched_guest import GDB, GIOVA, LONG_S

#: Seed of the moments.
SEED = int(os.environ.get("VMM_MSI_SEED", "1"))

# Parts of the kills.
_PHASES = {"start": 0.2, "work": 0.3, "reset": 0.2, "unplug": 0.15, "plug": 0.15}
_READS = 50


def kill_in_every_phase(guest, kills):
    """Start a guest that is off, and kill the service ``kills`` times or more.

    After each phase the next service has to converge, and every interrupt has to arrive once.

    :return: a line for each phase.
    """
    acts = {
        "start": guest.runner.start,
        "work": lambda: _work(guest, kills * _PHASES["work"]),
        "reset": guest.restart,
        "unplug": guest.unplug,
        "plug": guest.plug,
    }
    guest.link.call("start-killer", seed=SEED, giova=GIOVA, gdb=GDB, timeout_s=LONG_S)
    lines = [f"seed {SEED} (VMM_MSI_SEED)"]
    for phase, part in _PHASES.items():
        guest.link.call("killer", what="kill")
        acts[phase]()
        minimum = round(kills * part)
        settled = guest.link.call("killer", what="settle", minimum=minimum, timeout_s=LONG_S)
        guest.report([phase, *map(str, settled["kills"]), str(settled)])
        lines.append(_line(phase, settled))
        assert settled["is_right"], (lines, guest.bindings())
        assert settled["new_files"] == []
        guest.converged()
        guest.work()
    devices = guest.status()
    assert [d["backend"] for d in devices] == ["kernel"] * len(guest.present)
    assert all(len(d["kernel_bindings"]) == 1 for d in devices)
    guest.link.call("stop-killer")
    return lines


def _work(guest, kills):
    """Read until the service was killed so many times; every interrupt arrives once."""
    while guest.link.call("killer", what="count") < kills:
        guest.work(_READS)


def _line(phase, settled):
    kills = settled["kills"]
    at_work = sum(kill["last_event"] not in ("", "service-started") for kill in kills)
    withdrawn = sum(bool(kill["withdrawn"]) for kill in kills)
    seconds = sorted(kill["right_s"] for kill in kills if kill["right_s"] is not None)
    if not settled["was_right"]:
        seconds.append(settled["right_s"])
    return (
        f"{phase}: killed {len(kills)} times, {at_work} of them connected; "
        f"{withdrawn} bindings withdrawn; converged after {', '.join(map(str, seconds)) or '-'} s"
    )
