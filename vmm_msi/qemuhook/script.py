"""The script that libvirt runs: write it, take it out, tell whether it is in order.

It is a shell script, so that a guest that is not ours costs no Python. Only the one exit status
by which :mod:`vmm_msi.qemuhook.entry` refuses makes it fail: an interpreter that was removed, a
package that was updated half way or a bug in there lets every guest start.
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

#: Where libvirt looks for hooks; another where it was built with another --sysconfdir.
HOOKS = Path("/etc/libvirt/hooks")

_FOLDER = "qemu.d"
_NAME = "50-vmm-msi"
_MARK = "# Written by vmm-msi hook install, taken out by vmm-msi hook uninstall."
_SCRIPT = """\
#!/bin/sh
{mark}
# version: {version}
# mode: {mode}
# interpreter: {interpreter}

# The domain XML; a byte more than libvirt would take is enough to know that it is none.
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
class Installed:
    """The script that is there.

    :param in_step: it is what this vmm-msi would write for its mode.
    :param works: its interpreter can be run and finds a vmm-msi.
    """

    path: Path
    version: str
    mode: str
    interpreter: str
    in_step: bool
    works: bool


def place(hooks: Path) -> Path:
    """Return the path of the script below libvirt's folder of hooks."""
    return hooks / _FOLDER / _NAME


def content(mode: str) -> str:
    """Return the script for this installation.

    :param mode: one of :data:`~vmm_msi.qemuhook.entry.MODES`.
    :raise RefusedError: when the path of the interpreter cannot be written into one.
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
    """Write the script, in one step.

    :param dry_run: only look whether it could be.
    :return: whether anything has to be written.
    :raise RefusedError: when a file that is not ours is there, or this installation could not be
        found by what libvirt starts.
    :raise OutputError: when it cannot be written.
    """
    path = place(hooks)
    text = content(mode)
    if _probe(sys.executable) != f"{vmm_msi.__version__} {entry.__file__}":
        raise RefusedError(
            f"installing {path}: {sys.executable} -I, which libvirt would run, does not find this "
            "vmm-msi; valid is one that pip installed into an environment or the system, not one "
            "that $PYTHONPATH or the user's own site folder leads to"
        )
    old = _read(path)
    if old is not None and not _is_ours(old):
        raise RefusedError(
            f"installing {path}: the file that is there is not vmm-msi's; move it out of the way"
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
    """Remove the script; the folders stay, since libvirt or others may have made them.

    :return: whether there was one.
    :raise RefusedError: when the file that is there is not ours.
    :raise OutputError: when it cannot be removed.
    """
    path = place(hooks)
    old = _read(path)
    if old is None:
        return False
    if not _is_ours(old):
        raise RefusedError(f"removing {path}: it is not vmm-msi's; remove it by hand")
    if dry_run:
        return True
    try:
        path.unlink()
    except OSError as error:
        raise OutputError(f"removing {path}: {error.strerror}") from error
    return True


def inspect(hooks: Path) -> Installed | None:
    """Return what is known of the script that is there, None where there is none of ours.

    :raise OutputError: when it cannot be read.
    """
    path = place(hooks)
    text = _read(path)
    if text is None or not _is_ours(text):
        return None
    said = dict(_FIELD.findall(text))
    mode, interpreter = said.get("mode", ""), said.get("interpreter", "")
    return Installed(
        path=path,
        version=said.get("version", ""),
        mode=mode,
        interpreter=interpreter,
        in_step=mode in entry.MODES and text == content(mode) and os.access(path, os.X_OK),
        works=bool(interpreter) and _probe(interpreter) is not None,
    )


def has_others(hooks: Path) -> bool:
    """Tell whether libvirt has another hook for QEMU guests there.

    It looks whether there is any when it starts and when it is told to reload (src/util/virhook.c
    virHookInitialize); once there is, it lists the folder at each call.
    """
    found = [hooks / "qemu", *(hooks / _FOLDER).glob("*")]
    return any(path.is_file() and os.access(path, os.X_OK) for path in found if path.name != _NAME)


def untrusted(hooks: Path) -> str | None:
    """Return what of the hook and this installation somebody else than root may write to, if any.

    libvirt runs hooks as root.
    """
    python = Path(sys.executable)
    ends = (place(hooks).absolute(), python, python.resolve(), Path(vmm_msi.__file__))
    for path in dict.fromkeys(path for end in ends for path in (end, *end.parents)):
        if not path.exists():
            continue
        found = path.lstat()
        writable = not stat.S_ISLNK(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if found.st_uid != 0 or (writable and not found.st_mode & stat.S_ISVTX):
            return str(path)
    return None


def _probe(interpreter: str) -> str | None:
    """Return what the interpreter says of the vmm-msi it finds; None where there is none."""
    try:
        done = subprocess.run(
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
    return done.stdout.strip() if done.returncode == 0 else None


def _is_ours(text: str) -> bool:
    return text.split("\n", 2)[1:2] == [_MARK]


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"reading {path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    """Put a complete file into place; libvirt passes over one that is not executable yet."""
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
