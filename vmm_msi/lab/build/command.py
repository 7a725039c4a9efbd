"""Run the long commands of a build: logged, watched, and killed with the caller."""

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
#: Marks of the line that gives the reason, as apt, a full disk, compilers, patch and make print it.
_REASONS = ("E: ", "No space left on device", "rror: ", " hunk", "*** ")


def contained(*options: str) -> list[str]:
    """Return a command prefix that kills the command and its children with this process.

    The kernel kills a PID namespace with its first process, and that one dies with this process.
    Without root the namespaces are in a user namespace.

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

    :param doing: the action, for the message.
    :param log: file for its whole output.
    :param environment: its complete environment.
    :param watch: called with every line.
    :param folder: working folder; the current one when ``None``.
    :param keep: number of lines to return; all when ``None``.
    :raise LabError: when it fails, with the line that gives the reason.
    """
    lines: deque[str] = deque(maxlen=keep)
    # In its own session it does not get the terminal's Ctrl-C; it is killed here, as a whole.
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
    """Return the line that gives the reason if it is recognised, else the last line."""
    for mark in _REASONS:
        for line in lines:
            if mark in line:
                return line.strip()
    return lines[-1] if lines else "no message"
