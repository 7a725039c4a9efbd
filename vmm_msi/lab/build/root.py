"""Find or build the lab's root: a small Debian system with a current libvirt and QEMU.

A machine's stable release often has a libvirt that is too old for ``<iommu model='smmuv3'>`` with a
``<driver>`` (docs/lab-internals.md). The root has a newer one and leaves the machine's packages
alone.

Its cache entry has ``tree`` (the root) and ``root.json`` (the versions in it).
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import host_tools, root_recipe
from vmm_msi.lab.build.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MARKER = "root.json"


@dataclass(frozen=True)
class LabRoot:
    """A complete root in the cache.

    :ivar path: the root's top folder.
    :ivar suite: its Debian suite.
    :ivar architecture: Debian's name of its architecture.
    :ivar libvirt: the version of libvirt in it, as upstream counts.
    :ivar qemu: the version of QEMU in it, as upstream counts.
    :ivar built: when it was built, in UTC, ISO 8601.
    :ivar cached: it was in the cache.
    """

    path: Path
    suite: str
    architecture: str
    libvirt: str
    qemu: str
    built: str
    cached: bool = True

    def outside(self, program: str) -> list[str]:
        """Return the command that starts a program of the root without chroot (ld.so(8)).

        The program finds its libraries; its options must name its data.

        :param program: its path below the root, such as ``usr/bin/qemu-img``.
        :raise LabError: when the root has no dynamic linker.
        """
        for linker in (self.path / "usr/lib").glob("*-linux-gnu/ld-linux-*.so.?"):
            libraries = ["--library-path", f"{linker.parent}"]
            return [f"{linker}", *libraries, f"{self.path / program}"]
        raise LabError(
            f"starting {program} of {self.path}: the root has no dynamic linker; remove "
            f"{self.path.parent} and build it again with vmm-msi lab root"
        )


def ensure_root(
    suite: str = DEFAULT_SUITE,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> LabRoot:
    """Return the root of ``suite``; build it if the cache does not have it.

    :param suite: a Debian suite, such as ``forky``.
    :param cache: the folder of the cache; this user's when ``None``.
    :param progress: progress output; silent when ``None``.
    :raise UsageError: when ``suite`` cannot be a suite's name.
    :raise LabError: when it cannot be built.
    """
    caches.check_suite(suite, "lab root")
    architecture = host_tools.architecture()
    made_from = {
        "suite": suite,
        "architecture": architecture,
        "packages": root_recipe.packages(suite, architecture),
        "recipe": root_recipe.VERSION,
    }
    place = caches.entry(cache, "root", "the lab's root", (suite, architecture), made_from)

    def build(work: Path) -> Path:
        spec = root_recipe.BuildSpec(
            work / "tree", suite, architecture, host_tools.apt_mirror(), place.log
        )
        versions = root_recipe.build_tree(spec, progress or Progress(None))
        describe(work, suite, architecture, versions)
        return work

    purpose = "building the lab's root (chroot, mounts and device nodes of its own)"
    root, cached = caches.fill(
        place,
        lambda: read_root(place.path),
        build,
        progress,
        prepare=lambda: host_tools.require_root(purpose),
    )
    return replace(root, cached=cached)


def read_root(folder: Path) -> LabRoot | None:
    """Return the root of a complete entry, or ``None`` if it is unusable."""
    tree = folder / "tree"
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        if not (tree / "usr/sbin/libvirtd").is_file():
            return None
        return LabRoot(
            path=tree,
            suite=marker["suite"],
            architecture=marker["architecture"],
            libvirt=marker["libvirt"],
            qemu=marker["qemu"],
            built=marker["built"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe(folder: Path, suite: str, architecture: str, versions: Mapping[str, str]) -> None:
    """Write an entry's ``root.json``.

    :param versions: the version of each package.
    """
    marker = {
        "suite": suite,
        "architecture": architecture,
        "libvirt": root_recipe.upstream_version(versions["libvirt-daemon"]),
        "qemu": root_recipe.upstream_version(versions["qemu-system-arm"]),
        "built": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "recipe": root_recipe.VERSION,
        "packages": dict(versions),
    }
    (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
