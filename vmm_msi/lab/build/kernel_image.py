"""Build the emulated Arm host's kernels: Debian's source, cross-built with few options.

Debian's own arm64 kernels have ``CONFIG_IOMMUFD`` off. The options are in ``kernel.config``, on top
of ``allnoconfig``; Linux ``Documentation/kbuild/kconfig.rst`` describes ``KCONFIG_ALLCONFIG``.

Source and objects stay in the cache (:mod:`vmm_msi.lab.build.kernel_tree`), so kernels that differ
by a patch series share what the series does not change, and an interrupted build resumes.
"""

from __future__ import annotations

import contextlib
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
from vmm_msi.lab.build.command import PATH, contained, run_logged
from vmm_msi.lab.build.kernel_flavour import STOCK, flavour
from vmm_msi.lab.build.kernel_tree import Objects, kernel_tree, tree_facts
from vmm_msi.lab.build.progress import Progress
from vmm_msi.types import Granule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vmm_msi.lab.build.kernel_flavour import Flavour

#: Increment when the same source and options must give a different image.
VERSION = 1

#: Page sizes that the kernel can be built with, and the options of each.
GRANULES = {
    Granule.K4: ("CONFIG_ARM64_4K_PAGES=y", "CONFIG_ARM64_VA_BITS_48=y"),
    Granule.K64: ("CONFIG_ARM64_64K_PAGES=y", "CONFIG_ARM64_VA_BITS_48=y"),
}

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
#: Disk space for a build, and for one whose source is already unpacked, in bytes.
_SPACE = 2_000_000_000
_SPACE_UNPACKED = 500_000_000

#: Approximate number of lines that make prints.
_STEPS = 1970
_STEP = re.compile(r"\s+[A-Z][A-Z0-9]+\s+\S")
#: kconfig's form of an option that is off.
_UNSET = re.compile(r"^# (CONFIG_\w+) is not set$", re.MULTILINE)
_MARKER = "kernel.json"
#: Kernels to keep that differ only by their patches.
_KEPT = 4
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
    kernel: str = STOCK,
) -> LabKernel | None:
    """Return the kernel of ``suite`` if the cache has it; the arguments are those of the build.

    :raise UsageError: when that page size is not supported or the kernel's folder has no patches.
    """
    place = _place(suite, granule, cache, flavour(kernel))
    return _read(place.path, granule)


def ensure_kernel(
    suite: str,
    granule: Granule = Granule.K4,
    cache: Path | None = None,
    progress: Progress | None = None,
    kernel: str = STOCK,
) -> LabKernel:
    """Return the kernel of ``suite``; build it if the cache does not have it.

    :param granule: its page size: 4K or 64K.
    :param kernel: its name (:func:`vmm_msi.lab.build.kernel_flavour.kernel_name`).
    :raise UsageError: when that page size is not supported or the kernel's folder has no patches.
    :raise LabError: when it cannot be built.
    """
    chosen = flavour(kernel)
    place = _place(suite, granule, cache, chosen)

    def build(work: Path) -> Path:
        build = _Build(place.log, suite, granule, chosen, progress or Progress(None))
        return build.run(work, cache)

    image, cached = caches.fill(
        place,
        lambda: _read(place.path, granule),
        build,
        progress,
        prepare=lambda: _check_host(place, suite, cache),
    )
    if not cached and chosen.word:
        _sweep(place)
    return replace(image, cached=cached)


def _sweep(place: caches.Entry) -> None:
    """Remove the oldest kernels that differ from this one by their patches; hosts have copies."""
    name = place.path.name.rpartition("-")[0]
    # Another command may sweep at the same time, so a folder may already be gone.
    with contextlib.suppress(FileNotFoundError):
        markers = place.path.parent.glob(f"{name}-????????????/{_MARKER}")
        for marker in sorted(markers, key=os.path.getmtime)[:-_KEPT]:
            host_tools.remove_folder(marker.parent)


def _place(suite: str, granule: Granule, cache: Path | None, chosen: Flavour) -> caches.Entry:
    if granule not in GRANULES:
        known = ", ".join(map(str, GRANULES))
        raise UsageError(f"lab build: granule {granule} is not supported; use one of {known}")
    made_from = {
        "suite": suite,
        "granule": str(granule),
        "options": hashlib.sha256(
            "\n".join(_options(_fragment(granule, chosen))).encode()
        ).hexdigest(),
        "patches": [
            [patch.name, hashlib.sha256(patch.content).hexdigest()] for patch in chosen.patches
        ],
        "recipe": VERSION,
    }
    words = (suite, str(granule).lower(), *filter(None, [chosen.word]))
    return caches.entry(cache, "kernel", "the lab's kernel", words, made_from)


def fragment(granule: Granule) -> str:
    """Return the configuration fragment for a page size."""
    text = (
        importlib.resources.files("vmm_msi.lab.build").joinpath("kernel.config").read_text("utf-8")
    )
    return "\n".join((text.rstrip(), "", *GRANULES[granule], ""))


