"""Compile Python files for the emulated host's user land, with the lab root's Python.

Byte code depends only on the version of Python (``importlib.util.MAGIC_NUMBER``), so the root's
Python of the same version can compile for arm64. The root's dynamic linker starts it: no chroot, no
privileges.
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

# Compile the files named on standard input in place; the code's file name is the one in the
# emulated host. The files never change there, so Python need not check their times (PEP 552).
_PROGRAM = """\
import json, os, py_compile, sys
job = json.load(sys.stdin)
for name in job["files"]:
    py_compile.compile(
        os.path.join(job["folder"], name),
        cfile=os.path.join(job["folder"], name + "c") if job["replace"] else None,
        dfile=os.path.join(job["inside"], name),
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if job["replace"]:
        os.unlink(os.path.join(job["folder"], name))
"""


def python_version(tree: Path) -> str:
    """Return the version of the Python in a Debian tree, such as ``3.14``.

    :raise LabError: when the root has no Python.
    """
    for path in sorted((tree / "usr/bin").glob("python3.*")):
        match = _PYTHON.fullmatch(path.name)
        if match:
            return match[1]
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
    :param replace: replace ``x.py`` with ``x.pyc`` instead.
    :raise LabError: when a file cannot be compiled.
    """
    version = python_version(root.path)
    job = {"folder": os.fspath(folder), "files": files, "inside": inside, "replace": replace}
    done = subprocess.run(
        [*root.outside(f"usr/bin/python{version}"), "-S", "-P", "-B", "-c", _PROGRAM],
        input=json.dumps(job),
        env={"PYTHONHOME": f"{root.path}/usr", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise LabError(f"compiling Python files for {inside}: {reason}")
