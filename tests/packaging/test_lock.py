"""The lock has a release of each package that pyproject.toml names, with hashes and no index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = ROOT / "scripts" / "locked"


def group(name):
    for entry in PROJECT["dependency-groups"][name]:
        if isinstance(entry, dict):
            yield from group(entry["include-group"])
        else:
            yield entry


FILES = {
    "build.txt": [*group("build")],
    "dev.txt": [
        *PROJECT["project"]["dependencies"],
        *(word for extra in PROJECT["project"]["optional-dependencies"].values() for word in extra),
        *group("dev"),
    ],
}


def locked(name):
    """Return the requirements of a file, each with the number of its hashes."""
    text = (LOCKED / name).read_text()
    lines = re.sub(r"\\\n", "", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    assert lines
    return [
        (Requirement(line.partition(" --hash=")[0]), line.count(" --hash=sha256:"))
        for line in lines
    ]


@pytest.mark.parametrize("name", FILES)
def test_each_package_is_pinned_with_hashes(name):
    assert re.search(r"://|^-", (LOCKED / name).read_text(), re.MULTILINE) is None
    for requirement, hashes in locked(name):
        assert [part.operator for part in requirement.specifier] == ["=="]
        assert hashes


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in FILES for text in FILES[name]])
def test_the_lock_is_in_step_with_the_project(name, text):
    wanted = Requirement(text)
    versions = [
        part.version
        for requirement, _hashes in locked(name)
        if canonicalize_name(requirement.name) == canonicalize_name(wanted.name)
        for part in requirement.specifier
    ]
    assert any(wanted.specifier.contains(version) for version in versions), "run make lock"


def test_both_files_agree():
    build = {requirement.name: requirement.specifier for requirement, _ in locked("build.txt")}
    dev = {requirement.name: requirement.specifier for requirement, _ in locked("dev.txt")}
    assert {name: dev[name] for name in build.keys() & dev} == {
        name: build[name] for name in build.keys() & dev
    }
