"""Debian's arm64 kernel: the device trees of its boards, and its configuration.

Both are in one package of 4 MB, which is fetched once; the user's cache keeps only these files. It
is the suite's newest kernel, so its content changes over time.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

from conftest import unavailable

from vmm_msi.errors import LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.apt import PrivateApt
from vmm_msi.lab.build.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURE = "arm64"
#: The package with config and dtb of /usr/lib/modules/VERSION, without kernel and modules.
_PREFIX = "linux-base-"
_VERSION = re.compile(rf"{_PREFIX}(\d+(?:\.\d+)*)\+\w+-{ARCHITECTURE}")


def ensure() -> Path:
    """Return the folder with ``config`` and ``dtb``; fetch it if it is not cached.

    :raise LabError: if it cannot be fetched.
    """
    title = "the device trees of Debian's kernel"
    key = {"suite": DEFAULT_SUITE, "architecture": ARCHITECTURE}
    entry = caches.entry(None, "devicetrees", title, (DEFAULT_SUITE, ARCHITECTURE), key)
    progress = Progress(sys.stderr, "device trees")

    def read() -> Path | None:
        complete = (entry.path / "config").is_file() and list(_trees(entry.path))
        return entry.path if complete else None

    def build(work: Path) -> Path:
        progress.stage(f"fetching Debian {DEFAULT_SUITE}'s arm64 kernel: trees and configuration")
        apt = PrivateApt(work / "apt", DEFAULT_SUITE, ARCHITECTURE, entry.log, progress)
        apt.update()
        package = apt.fetch(_newest(apt), work)
        tree = work / "tree"
        subprocess.run([host_tools.find_tool("dpkg"), "--extract", package, tree], check=True)
        [modules] = (tree / "usr/lib/modules").iterdir()
        kept = work / "kept"
        shutil.copytree(modules / "dtb", kept / "dtb", ignore=_no_overlays)
        shutil.copyfile(modules / "config", kept / "config")
        return kept

    return caches.fill(entry, read, build, progress)[0]


def _newest(apt: PrivateApt) -> str:
    packages = {}
    for line in apt._run(["apt-cache", "pkgnames", _PREFIX], None):
        if match := _VERSION.fullmatch(line.strip()):
            packages[tuple(map(int, match[1].split(".")))] = line.strip()
    if not packages:
        raise LabError(f"looking in Debian {DEFAULT_SUITE}: no package {_VERSION.pattern}")
    return packages[max(packages)]


def _no_overlays(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.endswith(".dtbo")}


def _trees(folder: Path):
    return (folder / "dtb").rglob("*.dtb")


@cache
def _folder() -> Path | LabError:
    try:
        return ensure()
    except LabError as error:
        return error


def _available() -> Path:
    folder = _folder()
    if isinstance(folder, LabError):
        unavailable(f"no kernel package of Debian: {folder}")
    return folder


def config() -> str:
    """Return the kernel's configuration; skip the test, or fail in CI, without it."""
    return (_available() / "config").read_text(encoding="utf-8")


def dtbs() -> list[Path]:
    """Return the device tree blobs, sorted; skip the test, or fail in CI, without them."""
    return sorted(_trees(_available()))
