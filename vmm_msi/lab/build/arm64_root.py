"""Build the arm64 root for the libvirt that runs *in* the emulated host.

The emulated host mounts the folder read-only by 9p, instead of holding it in memory, and
:class:`vmm_msi.lab.machine.daemon.LabDaemon` runs its libvirtd there. The cache entry has the
layout of :mod:`vmm_msi.lab.build.root`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import deb_tree, host_tools
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.build.root import LabRoot, describe, read_root

if TYPE_CHECKING:
    from pathlib import Path

#: Increment when the same suite and packages must give a different tree.
VERSION = 1

#: libvirt with its QEMU driver and the one that knows the host's devices, QEMU and its UEFI.
PACKAGES = (
    "busybox",
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-driver-nodedev",
    "libvirt-daemon-driver-qemu",
    "qemu-efi-aarch64",
    "qemu-system-arm",
    "udev",
)

#: Patterns of files to remove: documentation, and firmware with Secure Boot, 100 MiB of it.
_SUPERFLUOUS = (
    *("usr/include", "usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man"),
    *("usr/share/AAVMF/*.secboot.*", "usr/share/AAVMF/*.ms.fd", "usr/share/AAVMF/*.snakeoil.fd"),
    "usr/share/qemu/firmware/*secure*",
)

_FOLDERS = (
    *("dev", "etc/libvirt/qemu", "proc", "root", "run", "sys", "tmp"),
    *("var/cache/libvirt", "var/lib/libvirt", "var/log/libvirt"),
)
_LINKS = {
    "bin": "usr/bin",
    "lib": "usr/lib",
    "sbin": "usr/sbin",
    "usr/bin/sh": "busybox",
    "var/run": "/run",
}

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\ntss:x:100:101::/var/lib/tpm:/bin/false\n"
    "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nkvm:x:106:\ntss:x:101:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/hosts": "127.0.0.1 localhost lab\n",
}


def ensure_armroot(
    suite: str = DEFAULT_SUITE, cache: Path | None = None, progress: Progress | None = None
) -> LabRoot:
    """Return the arm64 root of ``suite``; build it if the cache does not have it.

    :raise UsageError: when ``suite`` cannot be a suite's name.
    :raise LabError: when it cannot be built.
    """
    caches.check_suite(suite, "lab root")
    made_from = {
        "suite": suite,
        "packages": sorted(PACKAGES),
        "content": [_SUPERFLUOUS, _FOLDERS, _LINKS, _FILES],
        "recipe": VERSION,
    }
    title = "the root of the emulated host's libvirt"
    words = (suite, deb_tree.ARCHITECTURE)
    place = caches.entry(cache, "root", title, words, made_from)

    def build(work: Path) -> Path:
        return _build(work, place.log, suite, progress or Progress(None))

    root, cached = caches.fill(
        place,
        lambda: read_root(place.path),
        build,
        progress,
        prepare=lambda: host_tools.require_tools(deb_tree.TOOLS),
    )
    return replace(root, cached=cached)


def _build(work: Path, log: Path, suite: str, progress: Progress) -> Path:
    kept = work / "kept"
    kept.mkdir()
    tree = kept / "tree"
    versions = deb_tree.fill(work / "apt", tree, suite, PACKAGES, log, progress)
    deb_tree.trim(tree, _SUPERFLUOUS)
    for name in _FOLDERS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name, target in _LINKS.items():
        deb_tree.trim(tree, (name,))
        (tree / name).symlink_to(target)
    for name, content in _FILES.items():
        (tree / name).write_text(content, encoding="utf-8")
    describe(kept, suite, deb_tree.ARCHITECTURE, versions)
    progress.clear()
    return kept
