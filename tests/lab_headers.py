"""The kernel headers of the lab's suite; the machine's own may lack the vIOMMU structures."""

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
    """Return the ``usr/include`` of :data:`PACKAGE`; fetch it if it is not cached.

    :raise LabError: if the package cannot be fetched.
    """
    progress = progress or Progress(None)
    suite, architecture = DEFAULT_SUITE, host_tools.architecture()
    key = {"suite": suite, "architecture": architecture, "package": PACKAGE, "recipe": 1}
    title = "the kernel's headers"
    entry = caches.entry(None, "headers", title, (suite, architecture), key)
    include = entry.path / "usr/include"

    def build(work):
        apt = PrivateApt(work / "apt", suite, architecture, entry.log, progress)
        apt.update()
        kept = work / "kept"
        command = ["dpkg", "--extract", str(apt.fetch(PACKAGE, work)), str(kept)]
        subprocess.run(command, check=True, capture_output=True)
        shutil.rmtree(kept / "usr/share", ignore_errors=True)
        return kept

    def read():
        return include if (include / "linux/iommufd.h").exists() else None

    return caches.fill(entry, read, build, progress)[0]
