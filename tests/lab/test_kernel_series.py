"""The patches of the kernel ``bind``: their licence, and the checks of the kernel's own tools."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import unavailable

from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build.kernel_flavour import BIND, bind_folder, flavour
from vmm_msi.lab.build.kernel_tree import tree_facts

PATCHES = flavour(BIND).patches


def test_every_new_file_has_its_licence():
    for patch in PATCHES:
        for text in re.findall(rb"^--- /dev/null\n.*\n@@.*\n\+(.*)$", patch.content, re.MULTILINE):
            assert b"SPDX-License-Identifier: GPL-2.0" in text
    assert "GPL-2.0-only" in bind_folder().joinpath("README.md").read_text("utf-8")


@pytest.mark.lab_root
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_checkpatch_has_no_objection(patch):
    tree = tree_facts(DEFAULT_SUITE)
    script = None if tree is None else tree.path / "source/scripts/checkpatch.pl"
    if script is None or not script.exists():
        unavailable("no source of the lab's kernel: run vmm-msi lab build")
    file = Path(str(bind_folder()), patch.name)
    # MAINTAINERS has the folder, not its files.
    options = ("--no-tree", "--no-summary", "--terse", "--ignore=FILE_PATH_CHANGES")
    command = ["perl", script, *options, file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
