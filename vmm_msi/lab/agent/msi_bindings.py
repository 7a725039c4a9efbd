"""Use the kernel's file of guest MSI bindings by hand, without vmm-msi's reader.

``vmm_msi/lab/kernel`` has the kernel's part. The file takes one command in each write.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError, errno_name
from vmm_msi.lab.machine.namespace_init import mount

if TYPE_CHECKING:
    from collections.abc import Iterable

_DEBUGFS = Path("/sys/kernel/debug")
_FILE = _DEBUGFS / "iommufd/msi_bindings"


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


def _file() -> Path:
    if not os.path.ismount(_DEBUGFS):
        mount("none", _DEBUGFS, "debugfs", "")
    if not _FILE.exists():
        raise LabError(
            f"guest MSI bindings: the emulated host's kernel has no {_FILE}; use the kernel with "
            "the patches of vmm_msi/lab/kernel"
        )
    return _FILE
