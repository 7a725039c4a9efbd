"""The rules in docs/kernels.md and of verdicts: the functions of Linux that they name exist."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import kernel_source
import pytest
from conftest import unavailable
from simulator_rules import all_rules

from vmm_msi.errors import LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build.kernel_image import find_kernel

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "kernels.md"
PATCHES = ROOT / "vmm_msi" / "lab" / "kernel"
#: Specifications and postings, whose text no test can look at.
NOT_SOURCE = ("Arm SMMUv3 ", "Arm GICv3 ", "iommufd_sw_msi, [", "iommufd_option_sw_msi")
#: Files of Linux that the kept part of its source lacks.
NOT_KEPT = {"fs/ioctl.c", "include/linux/iommu.h"}
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


def in_linux():
    """Yield the function, the file and the kernel of each rule of Linux; "" stands for 7.2."""
    for rule in all_rules():
        if not rule.source.startswith(NOT_SOURCE):
            source = rule.source.removesuffix(", in the guest")
            function, file, *kernel = re.sub(r" \(.*?\)", "", source).split(", ")
            if not file.startswith("vmm_msi/"):
                yield function, file, "".join(kernel)


def test_the_rules_of_older_kernels_are_of_the_page():
    """Their source is not at hand: the page says which revision each function was read in."""
    named = {
        word
        for header, rows in tables()
        if "where" in header
        for row in rows
        for word in re.findall(r"\w+", row[header.index("where")])
    }
    older = {function for function, _file, kernel in in_linux() if kernel}
    assert older - named <= {"vfio_set_irqs_validate_and_prepare"}
    assert len(older) > 10


@pytest.mark.lab_root
def test_the_function_of_a_rule_is_in_its_file(source, counts):
    added = {}
    for patch in sorted(PATCHES.glob("*.patch")):
        for part in patch.read_text().split("\ndiff --git ")[1:]:
            name = part.split(" b/")[1].split("\n")[0]
            lines = [line[1:] for line in part.splitlines() if line.startswith("+")]
            added[name] = "\n".join((added.get(name, ""), *lines))
    missing = set()
    for function, file, kernel in in_linux():
        if kernel or file in NOT_KEPT:
            continue
        path = source / file
        text = path.read_text(errors="replace") if path.is_file() else ""
        text += added.get(file, "")
        if not re.search(rf"^(?:[a-z][\w *]*[ *])?{function}\(", text, re.MULTILINE):
            missing.add(f"{function}, {file}")
        counts["functions of the simulator's rules that were found in Linux"] += 1
    assert not missing


def test_a_rule_of_vmm_msi_is_in_its_file():
    for rule in all_rules():
        name, file = rule.source.rsplit(", ", 1)
        if file.startswith("vmm_msi/"):
            text = (ROOT / file).read_text()
            owner, _, method = name.partition(".")
            assert re.search(rf"^class {owner}\b", text, re.MULTILINE), rule
            assert not method or re.search(rf"^    def {method}\(", text, re.MULTILINE), rule
