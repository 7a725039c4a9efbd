"""The kernel headers of the lab's suite: those of the machine may be older than vIOMMU."""

from __future__ import annotations

import shutil
import subprocess

from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.apt import PrivateApt
from vmm_msi.lab.build.progress import Progress

PACKAGE = "linux-libc-dev"


def ensure_headers(progress=None):
    """Return the ``usr/include`` of :data:`PACKAGE`, fetched when the cache has none.

    :raise LabError: when the package cannot be had.
    """
    progress = progress or Progress(None)
    words = (DEFAULT_SUITE, host_tools.architecture())
    made_from = {"suite": words[0], "architecture": words[1], "package": PACKAGE, "recipe": 1}
    place = caches.entry(None, "headers", "the kernel's headers", words, made_from)
    include = place.path / "usr/include"

    def build(work):
        apt = PrivateApt(work / "apt", *words, place.log, progress)
        apt.update()
        kept = work / "kept"
        command = ["dpkg", "--extract", str(apt.fetch(PACKAGE, work)), str(kept)]
        subprocess.run(command, check=True, capture_output=True)
        shutil.rmtree(kept / "usr/share", ignore_errors=True)
        return kept

    def read():
        return include if (include / "linux/iommufd.h").exists() else None

    found, _cached = caches.fill(place, read, build, progress)
    return found
