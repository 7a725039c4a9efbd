"""Store the calls of the hook: a small JSON file per vmm-msi guest, for its last run.

The files are in /run, so a reboot removes them. Nothing depends on them.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The folder of the files.
RUN_RECORDS = Path("/run/vmm-msi/hook")

#: Operations that begin the run of an incoming guest; prepare follows them in the same run.
_INCOMING = ("migrate", "restore")
#: Operations that begin a run.
_BEGINNINGS = (*_INCOMING, "prepare", "attach")

# Limits of one file, and of the folder.
_CALLS = 32
_PROBLEMS = 8
_CHARACTERS = 400
_FILES = 256
_BYTES = 1 << 20

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class HookCall:
    """One call of the hook.

    :param time: the time of the call, UTC, ISO 8601.
    :param operation: libvirt's name of the operation.
    :param extra: libvirt's last argument: the reason for a release, else ``-``.
    :param problems: the problems of the guest, if this operation checks it.
    :param refused: the hook refused to start the guest.
    """

    time: str
    operation: str
    extra: str
    problems: tuple[str, ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The calls of the hook for the last run of a guest."""

    uuid: str
    guest: str
    steps: tuple[HookCall, ...] = ()


def now() -> str:
    """Return the current time in the format of :class:`HookCall`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def add_call(uuid: str, guest: str, call: HookCall, folder: Path = RUN_RECORDS) -> None:
    """Add a call to a guest's run record; a call that begins a run replaces the record.

    :raise OSError: when the file cannot be written.
    """
    if not _UUID.fullmatch(uuid):
        return
    folder.parent.mkdir(mode=0o711, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{uuid}.json"
    old = _read(path)
    calls = () if old is None else old.steps
    if call.operation in _BEGINNINGS and not (calls and calls[-1].operation in _INCOMING):
        calls = ()
    call = HookCall(
        call.time,
        call.operation,
        call.extra[:_CHARACTERS],
        tuple(problem[:_CHARACTERS] for problem in call.problems[:_PROBLEMS]),
        call.refused,
    )
    if old is None:
        _make_room(folder)
    record = RunRecord(uuid, guest[:_CHARACTERS], (*calls, call)[-_CALLS:])
    _write(path, {"schema": 1, **asdict(record)})


def read_all(folder: Path = RUN_RECORDS) -> list[RunRecord]:
    """Return every run record, sorted by the guest's name; skip invalid files.

    :raise OSError: when the folder may not be read.
    """
    try:
        paths = [path for path in folder.iterdir() if path.suffix == ".json"]
    except FileNotFoundError:
        return []
    records = (_read(path) for path in paths)
    return sorted(
        (record for record in records if record is not None), key=lambda record: record.guest
    )


def _write(path: Path, document: object) -> None:
    """Write a file, for its owner alone, under a temporary name and rename it."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)  # of a call that was killed
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(new, flags, 0o600), "w", encoding="utf-8") as file:
        json.dump(document, file)
    new.replace(path)


def _read(path: Path) -> RunRecord | None:
    """Return a run record; None if the file is missing, invalid or too large."""
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES + 1)
        if len(data) > _BYTES:
            return None
        document = json.loads(data)
        calls = [
            HookCall(
                str(step["time"]),
                str(step["operation"]),
                str(step["extra"]),
                tuple(map(str, step["problems"])),
                bool(step["refused"]),
            )
            for step in document["steps"]
        ]
        return RunRecord(str(document["uuid"]), str(document["guest"]), tuple(calls))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _make_room(folder: Path) -> None:
    """Remove the oldest run records above the limit: a host may run many guests in months."""
    paths: Sequence[Path] = list(folder.glob("*.json"))
    if len(paths) < _FILES:
        return
    times = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
    for path in sorted(times, key=times.__getitem__)[: len(times) - _FILES + 1]:
        path.unlink(missing_ok=True)
