"""Installing, taking out and looking at the script, by the commands."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from vmm_msi.cli import main
from vmm_msi.errors import RefusedError
from vmm_msi.qemuhook import run_records, script


@pytest.fixture
def hook(tmp_path, tmp_path_factory, monkeypatch, capfd):
    """Run ``vmm-msi hook``; return exit code, standard output and error.

    What a hook of this machine saw is left out.
    """
    monkeypatch.setattr(run_records, "JOURNALS", tmp_path_factory.mktemp("journals"))

    def run(word, *words):
        code = main(["hook", word, "--hooks-dir", str(tmp_path), *words])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def place(tmp_path):
    return tmp_path / "qemu.d" / "50-vmm-msi"


def test_there_and_back(hook, place, tmp_path):
    code, out, err = hook("install")
    assert (code, err) == (0, "")
    assert out.startswith(
        f"{place}: installed\nnote: there was no hook for QEMU guests before: libvirt sees this "
        "one when it is told to reload or is restarted"
    )
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert place.stat().st_uid == os.geteuid()
    assert [path.name for path in place.parent.iterdir()] == ["50-vmm-msi"]
    before = place.stat()
    assert hook("install")[1].startswith(f"{place}: is installed and up to date\n")
    assert place.stat() == before
    assert "is installed, in mode check\n" in hook("status")[1]
    assert hook("install", "--mode", "record")[1].startswith(f"{place}: installed\n")
    assert f"in mode record\nvmm-msi 0.1.0, run by {sys.executable}\n" in hook("status")[1]
    assert hook("uninstall") == (0, f"{place}: removed\n", "")
    assert hook("uninstall") == (0, f"{place}: is not installed\n", "")
    assert f"{place}: is not installed\n" in hook("status")[1]
    assert list(place.parent.iterdir()) == []


def test_it_is_a_shell_script(hook, place):
    hook("install")
    subprocess.run(["/bin/sh", "-n", place], check=True)


def test_dry_run(hook, place, tmp_path):
    assert hook("install", "--dry-run")[1].startswith(f"{place}: would be installed\n")
    assert list(tmp_path.iterdir()) == []
    hook("install")
    assert hook("uninstall", "--dry-run") == (0, f"{place}: would be removed\n", "")
    assert place.exists()


def test_json(hook, place):
    said = json.loads(hook("install", "--format", "json")[1])
    assert said | {"notes": []} == {
        "schema": 1,
        "path": str(place),
        "mode": "check",
        "done": "installed",
        "changed": True,
        "notes": [],
    }
    shown = json.loads(hook("status", "--format", "json")[1])
    assert shown["installed"] == {
        "path": str(place),
        "version": "0.1.0",
        "mode": "check",
        "interpreter": sys.executable,
        "in_step": True,
        "works": True,
    }
    assert (shown["schema"], shown["notes"]) == (1, [])
    said = json.loads(hook("uninstall", "--format", "json")[1])
    assert (said["done"], said["changed"], said["mode"]) == ("removed", True, None)
    assert json.loads(hook("status", "--format", "json")[1])["installed"] is None


@pytest.mark.parametrize("where", ["qemu", "qemu.d/10-other"])
def test_beside_another_hook_nothing_needs_to_be_reloaded(hook, place, tmp_path, where):
    other = tmp_path / where
    other.parent.mkdir(exist_ok=True)
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert "reload" not in hook("install")[1]
    hook("uninstall")
    assert other.read_text() == "#!/bin/sh\n"


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "", "\n"])
def test_a_file_of_somebody_elses_stays(hook, place, text):
    place.parent.mkdir()
    place.write_text(text)
    code, out, err = hook("install")
    assert (code, out) == (5, "")
    assert err == (
        f"vmm-msi hook: installing {place}: the file that is there is not vmm-msi's; move it out "
        "of the way\n"
    )
    code, out, err = hook("uninstall")
    assert (code, out) == (5, "")
    assert err == f"vmm-msi hook: removing {place}: it is not vmm-msi's; remove it by hand\n"
    assert place.read_text() == text


def test_a_folder_that_cannot_be_used(hook, place):
    place.parent.write_text("")
    code, out, err = hook("install")
    assert (code, out, err) == (1, "", f"vmm-msi hook: reading {place}: Not a directory\n")


def test_what_is_out_of_step_is_said(hook, place):
    hook("install")
    text = place.read_text()
    place.write_text(text.replace("# version: 0.1.0", "# version: 0.0.9"))
    shown = json.loads(hook("status", "--format", "json")[1])
    assert (shown["installed"]["version"], shown["installed"]["in_step"]) == ("0.0.9", False)
    assert shown["notes"] == [
        "it is not what this vmm-msi would install; vmm-msi hook install renews it"
    ]
    place.write_text(text.replace(sys.executable, "/nowhere/python"))
    shown = json.loads(hook("status", "--format", "json")[1])
    assert (shown["installed"]["works"], shown["installed"]["in_step"]) == (False, False)
    assert "/nowhere/python cannot be run or finds no vmm-msi" in shown["notes"][0]
    place.write_text(text)
    place.chmod(0o644)
    assert json.loads(hook("status", "--format", "json")[1])["installed"]["in_step"] is False
    assert hook("install")[1].startswith(f"{place}: installed\n")


def test_what_it_saw_is_for_root_alone(hook, tmp_path, monkeypatch):
    folder = tmp_path / "file"
    folder.touch()
    monkeypatch.setattr(run_records, "JOURNALS", folder)
    code, out, err = hook("status")
    assert (code, err) == (0, "")
    assert out.endswith(f"note: what it saw is in {folder}: Not a directory; root can read it\n")


def test_what_libvirt_could_not_run_is_refused(tmp_path, monkeypatch):
    """libvirt hands on no PYTHONPATH, and -I looks at none."""
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(RefusedError, match="/bin/true -I, which libvirt would run, does not find"):
        script.install(tmp_path, "check")
    monkeypatch.setattr(sys, "executable", "python\n")
    with pytest.raises(RefusedError, match="valid is an absolute path"):
        script.install(tmp_path, "check")
    assert list(tmp_path.iterdir()) == []
