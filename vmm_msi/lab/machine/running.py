"""Find the emulated host that ``vmm-msi lab up`` left running.

Its keeper (:mod:`vmm_msi.lab.machine.keeper`) holds a lock as long as it lives. The lock is a
record lock, fcntl(2) F_SETLK: the kernel drops it with the process, children do not inherit it, and
F_GETLK returns its owner. So no process id in a file has to be trusted; the state file is valid
only if the lock's owner wrote it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm_msi.errors import LabError
from vmm_msi.lab.machine.board import Board
from vmm_msi.lab.machine.daemon import RUN_FOLDER, RUN_FOLDER_VARIABLE, check_run_folder
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.types import Granule

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOCK = "host.lock"
_STATE = "host.json"

# struct flock of 64-bit Linux (include/uapi/asm-generic/fcntl.h): type, whence, start, len, pid.
_FLOCK = struct.Struct("@hhqqi4x")


@dataclass(frozen=True)
class RunningLab:
    """An emulated host that a keeper runs.

    :ivar agent_socket: the socket for :class:`vmm_msi.lab.rpc.link.AgentLink`.
    :ivar console_socket: the socket of the serial console; it serves one client at a time.
    :ivar serial_log: the log of the serial console.
    :ivar uri: the libvirt URI of its libvirt domain.
    :ivar board: the tables of its board, and the topology they describe.
    :ivar layer: the archive with its agent's package.
    :ivar release: its kernel's release.
    :ivar since: when it was ready, in UTC, ISO 8601.
    :ivar boot_s: seconds from its start until its agent answered.
    :ivar pid: its keeper's process id.
    """

    shape: Shape
    suite: str
    agent_socket: Path
    console_socket: Path
    serial_log: Path
    uri: str
    board: Board
    layer: Path
    release: str
    since: str
    boot_s: float
    pid: int


def run_folder() -> Path:
    """Return the folder of the running host's state.

    :raise LabError: when another user may change it.
    """
    folder = Path(os.environ.get(RUN_FOLDER_VARIABLE) or RUN_FOLDER)
    check_run_folder(folder)
    return folder


def running() -> RunningLab | None:
    """Return the host that ``vmm-msi lab up`` left running, None if none is ready."""
    owner = keeper_pid()
    state = read_state()
    if owner is None or state.get("pid") != owner or state.get("phase") != "running":
        return None
    try:
        return _from_state(state)
    except (KeyError, TypeError, ValueError):
        # Written by another version of the package.
        raise LabError(
            f"looking for the running lab: {run_folder() / _STATE} was written by another version; "
            "stop the lab with vmm-msi lab down"
        ) from None


def keeper_pid() -> int | None:
    """Return the process that holds the lock: it runs, starts or stops the host."""
    try:
        with (run_folder() / _LOCK).open("rb") as lock:
            query = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            kind, _whence, _start, _length, pid = _FLOCK.unpack(
                fcntl.fcntl(lock, fcntl.F_GETLK, query)
            )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot("looking for the running lab", error) from error
    return None if kind == fcntl.F_UNLCK else pid


def take_lock() -> bool:
    """Try to become the keeper until this process exits; return whether that succeeded.

    :raise LabError: when the lock file cannot be used.
    """
    folder = run_folder()
    try:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        # For its owner alone, since a reader could lock it too. Never closed: the kernel drops all
        # locks of a process on a file when it closes any descriptor of it.
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _cannot("starting the lab", error) from error
    return True


def write_state(phase: str, **facts: object) -> None:
    """Replace the state; only the owner of the lock may call it.

    :param phase: ``starting``, ``running`` or ``crashed``.
    :raise LabError: when it cannot be written.
    """
    path = run_folder() / _STATE
    part = path.with_name(f"{_STATE}.new")
    state = {"pid": os.getpid(), "phase": phase, **facts}
    try:
        part.unlink(missing_ok=True)
        part.touch(0o600, exist_ok=False)
        part.write_text(json.dumps(state, indent=2, default=str) + "\n", encoding="utf-8")
        part.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise _cannot("writing the lab's state", error) from error


def remove_state() -> None:
    """Remove the state; only the owner of the lock may call it."""
    with contextlib.suppress(OSError):
        (run_folder() / _STATE).unlink(missing_ok=True)


def read_state() -> dict[str, Any]:
    """Return the state as last written by any process; empty if there is no state."""
    try:
        state = json.loads((run_folder() / _STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def facts_of(lab: RunningLab) -> dict[str, Any]:
    """Return a host's facts as JSON values; the reverse of reading the state."""
    facts = {**asdict(lab), "board": lab.board.folder, "shape": asdict(lab.shape)}
    facts["shape"]["granule"] = str(lab.shape.granule)
    return {name: str(value) if isinstance(value, Path) else value for name, value in facts.items()}


def _from_state(state: Mapping[str, Any]) -> RunningLab:
    shape_facts = dict(state["shape"])
    shape = Shape(**{**shape_facts, "granule": Granule.parse(shape_facts["granule"])})
    return RunningLab(
        shape=shape,
        suite=str(state["suite"]),
        agent_socket=Path(state["agent_socket"]),
        console_socket=Path(state["console_socket"]),
        serial_log=Path(state["serial_log"]),
        uri=str(state["uri"]),
        board=Board(Path(state["board"]), shape),
        layer=Path(state["layer"]),
        release=str(state["release"]),
        since=str(state["since"]),
        boot_s=float(state["boot_s"]),
        pid=int(state["pid"]),
    )


def _cannot(doing: str, error: OSError) -> LabError:
    return LabError(f"{doing}: {error.filename or run_folder()}: {error.strerror}")
