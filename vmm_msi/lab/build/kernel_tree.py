"""Keep the kernel's source and the objects compiled from it, so that a changed patch costs seconds.

A folder of the cache for each suite, the newest used one only::

    kerneltree-forky/tree.json      package and size; a tree without it is not whole
    kerneltree-forky/source/        unpacked, with the patch series of the last build
    kerneltree-forky/files          size and time of each file as it was unpacked
    kerneltree-forky/originals…     of patched files (vmm_msi.lab.build.patched_source)
    kerneltree-forky/objects-4k/    kbuild's output, one folder for each configuration

It may be deleted at any time without a build; the next build then fetches and unpacks the newest
source.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import LabError
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.apt import PrivateApt
from vmm_msi.lab.build.patched_source import DamagedSourceError, PatchedSource
from vmm_msi.quantity import quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from vmm_msi.lab.build.kernel_flavour import Patch
    from vmm_msi.lab.build.progress import Progress

#: Increment when a tree must be unpacked again.
VERSION = 1

_KIND = "kerneltree"
_MARKER = "tree.json"
_ENDED = "ended-in-boot"
_SOURCE_PACKAGE = "linux-source-"
#: Half of the source: drivers, architectures and tools that the lab's options never compile. Their
#: Kconfig files and Makefiles stay, since kbuild reads all of them.
_LEFT_OUT = (
    "*/drivers/gpu/drm/amd/include/asic_reg",
    *(
        f"*/{folder}/*.[chS]"
        for folder in (
            *(f"drivers/{name}" for name in ("accel", "gpu", "iio", "infiniband", "media")),
            *("drivers/net/wireless", "drivers/staging", "sound", "tools/perf"),
        )
    ),
    "*/arch/arm/boot/dts/*.dts*",
)


class TreeFacts(NamedTuple):
    """What the cache keeps for incremental builds.

    :ivar path: its folder.
    :ivar size: disk space in bytes.
    """

    path: Path
    size: int


class KernelTree:
    """The source and the objects of one suite; its lock is held.

    :param folder: its folder in the cache.
    :param log: for the output of tools.
    :param run: runs a tool: the command, its working folder and the action for messages.
    """

    def __init__(
        self, folder: Path, suite: str, log: Path, progress: Progress, run: Callable[..., object]
    ) -> None:
        self.source = folder / "source"
        self._folder = folder
        self._suite = suite
        self._log = log
        self._progress = progress
        self._run = run
        self._patched = PatchedSource(self.source, folder, self._apply)

    def prepare(self, patches: Sequence[Patch]) -> None:
        """Make the source that of a patch series; fetch and unpack a missing one.

        :raise LabError: when it cannot be fetched, or a patch does not apply.
        """
        if not self._is_whole():
            self._unpack()
        if patches:
            self._progress.stage(f"applying patches ({quantity(len(patches), 'file')})")
        try:
            self._patched.apply(patches)
        except DamagedSourceError as error:
            self._progress.stage(f"{error}; unpacking the source again")
            self._unpack()
            self._patched.apply(patches)

    def objects(self, name: str) -> Objects:
        """Return the objects of the configuration ``name``."""
        return Objects(self._folder / f"objects-{name}")

    def record_size(self) -> None:
        """Record the disk space in the marker."""
        self._mark({**self._marker(), "bytes": _size(self._folder)})

    def _marker(self) -> dict[str, Any]:
        return _read_marker(self._folder)

    def _mark(self, facts: dict[str, object]) -> None:
        part = self._folder / f"{_MARKER}.new"
        part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        part.rename(self._folder / _MARKER)

    def _is_whole(self) -> bool:
        """Return whether the source is unpacked, and no file of it was changed but by patches."""
        if self._marker().get("recipe") != VERSION:
            return False
        with contextlib.suppress(OSError, ValueError, AttributeError, DamagedSourceError):
            names = self._patched.patched_files()
            unpacked = json.loads((self._folder / "files").read_text(encoding="utf-8"))
            current = _list_files(self.source)
            if all(current.get(name) == unpacked[name] for name in unpacked.keys() - names):
                return True
        self._progress.stage("the kernel's source in the cache is damaged: unpacking it again")
        return False

    def _unpack(self) -> None:
        """Fetch and unpack the newest source; nothing else is left in the folder."""
        host_tools.remove_folder(self._folder)
        self._folder.mkdir()
        self._progress.stage(f"Debian {self._suite}: fetching the kernel's source")
        package = self._fetch(self._folder)
        self._progress.stage(f"unpacking {package.name}")
        part = self._folder / "unpacking"
        part.mkdir()
        self._run(["dpkg", "--extract", f"{package}", f"{part}"])
        archives = [*part.glob("usr/src/linux-source-*.tar.xz")]
        if len(archives) != 1:
            raise LabError(
                f"unpacking {package.name}: no usr/src/linux-source-*.tar.xz in it; "
                "use another --suite"
            )
        left_out = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
        unpack = ["tar", "--extract", "--xz", f"--file={archives[0]}", *left_out]
        self._run([*unpack, "--strip-components=1", "--one-top-level=source"], part)
        (part / "source").rename(self.source)
        files = json.dumps(_list_files(self.source))
        (self._folder / "files").write_text(files, encoding="utf-8")
        for rest in (part, self._folder / "apt"):
            host_tools.remove_folder(rest)
        package.unlink()
        self._mark({"recipe": VERSION, "package": package.name, "bytes": _size(self._folder)})

    def _fetch(self, folder: Path) -> Path:
        architecture = host_tools.architecture()
        apt = PrivateApt(folder / "apt", self._suite, architecture, self._log, self._progress)
        apt.update()
        return apt.fetch(apt.newest(_SOURCE_PACKAGE), folder)

    def _apply(self, patch: Path, folder: Path, name: str) -> None:
        package = self._marker().get("package", "the source")
        self._run(
            ["patch", "-p1", "--batch", "--forward", f"--input={patch}"],
            folder,
            f"applying {name} to {package}",
        )


class Objects:
    """kbuild's output for one configuration.

    :ivar folder: its folder; make's ``O``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self) -> bool:
        """Remove incomplete objects; return whether others may be incomplete too.

        They may be if the last build was killed, or the machine was restarted since: a power cut
        truncates files. kbuild writes an object's ``.cmd`` file after the object, so an object that
        is newer than its ``.cmd`` file belongs to a compiler that was killed. make would take it
        for complete.
        """
        mark = self.folder / _ENDED
        doubtful = self.folder.exists() and not (mark.exists() and mark.read_text() == _boot())
        self.folder.mkdir(exist_ok=True)
        mark.unlink(missing_ok=True)
        for command in self.folder.rglob(".*.cmd"):
            target = command.with_name(command.name[1:].removesuffix(".cmd"))
            with contextlib.suppress(FileNotFoundError):
                if target.stat().st_mtime_ns > command.stat().st_mtime_ns:
                    target.unlink()
        return doubtful

    def end(self) -> None:
        """Record that make stopped by itself, so that what it compiled is complete."""
        (self.folder / _ENDED).write_text(_boot(), encoding="ascii")

    def remove(self) -> None:
        """Remove all objects."""
        host_tools.remove_folder(self.folder)


