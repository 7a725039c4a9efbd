"""Use the kernel's file of guest MSI bindings by hand, without vmm-msi's reader.

``vmm_msi/lab/kernel`` has the kernel's part. The file takes one command in each write.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError, errno_name
from vmm_msi.host.msi_bindings import PATH
from vmm_msi.lab.machine.namespace_init import mount

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DEBUGFS = Path("/sys/kernel/debug")


def write(commands: Iterable[str]) -> list[str]:
    """Write commands such as ``prepare 0000:11:00.0``, each in turn.

    :return: for each the name of the errno that the kernel returned; empty for success.
    :raise LabError: when the kernel has no such file.
    """
    answers = []
    for command in commands:
        path = _file()
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, command.encode("ascii"))
            answers.append("")
        except OSError as error:
            answers.append(errno_name(error.errno or 0))
        finally:
            os.close(fd)
    return answers


def read() -> str:
    """Return the content of the file.

    :raise LabError: when the kernel has no such file.
    """
    return _file().read_text(encoding="ascii")


class Rebinder:
    """Write commands to the file again and again, in a thread.

    :param rounds: the commands of one round for each device.
    :param per_second: number of rounds in a second.
    """

    def __init__(self, rounds: Sequence[Sequence[str]], per_second: int) -> None:
        self._rounds = rounds
        self._pause_s = 1 / per_second
        self._stop = threading.Event()
        self._done = 0
        self._refused = ""
        self._thread = threading.Thread(target=self._run, name="rebinder", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            for commands in self._rounds:
                for command, errno in zip(commands, write(commands), strict=True):
                    if errno:
                        self._refused = f"{command}: {errno}"
                        return
            self._done += 1

    def stop(self) -> int:
        """Stop and return the number of rounds.

        :raise LabError: when the kernel refused a command.
        """
        self._stop.set()
        self._thread.join()
        if self._refused:
            raise LabError(f"rebinding: {self._refused} after {self._done} rounds")
        return self._done


def mount_debugfs() -> None:
    """Mount debugfs where systemd does on other hosts."""
    if not os.path.ismount(_DEBUGFS):
        mount("none", _DEBUGFS, "debugfs", "")


def _file() -> Path:
    mount_debugfs()
    if not PATH.exists():
        raise LabError(
            f"guest MSI bindings: the emulated host's kernel has no {PATH}; use the kernel with "
            "the patches of vmm_msi/lab/kernel"
        )
    return PATH
