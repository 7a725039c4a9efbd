"""What the hook saw of each guest of ours: one small JSON file per guest, of its last run.

They are in /run, so they are gone when the host is started anew. Nothing depends on them.
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

#: Where the files are.
JOURNALS = Path("/run/vmm-msi/hook")

#: What a run of a guest begins with; an incoming one is prepared afterwards.
_FIRST = ("migrate", "restore")
_BEGINNINGS = (*_FIRST, "prepare", "attach")

# What one file, and the folder, may grow to.
_STEPS = 32
_PROBLEMS = 8
_WORDS = 400
_FILES = 256
_BYTES = 1 << 20

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the hook.

    :param time: when, UTC, ISO 8601.
    :param operation: libvirt's word for it.
    :param extra: libvirt's last argument: the reason, for release; ``-`` where there is none.
    :param problems: what was wrong, where it was looked for.
    :param refused: the start was refused.
    """

    time: str
    operation: str
    extra: str
    problems: tuple[str, ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Journal:
    """The last run of a guest, as far as the hook was called."""

    uuid: str
    guest: str
    steps: tuple[Step, ...] = ()


def now() -> str:
    """Return the time as :class:`Step` has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def note(uuid: str, guest: str, step: Step, folder: Path = JOURNALS) -> None:
    """Add a step to a guest's journal, or begin it anew with a step that begins a run.

    :raise OSError: when it cannot be written.
    """
    if not _UUID.fullmatch(uuid):
        return
    folder.parent.mkdir(mode=0o711, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{uuid}.json"
    old = _read(path)
    steps = () if old is None else old.steps
    if step.operation in _BEGINNINGS and not (steps and steps[-1].operation in _FIRST):
        steps = ()
    step = Step(
        step.time,
        step.operation,
        step.extra[:_WORDS],
        tuple(words[:_WORDS] for words in step.problems[:_PROBLEMS]),
        step.refused,
    )
    if old is None:
        _make_room(folder)
    journal = Journal(uuid, guest[:_WORDS], (*steps, step)[-_STEPS:])
    _write(path, {"schema": 1, **asdict(journal)})


def read_all(folder: Path = JOURNALS) -> list[Journal]:
    """Return every journal, by the guest's name; what is none is passed over.

    :raise OSError: when there is a folder that may not be read.
    """
    try:
        paths = [each for each in folder.iterdir() if each.suffix == ".json"]
    except FileNotFoundError:
        return []
    found = map(_read, paths)
    return sorted((each for each in found if each is not None), key=lambda each: each.guest)


def _write(path: Path, document: object) -> None:
    """Replace a file with a complete one."""
    new = path.with_suffix(".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(new, flags, 0o600), "w", encoding="utf-8") as file:
        json.dump(document, file)
    new.replace(path)


def _read(path: Path) -> Journal | None:
    """Return a journal; None for what is none, or too large to be one."""
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES + 1)
        if len(data) > _BYTES:
            return None
        document = json.loads(data)
        steps = [
            Step(
                str(step["time"]),
                str(step["operation"]),
                str(step["extra"]),
                tuple(map(str, step["problems"])),
                bool(step["refused"]),
            )
            for step in document["steps"]
        ]
        return Journal(str(document["uuid"]), str(document["guest"]), tuple(steps))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _make_room(folder: Path) -> None:
    """Remove the oldest journals where there are many: guests may come and go for months."""
    paths: Sequence[Path] = list(folder.glob("*.json"))
    if len(paths) < _FILES:
        return
    times = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
    for path in sorted(times, key=times.__getitem__)[: len(times) - _FILES + 1]:
        path.unlink(missing_ok=True)
