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
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import vmm_msi
from vmm_msi.domxml.metadata import NAMESPACE_BASE
from vmm_msi.domxml.parse import MAX_BYTES
from vmm_msi.errors import OutputError, RefusedError
from vmm_msi.qemuhook import entry, imported_code

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
_LIMIT = 1 << 16
_FIELD = re.compile(r"^# (version|mode|interpreter): (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class InstalledScript:
    """The installed script.

    :param in_step: it is the script that this vmm-msi would install for its mode.
    :param works: its interpreter runs and can import vmm-msi; None if that is unknown, because
        it is another interpreter than this process's, which only its own vmm-msi should run.
    :param weakness: why a user other than root may change the code that it runs; None if none may.
        Of another interpreter's code, only the interpreter is checked.
    """

    path: Path
    version: str
    mode: str
    interpreter: str
    in_step: bool
    works: bool | None
    weakness: str | None = None


@dataclass(frozen=True, slots=True)
class Installation:
    """What installing the script does.

    :param changed: the script changes.
    :param is_new: there was none.
    :param weakness: why a user other than root may change the code that it runs; None if none may.
    """

    changed: bool
    is_new: bool
    weakness: str | None


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


def install(hooks: Path, mode: str, *, dry_run: bool = False, force: bool = False) -> Installation:
    """Install the script atomically.

    :param dry_run: only check whether the script could be installed.
    :param force: install it even if a user other than root may change the code that it runs.
    :raise RefusedError: when another program's file is in its place, the interpreter that libvirt
        would run cannot import this vmm-msi, or a user other than root may change that code.
    :raise OutputError: when the script cannot be written.
    """
    path = script_path(hooks)
    text = script_text(mode)
    imports = imported_code.imports_of(sys.executable)
    if imports is None or imports.entry != entry.__file__:
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
    weak = imported_code.weakness(path, sys.executable, imports)
    if weak is not None and not force:
        raise RefusedError(
            f"installing {path}: libvirt runs it as root, and {weak}; install vmm-msi where only "
            "root may write, for example with python -m venv /opt/vmm-msi, or use --force"
        )
    is_current = old == text and stat.S_IMODE(path.stat().st_mode) == 0o755
    if not is_current and not dry_run:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _write(path, text)
        except OSError as error:
            raise OutputError(f"installing {path}: {error.strerror}") from error
    return Installation(not is_current, old is None, weak and str(weak))


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
    in_step = mode in entry.MODES and text == script_text(mode) and os.access(path, os.X_OK)
    # The file may be of another user, so its interpreter is not run, unless it is the one that
    # runs already.
    is_own = interpreter == sys.executable
    imports = imported_code.imports_of(interpreter) if is_own else None
    works = imports is not None if is_own or not os.access(interpreter, os.X_OK) else None
    weak = imported_code.weakness(path, interpreter, imports)
    return InstalledScript(
        path=path,
        version=fields.get("version", ""),
        mode=mode,
        interpreter=interpreter,
        in_step=in_step,
        works=works,
        weakness=weak and str(weak),
    )


def has_other_hooks(hooks: Path) -> bool:
    """Return whether another hook for QEMU guests is installed.

    libvirt checks for hooks when it starts and when it reloads (src/util/virhook.c
    virHookInitialize); if it has one, it lists the folder at each call.
    """
    paths = [hooks / "qemu", *(hooks / _FOLDER).glob("*")]
    return any(path.is_file() and os.access(path, os.X_OK) for path in paths if path.name != _NAME)


def _is_own(text: str) -> bool:
    """Return whether ``vmm-msi hook install`` wrote a file with this text."""
    _, _, rest = text.partition("\n")
    return rest.startswith(_MARK)


def _read(path: Path) -> str | None:
    try:
        # Without waiting: it may be a pipe.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OutputError(f"reading {path}: not a regular file; move it away")
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
