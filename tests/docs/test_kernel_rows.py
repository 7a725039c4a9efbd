"""The rules in docs/kernels.md: each has a source, and the functions of Linux 7.2 exist."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import kernel_source
import pytest
from conftest import unavailable

from vmm_msi.errors import LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build.kernel_image import find_kernel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
READ_IN = "read in"
LINUX_72 = "errno for the caller"
#: Errors that never leave the kernel, and the words that stand for none.
NO_NUMBER = {"-", "ENOIOCTLCMD", "(a positive number)"}


def tables():
    """Yield the header and the rows of each table of the page that names its sources."""
    for block in re.findall(r"(?:^\|.*\n)+", PAGE.read_text(), re.MULTILINE):
        header, _line, *rows = (cells(line) for line in block.splitlines())
        if READ_IN in header:
            yield header, rows


def cells(line):
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def rows_of_linux_72():
    return [
        dict(zip(header, row, strict=True))
        for header, rows in tables()
        if LINUX_72 in header
        for row in rows
    ]


ROWS = rows_of_linux_72()


def test_every_row_names_the_version_it_was_read_in(counts):
    inferred = []
    for header, rows in tables():
        for row in rows:
            assert len(row) == len(header), row
            version = row[header.index(READ_IN)]
            assert re.search(r"\d", version) or "inferred" in version, row
            if "inferred" in version:
                inferred.append(row)
    counts["rows of docs/kernels.md that are inferred, in whole or in part"] += len(inferred)
    print(*(" | ".join(row) for row in inferred), sep="\n")
    assert len(ROWS) > 45


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["cause"])
def test_an_errno_is_one(row):
    for column in ("errno in the kernel", LINUX_72):
        assert (
            row[column] in NO_NUMBER
            or row[column] in errno.errorcode.values()
            or (row[column] == "EOPNOTSUPP")
        )
    if row[READ_IN] != "inferred":
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?", row[READ_IN])


@pytest.fixture(scope="module")
def source():
    """The source that the lab's kernel is built from, with the folders that the page names."""
    if find_kernel(DEFAULT_SUITE) is None and kernel_source.find() is None:
        unavailable("no kernel of the emulated host: run vmm-msi lab build")
    try:
        return kernel_source.ensure()
    except LabError as error:
        unavailable(str(error))


@pytest.mark.lab_root
def test_the_page_is_about_the_kernel_that_the_lab_builds(source):
    makefile = (source / "Makefile").read_text()
    assert re.findall(r"^(?:VERSION|PATCHLEVEL) = (\d+)$", makefile, re.MULTILINE) == ["7", "2"]


@pytest.mark.lab_root
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["cause"])
def test_the_functions_of_a_row_are_in_its_files(row, source, counts):
    for part in row["where in Linux"].split("; "):
        match = re.fullmatch(r"`([\w./-]+)` (\w+(?:, \w+)*)", part)
        assert match, part
        name, functions = match.groups()
        [file] = [f for f in source.rglob(Path(name).name) if f.as_posix().endswith(f"/{name}")]
        text = file.read_text(errors="replace")
        for function in functions.split(", "):
            assert re.search(rf"^(?:[a-z][\w *]*[ *])?{function}\(", text, re.MULTILINE), (
                f"{name} has no function {function}"
            )
            counts["functions of docs/kernels.md that were found in Linux"] += 1
