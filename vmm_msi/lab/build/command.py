"""Run the long commands of a build: logged, watched, and gone when the caller is gone."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError
from vmm_msi.lab.build import host_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

_LAST_LINES = 40
#: What is in the line of apt, of a full disk, of compilers, of patch and of make that says why.
_REASONS = ("E: ", "No space left on device", "rror: ", " hunk", "*** ")


def contained(*options: str) -> list[str]:
    """Return the words to put before a command so that all it starts ends with this process.

    Its PID namespace goes when its first process is killed, and that is killed with this one.
    Without root the namespaces are those of a user namespace.

    :param options: further options of unshare(1).
    """
    tools = host_tools.require_tools(["setpriv", "unshare"])
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return [
        *(tools["setpriv"], "--pdeathsig", "KILL"),
        *(tools["unshare"], *user, "--mount", "--pid", "--fork", "--kill-child", *options),
    ]


def run_logged(
    command: Sequence[str],
    *,
    doing: str,
    log: Path,
    environment: Mapping[str, str],
    watch: Callable[[str], None],
    folder: Path | None = None,
    keep: int | None = _LAST_LINES,
) -> list[str]:
    """Run one stage of a build and return its last lines.

    :param doing: what is being done, for the message.
    :param log: takes everything it prints.
    :param environment: all of its environment.
    :param watch: told every line.
    :param folder: where it runs; here when ``None``.
    :param keep: how many lines to return; all when ``None``.
    :raise LabError: when it fails, with the line that says why.
    """
    lines: deque[str] = deque(maxlen=keep)
    # A session of its own keeps the terminal's Ctrl-C from it: it is ended here, as a whole.
    with (
        log.open("a", encoding="utf-8") as record,
        subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                record.write(line)
                lines.append(line.rstrip("\n"))
                watch(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise LabError(f"{doing}: {_reason(lines)}; the whole log is {log}")
    return list(lines)


def _reason(lines: Sequence[str]) -> str:
    """Return the line that says why, as far as the tools have a way of saying it, or the last."""
    for mark in _REASONS:
        for line in lines:
            if mark in line:
                return line.strip()
    return lines[-1] if lines else "no message"
