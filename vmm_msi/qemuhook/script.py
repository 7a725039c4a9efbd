"""Install, remove and check the script that libvirt runs.

It is a shell script, so that guests of other programs start no Python. It fails only for the exit
status by which :mod:`vmm_msi.qemuhook.entry` refuses a guest: with a missing interpreter, a
half-updated package or a bug in the hook, every guest starts.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import vmm_msi
from vmm_msi.domxml.metadata import NAMESPACE_BASE
from vmm_msi.domxml.parse import MAX_BYTES
from vmm_msi.errors import OutputError, RefusedError
from vmm_msi.qemuhook import entry

#: libvirt's folder of hooks; it differs if libvirt was built with another --sysconfdir.
HOOKS = Path("/etc/libvirt/hooks")

_FOLDER = "qemu.d"
_NAME = "50-vmm-msi"
#: The second line of every version of the script begins with it.
_MARK = "# Written by vmm-msi hook install"
_SCRIPT = """\
#!/bin/sh
{mark}; remove with vmm-msi hook uninstall.
# version: {version}
# mode: {mode}
# interpreter: {interpreter}

# The domain XML, and a byte more than its limit, which shows that it is too large.
xml=$(head -c {limit}) || exit 0
case $xml in
*{namespace}*) ;;
*) exit 0 ;;
esac
printf %s "$xml" |
    {quoted} -I -c {program} {mode} "$@" >/dev/null
[ $? -ne {refused} ]
"""
_PROGRAM = "from vmm_msi.qemuhook.entry import main; main()"
_PROBE = "import vmm_msi, vmm_msi.qemuhook.entry as e; print(vmm_msi.__version__, e.__file__)"
_PROBE_TIMEOUT_S = 30.0
_LIMIT = 1 << 16
_FIELD = re.compile(r"^# (version|mode|interpreter): (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class InstalledScript:
    """The installed script.

    :param in_step: it is the script that this vmm-msi would install for its mode.
    :param works: its interpreter runs and can import vmm-msi.
    """

    path: Path
    version: str
    mode: str
    interpreter: str
    in_step: bool
    works: bool


def script_path(hooks: Path) -> Path:
    """Return the path of the script below libvirt's folder of hooks."""
    return hooks / _FOLDER / _NAME


def script_text(mode: str) -> str:
    """Return the text of the script for this installation.

    :param mode: one of :data:`~vmm_msi.qemuhook.entry.MODES`.
    :raise RefusedError: when the script cannot contain the path of the interpreter.
    """
    interpreter = sys.executable
    if not interpreter.isprintable() or not interpreter.startswith("/"):
        raise RefusedError(
            f"writing the hook: the interpreter's path is {interpreter!r}; valid is an absolute "
            "path of printable characters"
        )
    return _SCRIPT.format(
        mark=_MARK,
        version=vmm_msi.__version__,
        mode=mode,
        interpreter=interpreter,
        limit=MAX_BYTES + 1,
        namespace=shlex.quote(NAMESPACE_BASE),
        quoted=shlex.quote(interpreter),
        program=shlex.quote(_PROGRAM),
        refused=entry.REFUSED,
    )


def install(hooks: Path, mode: str, *, dry_run: bool = False) -> bool:
    """Install the script atomically.

    :param dry_run: only check whether the script could be installed.
    :return: whether the script changes.
    :raise RefusedError: when another program's file is in its place, or the interpreter that
        libvirt would run cannot import this vmm-msi.
    :raise OutputError: when the script cannot be written.
    """
    path = script_path(hooks)
    text = script_text(mode)
    if _probe(sys.executable) != f"{vmm_msi.__version__} {entry.__file__}":
        raise RefusedError(
            f"installing {path}: {sys.executable} -I, which libvirt would run, cannot import this "
            "vmm-msi; install vmm-msi with pip into an environment or the system: -I ignores "
            "$PYTHONPATH and the user's site folder"
        )
    old = _read(path)
    if old is not None and not _is_own(old):
        raise RefusedError(
            f"installing {path}: another program's file is in its place; move it away"
        )
    if old == text and stat.S_IMODE(path.stat().st_mode) == 0o755:
        return False
    if dry_run:
        return True
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _write(path, text)
    except OSError as error:
        raise OutputError(f"installing {path}: {error.strerror}") from error
    return True


def uninstall(hooks: Path, *, dry_run: bool = False) -> bool:
    """Remove the script, but no folder: another program may have created it.

    :return: whether the script was installed.
    :raise RefusedError: when the file belongs to another program.
    :raise OutputError: when the script cannot be removed.
    """
    path = script_path(hooks)
    old = _read(path)
    if old is None:
        return False
    if not _is_own(old):
        raise RefusedError(
            f"removing {path}: the file belongs to another program; remove it by hand"
        )
    if dry_run:
        return True
    try:
        path.unlink()
    except OSError as error:
        raise OutputError(f"removing {path}: {error.strerror}") from error
    return True


def inspect(hooks: Path) -> InstalledScript | None:
    """Return the installed script; None if it is not installed.

    :raise OutputError: when the file cannot be read.
    """
    path = script_path(hooks)
    text = _read(path)
    if text is None or not _is_own(text):
        return None
    fields = dict(_FIELD.findall(text))
    mode, interpreter = fields.get("mode", ""), fields.get("interpreter", "")
    return InstalledScript(
        path=path,
        version=fields.get("version", ""),
        mode=mode,
        interpreter=interpreter,
        in_step=mode in entry.MODES and text == script_text(mode) and os.access(path, os.X_OK),
        works=bool(interpreter) and _probe(interpreter) is not None,
    )


def has_other_hooks(hooks: Path) -> bool:
    """Return whether another hook for QEMU guests is installed.

    libvirt checks for hooks when it starts and when it reloads (src/util/virhook.c
    virHookInitialize); if it has one, it lists the folder at each call.
    """
    paths = [hooks / "qemu", *(hooks / _FOLDER).glob("*")]
    return any(path.is_file() and os.access(path, os.X_OK) for path in paths if path.name != _NAME)


def writable_path(hooks: Path) -> str | None:
    """Return a path of the hook or this installation that a user other than root may write to.

    libvirt runs hooks as root.
    """
    python = Path(sys.executable)
    leaves = (script_path(hooks).absolute(), python, python.resolve(), Path(vmm_msi.__file__))
    for path in dict.fromkeys(path for leaf in leaves for path in (leaf, *leaf.parents)):
        if not path.exists():
            continue
        status = path.lstat()
        shared = stat.S_IWGRP | stat.S_IWOTH
        writable = not stat.S_ISLNK(status.st_mode) and status.st_mode & shared
        if status.st_uid != 0 or (writable and not status.st_mode & stat.S_ISVTX):
            return str(path)
    return None


def _probe(interpreter: str) -> str | None:
    """Return version and path of the vmm-msi that an interpreter imports; None if it cannot."""
    try:
        result = subprocess.run(
            [interpreter, "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PROBE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _is_own(text: str) -> bool:
    """Return whether ``vmm-msi hook install`` wrote a file with this text."""
    _, _, rest = text.partition("\n")
    return rest.startswith(_MARK)


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"reading {path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it.

    libvirt ignores the temporary file, which is not executable.
    """
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{_NAME}-", encoding="utf-8", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o755)
            Path(file.name).rename(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
