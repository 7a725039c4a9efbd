"""Build the QEMU of an emulated host with several ITSes: Debian's source and one patch.

QEMU's boards have one ITS. ``vmm_msi/lab/qemu`` has the patch, the list of devices and the licence
of both. Hosts with one ITS use the root's own QEMU.

The build runs in a root of its own with the compiler and libraries of the lab's suite, so that the
result runs in the lab's root, whatever the machine has. An interrupted build resumes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.resources
import json
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import deb_tree, host_tools
from vmm_msi.lab.build.apt import PrivateApt
from vmm_msi.lab.build.command import PATH, contained, run_logged
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.build.root_recipe import upstream_version

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Increment when the same source, patch and options must give a different QEMU.
VERSION = 1

#: The oldest QEMU with an SMMUv3 for each expander bus (``-device arm-smmuv3``, primary-bus).
OLDEST = (10, 2)

#: Suites with sources of QEMU, besides the suite that the lab is built from: sid has every version
#: first, and the previous one for a while.
_SUITES = ("sid",)
_PACKAGE = "qemu"
_PROGRAM = "qemu-system-aarch64"
#: Of ``vmm_msi.lab.qemu``.
_PATCH, _DEVICES = "its-count.patch", "devices.mak"

#: Compiler, build tools and libraries of the root in which QEMU is built.
PACKAGES = (
    *("base-files", "bash", "bison", "coreutils", "dash", "device-tree-compiler", "diffutils"),
    *("findutils", "flex", "gcc", "grep", "gzip", "hostname", "libattr1-dev", "libc6-dev"),
    *("libcap-ng-dev", "libfdt-dev", "libglib2.0-dev", "libslirp-dev", "meson", "ninja-build"),
    *("perl-base", "pkgconf", "python3", "python3-distlib", "python3-pip", "python3-pycotap"),
    *("python3-setuptools", "sed", "tar", "zlib1g-dev"),
)

#: Options of QEMU's configure. Firmware and option ROMs are those of the lab's root.
OPTIONS = (
    *("--cc=gcc", "--host-cc=gcc", "--target-list=aarch64-softmmu", "--without-default-features"),
    *("--without-default-devices", "--with-devices-aarch64=lab", "--enable-tcg", "--disable-kvm"),
    *("--enable-fdt=system", "--enable-slirp", "--enable-virtfs", "--enable-attr"),
    *("--enable-cap-ng", "--enable-trace-backends=log", "--disable-install-blobs"),
    *("--disable-docs", "--disable-tools", "--disable-werror", "--disable-download"),
    "--disable-debug-info",
    "--firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu",
)

#: Tools that the machine needs to build it.
TOOLS = (*deb_tree.TOOLS, "apt-cache", "chroot", "patch", "tar", "xz")

#: Disk space for a build, in bytes.
_SPACE = 2_000_000_000

_STEP = re.compile(r"\[(\d+)/(\d+)\] (.*)")
_MARKER = "qemu.json"
_BUILDING = "building the lab's QEMU"


@dataclass(frozen=True)
class ItsEmulator:
    """A complete QEMU in the cache.

    :ivar path: the program.
    :ivar version: its version, as upstream counts.
    :ivar built: when it was built, in UTC, ISO 8601.
    :ivar cached: it was in the cache.
    """

    path: Path
    version: str
    built: str
    cached: bool = True


class _Source(NamedTuple):
    """A source package that can be fetched with ``apt``."""

    version: str
    suite: str
    apt: PrivateApt

    @property
    def upstream(self) -> tuple[int, ...]:
        return tuple(map(int, upstream_version(self.version).split(".")))


def find_its_emulator(suite: str = DEFAULT_SUITE, cache: Path | None = None) -> ItsEmulator | None:
    """Return the QEMU for ``suite`` if the cache has it."""
    return _read(_place(suite, cache).path)


def ensure_its_emulator(
    suite: str = DEFAULT_SUITE, cache: Path | None = None, progress: Progress | None = None
) -> ItsEmulator:
    """Return the QEMU for hosts of ``suite`` with several ITSes; build it if it is not cached.

    :param suite: the Debian suite of the root in which it runs.
    :param cache: the folder of the cache; this user's when ``None``.
    :param progress: progress output; silent when ``None``.
    :raise UsageError: when ``suite`` cannot be a suite's name.
    :raise LabError: when it cannot be built, for instance since no source can be fetched.
    """
    place = _place(suite, cache)

    def build(work: Path) -> Path:
        return _Build(work, place.log, suite, progress or Progress(None)).run()

    emulator, cached = caches.fill(
        place,
        lambda: _read(place.path),
        build,
        progress,
        prepare=lambda: _check_machine(place),
    )
    return replace(emulator, cached=cached)


def _place(suite: str, cache: Path | None) -> caches.Entry:
    caches.check_suite(suite, "lab build")
    architecture = host_tools.architecture()
    made_from = {
        "suite": suite,
        "architecture": architecture,
        "files": [hashlib.sha256(_file(name)).hexdigest() for name in (_PATCH, _DEVICES)],
        "options": OPTIONS,
        "recipe": VERSION,
    }
    words = (suite, architecture)
    return caches.entry(cache, "qemu", "the lab's QEMU", words, made_from, resumable=True)


def _file(name: str) -> bytes:
    return importlib.resources.files("vmm_msi.lab.qemu").joinpath(name).read_bytes()


def _check_machine(place: caches.Entry) -> None:
    host_tools.require_root(f"{_BUILDING} (in a root of its own)")
    host_tools.require_tools(TOOLS)
    host_tools.require_space(place.path.parent, _SPACE, _BUILDING)


def _read(folder: Path) -> ItsEmulator | None:
    program = folder / _PROGRAM
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        if program.stat().st_size != marker["bytes"]:
            return None
        return ItsEmulator(program, marker["version"], marker["built"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Build:
    """One build, in a folder that an interrupted build may have filled in part."""

    def __init__(self, work: Path, log: Path, suite: str, progress: Progress) -> None:
        self._work = work
        self._log = log
        self._suite = suite
        self._progress = progress
        self._root = work / "root"
        #: Below the root, so that its tools see them.
        self._source = self._root / "source"
        self._objects = self._root / "objects"

    def run(self) -> Path:
        """Build and return the folder to keep."""
        self._log.write_text("", encoding="utf-8")
        self._lay_root()
        if self._source.exists():
            self._progress.stage("resuming the interrupted build")
        else:
            self._lay_source()
        if not (self._objects / "build.ninja").exists():
            self._progress.stage("configuring QEMU")
            host_tools.remove_folder(self._objects)
            self._objects.mkdir()
            self._inside("../source/configure", *OPTIONS)
        self._compile()
        return self._keep()

    def _lay_root(self) -> None:
        """Unpack compiler and libraries; complete the root's devices."""
        if self._root.exists():
            return
        part = self._work / "root.part"
        host_tools.remove_folder(part)
        architecture = host_tools.architecture()
        apt = self._work / "apt"
        deb_tree.fill(apt, part, self._suite, PACKAGES, self._log, self._progress, architecture)
        null = part / "dev/null"
        os.mknod(null, 0o020666, os.makedev(1, 3))
        null.chmod(0o666)
        part.rename(self._root)
        host_tools.remove_folder(apt)

    def _lay_source(self) -> None:
        """Fetch, unpack and patch the newest source that can be had and takes the patch.

        :raise LabError: when none does; the message has the reason for each.
        """
        reasons: list[str] = []
        for source in self._sources(reasons):
            try:
                self._unpack(source.apt.fetch_source(_PACKAGE, source.version, self._work))
            except LabError as error:
                reasons.append(f"{source.version}: {error}")
                self._progress.stage(f"QEMU {source.version} of {source.suite} cannot be used")
            else:
                return
        oldest = ".".join(map(str, OLDEST))
        raise LabError(
            f"{_BUILDING}: Debian has no source of QEMU {oldest} or later that can be fetched and "
            f"patched; use one ITS, or try again later ({'; '.join(reasons) or 'none is listed'})"
        )

    def _sources(self, reasons: list[str]) -> list[_Source]:
        """Return the sources that are new enough, the newest first.

        :param reasons: receives why a suite's sources cannot be listed.
        """
        sources: dict[str, _Source] = {}
        for suite in dict.fromkeys((self._suite, *_SUITES)):
            self._progress.stage(f"Debian {suite}: looking for QEMU's source")
            apt = PrivateApt(
                self._work / f"sources-{suite}",
                suite,
                host_tools.architecture(),
                self._log,
                self._progress,
                sources=True,
            )
            try:
                apt.update()
                versions = apt.source_versions(_PACKAGE)
            except LabError as error:
                reasons.append(f"{suite}: {error}")
                continue
            for version in versions:
                sources.setdefault(version, _Source(version, suite, apt))
        usable = [source for source in sources.values() if source.upstream >= OLDEST]
        return sorted(usable, key=lambda source: source.upstream, reverse=True)

    def _unpack(self, archive: Path) -> None:
        self._progress.stage(f"unpacking {archive.name}")
        part = self._root / "unpacking"
        host_tools.remove_folder(part)
        part.mkdir()
        unpack = ["tar", "--extract", "--xz", f"--file={archive}", "--strip-components=1"]
        self._run([*unpack, f"--directory={part}"])
        patch = self._work / _PATCH
        patch.write_bytes(_file(_PATCH))
        self._run(
            ["patch", "-p1", "--batch", "--forward", f"--input={patch}", f"--directory={part}"],
            doing=f"applying {_PATCH}",
        )
        devices = part / "configs/devices/aarch64-softmmu/lab.mak"
        devices.write_bytes(_file(_DEVICES))
        part.rename(self._source)
        archive.unlink()

    def _compile(self) -> None:
        jobs = len(os.sched_getaffinity(0))
        self._progress.stage(f"compiling QEMU ({jobs} at a time)")

        def watch(line: str) -> None:
            match = _STEP.match(line)
            if match is not None:
                self._progress.count(int(match[1]), int(match[2]), match[3])

        self._inside("ninja", f"-j{jobs}", _PROGRAM, watch=watch)

    def _keep(self) -> Path:
        """Return a folder with the entry's files."""
        kept = self._root / "kept"
        host_tools.remove_folder(kept)
        kept.mkdir()
        self._inside("strip", "-o", f"../kept/{_PROGRAM}", _PROGRAM)
        marker = {
            "version": (self._source / "VERSION").read_text(encoding="utf-8").strip(),
            "suite": self._suite,
            "bytes": (kept / _PROGRAM).stat().st_size,
            "built": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "recipe": VERSION,
            "options": OPTIONS,
        }
        (kept / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        self._progress.clear()
        return kept

    def _inside(self, *command: str, watch: Callable[[str], None] | None = None) -> None:
        """Run a command in the root, in the folder of the objects."""
        chroot = [host_tools.find_tool("chroot"), f"{self._root}", "/usr/bin/env"]
        self._run(
            [*chroot, f"--chdir=/{self._objects.name}", *command],
            options=(f"--mount-proc={self._root / 'proc'}",),
            watch=watch,
        )

    def _run(
        self,
        command: list[str],
        doing: str = _BUILDING,
        options: tuple[str, ...] = (),
        watch: Callable[[str], None] | None = None,
    ) -> None:
        run_logged(
            [*contained(*options), host_tools.find_tool(command[0]), *command[1:]],
            doing=doing,
            log=self._log,
            environment={"PATH": PATH, "LC_ALL": "C.UTF-8"},
            watch=watch or self._progress.step,
        )
