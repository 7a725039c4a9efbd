"""The kernel's source that the lab builds from, as far as the documentation names functions of it.

Debian's package has 160 MB; the user's cache keeps a few folders of it.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.apt import PrivateApt
from vmm_msi.lab.build.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

_PACKAGE = "linux-source-"
_FOLDERS = ("drivers/iommu", "drivers/irqchip", "drivers/pci/msi", "drivers/vfio", "kernel/irq")
_FILES = ("include/linux/msi.h", "drivers/acpi/arm64/iort.c", "Makefile")


def _entry() -> caches.Entry:
    key = {"suite": DEFAULT_SUITE, "folders": _FOLDERS, "files": _FILES}
    return caches.entry(None, "kernelsource", "the kernel's source", (DEFAULT_SUITE,), key)


def find() -> Path | None:
    """Return the folder of the source if it is cached."""
    folder = _entry().path
    return folder if (folder / "Makefile").is_file() else None


def ensure() -> Path:
    """Return the folder of the source; fetch it if it is not cached.

    :raise LabError: if it cannot be fetched.
    """
    entry = _entry()
    progress = Progress(sys.stderr, "kernel source")

    def build(work: Path) -> Path:
        apt = PrivateApt(
            work / "apt", DEFAULT_SUITE, host_tools.architecture(), entry.log, progress
        )
        apt.update()
        package = apt.fetch(apt.newest(_PACKAGE), work)
        tree, kept = work / "tree", work / "kept"
        subprocess.run([host_tools.find_tool("dpkg"), "--extract", package, tree], check=True)
        [archive] = tree.glob("usr/src/linux-source-*.tar.xz")
        kept.mkdir()
        subprocess.run(
            [
                *(host_tools.find_tool("tar"), "--extract", "--xz", f"--file={archive}"),
                *("--strip-components=1", f"--directory={kept}", "--wildcards"),
                *("--no-wildcards-match-slash", *(f"linux-*/{name}" for name in _FOLDERS + _FILES)),
            ],
            check=True,
        )
        return kept

    return caches.fill(entry, find, build, progress)[0]
