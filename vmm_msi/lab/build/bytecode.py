"""Compile Python files for the user land of the emulated host, with the lab root's Python.

Byte code depends on the version of Python and on nothing else (``importlib.util.MAGIC_NUMBER``),
so the machine's own build of the same version does it. It runs by the root's dynamic linker: no
chroot, no privileges.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

    from vmm_msi.lab.build.root import LabRoot

_PYTHON = re.compile(r"python(3\.\d+)")

# Files named on standard input are compiled next to themselves; the code's own file name is where
# they will be. Nobody changes them there, so Python need not look at their time (PEP 552).
_PROGRAM = """\
import json, os, py_compile, sys
order = json.load(sys.stdin)
for name in order["files"]:
    py_compile.compile(
        os.path.join(order["folder"], name),
        cfile=os.path.join(order["folder"], name + "c") if order["replace"] else None,
        dfile=os.path.join(order["inside"], name),
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if order["replace"]:
        os.unlink(os.path.join(order["folder"], name))
"""


def python_version(tree: Path) -> str:
    """Return the version of the Python in a Debian tree, such as ``3.14``.

    :raise LabError: when there is none.
    """
    for path in sorted((tree / "usr/bin").glob("python3.*")):
        found = _PYTHON.fullmatch(path.name)
        if found:
            return found[1]
    raise LabError(
        f"looking for Python in {tree}: there is no usr/bin/python3.*; remove the folder's entry "
        "from the cache and build it again"
    )


def compile_files(
    root: LabRoot, folder: Path, files: list[str], inside: str, *, replace: bool = False
) -> None:
    """Compile files below ``folder``, each into the ``__pycache__`` next to it.

    :param files: their names, relative to ``folder``.
    :param inside: where ``folder`` will be in the emulated host, for tracebacks.
    :param replace: put ``x.pyc`` in the place of ``x.py`` instead.
    :raise LabError: when a file cannot be compiled.
    """
    version = python_version(root.path)
    order = {"folder": os.fspath(folder), "files": files, "inside": inside, "replace": replace}
    done = subprocess.run(
        [*root.outside(f"usr/bin/python{version}"), "-S", "-P", "-B", "-c", _PROGRAM],
        input=json.dumps(order),
        env={"PYTHONHOME": f"{root.path}/usr", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise LabError(f"compiling Python files for {inside}: {said}")
