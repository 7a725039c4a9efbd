"""The lab's cache: entries that are built once; an entry that exists is complete.

An entry is a folder named after a hash of its inputs. It is built beside its final path, under a
lock, and renamed when complete. Any entry may be deleted while it is not in use.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.errors import LabError, UsageError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_UNFINISHED = ".building"
_SUITE = re.compile(r"[a-z][a-z0-9-]*")

T = TypeVar("T")


def default_cache() -> Path:
    """Return the folder for this user's caches of the package (XDG Base Directory)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: ignore a relative path.
    base = Path(home) if home.startswith("/") else Path.home() / ".cache"
    return base / "vmm-msi"


def check_cache(folder: Path, doing: str) -> None:
    """Check that no other user may change the cache; a missing one is accepted.

    :param doing: the action, for the message.
    :raise LabError: when another user may.
    """
    host_tools.check_folder(folder, doing, "name another with --cache, or change its mode")


def check_suite(suite: str, command: str) -> None:
    """Check that ``suite`` can be the name of a Debian suite.

    :raise UsageError: when it cannot.
    """
    if not _SUITE.fullmatch(suite):
        raise UsageError(f"{command}: {suite!r} is not a Debian suite; use a name such as forky")


@dataclass(frozen=True)
class Entry:
    """An entry of the cache, complete or not.

    :ivar path: the folder of the complete entry.
    :ivar kind: the first word of its name; entries of one kind are cleaned up together.
    :ivar title: its content, for messages, such as ``the lab's root``.
    :ivar resumable: resume an interrupted build instead of restarting it.
    """

    path: Path
    kind: str
    title: str
    resumable: bool = False

    @property
    def work(self) -> Path:
        """The folder that it is built in."""
        return self.path.with_name(self.path.name + _UNFINISHED)

    @property
    def log(self) -> Path:
        """The output of the build's tools; removed when the build succeeds."""
        return self.path.with_name(self.path.name + ".log")


def entry(
    cache: Path | None,
    kind: str,
    title: str,
    words: tuple[str, ...],
    made_from: Mapping[str, object],
    *,
    resumable: bool = False,
) -> Entry:
    """Name an entry after its inputs.

    :param cache: the cache folder; the user's own when ``None``.
    :param words: readable part of the name, after ``kind``.
    :param made_from: the inputs, as JSON values; different inputs give a different entry.
    """
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    name = "-".join((kind, *words, digest[:12]))
    return Entry((cache or default_cache()).absolute() / name, kind, title, resumable)


def fill(
    place: Entry,
    read: Callable[[], T | None],
    build: Callable[[Path], Path],
    progress: Progress | None = None,
    prepare: Callable[[], object] | None = None,
) -> tuple[T, bool]:
    """Return an entry's content and whether it was cached; build it if it was not.

    :param read: returns the content of a complete entry, ``None`` when it is unusable.
    :param build: fills the given folder and returns the folder to keep: the same one or one in it.
    :param prepare: called before a build writes anything.
    :raise LabError: when it cannot be built.
    """
    folder, building = place.path.parent, f"building {place.title}"
    check_cache(folder, building)
    content = read()
    if content is not None and not place.work.exists():
        return content, True
    if content is None and prepare is not None:
        prepare()
    progress = progress or Progress(None)
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        check_cache(folder, building)
        with locked(place, progress):
            content = read()
            if content is not None:
                host_tools.remove_folder(place.work)
                return content, True
            _sweep(place)
            _build(place, build, progress)
    except OSError as error:
        where = error.filename or place.path
        raise LabError(f"{building}: {where}: {error.strerror}") from error
    content = read()
    if content is None:
        raise LabError(f"{building}: {place.path} is incomplete; use --suite {DEFAULT_SUITE}")
    return content, False


def _build(place: Entry, build: Callable[[Path], Path], progress: Progress) -> None:
    """Build an entry; the caller holds its lock."""
    # A damaged entry, or the remains of a killed build.
    host_tools.remove_folder(place.path)
    if not place.resumable:
        host_tools.remove_folder(place.work)
    place.work.mkdir(exist_ok=True)
    try:
        build(place.work).rename(place.path)
    except BaseException:
        if not place.resumable:
            host_tools.remove_folder(place.work)
        raise
    if place.work.exists():
        progress.stage("removing files that are no longer needed")
        host_tools.remove_folder(place.work)
    place.log.unlink(missing_ok=True)


def _sweep(place: Entry) -> None:
    """Remove the remains of killed builds of other entries; running builds hold their lock."""
    for work in place.path.parent.glob(f"{place.kind}-*{_UNFINISHED}"):
        if work == place.work:
            continue
        lock = work.with_name(work.name.removesuffix(_UNFINISHED) + ".lock")
        with host_tools.open_lock(lock) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            host_tools.remove_folder(work)


@contextmanager
def locked(place: Entry, progress: Progress) -> Iterator[None]:
    """Hold an entry's lock; wait for another build of it to finish.

    The lock file stays: if it were removed, two processes could lock two files of one name.
    """
    with host_tools.open_lock(place.path.with_name(place.path.name + ".lock")) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.stage(f"waiting for another build of {place.title}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
