"""Query the machine that the lab runs on: tools, privileges, package mirror, mounts."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi import ownership
from vmm_msi.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import BinaryIO

#: Tools that the lab calls, and the Debian package of each.
TOOL_PACKAGES: Mapping[str, str] = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "apt-cache": "apt",
    "apt-config": "apt",
    "apt-get": "apt",
    "bc": "bc",
    "bison": "bison",
    "chroot": "coreutils",
    "debootstrap": "debootstrap",
    "dpkg": "dpkg",
    "flex": "flex",
    "gcc": "gcc",
    "make": "make",
    "mount": "mount",
    "patch": "patch",
    "setpriv": "util-linux",
    "tar": "tar",
    "umount": "mount",
    "unshare": "util-linux",
    "xz": "xz-utils",
    "zstd": "zstd",
}

#: Settings of the machine's apt that affect reading its mirror; a root that is filled from the same
#: mirror needs the same settings.
_APT_SETTINGS = (
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
)

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def require_root(purpose: str) -> None:
    """Check for root privileges.

    :param purpose: the action and why it requires root, for the message.
    :raise LabError: when the effective user is not root.
    """
    if os.geteuid() != 0:
        raise LabError(f"{purpose} requires root; run it as root (sudo)")


def find_tool(name: str) -> str:
    """Return the path of a tool, even if the system folders are not in ``PATH``.

    A tool that another user may change is not used.

    :raise LabError: when it is not installed.
    """
    return require_tools([name])[name]


def require_tools(names: Iterable[str]) -> dict[str, str]:
    """Return the path of every tool in ``names``.

    :raise LabError: when some are missing; the message lists all of them with the apt command.
    """
    search = os.pathsep.join((os.environ.get("PATH", ""), _SYSTEM_PATH))
    paths = {name: ownership.find_program(name, search) for name in names}
    missing = sorted(name for name, path in paths.items() if path is None)
    if missing:
        packages = sorted({TOOL_PACKAGES[name] for name in missing})
        raise LabError(
            f"looking for the lab's tools: {', '.join(missing)} not found; "
            f"apt-get install {' '.join(packages)}"
        )
    return {name: path for name, path in paths.items() if path is not None}


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Check that the disk has enough free space.

    :param folder: a folder on the disk; it or a parent of it exists.
    :param needed: bytes.
    :param purpose: the action, for the message.
    :raise LabError: when less is free.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LabError(
            f"{purpose}: {folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB required; "
            "free some space or use another folder with --cache"
        )


def architecture() -> str:
    """Return Debian's name of the machine's own architecture, such as ``amd64``."""
    return _output([find_tool("dpkg"), "--print-architecture"]).strip()


def apt_mirror() -> str:
    """Return the address of the Debian mirror that the machine's own apt uses.

    :raise LabError: when apt has no source of Debian's main component.
    """
    command = [find_tool("apt-get"), "indextargets"]
    fields = "$(ORIGIN)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)"
    only = "Created-By: Packages"
    # The origin is known only after the lists were fetched; until then use any main component.
    listed = _output([*command, "--format", fields, only])
    if not listed.strip():
        listed = _output([*command, "--no-release-info", "--format", fields, only])
    for line in listed.splitlines():
        origin, component, release, address = line.split("|", 3)
        if (
            origin in ("Debian", "$(ORIGIN)")
            and component == "main"
            and not release.endswith("-security")
        ):
            return address.rstrip("/")
    raise LabError(
        "looking for a Debian mirror: the machine's apt has no source of Debian's main "
        "component; add one below /etc/apt/sources.list.d"
    )


def apt_options() -> list[str]:
    """Return the ``-o`` options with which another apt reads the same mirror."""
    options: list[str] = []
    for line in _output([find_tool("apt-config"), "dump", "--format", "%f=%v%n"]).splitlines():
        name, _, value = line.partition("=")
        if name in _APT_SETTINGS and value:
            options += ["-o", f"{name}={value}"]
    return options


def apt_proxies() -> dict[str, str]:
    """Return the machine's apt proxies as environment variables for other tools."""
    settings = [option.partition("=") for option in apt_options() if option != "-o"]
    return {
        f"{name.split('::')[1]}_proxy": value
        for name, _, value in settings
        if name.endswith("::Proxy") and value != "DIRECT"
    }


def mounts_below(folder: Path) -> list[Path]:
    """Return the mount points at or below ``folder`` that this process sees, innermost first.

    See proc_pid_mountinfo(5); blanks in a path are octal escapes.
    """
    points = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        escaped = line.split(" ")[4]
        point = Path(escaped.encode("latin-1", "backslashreplace").decode("unicode_escape"))
        if point == folder or folder in point.parents:
            points.append(point)
    return sorted(points, key=lambda point: len(point.parts), reverse=True)


def check_folder(folder: Path, doing: str, instead: str) -> None:
    """Check that no other user may change a folder or replace it; a missing one is accepted.

    Builds run files of such a folder as root, and remove folders in it.

    :param doing: the action, for the message.
    :param instead: how to use another folder, for the message.
    :raise LabError: when another user may change it, or it cannot be opened.
    """
    try:
        weak = ownership.weakness(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LabError(f"{doing}: {folder}: {error.strerror}") from error
    if weak is not None:
        raise LabError(
            f"{doing}: {weak}; the lab needs a folder that only root and you may change: {instead}"
        )


def open_lock(path: Path) -> BinaryIO:
    """Open a file for flock(2), and create it.

    No other user can open it, since opening it for reading is enough to lock it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o600), "r+b")
    try:
        os.fchmod(file.fileno(), 0o600)  # earlier releases created it for every user
    except BaseException:
        file.close()
        raise
    return file


def remove_folder(folder: Path) -> None:
    """Unmount everything below ``folder`` and remove it with its content.

    A link in its place is removed, and not what it leads to.

    :raise LabError: when another user's link leads to it, or a mount remains; then nothing is
        removed, since the removal would delete files elsewhere.
    """
    try:
        parent = ownership.open_folder(folder.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_remove(folder, error) from error
    try:
        status = os.stat(folder.name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(folder.name, dir_fd=parent)
            return
        # The list of mounts has paths without links.
        _unmount(Path(f"/proc/self/fd/{parent}").readlink() / folder.name)
        shutil.rmtree(folder.name, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_remove(folder, error) from error
    finally:
        os.close(parent)


def _cannot_remove(folder: Path, error: OSError) -> LabError:
    return LabError(f"removing {folder}: {error.strerror}")


def _unmount(folder: Path) -> None:
    for point in mounts_below(folder):
        _output([find_tool("umount"), "--lazy", os.fspath(point)])
    left = mounts_below(folder)
    if left:
        raise LabError(f"removing {folder}: {left[0]} is still mounted; unmount it by hand")


def _output(command: list[str]) -> str:
    """Return the output of a short command.

    :raise LabError: when it fails, with its last line.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise LabError(f"running {' '.join(command)}: exit status {done.returncode}: {reason}")
    return done.stdout
