"""Debian's arm64 packages, unpacked, never installed: no maintainer script, no Arm machine.

The emulated host's user land and the root of its libvirt are made so.
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

ARCHITECTURE = "arm64"

#: What the machine needs for it.
TOOLS = ("apt-get", "dpkg", "setpriv", "unshare")

#: What makes the links /bin, /lib and /sbin that other packages are unpacked through.
_FIRST = ("base-files_", "usr-is-merged_")


def fill(
    apt_folder: Path,
    tree: Path,
    suite: str,
    packages: Sequence[str],
    log: Path,
    progress: Progress,
) -> dict[str, str]:
    """Unpack packages, with all they depend on, into a new folder; return each one's version.

    :param apt_folder: where apt works and keeps what it fetches.
    :param log: takes what the tools print.
    :raise LabError: when a package cannot be had or unpacked.
    """
    log.write_text("", encoding="utf-8")
    progress.stage(f"Debian {suite} {ARCHITECTURE}: {' '.join(packages)}")
    apt = PrivateApt(apt_folder, suite, ARCHITECTURE, log, progress)
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
    """Take out what matches the patterns, folders with all that is in them."""
    for pattern in patterns:
        for path in tree.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _unpack(package: Path, tree: Path) -> None:
    command = [host_tools.find_tool("dpkg"), "--extract", f"{package}", f"{tree}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise LabError(f"unpacking {package.name}: {said}; remove it and build again")
