"""Debian's arm64 kernel: the device trees of the boards it runs on, and how it is configured.

Both are in one package of 4 MB, which is fetched once into the user's cache; nothing else of it is
kept. The newest kernel of the suite is taken: what is in it changes over time.
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
#: Has /usr/lib/modules/VERSION with config and dtb, but neither the kernel nor its modules.
_PREFIX = "linux-base-"
_VERSION = re.compile(rf"{_PREFIX}(\d+(?:\.\d+)*)\+\w+-{ARCHITECTURE}")


def ensure() -> Path:
    """Return the folder with ``config`` and ``dtb``, fetched where there is none.

    :raise LabError: when it cannot be had.
    """
    title = "the device trees of Debian's kernel"
    made_from = {"suite": DEFAULT_SUITE, "architecture": ARCHITECTURE}
    place = caches.entry(None, "devicetrees", title, (DEFAULT_SUITE, ARCHITECTURE), made_from)
    progress = Progress(sys.stderr, "device trees")

    def read() -> Path | None:
        return (
            place.path if (place.path / "config").is_file() and list(_trees(place.path)) else None
        )

    def build(work: Path) -> Path:
        progress.stage(f"fetching Debian {DEFAULT_SUITE}'s arm64 kernel: trees and configuration")
        apt = PrivateApt(work / "apt", DEFAULT_SUITE, ARCHITECTURE, place.log, progress)
        apt.update()
        package = apt.fetch(_newest(apt), work)
        tree = work / "tree"
        subprocess.run([host_tools.find_tool("dpkg"), "--extract", package, tree], check=True)
        [modules] = (tree / "usr/lib/modules").iterdir()
        kept = work / "kept"
        shutil.copytree(modules / "dtb", kept / "dtb", ignore=_no_overlays)
        shutil.copyfile(modules / "config", kept / "config")
        return kept

    return caches.fill(place, read, build, progress)[0]


def _newest(apt: PrivateApt) -> str:
    found = {}
    for line in apt._run(["apt-cache", "pkgnames", _PREFIX], None):
        if match := _VERSION.fullmatch(line.strip()):
            found[tuple(map(int, match[1].split(".")))] = line.strip()
    if not found:
        raise LabError(f"looking in Debian {DEFAULT_SUITE}: no package {_VERSION.pattern}")
    return found[max(found)]


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
    found = _folder()
    if isinstance(found, LabError):
        unavailable(f"no kernel package of Debian: {found}")
    return found


def config() -> str:
    """Return the configuration of the kernel; skip, in CI fail, where it cannot be had."""
    return (_available() / "config").read_text(encoding="utf-8")


def dtbs() -> list[Path]:
    """Return the device tree blobs, sorted; skip, in CI fail, where they cannot be had."""
    return sorted(_trees(_available()))
