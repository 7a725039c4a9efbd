"""Unpack Debian's packages without installing them: no maintainer script, no Arm machine.

The emulated host's user land and its libvirt's root are built this way, and so is the root in which
the lab's QEMU is built.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import unquote

from vmm_msi.errors import LabError
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.apt import PrivateApt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from vmm_msi.lab.build.progress import Progress

#: The emulated host's architecture.
ARCHITECTURE = "arm64"

#: Tools that the machine needs.
TOOLS = ("apt-get", "dpkg", "setpriv", "unshare")

#: The package with the links /bin, /lib and /sbin, through which other packages are unpacked.
_FIRST = ("base-files_", "usr-is-merged_")


def fill(
    apt_folder: Path,
    tree: Path,
    suite: str,
    packages: Sequence[str],
    log: Path,
    progress: Progress,
    architecture: str = ARCHITECTURE,
) -> dict[str, str]:
    """Unpack packages with all dependencies into a new folder; return each one's version.

    :param apt_folder: apt's state and downloads.
    :param log: file for the tools' output.
    :param architecture: Debian's name of the packages' architecture.
    :raise LabError: when a package cannot be fetched or unpacked.
    """
    log.write_text("", encoding="utf-8")
    progress.stage(f"Debian {suite} {architecture}: {' '.join(packages)}")
    apt = PrivateApt(apt_folder, suite, architecture, log, progress)
    apt.update()
    files = apt.download(packages)
    progress.stage(f"unpacking {len(files)} packages")
    tree.mkdir()
    for file in sorted(files, key=lambda file: not file.name.startswith(_FIRST)):
        progress.step(file.name)
        _unpack(file, tree)
    # apt writes the colon of an epoch as %3a.
    return dict(unquote(file.name).split("_")[:2] for file in files)


def trim(tree: Path, patterns: Iterable[str]) -> None:
    """Remove files and whole folders that match the patterns, but none behind a link out of it."""
    inside = tree.resolve()
    for pattern in patterns:
        for path in tree.glob(pattern):
            if not path.parent.resolve().is_relative_to(inside):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _unpack(package: Path, tree: Path) -> None:
    command = [host_tools.find_tool("dpkg"), "--extract", f"{package}", f"{tree}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise LabError(f"unpacking {package.name}: {reason}; remove it and build again")
