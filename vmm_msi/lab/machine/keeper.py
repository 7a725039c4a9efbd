"""``vmm-msi lab up`` and ``lab down``: an emulated host that outlives the command.

A process of its own keeps the host: it starts it, looks after it and ends it when it is asked to
(SIGTERM). Whatever becomes of that process, the host ends with it, since the daemon it runs under
does (:mod:`vmm_msi.lab.machine.namespace_init`).
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
from vmm_msi.lab.machine.emulated_host import LabHost, ensure_parts, logs_folder
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

# Descriptors of the keeper while it starts the host: the answer, and where progress is shown.
_ANSWER, _PROGRESS = 1, 3
_FIRST_FREE = 10


class _StopRequested(BaseException):
    """The keeper is asked to end."""


def up(
    shape: Shape,
    suite: str = DEFAULT_SUITE,
    cache: Path | None = None,
    progress: Progress | None = None,
    patches: Path | None = None,
) -> tuple[RunningLab, bool]:
    """Have an emulated host run in the background.

    :param patches: a folder of patches for its kernel.
    :return: the host, and whether it was started now.
    :raise UsageError: when one of another shape or suite runs.
    :raise LabError: when it cannot be started; nothing is left then.
    """
    progress = progress or Progress(None)
    patches = None if patches is None else patches.absolute()
    prepared = False
    while True:
        found = running()
        if found is not None:
            _check_same(found, shape, suite, patches)
            return found, False
        if keeper_pid() is not None:
            progress.step("another lab is being started or ended")
            time.sleep(_POLL_S)
        elif not prepared:
            # Here and not in the background: this may take minutes, and Ctrl-C ends it.
            ensure_parts(shape, suite, cache, progress, patches)
            prepared = True
        elif _start(shape, suite, cache, patches):
            ready = running()
            if ready is None:
                raise LabError(f"starting the lab: it went off at once; see {_log()}")
            return ready, True


def down(progress: Progress | None = None) -> bool:
    """End the host that runs in the background, and wait until it is gone.

    :return: whether there was one.
    :raise LabError: when it does not end.
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
        # Whose process id it is was asked before; that it was not given to another process since
        # is certain only now.
        if keeper_pid() != pid:
            return True
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
            if select.select([process], [], [], _STOP_TIMEOUT_S)[0]:
                return True
    except PermissionError as error:
        raise LabError(f"ending the lab: process {pid} is not yours; run it as root") from error
    finally:
        os.close(process)
    raise LabError(f"ending the lab: process {pid} does not end; see {_log()}")


def _check_same(found: RunningLab, shape: Shape, suite: str, patches: Path | None) -> None:
    if (found.shape, found.suite) != (shape, suite):
        raise UsageError(
            f"lab up: a lab with {found.shape} from {found.suite} runs, not with {shape} from "
            f"{suite}; end it with vmm-msi lab down first"
        )
    if found.patches != patches:
        has, wanted = (
            "no patches" if folder is None else f"the patches of {folder}"
            for folder in (found.patches, patches)
        )
        raise UsageError(
            f"lab up: a lab runs whose kernel has {has}, and one with {wanted} is asked for; "
            "end it with vmm-msi lab down first"
        )


def _start(shape: Shape, suite: str, cache: Path | None, patches: Path | None) -> bool:
    """Start a keeper and wait until its host is ready; tell whether nobody else was faster."""
    told = {
        "shape": {**asdict(shape), "granule": str(shape.granule)},
        "suite": suite,
        "cache": None if cache is None else str(cache.absolute()),
        "patches": None if patches is None else str(patches),
    }
    answer, writer = os.pipe()
    try:
        try:
            keeper = _spawn(json.dumps(told), writer)
        finally:
            os.close(writer)
        try:
            with os.fdopen(answer, "rb", closefd=False) as reader:
                line = reader.readline()
        except BaseException:
            # It is this process's own child and was not waited for, so the id is still its.
            os.kill(keeper, signal.SIGTERM)
            os.waitpid(keeper, 0)
            raise
    finally:
        os.close(answer)
    try:
        said = json.loads(line)
    except ValueError:
        raise LabError(
            f"starting the lab: its keeper ended without a word: {_last_line()}"
        ) from None
    if "ready" in said:
        return True
    # It has nothing left to do but end.
    os.waitpid(keeper, 0)
    if "error" in said:
        raise LabError(said["error"])
    return False


def _spawn(told: str, writer: int) -> int:
    """Start the keeper's process, in a session of its own, and return its id."""
    folder = run_folder()
    opened = []
    try:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        log = os.open(_log(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        opened.append(log)
        # Out of the way of the numbers that they get.
        opened += [_moved(source) for source in (writer, _stderr(), log)]
        _log_fd, answer, shown, errors = opened
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "vmm_msi.lab.machine.keeper", told],
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
    """Return the descriptor of standard error, also where it was replaced by something else."""
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


# What follows runs in the keeper.


def main() -> int:
    """Keep a host; the argument says which."""
    signal.signal(signal.SIGTERM, _ask)
    signal.signal(signal.SIGINT, _ask)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    told = json.loads(sys.argv[1])
    given = told["shape"]
    shape = Shape(**{**given, "granule": Granule.parse(given["granule"])})
    cache, patches = (
        None if told[name] is None else Path(told[name]) for name in ("cache", "patches")
    )
    try:
        if not take_lock():
            _answer(taken=True)
            return 0
        return _keep(shape, told["suite"], cache, patches)
    except _StopRequested:
        return 0
    except VmmMsiError as error:
        _answer(error=str(error))
        return 1


def _ask(_number: int, _frame: FrameType | None) -> NoReturn:
    # Once is enough; what is under way to end the host is not to be interrupted.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise _StopRequested


def _keep(shape: Shape, suite: str, cache: Path | None, patches: Path | None) -> int:
    """Run the host until it ends or is to end; the lock is held."""
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
                patches=patches,
            ) as lab,
        ):
            write_state("running", **_facts(lab, suite, patches))
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
    """Let go of the terminal of the command that started this."""
    for descriptor in (_ANSWER, _PROGRESS):
        os.dup2(2, descriptor)


def _facts(lab: LabHost, suite: str, patches: Path | None) -> dict[str, Any]:
    known = RunningLab(
        shape=lab.shape,
        suite=suite,
        patches=patches,
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
    """Tell the command that waits; when it is gone, nobody wants the host.

    :raise _StopRequested: when it is gone.
    """
    try:
        os.write(_ANSWER, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        raise _StopRequested from None


if __name__ == "__main__":
    sys.exit(main())
