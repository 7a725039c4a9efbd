"""Kill ``vmm-msi watch`` at random moments, start it again, and measure how it converges.

A process of its own (:func:`main`): it has imported what the service needs, and each service is a
fork of it. On an emulated processor the imports take 8 s, a fork is ready in less than one, so most
kills hit the service at work.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import select
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm_msi.errors import BackendError, LabError
from vmm_msi.host.msi_bindings import BindingCommand, KernelBinding, MsiBindingsFile
from vmm_msi.terminal import print_document
from vmm_msi.types import Iova, Ipa

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A service is killed at most so many seconds after its start, or after it connected: it then reads
#: and writes guests and bindings.
LIFE_S = 4.0
_CONNECTED_S = 1.0
_CONNECT_LIMIT_S = 30.0
#: Share of the services that are killed after they connected.
_AT_WORK = 0.5
#: Share of the services that find a binding withdrawn.
_SPOILED = 0.5
_POLL_S = 0.01
_SHIFT = 12
_FOLDERS = ("/run", "/tmp", "/root", "/var/lib", "/var/tmp")  # noqa: S108
#: Time limit for a service to converge: a guest in an emulated host may boot meanwhile.
SETTLE_S = 180.0


class WatchKiller:
    """The process from outside.

    :param uri: the libvirt connection to watch.
    :param seed: of the moments.
    :param binding: gIOVA and gDB that each bound device is to have.
    :param log: file for the log of the services, which appends.
    """

    def __init__(self, uri: str, seed: int, binding: tuple[int, int], log: Path) -> None:
        arguments = [uri, str(seed), *map(str, binding), str(log)]
        theirs, self._input = os.pipe()
        answers, output = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vmm_msi.lab.agent.watch_killer", *arguments],
            stdin=theirs,
            stdout=output,
            cwd="/",
        )
        os.close(theirs)
        os.close(output)
        self._output = os.fdopen(answers, "rb")
        self.call("count")

    def call(self, do: str, **arguments: object) -> Any:  # noqa: ANN401
        """Send a request and return the answer; see :class:`_Killer`.

        :raise LabError: when the process is gone.
        """
        line = json.dumps({"do": do, **arguments}).encode() + b"\n"
        with suppress(BrokenPipeError):
            os.write(self._input, line)
        answer = self._output.readline()
        if not answer:
            raise LabError(f"killing vmm-msi watch, {do}: the killer is gone")
        return json.loads(answer)

    def stop(self) -> None:
        """Stop the service and the process."""
        os.close(self._input)
        self._process.wait()


class _Killer:
    """The process from inside; its requests are lines of JSON.

    ``kill``: begin to kill; ``count``: return the number of kills since then; ``settle``: kill
    until there were ``minimum``, then start a service, wait until the bindings are right, and
    return the kills and the time.
    """

    def __init__(self, uri: str, seed: int, giova: Iova, gdb: Ipa, log: Path) -> None:
        self._uri, self._giova, self._gdb, self._log = uri, giova, gdb, log
        self._random = random.Random(seed)  # noqa: S311 - moments, not secrets
        self._file = MsiBindingsFile()
        self._child = 0
        self._begun = 0.0
        self._log_from = 0
        self._wrong = False
        self._right_s: float | None = None
        self._spoiled = ""
        self._kills: list[dict[str, object]] = []
        self._killing = False
        self._log.touch()
        self._files = _files()

    def serve(self) -> None:
        """Answer requests until standard input ends."""
        while True:
            if not self._killing or select.select([sys.stdin], [], [], 0)[0]:
                line = sys.stdin.readline()
                if not line:
                    return
                print_document(json.dumps(self._answer(json.loads(line))) + "\n")
            else:
                self._kill_one()

    def stop(self) -> None:
        """Have the service stop that runs."""
        if self._child:
            os.kill(self._child, signal.SIGTERM)
            os.waitpid(self._child, 0)

    def _answer(self, request: Mapping[str, Any]) -> object:
        match request["do"]:
            case "kill":
                self._kills = []
                self._killing = True
            case "settle":
                while len(self._kills) < request["minimum"]:
                    self._kill_one()
                self._killing = False
                return self._settle()
        return len(self._kills)

    def _kill_one(self) -> None:
        """Start a service unless one runs, and kill it at a random moment."""
        if not self._child:
            self._start()
        if self._random.random() < _AT_WORK:
            self._live(_CONNECT_LIMIT_S, until="connected")
            self._live(self._random.uniform(0, _CONNECTED_S))
        else:
            self._live(self._random.uniform(0, LIFE_S))
        os.kill(self._child, signal.SIGKILL)
        alive_s = time.monotonic() - self._begun
        os.waitpid(self._child, 0)
        self._child = 0
        self._kills.append(
            {
                "alive_s": round(alive_s, 3),
                "last_event": self._last_event(),
                "withdrawn": self._spoiled,
                "right_s": self._right_s,
                "is_right": self._is_right(),
            }
        )
        self._spoil()

    def _settle(self) -> dict[str, object]:
        """Let a service converge; it keeps running."""
        if not self._child:
            self._start()
        deadline = time.monotonic() + SETTLE_S
        while not self._is_right(used=True) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return {
            "kills": self._kills,
            "was_right": not self._wrong,
            "right_s": round(time.monotonic() - self._begun, 3),
            "is_right": self._is_right(used=True),
            "new_files": sorted(_files() - self._files),
        }

    def _start(self) -> None:
        self._wrong = not self._is_right()
        self._right_s = None
        self._log_from = self._log.stat().st_size
        self._begun = time.monotonic()
        self._child = os.fork()
        if self._child:
            return
        fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        try:
            _run("watch", "-c", self._uri, "--format", "json")
        finally:
            os._exit(1)

    def _live(self, seconds: float, until: str | None = None) -> None:
        """Wait, at most until an event is in the log; note when wrong bindings became right."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if until is not None and f'"{until}"' in self._log_text():
                return
            if self._wrong and self._right_s is None and self._is_right():
                self._right_s = round(time.monotonic() - self._begun, 3)
            time.sleep(min(left, _POLL_S))

    def _spoil(self) -> None:
        """Withdraw a binding half of the time: with an RMR, the device's slot serves then."""
        self._spoiled = ""
        bindings = [binding for binding in self._file.read().bindings if not binding.pending]
        if bindings and self._random.random() < _SPOILED:
            binding = self._random.choice(bindings)
            try:
                self._file.run(BindingCommand.unbind(binding.device, binding.giova))
            except BackendError:
                return  # unplugged meanwhile
            self._spoiled = str(binding.device)

    def _is_right(self, *, used: bool = False) -> bool:
        """Return whether each device that a VMM has, has the right binding and no other.

        :param used: it has to be programmed with it.
        """
        content = self._file.read()
        right = {
            KernelBinding(device, self._giova, self._gdb, _SHIFT, pending=function.vdevice is None)
            for device, function in content.functions.items()
        }
        bindings = [replace(b, hpa=None, used=False) for b in content.bindings]
        return (
            len(bindings) == len(right)
            and set(bindings) == right
            and (not used or all(b.used for b in content.bindings))
        )

    def _log_text(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_from)
            return log.read().decode("utf-8", "replace")

    def _last_event(self) -> str:
        events = [line for line in self._log_text().splitlines() if line.startswith("{")]
        return str(json.loads(events[-1])["event"]) if events else ""


def _files() -> set[str]:
    """Return the files where a program leaves some."""
    return {str(path) for folder in _FOLDERS for path in Path(folder).glob("*")}


def _run(*words: str) -> None:
    """Run ``vmm-msi`` in this process, as ``python -m`` does."""
    sys.argv[1:] = words
    with suppress(SystemExit):
        runpy.run_module("vmm_msi", run_name="__main__", alter_sys=True)


def main() -> None:
    """Kill services as requested on standard input; stop the last one at its end."""
    uri, seed, giova, gdb, log = sys.argv[1:]
    # Import what the service needs.
    with redirect_stdout(StringIO()):
        _run("watch", "-c", "test:///default", "--once")
    killer = _Killer(uri, int(seed), Iova(int(giova)), Ipa(int(gdb)), Path(log))
    try:
        killer.serve()
    finally:
        killer.stop()


if __name__ == "__main__":
    main()
