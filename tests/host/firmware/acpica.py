"""Run iasl, ACPICA's compiler and disassembler, of Debian's newest suite: older ones lack RMR.

It is downloaded with its libraries into the user's cache, 5 MB, and run from there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from conftest import unavailable

from vmm_msi.errors import LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.apt import PrivateApt
from vmm_msi.lab.build.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "acpica-tools"
#: ``[030h 0048 001h]                 Type : 00``
_FIELD = re.compile(r"\[([0-9A-F]+)h \d+ +([0-9A-F]+)h?\] +(.+?) : (.*)")


@dataclass(frozen=True)
class Field:
    """A field as iasl prints it: offset, size, name and value."""

    offset: int
    size: int
    name: str
    value: str

    @property
    def number(self):
        return int(self.value.split()[0], 16)

    @property
    def text(self):
        return self.value.strip().strip('"').replace("\\\\", "\\")


def ensure() -> Path:
    """Return the folder into which iasl is unpacked.

    :raise LabError: when it cannot be downloaded.
    """
    architecture = host_tools.architecture()
    made_from = {"suite": DEFAULT_SUITE, "architecture": architecture, "packages": [PACKAGE]}
    place = caches.entry(None, "iasl", "iasl", (DEFAULT_SUITE, architecture), made_from)
    progress = Progress(sys.stderr, "iasl")

    def read() -> Path | None:
        return place.path if (place.path / "usr/bin/iasl").exists() else None

    def build(work: Path) -> Path:
        progress.stage(f"fetching {PACKAGE} of Debian {DEFAULT_SUITE}")
        apt = PrivateApt(work / "apt", DEFAULT_SUITE, architecture, place.log, progress)
        apt.update()
        for package in apt.download([PACKAGE]):
            subprocess.run(
                [host_tools.find_tool("dpkg"), "--extract", package, work / "tree"], check=True
            )
        return work / "tree"

    return caches.fill(place, read, build, progress)[0]


def command(tree: Path) -> list[str]:
    """Return the command line of the iasl in ``tree``."""
    [libraries] = {libc.parent for libc in (tree / "usr/lib").glob("*-linux-gnu/libc.so.6")}
    [linker] = libraries.glob("ld-linux-*.so.*")
    # ld.so(8): with the libraries of its own suite.
    return [*map(str, (linker, "--library-path", libraries, tree / "usr/bin/iasl"))]


@cache
def _command() -> list[str] | LabError:
    try:
        return command(ensure())
    except LabError as error:
        return error


def iasl(*words):
    """Run iasl and return status and output; skip, in CI fail, if it is not available."""
    program = _command()
    if isinstance(program, LabError):
        unavailable(f"no {PACKAGE} of Debian: {program}")
    done = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def disassembled(data: bytes, folder: Path) -> tuple[str, list[Field]]:
    """Return the source that iasl prints of a table, and its fields."""
    table = folder / "table.aml"
    table.write_bytes(data)
    code, output = iasl("-d", "-p", str(folder / "table"), str(table))
    assert code == 0, output
    text = (folder / "table.dsl").read_text(encoding="latin-1")
    fields = []
    for line in text.splitlines():
        if match := _FIELD.match(line):
            offset, size, name, value = match.groups()
            fields.append(Field(int(offset, 16), int(size, 16), name.strip(), value))
    return text, fields


def compiled(source: str, folder: Path) -> bytes:
    """Return the table that iasl compiles from a source."""
    place = folder / "source.dsl"
    place.write_text(source, encoding="latin-1")
    code, output = iasl("-p", str(folder / "built"), str(place))
    assert code == 0, output
    return (folder / "built.aml").read_bytes()