@contextmanager
def kernel_tree(
    suite: str, cache: Path | None, log: Path, progress: Progress, run: Callable[..., object]
) -> Iterator[KernelTree]:
    """Yield the kernel's source and objects, locked; remove those of other suites."""
    place = _place(suite, cache)
    with caches.locked(place, progress):
        _sweep(place)
        yield KernelTree(place.path, suite, log, progress, run)


def tree_facts(suite: str, cache: Path | None = None) -> TreeFacts | None:
    """Return what the cache keeps of a suite for incremental builds, None if nothing."""
    folder = _place(suite, cache).path
    size = _read_marker(folder).get("bytes")
    return TreeFacts(folder, size) if isinstance(size, int) else None


def _place(suite: str, cache: Path | None) -> caches.Entry:
    folder = (cache or caches.default_cache()).absolute() / f"{_KIND}-{suite}"
    return caches.Entry(folder, _KIND, "the lab's kernel")


def _sweep(place: caches.Entry) -> None:
    """Remove the trees of other suites, except those that are in use."""
    for other in place.path.parent.glob(f"{_KIND}-*"):
        if other == place.path or not other.is_dir():
            continue
        with host_tools.open_lock(other.with_name(f"{other.name}.lock")) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            host_tools.remove_folder(other)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _list_files(folder: Path) -> dict[str, list[int]]:
    """Return size and time of every file below a folder."""
    files = {}
    for path, status in _walk(folder):
        if not stat.S_ISDIR(status.st_mode):
            files[os.path.relpath(path, folder)] = [status.st_size, status.st_mtime_ns]
    return files


def _size(folder: Path) -> int:
    return sum(status.st_blocks * 512 for _path, status in _walk(folder))


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    pending = [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                yield entry.path, entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
