"""Install, remove and check the script, with the commands."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from vmm_msi.cli import main
from vmm_msi.errors import RefusedError
from vmm_msi.qemuhook import imported_code, run_records, script


@pytest.fixture
def hook(tmp_path, tmp_path_factory, monkeypatch, capfd):
    """Return a function that runs ``vmm-msi hook``; it returns exit code, output and errors.

    The run records of this machine do not count.
    """
    monkeypatch.setattr(run_records, "RUN_RECORDS", tmp_path_factory.mktemp("records"))
    monkeypatch.setattr(imported_code, "OWNERS", frozenset({0, os.geteuid()}))
    # test_imported_code tests it; here it would check 60,000 files of development packages.
    monkeypatch.setattr(imported_code, "_below", lambda _folders: None)

    def run(subcommand, *arguments):
        code = main(["hook", subcommand, "--hooks-dir", str(tmp_path), *arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "qemu.d" / "50-vmm-msi"


def test_install_and_uninstall(hook, path, tmp_path):
    code, out, err = hook("install")
    assert (code, err) == (0, "")
    assert out.startswith(
        f"{path}: installed\nnote: this is the first hook for QEMU guests: libvirt uses it after a "
        "reload or restart"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert path.stat().st_uid == os.geteuid()
    assert [file.name for file in path.parent.iterdir()] == ["50-vmm-msi"]
    before = path.stat()
    assert hook("install")[1].startswith(f"{path}: is installed and up to date\n")
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "is installed, in mode check\n" in hook("status")[1]
    assert hook("install", "--mode", "record")[1].startswith(f"{path}: installed\n")
    assert f"in mode record\nvmm-msi 0.1.0, run by {sys.executable}\n" in hook("status")[1]
    assert hook("uninstall") == (0, f"{path}: removed\n", "")
    assert hook("uninstall") == (0, f"{path}: is not installed\n", "")
    assert f"{path}: is not installed\n" in hook("status")[1]
    assert list(path.parent.iterdir()) == []


def test_the_script_is_valid_shell(hook, path):
    hook("install")
    subprocess.run(["/bin/sh", "-n", path], check=True)


def test_dry_run(hook, path, tmp_path):
    assert hook("install", "--dry-run")[1].startswith(f"{path}: would be installed\n")
    assert list(tmp_path.iterdir()) == []
    hook("install")
    assert hook("uninstall", "--dry-run") == (0, f"{path}: would be removed\n", "")
    assert path.exists()


def test_json(hook, path):
    document = json.loads(hook("install", "--format", "json")[1])
    assert document | {"notes": []} == {
        "schema": 1,
        "path": str(path),
        "mode": "check",
        "done": "installed",
        "changed": True,
        "notes": [],
    }
    status = json.loads(hook("status", "--format", "json")[1])
    assert status["installed"] == {
        "path": str(path),
        "version": "0.1.0",
        "mode": "check",
        "interpreter": sys.executable,
        "in_step": True,
        "works": True,
        "weakness": None,
    }
    assert (status["schema"], status["notes"]) == (1, [])
    document = json.loads(hook("uninstall", "--format", "json")[1])
    assert (document["done"], document["changed"], document["mode"]) == ("removed", True, None)
    assert json.loads(hook("status", "--format", "json")[1])["installed"] is None


@pytest.mark.parametrize("where", ["qemu", "qemu.d/10-other"])
def test_install_beside_another_hook(hook, path, tmp_path, where):
    other = tmp_path / where
    other.parent.mkdir(exist_ok=True)
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert "reload" not in hook("install")[1]
    hook("uninstall")
    assert other.read_text() == "#!/bin/sh\n"


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "", "\n"])
def test_a_file_of_another_program_stays(hook, path, text):
    path.parent.mkdir()
    path.write_text(text)
    code, out, err = hook("install")
    assert (code, out) == (5, "")
    assert err == (
        f"vmm-msi hook: installing {path}: another program's file is in its place; move it away\n"
    )
    code, out, err = hook("uninstall")
    assert (code, out) == (5, "")
    assert err == (
        f"vmm-msi hook: removing {path}: the file belongs to another program; remove it by hand\n"
    )
    assert path.read_text() == text


def test_a_folder_that_is_a_file(hook, path):
    path.parent.write_text("")
    code, out, err = hook("install")
    assert (code, out, err) == (1, "", f"vmm-msi hook: reading {path}: Not a directory\n")


def test_status_of_an_outdated_script(hook, path):
    hook("install")
    text = path.read_text()
    path.write_text(text.replace("# version: 0.1.0", "# version: 0.0.9"))
    status = json.loads(hook("status", "--format", "json")[1])
    assert (status["installed"]["version"], status["installed"]["in_step"]) == ("0.0.9", False)
    assert status["notes"] == [
        (
            "the script differs from the one that this vmm-msi would install; update it with "
            "vmm-msi hook install"
        )
    ]
    path.write_text(text.replace(sys.executable, "/nowhere/python"))
    status = json.loads(hook("status", "--format", "json")[1])
    assert (status["installed"]["works"], status["installed"]["in_step"]) == (False, False)
    assert "/nowhere/python does not run or cannot import vmm-msi" in status["notes"][0]
    path.write_text(text)
    path.chmod(0o644)
    assert json.loads(hook("status", "--format", "json")[1])["installed"]["in_step"] is False
    assert hook("install")[1].startswith(f"{path}: installed\n")


def test_unreadable_run_records(hook, tmp_path, monkeypatch):
    folder = tmp_path / "file"
    folder.touch()
    monkeypatch.setattr(run_records, "RUN_RECORDS", folder)
    code, out, err = hook("status")
    assert (code, err) == (0, "")
    assert out.endswith(
        f"note: reading the calls in {folder}: Not a directory; root can read them\n"
    )


def test_an_interpreter_without_vmm_msi_is_refused(tmp_path, monkeypatch):
    """libvirt does not pass on PYTHONPATH, and -I ignores it."""
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(RefusedError, match="/bin/true -I, which libvirt would run, cannot import"):
        script.install(tmp_path, "check")
    monkeypatch.setattr(sys, "executable", "python\n")
    with pytest.raises(RefusedError, match="valid is an absolute path"):
        script.install(tmp_path, "check")
    assert list(tmp_path.iterdir()) == []


def test_status_runs_only_its_own_interpreter(hook, path, tmp_path):
    """A folder of another user may name any program as the interpreter, and be any file."""
    hook("install")
    text = path.read_text()
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    path.write_text(text.replace(sys.executable, str(program)))
    status = json.loads(hook("status", "--format", "json")[1])
    assert (status["installed"]["interpreter"], status["installed"]["works"]) == (
        f"{program}",
        None,
    )
    assert f"the hook runs {program}, which this command does not run" in status["notes"][0]
    assert hook("install", "--dry-run")[1].startswith(f"{path}: would be installed\n")
    assert hook("uninstall", "--dry-run")[1] == f"{path}: would be removed\n"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("subcommand", [("status",), ("install", "--dry-run"), ("uninstall",)])
def test_a_pipe_in_place_of_the_script(hook, path, subcommand):
    path.parent.mkdir()
    os.mkfifo(path)
    reason = f"vmm-msi hook: reading {path}: not a regular file; move it away\n"
    assert hook(*subcommand) == (1, "", reason)


def test_install_is_refused_if_others_may_change_the_code(hook, path, tmp_path):
    tmp_path.chmod(0o777)
    reason = f"libvirt runs it as root, and {tmp_path} is writable by every user"
    for words in ((), ("--dry-run",)):
        code, out, err = hook("install", *words)
        assert (code, out) == (5, "")
        assert err.startswith(f"vmm-msi hook: installing {path}: {reason}; install vmm-msi where")
        assert err.endswith("or use --force\n")
    assert list(tmp_path.iterdir()) == []
    note = f"note: libvirt runs the hook as root, and {tmp_path} is writable by every user"
    assert hook("install", "--force")[1].endswith(f"{note}\n")
    assert note in hook("status")[1]
    status = json.loads(hook("status", "--format", "json")[1])
    assert status["installed"]["weakness"] == f"{tmp_path} is writable by every user"
