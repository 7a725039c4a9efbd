"""Keep an emulated host running after ``vmm-msi lab up`` returns, until ``lab down``.

A separate process, the keeper, starts the host, watches it and stops it on SIGTERM. When the
keeper dies, the host dies too, since the daemon that runs it does
(:mod:`vmm_msi.lab.machine.namespace_init`).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import select
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import vmm_msi
from vmm_msi.errors import LabError, UsageError, VmmMsiError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.machine.emulated_host import LabHost, logs_folder
from vmm_msi.lab.machine.parts import ensure_parts
from vmm_msi.lab.machine.running import (
    RunningLab,
    facts_of,
    keeper_pid,
    read_state,
    remove_state,
    run_folder,
    running,
    take_lock,
    write_state,
)
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.terminal import print_error
from vmm_msi.types import Granule

if TYPE_CHECKING:
    from types import FrameType

_LOG = "host.log"
_LOOK_EVERY_S = 0.5
_POLL_S = 0.05
_STOP_TIMEOUT_S = 30.0

# The keeper's descriptors while it starts the host: its answer, and the progress output.
_ANSWER, _PROGRESS = 1, 3
_FIRST_FREE = 10


class _StopRequested(BaseException):
    """A request to stop the keeper."""


def up(
    shape: Shape,
    suite: str = DEFAULT_SUITE,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> tuple[RunningLab, bool]:
    """Start an emulated host in the background.

    :return: the host, and whether it was started now.
    :raise UsageError: when a host of another shape or suite is running.
    :raise LabError: when it cannot be started; nothing is left behind.
    """
    progress = progress or Progress(None)
    shape = shape.with_defaults()
    prepared = False
    while True:
        lab = running()
        if lab is not None:
            _check_same(lab, shape, suite)
            return lab, False
        if keeper_pid() is not None:
            progress.step("another lab is starting or stopping")
            time.sleep(_POLL_S)
        elif not prepared:
            # In the foreground: this may take minutes, and Ctrl-C must stop it.
            ensure_parts(shape, suite, cache, progress)
            prepared = True
        elif _start(shape, suite, cache):
            ready = running()
            if ready is None:
                raise LabError(f"starting the lab: it stopped at once; see {_log()}")
            return ready, True


def down(progress: Progress | None = None) -> bool:
    """Stop the host in the background and wait until it is gone.

    :return: whether a host was running.
    :raise LabError: when it does not stop.
    """
    pid = keeper_pid()
    if pid is None:
        return False
    (progress or Progress(None)).stage("ending the lab")
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # The process id was read before the pidfd was opened; only now is it certain that it was
        # not reused.
        if keeper_pid() != pid:
            return True
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
            if select.select([process], [], [], _STOP_TIMEOUT_S)[0]:
                return True
    except PermissionError as error:
        raise LabError(f"stopping the lab: process {pid} is not yours; run it as root") from error
    finally:
        os.close(process)
    raise LabError(f"stopping the lab: process {pid} does not stop; see {_log()}")


def _check_same(lab: RunningLab, shape: Shape, suite: str) -> None:
    if (lab.shape, lab.suite) != (shape, suite):
        raise UsageError(
            f"lab up: a lab with {lab.shape} from {lab.suite} is running, not with {shape} "
            f"from {suite}; stop it with vmm-msi lab down first"
        )


def _start(shape: Shape, suite: str, cache: Path | None) -> bool:
    """Start a keeper and wait for its host; return False if another command was faster."""
    request = {
        "shape": {**asdict(shape), "granule": str(shape.granule)},
        "suite": suite,
        "cache": None if cache is None else str(cache.absolute()),
    }
    answer, writer = os.pipe()
    try:
        try:
            keeper = _spawn(json.dumps(request), writer)
        finally:
            os.close(writer)
        try:
            with os.fdopen(answer, "rb", closefd=False) as reader:
                line = reader.readline()
        except BaseException:
            # It is this process's own child and not reaped yet, so the id is still its.
            os.kill(keeper, signal.SIGTERM)
            os.waitpid(keeper, 0)
            raise
    finally:
        os.close(answer)
    try:
        answer = json.loads(line)
    except ValueError:
        raise LabError(
            f"starting the lab: its keeper stopped without an answer: {_last_line()}"
        ) from None
    if "ready" in answer:
        return True
    # It only has to exit.
    os.waitpid(keeper, 0)
    if "error" in answer:
        raise LabError(answer["error"])
    return False


def _spawn(request: str, writer: int) -> int:
    """Start the keeper's process in its own session and return its id."""
    folder = run_folder()
    opened = []
    try:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        log = os.open(_log(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        opened.append(log)
        # Move them away from the numbers that they will get.
        opened += [_moved(source) for source in (writer, _stderr(), log)]
        _log_fd, answer, shown, errors = opened
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "vmm_msi.lab.machine.keeper", request],
            {**os.environ, "PYTHONPATH": f"{Path(vmm_msi.__file__).parents[1]}"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, answer, _ANSWER),
                (os.POSIX_SPAWN_DUP2, shown, _PROGRESS),
                (os.POSIX_SPAWN_DUP2, errors, 2),
            ],
            setsid=True,
            setsigmask=(),
        )
    except OSError as error:
        where = error.filename or folder
        raise LabError(f"starting the lab: {where}: {error.strerror}") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _moved(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)


