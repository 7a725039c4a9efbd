"""Structures and numbers of uapi, compared with the kernel's headers by a C program."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys

import pytest
from conftest import unavailable
from lab_headers import ensure_headers

from vmm_msi.errors import LabError
from vmm_msi.iommu.linux import uapi
from vmm_msi.lab.build.progress import Progress

pytestmark = pytest.mark.lab_root

STRUCTURES = [
    value
    for value in vars(uapi).values()
    if isinstance(value, type) and hasattr(value, "c_name") and value.__module__ == uapi.__name__
]
CONSTANTS = {name: value for name, value in vars(uapi).items() if name.isupper() and name[0] != "_"}

#: Structures that the kernel accepts in a shorter form, by the last field in uapi.py.
SHORTER = {
    "vfio_device_bind_iommufd": "out_devid",
    "vfio_device_attach_iommufd_pt": "pt_id",
    "vfio_device_detach_iommufd_pt": "flags",
}

HEAD = """\
#include <stddef.h>
#include <stdio.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>
#define PRINT(name, value) printf("%s %llu\\n", name, (unsigned long long)(value))
#define SIZE(s) PRINT(#s, sizeof(struct s))
#define FIELD(s, f) PRINT(#s "." #f, offsetof(struct s, f)), \\
    PRINT(#s "." #f " bytes", sizeof(((struct s *)0)->f))
int main(void)
{
"""


def program():
    """Return a program that prints sizes of structures, offsets and sizes of fields, constants."""
    lines = [f"PRINT({name!r}, {name});".replace("'", '"') for name in CONSTANTS]
    for structure in STRUCTURES:
        lines.append(f"SIZE({structure.c_name});")
        lines += [f"FIELD({structure.c_name}, {name});" for name, *_ in structure._fields_]
    return HEAD + "\n".join(lines) + "\nreturn 0;\n}\n"


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    """Return the numbers that the compiled program prints, by name."""
    if shutil.which("cc") is None:
        unavailable("no C compiler: apt-get install gcc libc6-dev")
    try:
        include = ensure_headers(Progress(sys.stderr, "kernel headers"))
    except LabError as error:
        unavailable(f"no kernel headers of the lab's suite: {error}")
    folder = tmp_path_factory.mktemp("uapi")
    (folder / "layout.c").write_text(program())
    machine = subprocess.run(["cc", "-dumpmachine"], check=True, capture_output=True, text=True)
    folders = ["-I", include, "-I", include / machine.stdout.strip()]
    built = subprocess.run(
        ["cc", "-Wall", "-Werror", *folders, "-o", folder / "layout", folder / "layout.c"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    layout = subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout
    return {
        name: int(value) for name, value in (line.rsplit(" ", 1) for line in layout.splitlines())
    }


def test_the_program_prints_every_structure_and_constant(header):
    assert len(header) > len(STRUCTURES) + len(CONSTANTS) > 50


def test_constants(header):
    assert {name: header[name] for name in CONSTANTS} == CONSTANTS


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.c_name)
def test_structure(header, structure):
    name = structure.c_name
    fields = {field: getattr(structure, field) for field, *_ in structure._fields_}
    for field, ours in fields.items():
        theirs = (header[f"{name}.{field}"], header[f"{name}.{field} bytes"])
        assert (ours.offset, ours.size) == theirs, field
    size = ctypes.sizeof(structure)
    assert sum(ours.size for ours in fields.values()) == size, "a field is missing"
    last = SHORTER.get(name)
    if last is None:
        assert size == header[name]
    else:
        assert size == header[f"{name}.{last}"] + header[f"{name}.{last} bytes"] < header[name]
