"""The page about captures agrees with the list of captured paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm_msi.host.files import MAX_FILE, archive, redact
from vmm_msi.host.files.capture_list import CAPTURED_PATHS, MODULES
from vmm_msi.host.files.capture_paths import KERNEL_LOG, MANIFEST, PAGE_SIZE, SOFTWARE
from vmm_msi.host.files.paths import MAX_PARTS, MAX_PATH, MAX_STEPS
from vmm_msi.host.pci.sysfs import MAX_FUNCTIONS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "capture.md").read_text()
MIB = 1 << 20


@pytest.mark.parametrize("word", [*sorted(redact.ARGUMENTS), *MODULES])
def test_arguments_and_modules_are_on_the_page(word):
    assert f"`{word}`" in PAGE


@pytest.mark.parametrize("path", [MANIFEST, PAGE_SIZE, KERNEL_LOG, SOFTWARE])
def test_added_files_are_on_the_page(path):
    assert f"| `{path[1:]}` |" in PAGE


@pytest.mark.parametrize(
    "bound",
    [
        f"{archive.MAX_COMPRESSED // MIB} MiB",
        f"{archive.MAX_TOTAL // MIB} MiB",
        f"{archive.MAX_WINDOW // MIB} MiB",
        f"{MAX_FILE // MIB} MiB",
        f"{archive.MAX_MEMBERS:,}",
        f"{MAX_PATH} bytes",
        f"{archive.MAX_EXTRA} bytes, {archive.MAX_RECORDS} records",
        f"{MAX_PARTS}",
        f"{MAX_STEPS:,}",
        f"{MAX_FUNCTIONS:,}",
    ],
)
def test_bounds_are_on_the_page(bound):
    assert f"| {bound} |" in PAGE


def test_every_entry_has_a_plain_path_and_a_reason():
    for captured in CAPTURED_PATHS:
        assert captured.path.startswith("/")
        assert "//" not in captured.path
        assert captured.why
        assert (captured.reduce is None) or captured.kept
