"""Build the emulated Arm host's kernel: Debian's source, cross-built with few options.

Debian's own arm64 kernels have ``CONFIG_IOMMUFD`` off. The options are in ``kernel.config``, on top
of ``allnoconfig``; Linux ``Documentation/kbuild/kconfig.rst`` describes ``KCONFIG_ALLCONFIG``.

An interrupted build resumes: downloads, the unpacked source and the objects stay until the image is
complete. kbuild itself detects incomplete objects: it writes an object's ``.cmd`` file after the
object.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.resources
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError, UsageError
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.apt import PrivateApt
from vmm_msi.lab.build.command import PATH, contained, run_logged
from vmm_msi.lab.build.progress import Progress
from vmm_msi.types import Granule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Increment when the same source and options must give a different image.
VERSION = 1

#: Page sizes that the kernel can be built with, and the options of each.
GRANULES = {
    Granule.K4: ("CONFIG_ARM64_4K_PAGES=y", "CONFIG_ARM64_VA_BITS_48=y"),
    Granule.K64: ("CONFIG_ARM64_64K_PAGES=y", "CONFIG_ARM64_VA_BITS_48=y"),
}

_SOURCE_PACKAGE = "linux-source-"
_LOCAL_VERSION = "-vmm-msi"
#: Tools that the machine needs to build it.
TOOLS = (
    *(
        "aarch64-linux-gnu-gcc",
        "apt-cache",
        "apt-get",
        "bc",
        "bison",
        "dpkg",
        "flex",
        "gcc",
        "make",
    ),
    *("patch", "setpriv", "tar", "unshare", "xz"),
)
#: Half a gigabyte of headers that these options do not compile.
_LEFT_OUT = "*/drivers/gpu/drm/amd/include/asic_reg"

#: Disk space for a build, and for one whose source is already unpacked, in bytes.
_SPACE = 2_000_000_000
_SPACE_RESUMED = 500_000_000

#: Approximate number of lines that make prints.
_STEPS = 1970
_STEP = re.compile(r"\s+[A-Z][A-Z0-9]+\s+\S")
_MARKER = "kernel.json"
_IMAGE = "Image"
# Linux Documentation/arch/arm64/booting.rst: the header's magic number and its offset.
_MAGIC, _MAGIC_AT = b"ARM\x64", 56


@dataclass(frozen=True)
class LabKernel:
    """A complete kernel in the cache.

    :ivar path: the image.
    :ivar release: its version, as upstream counts, such as ``7.2.12``.
    :ivar granule: its page size.
    :ivar built: when it was built, in UTC, ISO 8601.
    :ivar cached: it was in the cache.
    """

    path: Path
    release: str
    granule: Granule
    built: str
    cached: bool = True


def find_kernel(
    suite: str,
    granule: Granule = Granule.K4,
    cache: Path | None = None,
    patches: Path | None = None,
) -> LabKernel | None:
    """Return the kernel of ``suite`` if the cache has it; the arguments are those of the build.

    :raise UsageError: when that page size is not supported or the folder has no patches.
    """
    place = _place(suite, granule, cache, read_patches(patches))
    return _read(place.path, granule)


def ensure_kernel(
    suite: str,
    granule: Granule = Granule.K4,
    cache: Path | None = None,
    progress: Progress | None = None,
    patches: Path | None = None,
) -> LabKernel:
    """Return the kernel of ``suite``; build it if the cache does not have it.

    :param granule: its page size: 4K or 64K.
    :param patches: a folder whose ``*.patch`` are applied to the source, in order
        of name, with ``patch -p1``.
    :raise UsageError: when that page size is not supported or the folder has no patches.
    :raise LabError: when it cannot be built.
    """
    applied = read_patches(patches)
    place = _place(suite, granule, cache, applied)

    def build(work: Path) -> Path:
        return _Build(work, place.log, suite, granule, progress or Progress(None)).run(applied)

    kernel, cached = caches.fill(
        place,
        lambda: _read(place.path, granule),
        build,
        progress,
        prepare=lambda: _check_host(place),
    )
    return replace(kernel, cached=cached)


def _place(
    suite: str, granule: Granule, cache: Path | None, patches: list[tuple[str, bytes]]
) -> caches.Entry:
    if granule not in GRANULES:
        known = ", ".join(map(str, GRANULES))
        raise UsageError(f"lab build: granule {granule} is not supported; use one of {known}")
    made_from = {
        "suite": suite,
        "granule": str(granule),
        "options": hashlib.sha256("\n".join(_options(fragment(granule))).encode()).hexdigest(),
        "patches": [[name, hashlib.sha256(patch).hexdigest()] for name, patch in patches],
        "recipe": VERSION,
    }
    words = (suite, str(granule).lower())
    return caches.entry(cache, "kernel", "the lab's kernel", words, made_from, resumable=True)


def fragment(granule: Granule) -> str:
    """Return the configuration fragment for a page size."""
    text = (
        importlib.resources.files("vmm_msi.lab.build").joinpath("kernel.config").read_text("utf-8")
    )
    return "\n".join((text.rstrip(), "", *GRANULES[granule], ""))


def lost_options(options: str, config: str) -> list[str]:
    """Return the options that are missing from a ``.config``."""
    have = set(config.splitlines())
    return [line for line in _options(options) if line not in have]


def _options(text: str) -> list[str]:
    """Return the lines of a fragment that set an option: comments do not change a kernel."""
    return [line for line in text.splitlines() if line.startswith("CONFIG_")]


def read_patches(folder: Path | None) -> list[tuple[str, bytes]]:
    """Return name and content of every patch in ``folder``, in order of name.

    :raise UsageError: when the folder has no patch.
    """
    if folder is None:
        return []
    try:
        patches = [(path.name, path.read_bytes()) for path in sorted(folder.glob("*.patch"))]
    except OSError as error:
        raise UsageError(f"lab build: patches in {folder}: {error.strerror}") from error
    if not patches:
        raise UsageError(f"lab build: patches in {folder}: there is no file *.patch")
    return patches


def _check_host(place: caches.Entry) -> None:
    host_tools.require_tools(TOOLS)
    resumed = (place.work / "source").exists()
    needed = _SPACE_RESUMED if resumed else _SPACE
    host_tools.require_space(place.path.parent, needed, "building the lab's kernel")


def _read(folder: Path, granule: Granule) -> LabKernel | None:
    image = folder / _IMAGE
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        if image.stat().st_size != marker["bytes"]:
            return None
        return LabKernel(
            path=image,
            release=marker["release"],
            granule=granule,
            built=marker["built"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Build:
    """One build, in a folder that an interrupted build may have filled in part."""

    def __init__(
        self, work: Path, log: Path, suite: str, granule: Granule, progress: Progress
    ) -> None:
        self._work = work
        self._log = log
        self._suite = suite
        self._granule = granule
        self._progress = progress
        self._source = work / "source"
        self._objects = work / "objects"

    def run(self, patches: list[tuple[str, bytes]]) -> Path:
        """Build and return the folder to keep."""
        self._log.write_text("", encoding="utf-8")
        options = fragment(self._granule)
        if self._source.exists():
            self._progress.stage("resuming the interrupted build")
        else:
            self._unpack(self._fetch(), patches)
        resumed = self._objects.exists()
        self._configure(options)
        try:
            self._compile()
        except LabError:
            if not resumed or "No space left" in self._log.read_text("utf-8", "replace"):
                raise
            # After a power cut, make may consider truncated files complete.
            self._progress.stage("compiling failed; deleting the objects and retrying")
            shutil.rmtree(self._objects)
            self._configure(options)
            self._compile()
        return self._keep(options, patches)

    def _fetch(self) -> Path:
        self._progress.stage(f"Debian {self._suite}: fetching the kernel's source")
        folder = self._work / "apt"
        architecture = host_tools.architecture()
        apt = PrivateApt(folder, self._suite, architecture, self._log, self._progress)
        apt.update()
        return apt.fetch(apt.newest(_SOURCE_PACKAGE), self._work)

    def _unpack(self, package: Path, patches: list[tuple[str, bytes]]) -> None:
        """Unpack and patch the source."""
        self._progress.stage(f"unpacking {package.name}")
        part = self._work / "unpacking"
        host_tools.remove_folder(part)
        part.mkdir()
        self._run(["dpkg", "--extract", f"{package}", f"{part}"])
        archives = [*part.glob("usr/src/linux-source-*.tar.xz")]
        if len(archives) != 1:
            raise LabError(
                f"unpacking {package.name}: no usr/src/linux-source-*.tar.xz in it; "
                "use another --suite"
            )
        unpack = ["tar", "--extract", "--xz", f"--file={archives[0]}", f"--exclude={_LEFT_OUT}"]
        self._run([*unpack, "--strip-components=1", "--one-top-level=source"], part)
        archives[0].unlink()
        for name, patch in patches:
            self._progress.stage(f"applying {name}")
            (part / name).write_bytes(patch)
            file = f"--input={part / name}"
            doing = f"applying {name} to {package.name}"
            self._run(["patch", "-p1", "--batch", "--forward", file], part / "source", doing)
        (part / "source").rename(self._source)
        host_tools.remove_folder(part)
        package.unlink()

    def _configure(self, options: str) -> None:
        """Write the configuration and check that it has every option.

        :raise LabError: when one is lost.
        """
        self._objects.mkdir(exist_ok=True)
        file = self._objects / "options"
        file.write_text(options, encoding="utf-8")
        self._make(f"KCONFIG_ALLCONFIG={file}", "allnoconfig")
        config = (self._objects / ".config").read_text(encoding="utf-8")
        lost = lost_options(options, config)
        if lost:
            raise LabError(
                f"configuring the lab's kernel: {', '.join(lost)} got lost; the source in "
                f"{self._source} lacks them or what they depend on: change kernel.config, or use "
                "another --suite"
            )

    def _compile(self) -> None:
        jobs = len(os.sched_getaffinity(0))
        self._progress.stage(f"compiling the kernel, {self._granule} pages ({jobs} at a time)")
        done = sum(1 for _ in self._objects.rglob(".*.cmd"))

        def watch(line: str) -> None:
            nonlocal done
            if _STEP.match(line):
                done += 1
                self._progress.count(done, _STEPS, line)

        self._make(f"-j{jobs}", _IMAGE, watch=watch)

    def _keep(self, options: str, patches: list[tuple[str, bytes]]) -> Path:
        """Return a folder with the entry's files."""
        kept = self._work / "kept"
        host_tools.remove_folder(kept)
        kept.mkdir()
        image = (self._objects / "arch/arm64/boot" / _IMAGE).read_bytes()
        if image[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
            shutil.rmtree(self._objects)
            raise LabError(
                "building the lab's kernel: make wrote an image without arm64's magic number; "
                "run the build again: it restarts from scratch"
            )
        (kept / _IMAGE).write_bytes(image)
        shutil.copyfile(self._objects / ".config", kept / "config")
        release = (self._objects / "include/config/kernel.release").read_text("utf-8").strip()
        marker = {
            "suite": self._suite,
            "release": release.removesuffix(_LOCAL_VERSION),
            "granule": str(self._granule),
            "bytes": len(image),
            "built": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "recipe": VERSION,
            "options": options.splitlines(),
            "patches": [name for name, _ in patches],
        }
        (kept / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        self._progress.clear()
        return kept

    def _make(self, *words: str, watch: Callable[[str], None] | None = None) -> None:
        self._run(
            [
                *("make", f"--directory={self._source}", f"O={self._objects}", "ARCH=arm64"),
                *("CROSS_COMPILE=aarch64-linux-gnu-", *words),
            ],
            watch=watch,
        )

    def _run(
        self,
        command: list[str],
        folder: Path | None = None,
        doing: str = "building the lab's kernel",
        watch: Callable[[str], None] | None = None,
    ) -> None:
        run_logged(
            [*contained(), host_tools.find_tool(command[0]), *command[1:]],
            doing=doing,
            log=self._log,
            environment={
                "PATH": PATH,
                "LC_ALL": "C.UTF-8",
                "KBUILD_BUILD_USER": "vmm-msi",
                "KBUILD_BUILD_HOST": "lab",
            },
            watch=watch or self._progress.step,
            folder=folder,
        )
