"""Check who may change the code that the hook runs as root.

That is the script, the interpreter with the libraries it is linked with, and everything below the
folders that ``python -I`` imports from: Python runs ``.pth`` files and imports modules and cached
byte code from there.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi import ownership
from vmm_msi.ownership import Weakness

if TYPE_CHECKING:
    from collections.abc import Iterable

#: libvirt runs hooks as root.
OWNERS = frozenset({0})

_TIMEOUT_S = 30.0
_PROBE = """\
import contextlib, json, sys
import vmm_msi, vmm_msi.qemuhook.entry as entry
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
# Without a /proc, or with that of another PID namespace, the libraries are unknown.
with contextlib.suppress(OSError), open("/proc/self/maps", errors="surrogateescape") as maps:
    files += [line.split(maxsplit=5)[5].strip() for line in maps if "/" in line]
print(json.dumps({
    "version": vmm_msi.__version__,
    "entry": entry.__file__,
    "prefix": sys.prefix,
    "folders": sys.path,
    "files": sorted({file for file in files if file}),
}))
"""


@dataclass(frozen=True, slots=True)
class Imports:
    """What an interpreter imports for the hook.

    :param version: of vmm-msi.
    :param entry: the file of :mod:`vmm_msi.qemuhook.entry`.
    :param prefix: the folder of the environment, which has its ``pyvenv.cfg``.
    :param folders: where it looks for modules.
    :param files: the modules and libraries that it loads.
    """

    version: str
    entry: str
    prefix: str
    folders: tuple[str, ...]
    files: tuple[str, ...]


def imports_of(interpreter: str) -> Imports | None:
    """Run an interpreter as the hook does, and return what it imports; None if it cannot.

    It must be this process's own interpreter: running another one runs code of its owner.
    """
    try:
        result = subprocess.run(
            [interpreter, "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
        values = json.loads(result.stdout)
        folders, files = map(tuple, (values.pop("folders"), values.pop("files")))
        return Imports(**values, folders=folders, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, subprocess.SubprocessError):
        return None


def weakness(script: Path, interpreter: str, imports: Imports | None) -> Weakness | None:
    """Return the first file or folder of the hook's code that a user other than root may change.

    :param script: the script; it need not exist.
    :param imports: what the interpreter imports; None checks the script and the interpreter alone.
    """
    paths = [script.parent, script]
    folders: list[Path] = []
    if interpreter.startswith("/"):
        paths.append(Path(interpreter))
    if imports is not None:
        paths += [Path(imports.prefix, "pyvenv.cfg"), *map(Path, imports.files)]
        folders = [*map(Path, imports.folders), Path(imports.entry).parents[1]]
    weak = (_of_path(path.absolute()) for path in [*paths, *folders])
    return next(filter(None, weak), None) or _below(folders)


def _of_path(path: Path) -> Weakness | None:
    """Check a path; instead of a missing one, the folder in which another user could create it."""
    while True:
        try:
            return ownership.weakness(path, OWNERS)
        except (FileNotFoundError, NotADirectoryError):
            path = path.resolve().parent  # of what a link leads to
        except OSError as error:
            return Weakness(path, f"cannot be checked: {error.strerror}")


def _below(folders: Iterable[Path]) -> Weakness | None:
    """Check everything below folders, and below the folders that links in them lead to."""
    pending = [folder.resolve() for folder in folders]
    seen: set[Path] = set()
    while pending:
        folder = pending.pop()
        # One folder of sys.path may be below another.
        if folder in seen or not folder.is_dir():
            continue
        seen.add(folder)
        try:
            with os.scandir(folder) as entries:
                listed = [*entries]
        except OSError as error:
            return Weakness(folder, f"cannot be checked: {error.strerror}")
        for entry in listed:
            if entry.is_symlink():
                weak = _of_path(Path(entry.path))
            else:
                reason = ownership.reason_of(entry.stat(follow_symlinks=False), OWNERS)
                weak = Weakness(Path(entry.path), reason) if reason else None
            if weak is not None:
                return weak
            if entry.is_dir():
                path = Path(entry.path)
                pending.append(path.resolve() if entry.is_symlink() else path)
    return None
