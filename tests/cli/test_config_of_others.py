"""Configurations that another user may change: ignored, or refused the right to disable a veto."""

from __future__ import annotations

import json
import os
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from other_user import give_away, shared_folder

from vmm_msi import config
from vmm_msi.errors import RefusedError
from vmm_msi.plugins import manager as manager_module
from vmm_msi.plugins.hookspecs import Action, Event
from vmm_msi.plugins.manager import PluginManager

TEXT = 'strategy = "direct"\n'
HERE = Path("vmm-msi.toml")


@pytest.fixture
def shared(monkeypatch):
    with shared_folder(0o755) as folder:
        monkeypatch.chdir(folder)
        HERE.write_text(TEXT)
        HERE.chmod(0o644)
        yield folder


@pytest.fixture
def strategy(vmm_msi, caplog):
    """Return the strategy that a command uses, and the warnings."""

    def run(*words):
        caplog.clear()
        code, out, _err = vmm_msi("config", "check", "--format", "json", *words)
        assert code == 0
        return json.loads(out)["strategy"], caplog.messages

    return run


WEAK = {
    "a sticky folder": lambda folder: folder.chmod(0o1777),
    "a folder of every user": lambda folder: folder.chmod(0o777),
    "a folder of a group": lambda folder: folder.chmod(0o2775),
    "a file of every user": lambda _folder: HERE.chmod(0o666),
    "a file of a group": lambda _folder: HERE.chmod(0o664),
}


@pytest.mark.parametrize("kind", [*WEAK, "another user's file", "another user's folder", "a link"])
def test_a_file_that_another_user_may_change_is_ignored(shared, strategy, kind, monkeypatch):
    assert strategy() == ("direct", [])
    if os.geteuid():
        monkeypatch.setattr("vmm_msi.ownership._is_private_group", lambda *_: False)
    if kind in WEAK:
        WEAK[kind](shared)
    elif kind == "another user's folder":
        give_away(shared, monkeypatch)
    else:
        if kind == "a link":
            HERE.rename("other.toml")
            HERE.symlink_to("other.toml")
        give_away(HERE, monkeypatch)
    name, (warning,) = strategy()
    assert name == "identity"
    assert warning.startswith("configuration vmm-msi.toml is ignored: ")
    assert warning.endswith("; --config vmm-msi.toml uses it")
    assert strategy("--config", "vmm-msi.toml") == ("direct", [])
    monkeypatch.setenv("VMM_MSI_CONFIG", "vmm-msi.toml")
    assert strategy() == ("direct", [])


def test_the_next_file_is_used(shared, strategy, tmp_path):
    """Also in the other folders that are searched: sudo may keep the user's $HOME."""
    home = tmp_path / "home/.config/vmm-msi"
    home.mkdir(parents=True)
    (home / "vmm-msi.toml").write_text('strategy = "coerced"\n')
    shared.chmod(0o1777)
    name, warnings = strategy()
    assert (name, len(warnings)) == ("coerced", 1)
    home.chmod(0o777)
    name, warnings = strategy()
    assert (name, len(warnings)) == ("identity", 2)


@pytest.mark.parametrize("words", [("config", "check"), ("plugins", "list")])
def test_the_file_in_use_is_reported(shared, vmm_msi, words):
    assert vmm_msi(*words)[2] == "configuration: vmm-msi.toml\n"
    assert vmm_msi(*words, "--config", "vmm-msi.toml")[2] == ""
    assert vmm_msi(*words, "--format", "json")[2] == ""
    HERE.unlink()
    assert vmm_msi(*words)[2] == ""


OBSERVER = """
from vmm_msi.plugins import Observer

class Guard(Observer):
    "a guard for a test"
    name = "guard"

    def vmm_msi_veto(self, event):
        return "not on this host"
"""


@pytest.fixture
def guard(tmp_path, monkeypatch):
    """Install an observer that vetoes every action, and a strategy."""
    (tmp_path / "module_of_guard.py").write_text(OBSERVER)
    monkeypatch.syspath_prepend(tmp_path)
    installed = [
        EntryPoint("guard", "module_of_guard:Guard", "vmm_msi"),
        EntryPoint("direct", "vmm_msi_plugins.direct:Direct", "vmm_msi"),
        EntryPoint("identity", "vmm_msi_plugins.identity:Identity", "vmm_msi"),
        EntryPoint("broken", "no_such_module", "vmm_msi"),
    ]
    monkeypatch.setattr(manager_module, "entry_points", lambda *, group: installed)


def test_only_a_named_file_disables_an_observer(guard, shared, vmm_msi, caplog):
    HERE.write_text("plugins.disabled = ['guard', 'direct', 'broken']\n")

    def states(*words):
        caplog.clear()
        code, out, _err = vmm_msi("plugins", "list", "--format", "json", *words)
        assert code == 0
        return {entry["name"]: entry["state"] for entry in json.loads(out)["plugins"]}

    rest = {"direct": "disabled", "identity": "loaded", "broken": "disabled"}
    assert states() == {"guard": "loaded", **rest}
    (warning,) = caplog.messages
    assert warning == (
        "plugin 'guard' stays enabled: only --disable-plugin, or a configuration that is named "
        "with --config, disables an observer"
    )
    assert states("--config", "vmm-msi.toml") == {"guard": "disabled", **rest}
    assert states("--disable-plugin", "guard") == {"guard": "disabled", **rest}
    assert caplog.messages == []
    HERE.write_text("plugins.disabled = ['nothing']\n")
    code, out, err = vmm_msi("plugins", "list", "--format", "json")
    assert (code, out) == (2, "")
    assert "disabling plugin 'nothing': no such plugin" in err


def test_the_observer_that_stays_vetoes(guard, shared):
    HERE.write_text("plugins.disabled = ['guard']\n")
    settings = config.load_config()
    assert not settings.is_named
    plugins = PluginManager.load(disabled_unless_observer=settings.table.plugins.disabled)
    with pytest.raises(RefusedError, match="vetoed by guard: not on this host"):
        plugins.veto(Event(Action.ATTACH_DEVICE, "guest", "identity"))