def _stderr() -> int:
    """Return the descriptor of standard error, even if sys.stderr was replaced."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2


def _log() -> Path:
    return run_folder() / _LOG


def _last_line() -> str:
    with contextlib.suppress(OSError):
        lines = _log().read_text("utf-8", "replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "its log is empty"


# The code below runs in the keeper.


def main() -> int:
    """Keep the host that the argument describes."""
    signal.signal(signal.SIGTERM, _ask)
    signal.signal(signal.SIGINT, _ask)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = json.loads(sys.argv[1])
    shape_facts = request["shape"]
    shape = Shape(**{**shape_facts, "granule": Granule.parse(shape_facts["granule"])})
    cache = None if request["cache"] is None else Path(request["cache"])
    try:
        if not take_lock():
            _answer(taken=True)
            return 0
        return _keep(shape, request["suite"], cache)
    except _StopRequested:
        return 0
    except VmmMsiError as error:
        _answer(error=str(error))
        return 1


def _ask(_number: int, _frame: FrameType | None) -> NoReturn:
    # Ignore further signals: stopping the host must not be interrupted.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise _StopRequested


def _keep(shape: Shape, suite: str, cache: Path | None) -> int:
    """Run the host until it stops or a stop is requested; the lock is held."""
    logs = logs_folder(cache)
    write_state("starting")
    ready = False
    try:
        with (
            os.fdopen(_PROGRESS, "w", encoding="utf-8", errors="replace") as shown,
            LabHost(
                shape,
                suite=suite,
                cache=cache,
                progress=Progress(shown, "lab up"),
                crash_logs=logs,
            ) as lab,
        ):
            write_state("running", **_facts(lab, suite))
            ready = True
            _answer(ready=True)
            _detach()
            while True:
                time.sleep(_LOOK_EVERY_S)
                lab.check()
    except VmmMsiError as error:
        if not ready:
            raise
        print_error(error)
        with contextlib.suppress(LabError):
            write_state("crashed", error=str(error), logs=logs, when=_now())
        return 1
    finally:
        if read_state().get("phase") != "crashed":
            remove_state()


def _detach() -> None:
    """Detach from the terminal of the command that started the keeper."""
    for descriptor in (_ANSWER, _PROGRESS):
        os.dup2(2, descriptor)


def _facts(lab: LabHost, suite: str) -> dict[str, Any]:
    known = RunningLab(
        shape=lab.shape,
        suite=suite,
        agent_socket=lab.agent_socket,
        console_socket=lab.console_socket,
        serial_log=lab.serial_log,
        uri=lab.daemon.uri,
        board=lab.board,
        layer=lab.layer,
        release=str(lab.hello["release"]),
        since=_now(),
        boot_s=round(lab.boot_s, 3),
        pid=os.getpid(),
    )
    return facts_of(known)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _answer(**message: object) -> None:
    """Answer the waiting command; if it is gone, the host is not needed.

    :raise _StopRequested: when it is gone.
    """
    try:
        os.write(_ANSWER, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        raise _StopRequested from None


if __name__ == "__main__":
    sys.exit(main())
