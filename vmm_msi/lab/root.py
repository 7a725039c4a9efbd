"""The lab's root: a small Debian system with a current libvirt and QEMU, built once and cached.

The stable release of a machine often has a libvirt that is too old for ``<iommu model='smmuv3'>``
with a ``<driver>`` (docs/lab.md). The root holds one that is not, without touching the machine's
own packages.

An entry of the cache is a folder named after what it was made from. It holds ``tree`` (the root)
and ``root.json`` (what is in it). It is built next to its final place and renamed when complete,
so that an entry that exists is whole; deleting any of it is safe when nothing uses it.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError, UsageError
from vmm_msi.lab import hosttools, recipe
from vmm_msi.lab.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_SUITE = "forky"

_MARKER = "root.json"
_UNFINISHED = ".building"
_SUITE = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class LabRoot:
    """A complete root in the cache.

    :ivar path: the root's own top folder.
    :ivar suite: the Debian suite it was made from.
    :ivar architecture: Debian's name of its architecture.
    :ivar libvirt: the version of libvirt in it, as upstream counts.
    :ivar qemu: the version of QEMU in it, as upstream counts.
    :ivar built: when it was built, in UTC, ISO 8601.
    :ivar cached: whether it was there already.
    """

    path: Path
    suite: str
    architecture: str
    libvirt: str
    qemu: str
    built: str
    cached: bool = True


def default_cache() -> Path:
    """Return the folder for this user's caches of the package (XDG Base Directory)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path.
    base = Path(home) if home.startswith("/") else Path.home() / ".cache"
    return base / "vmm-msi"


def ensure_root(
    suite: str = DEFAULT_SUITE,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> LabRoot:
    """Return the root of ``suite``, building it when the cache has none.

    :param suite: a Debian suite, such as ``forky``.
    :param cache: the folder of the cache; this user's when ``None``.
    :param progress: told what goes on; silent when ``None``.
    :raise UsageError: when ``suite`` cannot be a suite's name.
    :raise LabError: when it cannot be built.
    """
    if not _SUITE.fullmatch(suite):
        raise UsageError(f"lab root: {suite!r} is not a Debian suite; use a name such as forky")
    cache = (cache or default_cache()).absolute()
    architecture = hosttools.architecture()
    entry = cache / _entry_name(suite, architecture)
    found = _read_entry(entry)
    if found is not None:
        return found
    hosttools.require_root("building the lab's root (chroot, mounts and device nodes of its own)")
    progress = progress or Progress(None)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(entry, progress):
            found = _read_entry(entry)
            if found is None:
                _sweep(cache)
                found = _build(entry, suite, architecture, progress)
    except OSError as error:
        where = error.filename or entry
        raise LabError(f"building the lab's root: {where}: {error.strerror}") from error
    return found


def _entry_name(suite: str, architecture: str) -> str:
    """Name an entry after everything that decides what is in it."""
    made_from = {
        "suite": suite,
        "architecture": architecture,
        "packages": sorted(recipe.PACKAGES),
        "recipe": recipe.VERSION,
    }
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return f"root-{suite}-{architecture}-{digest[:12]}"


def _read_entry(entry: Path) -> LabRoot | None:
    """Return the root of a complete entry, or ``None`` when there is none that can be used."""
    tree = entry / "tree"
    try:
        marker = json.loads((entry / _MARKER).read_text(encoding="utf-8"))
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


def _build(entry: Path, suite: str, architecture: str, progress: Progress) -> LabRoot:
    """Build ``entry``; the caller holds its lock."""
    mirror = hosttools.apt_mirror()
    work = entry.with_name(entry.name + _UNFINISHED)
    log = entry.with_name(entry.name + ".log")
    # Left by a build that was killed, or an entry that somebody took pieces out of.
    hosttools.remove_folder(work)
    hosttools.remove_folder(entry)
    work.mkdir()
    try:
        versions = recipe.build_tree(
            recipe.Order(work / "tree", suite, architecture, mirror, log), progress
        )
        marker = {
            "suite": suite,
            "architecture": architecture,
            "libvirt": recipe.upstream_version(versions["libvirt-daemon"]),
            "qemu": recipe.upstream_version(versions["qemu-system-arm"]),
            "built": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "recipe": recipe.VERSION,
            "packages": versions,
        }
        (work / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        work.rename(entry)
    except BaseException:
        hosttools.remove_folder(work)
        raise
    log.unlink(missing_ok=True)
    found = _read_entry(entry)
    if found is None:
        raise LabError(
            f"building the lab's root: {entry} lacks libvirtd; is there one in {suite}? "
            f"use {DEFAULT_SUITE}"
        )
    return replace(found, cached=False)


def _sweep(cache: Path) -> None:
    """Remove what killed builds of other entries left; those that still run hold their lock."""
    for work in cache.glob(f"root-*{_UNFINISHED}"):
        lock = work.with_name(work.name.removesuffix(_UNFINISHED) + ".lock")
        with lock.open("a", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            hosttools.remove_folder(work)


@contextmanager
def _locked(entry: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of ``entry``, waiting for another build of it to end.

    The lock file stays: removing it would let two processes lock two files of one name.
    """
    with entry.with_name(entry.name + ".lock").open("a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.stage("waiting for another build of the same root")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