def _fragment(granule: Granule, chosen: Flavour) -> str:
    """Return the fragment of a kernel: that of the page size, changed by the kernel's own options.

    An option that the kernel has ``is not set`` is left out.
    """
    unset = set(_UNSET.findall(chosen.options))
    lines = fragment(granule).splitlines()
    kept = [line for line in lines if line.partition("=")[0] not in unset]
    return "\n".join((*kept, chosen.options))


def lost_options(options: str, config: str) -> list[str]:
    """Return the options that are missing from a ``.config``."""
    have = set(config.splitlines())
    return [line for line in _options(options) if line not in have]


def _options(text: str) -> list[str]:
    """Return the lines of a fragment that set an option: comments do not change a kernel."""
    return [line for line in text.splitlines() if line.startswith("CONFIG_")]


def _check_host(place: caches.Entry, suite: str, cache: Path | None) -> None:
    host_tools.require_tools(TOOLS)
    needed = _SPACE if tree_facts(suite, cache) is None else _SPACE_UNPACKED
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
    """One build, in a tree that an interrupted build or one of another kernel may have left."""

    def __init__(
        self, log: Path, suite: str, granule: Granule, chosen: Flavour, progress: Progress
    ) -> None:
        self._log = log
        self._suite = suite
        self._granule = granule
        self._flavour = chosen
        self._progress = progress

    def run(self, work: Path, cache: Path | None) -> Path:
        """Build into ``work`` and return it."""
        self._log.write_text("", encoding="utf-8")
        with kernel_tree(self._suite, cache, self._log, self._progress, self._run) as tree:
            tree.prepare(self._flavour.patches)
            # Objects of another configuration would all be compiled again.
            words = (
                str(self._granule).lower(),
                *([self._flavour.word] if self._flavour.options else []),
            )
            objects = tree.objects("-".join(words))
            self._make_image(tree.source, objects)
            self._keep(objects, work)
            tree.record_size()
        self._progress.clear()
        return work

    def _make_image(self, source: Path, objects: Objects) -> None:
        make = _Make(source, objects.folder, self._flavour, self._run)
        doubtful = objects.begin()
        try:
            self._compile(make)
        except LabError:
            if not doubtful or "No space left" in self._log.read_text("utf-8", "replace"):
                objects.end()
                raise
            self._progress.stage("compiling failed; deleting the objects and retrying")
            objects.remove()
            self._compile(make)
        objects.end()

    def _compile(self, make: _Make) -> None:
        make.configure(_fragment(self._granule, self._flavour))
        jobs = len(os.sched_getaffinity(0))
        what = f"the {self._flavour.word or self._flavour.name} kernel, {self._granule} pages"
        self._progress.stage(f"compiling {what} ({jobs} at a time)")
        done = sum(1 for _ in make.objects.rglob(".*.cmd"))

        def watch(line: str) -> None:
            nonlocal done
            if _STEP.match(line):
                done += 1
                self._progress.count(done, _STEPS, line)

        make.run(f"-j{jobs}", _IMAGE, watch=watch)

    def _keep(self, objects: Objects, work: Path) -> None:
        """Write the entry's files."""
        image = (objects.folder / "arch/arm64/boot" / _IMAGE).read_bytes()
        if image[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
            objects.remove()
            raise LabError(
                "building the lab's kernel: make wrote an image without arm64's magic number; "
                "run the build again: it compiles everything"
            )
        (work / _IMAGE).write_bytes(image)
        shutil.copyfile(objects.folder / ".config", work / "config")
        release = (objects.folder / "include/config/kernel.release").read_text("utf-8").strip()
        marker = {
            "suite": self._suite,
            "release": release.partition(_LOCAL_VERSION)[0],
            "granule": str(self._granule),
            "bytes": len(image),
            "built": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "recipe": VERSION,
            "options": _fragment(self._granule, self._flavour).splitlines(),
            "patches": [patch.name for patch in self._flavour.patches],
        }
        (work / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")

    def _run(
        self,
        command: Sequence[str],
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


class _Make:
    """kbuild on a source, with its objects in a folder of their own."""

    def __init__(
        self, source: Path, objects: Path, chosen: Flavour, run: Callable[..., None]
    ) -> None:
        self.objects = objects
        self._source = source
        self._run = run
        # uname -r shows which kernel runs.
        self._local = f"LOCALVERSION=-{chosen.word}" if chosen.word else "LOCALVERSION="

    def run(self, *words: str, watch: Callable[[str], None] | None = None) -> None:
        """Run make."""
        command = ["make", f"--directory={self._source}", f"O={self.objects}", "ARCH=arm64"]
        self._run([*command, "CROSS_COMPILE=aarch64-linux-gnu-", self._local, *words], watch=watch)

    def configure(self, options: str) -> None:
        """Write the configuration and check that it has every option.

        :raise LabError: when one is lost.
        """
        self.objects.mkdir(exist_ok=True)
        file = self.objects / "options"
        file.write_text(options, encoding="utf-8")
        self.run(f"KCONFIG_ALLCONFIG={file}", "allnoconfig")
        config = (self.objects / ".config").read_text(encoding="utf-8")
        lost = lost_options(options, config)
        if lost:
            raise LabError(
                f"configuring the lab's kernel: {', '.join(lost)} got lost; the source in "
                f"{self._source} lacks them or what they depend on: change kernel.config, or use "
                "another --suite"
            )
