"""The lab's cache: entries that are built once and are whole when they exist.

An entry is a folder named after what it is made from. It is built next to its final place, under a
lock, and renamed when complete; deleting any of it is safe when nothing uses it.
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
    # The specification says to ignore a relative path.
    base = Path(home) if home.startswith("/") else Path.home() / ".cache"
    return base / "vmm-msi"


def check_suite(suite: str, command: str) -> None:
    """Refuse what cannot be the name of a Debian suite.

    :raise UsageError: when ``suite`` cannot be one.
    """
    if not _SUITE.fullmatch(suite):
        raise UsageError(f"{command}: {suite!r} is not a Debian suite; use a name such as forky")


@dataclass(frozen=True)
class Entry:
    """A place in the cache, filled or not.

    :ivar path: the folder of the complete entry.
    :ivar kind: the first word of its name; entries of one kind are tidied up together.
    :ivar title: what it holds, for messages, such as ``the lab's root``.
    :ivar resumable: a build that was interrupted is gone on with, not started anew.
    """

    path: Path
    kind: str
    title: str
    resumable: bool = False

    @property
    def work(self) -> Path:
        """The folder it is built in."""
        return self.path.with_name(self.path.name + _UNFINISHED)

    @property
    def log(self) -> Path:
        """What the tools of the build print; removed when it succeeds."""
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
    """Name an entry after everything that decides what is in it.

    :param cache: the folder of the cache; this user's when ``None``.
    :param words: what a person shall read in the name, after ``kind``.
    :param made_from: JSON values; another value is another entry.
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
    """Return what is in an entry and whether it was there already, building it when it was not.

    :param read: returns what is in a complete entry, ``None`` when it cannot be used.
    :param build: fills the folder it is given and returns the folder to keep: the same, or one in
        it when the rest is not to be kept.
    :param prepare: called before anything is written, when there is something to build.
    :raise LabError: when it cannot be built.
    """
    found = read()
    if found is not None and not place.work.exists():
        return found, True
    if found is None and prepare is not None:
        prepare()
    progress = progress or Progress(None)
    try:
        place.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place, progress):
            found = read()
            if found is not None:
                host_tools.remove_folder(place.work)
                return found, True
            _sweep(place)
            _build(place, build, progress)
    except OSError as error:
        where = error.filename or place.path
        raise LabError(f"building {place.title}: {where}: {error.strerror}") from error
    found = read()
    if found is None:
        raise LabError(
            f"building {place.title}: {place.path} lacks what it is for; "
            f"use --suite {DEFAULT_SUITE}"
        )
    return found, False


def _build(place: Entry, build: Callable[[Path], Path], progress: Progress) -> None:
    """Build an entry; the caller holds its lock."""
    # An entry that somebody took pieces out of, or what a build that was killed left.
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
        progress.stage("removing what is not needed any more")
        host_tools.remove_folder(place.work)
    place.log.unlink(missing_ok=True)


def _sweep(place: Entry) -> None:
    """Remove what killed builds of other entries left; those that still run hold their lock."""
    for work in place.path.parent.glob(f"{place.kind}-*{_UNFINISHED}"):
        if work == place.work:
            continue
        lock = work.with_name(work.name.removesuffix(_UNFINISHED) + ".lock")
        with lock.open("a", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            host_tools.remove_folder(work)


@contextmanager
def _locked(place: Entry, progress: Progress) -> Iterator[None]:
    """Hold the lock of an entry, waiting for another build of it to end.

    The lock file stays: removing it would let two processes lock two files of one name.
    """
    with place.path.with_name(place.path.name + ".lock").open("a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.stage(f"waiting for another build of {place.title}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
