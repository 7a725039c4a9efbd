"""``vmm-msi plugins new``: the files of a new distribution, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vmm_msi.cli import main
from vmm_msi.errors import UsageError
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.testing import conformance, new_distribution
from vmm_msi.testing.scenarios import sample_scenarios
from vmm_msi.testing.subject import Subject

ROOT = Path(__file__).parents[2]
FILES = {
    "pyproject.toml",
    "README.md",
    "src/vmm_msi_two_pools/__init__.py",
    "src/vmm_msi_two_pools/py.typed",
    "tests/test_vmm_msi_two_pools.py",
}


@pytest.fixture
def new(tmp_path, monkeypatch, capsys):
    """Return a function that runs the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["plugins", "new", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def written(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_files(new, tmp_path):
    code, out, _err = new("two-pools")
    assert code == 0
    assert written(tmp_path / "vmm-msi-two-pools") == FILES
    assert [line for line in out.splitlines() if line.startswith("wrote ")] == [
        f"wrote vmm-msi-two-pools/{path}" for path in new_distribution.files_of("two-pools")
    ]
    for text in new_distribution.files_of("two-pools").values():
        assert "$" not in text
        assert all(len(line) <= 110 for line in text.splitlines())


def test_the_project_names_the_plugin(new, tmp_path):
    new("two-pools", "-o", "here/there")
    project = tomllib.loads((tmp_path / "here/there/pyproject.toml").read_text())
    assert project["project"]["name"] == "vmm-msi-two-pools"
    assert project["project"]["entry-points"]["vmm_msi"] == {
        "two-pools": "vmm_msi_two_pools:TwoPoolsStrategy"
    }


def test_a_dry_run_writes_nothing(new, tmp_path):
    code, out, _err = new("two-pools", "--dry-run")
    assert code == 0
    assert len(out.splitlines()) == len(FILES)
    assert out.startswith("would write vmm-msi-two-pools/pyproject.toml\n")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(new, tmp_path):
    folder = tmp_path / "vmm-msi-two-pools"
    folder.mkdir()
    code, out, err = new("two-pools")
    assert (code, out, list(folder.iterdir())) == (1, "", [])
    assert err == (
        "vmm-msi plugins: writing vmm-msi-two-pools: it exists already; name another with -o, or "
        "use --force to write into it\n"
    )


def test_force_writes_over_its_own_files_only(new, tmp_path):
    new("two-pools")
    folder = tmp_path / "vmm-msi-two-pools"
    (folder / "README.md").write_text("mine")
    (folder / "notes").write_text("mine")
    code, _out, _err = new("two-pools", "--force")
    assert code == 0
    assert written(folder) == {*FILES, "notes"}
    assert (folder / "README.md").read_text().startswith("# vmm-msi-two-pools\n")
    assert (folder / "notes").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/below", "no\0name"])
def test_a_folder_that_cannot_be_written(place, new, tmp_path):
    (tmp_path / "file").write_text("")
    for force in ([], ["--force"]):
        code, _out, err = new("two-pools", "-o", place, *force)
        assert code == 1
        assert err.startswith("vmm-msi plugins: writing ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Two Pools_3", ", such as 'two-pools-3'"),
        ("3pools", ", such as 'pools'"),
        ("two--pools", ", such as 'two-pools'"),
        ("-", ""),
        ("é", ""),
        ("x" * 41, f", such as '{'x' * 40}'"),
        ("../x", ", such as 'x'"),
        ("a\nb", ", such as 'a-b'"),
        ("", ""),
    ],
)
def test_a_name_that_is_none(name, hint):
    with pytest.raises(UsageError) as refusal:
        new_distribution.check_name(name, ())
    assert str(refusal.value).endswith(f"up to 40 characters{hint}")


def test_a_name_that_is_taken(new, tmp_path):
    code, _out, err = new("direct")
    assert code == 2
    assert "new plugin 'direct': a plugin of this name is installed; use another" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x", "class", "strategy", "vmm-msi-x", "options", "needs-2"])
def test_any_name_gives_a_plugin_that_keeps_the_contract(name):
    files = new_distribution.files_of(name)
    (module,) = [path for path in files if path.endswith("__init__.py")]
    names = {"__name__": "new_plugin"}
    exec(compile(files[module], module, "exec"), names)  # noqa: S102 - the project's own template
    (strategy,) = [value for key, value in names.items() if key.endswith("Strategy") and key[:-8]]
    plugins = PluginManager.load()
    assert plugins.register(strategy).name == name
    (choice,) = [choice for choice in plugins.choices() if choice.strategy == name]
    for scenario in sample_scenarios().values():
        subject = Subject(plugins, choice, scenario)
        for check in (*conformance.SCENARIO_CHECKS, *conformance.STRATEGY_CHECKS):
            assert conformance.problems(check, subject) == []


def test_the_code_passes_mypy_strict_and_ruff(new, tmp_path):
    new("two-pools", "-o", "made")
    cache = ["--cache-dir", str(tmp_path / "cache")]
    for command in (
        # Without the messages about vmm-msi itself, which make lint checks.
        ["mypy", "--strict", *cache, "--follow-imports", "silent", "src", "tests"],
        ["ruff", "check", "--isolated", "."],
        ["ruff", "format", "--isolated", "--line-length", "100", "--check", "."],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path / "made",
            env={**os.environ, "MYPYPATH": f"src:{ROOT}"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
