"""Build the emulated Arm host's user land: Python, the package's dependencies, and busybox.

Debian's arm64 packages are unpacked, not installed: no maintainer script runs, and neither root nor
Arm is needed. Unused files are left out, since the emulated kernel unpacks everything at each boot.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError
from vmm_msi.lab.build import bytecode, deb_tree, host_tools
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build.cpio import Archive
from vmm_msi.lab.build.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmm_msi.lab.build.root import LabRoot

#: Increment when the same suite and packages must give a different archive.
VERSION = 1

#: The package's imports, and a shell. apt adds dependencies.
PACKAGES = (
    "busybox",
    "libpython3-stdlib",
    "python3-libvirt",
    "python3-lxml",
    "python3-minimal",
    "python3-msgspec",
    "python3-pluggy",
    "python3-zstandard",
    "util-linux",
)

#: Tools that the machine needs to build it.
TOOLS = (*deb_tree.TOOLS, "zstd")

_LIBRARIES = "usr/lib/aarch64-linux-gnu"
_PYTHON = "usr/lib/python3.*"
_PACKAGED = "usr/lib/python3/dist-packages"


def _below(folder: str, names: str) -> list[str]:
    return [f"{folder}/{name}" for name in names.split()]


#: Patterns of files to remove: documentation, data of absent tools, and parts of Python's library
#: that the package does not import, with their libraries.
_SUPERFLUOUS = (
    *("etc/*", "usr/include", "usr/libexec", "usr/sbin/*", "usr/share", "var/*"),
    *_below("usr/bin", "debconf* pdb* py3* pydoc* pygettext*"),
    # Of util-linux all but unshare.
    *_below("usr/bin", "choom chrt dmesg fallocate findmnt flock getopt hardlink i386 ionice ipc*"),
    *_below("usr/bin", "linux* logger ls* mcookie more mountpoint namei nsenter partx prlimit"),
    *_below("usr/bin", "set* su taskset uclampset whereis x86_64"),
    *_below("usr/lib", "bfd-plugins mime sysctl.d sysusers.d tmpfiles.d"),
    *_below(_LIBRARIES, "*.a engines-* gconv ossl-modules perl* pkgconfig sasl2"),
    *_below(_LIBRARIES, "libdb-* libform* libhistory* libmenu* libncurses* libpanel*"),
    *_below(_LIBRARIES, "libreadline* libsqlite3* libtic* libtinfo*"),
    *_below(_PYTHON, "LICENSE* __phello__ _pyrepl ensurepip idlelib lib2to3 pydoc_data"),
    *_below(_PYTHON, "sqlite3 test tkinter turtle* venv"),
    *_below(_PYTHON, "config-* curses dbm wsgiref xmlrpc"),
    *_below(f"{_PYTHON}/lib-dynload", "_codecs_* _curses* _dbm* _gdbm* _hashlib* _sqlite3*"),
    *_below(f"{_PYTHON}/lib-dynload", "_ssl* _test* _xx* readline* xx*"),
    *_below(_PACKAGED, "*.dist-info *.egg-info debpython lxml/html lxml/includes tests"),
)

_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "sbin": "usr/sbin", "var/run": "/run"}
_FOLDERS = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/sbin", "var/log")

#: busybox commands with a link, for the console; ``busybox NAME`` runs any.
_APPLETS = tuple(
    word
    for line in (
        "ash awk basename cat chmod chroot clear cmp cp cut date dd df diff dirname dmesg du echo",
        "env expr false find free grep gunzip head hexdump hostname id ip kill less ln ls",
        "mkdir mknod mktemp mount mv nproc od poweroff printf ps pwd readlink realpath reboot rm",
        "rmdir sed seq setsid sh sleep sort stat stty sync tail tar tee test top touch tr true",
        "umount uname uniq uptime vi watch wc which xargs xxd zcat",
    )
    for word in line.split()
)

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost lab\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

_MARKER = "userland.json"
_ARCHIVE = "initrd"


@dataclass(frozen=True)
class UserLand:
    """A complete user land in the cache.

    :ivar path: the archive, compressed.
    :ivar python: the version of Python in it, such as ``3.14``.
    :ivar unpacked_bytes: its size in the emulated host's memory.
    :ivar built: when it was built, in UTC, ISO 8601.
    :ivar cached: it was in the cache.
    """

    path: Path
    python: str
    unpacked_bytes: int
    built: str
    cached: bool = True


def find_userland(suite: str, cache: Path | None = None) -> UserLand | None:
    """Return the user land of ``suite`` if the cache has it."""
    return _read(_place(suite, cache).path)


def ensure_userland(
    suite: str,
    root: Callable[[], LabRoot],
    cache: Path | None = None,
    progress: Progress | None = None,
) -> UserLand:
    """Return the user land of ``suite``; build it if the cache does not have it.

    :param root: returns the lab's root of the same suite, whose Python compiles; called only for a
        build.
    :raise LabError: when it cannot be built.
    """
    place = _place(suite, cache)

    def build(work: Path) -> Path:
        return _build(work, place.log, suite, root(), progress or Progress(None))

    user_land, cached = caches.fill(
        place,
        lambda: _read(place.path),
        build,
        progress,
        prepare=lambda: host_tools.require_tools(TOOLS),
    )
    return replace(user_land, cached=cached)


def _place(suite: str, cache: Path | None) -> caches.Entry:
    made_from = {
        "suite": suite,
        "packages": sorted(PACKAGES),
        "content": [_SUPERFLUOUS, _LINKS, _FOLDERS, _APPLETS, _FILES],
        "recipe": VERSION,
    }
    title = "the lab's user land"
    return caches.entry(cache, "userland", title, (suite, deb_tree.ARCHITECTURE), made_from)


def _read(folder: Path) -> UserLand | None:
    archive = folder / _ARCHIVE
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        if archive.stat().st_size != marker["bytes"]:
            return None
        return UserLand(archive, marker["python"], marker["unpacked_bytes"], marker["built"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _build(work: Path, log: Path, suite: str, root: LabRoot, progress: Progress) -> Path:
    """Build an entry's files and return their folder."""
    tree = work / "tree"
    packages = deb_tree.fill(work / "apt", tree, suite, PACKAGES, log, progress)
    deb_tree.trim(tree, _SUPERFLUOUS)

    progress.stage("compiling Python's library")
    python = bytecode.python_version(tree)
    _compile(tree, python, root)

    progress.stage("packing")
    unpacked = _archive(tree).encode()
    kept = work / "kept"
    kept.mkdir()
    (kept / _ARCHIVE).write_bytes(compress(unpacked))
    marker = {
        "suite": suite,
        "python": python,
        "bytes": (kept / _ARCHIVE).stat().st_size,
        "unpacked_bytes": len(unpacked),
        "built": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "recipe": VERSION,
        "packages": packages,
    }
    (kept / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    progress.clear()
    return kept


def compress(data: bytes, level: int = 3) -> bytes:
    """Return ``data`` as a zstd frame, for a kernel with ``CONFIG_RD_ZSTD``.

    :raise LabError: when zstd is missing or fails.
    """
    command = [host_tools.find_tool("zstd"), "-q", f"-{level}", "-T0", "--no-check", "-c"]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip() or f"status {done.returncode}"
        raise LabError(f"compressing an archive for the emulated host: {reason}")
    return done.stdout


def _compile(tree: Path, python: str, root: LabRoot) -> None:
    """Replace every Python file with its byte code.

    :raise LabError: when the lab's root has another version of Python.
    """
    ours = bytecode.python_version(root.path)
    if ours != python:
        raise LabError(
            f"compiling for Python {python}: the lab's root has Python {ours}; remove "
            f"{root.path.parent} and build both again, so that their versions match"
        )
    files = []
    for path in sorted((tree / "usr/lib").rglob("*.py")):
        if path.is_symlink():
            path.unlink()
        else:
            files.append(f"{path.relative_to(tree)}")
    bytecode.compile_files(root, tree, files, "/", replace=True)


def _archive(tree: Path) -> Archive:
    archive = Archive()
    archive.add_tree(tree)
    for name in _FOLDERS:
        archive.add_folder(name)
    for name, target in _LINKS.items():
        archive.add_link(name, target)
    for name in _APPLETS:
        archive.add_link(f"usr/bin/{name}", "busybox")
    for name, content in _FILES.items():
        archive.add_file(name, content.encode())
    return archive
