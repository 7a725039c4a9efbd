"""``vmm-msi plugins check``: what it reports, where, and with which exit code."""

from __future__ import annotations

import json
import sys

import json_schemas
import pytest

from vmm_msi.cli import main

HEAD = """\
from vmm_msi.plugins import Capability, ItsSelector, Needs, Observer, Strategy, hookimpl


class Mine(Strategy):
    name = "mine"
    summary = "the defaults"

    def needs(self, options):
        return Needs(Capability.SW_MSI, frozenset({Capability.SW_MSI}))
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Return a function that checks a module of the current folder, as JSON and as text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(text, target=None):
        name = f"checked_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(text)
        target = name if target is None else f"{name}:{target}"
        try:
            code = main(["plugins", "check", target, "--format", "json"])
            document = json.loads(capsys.readouterr().out)
            json_schemas.check("plugins-check", document)
            assert main(["plugins", "check", target]) == code
            lines = capsys.readouterr().out.splitlines()
        finally:
            sys.modules.pop(name, None)
        problems = [problem for plugin in document["plugins"] for problem in plugin["problems"]]
        assert len(lines) == len(problems) + len(document["plugins"])
        assert code == (4 if problems else 0)
        for problem in problems:
            assert all("\n" not in text for text in (problem["what"], problem["place"]))
        return document["plugins"], [line.replace(name, "MODULE") for line in lines]

    return run


def test_a_sound_strategy(check):
    (plugin,), (line,) = check(HEAD)
    assert (plugin["name"], plugin["kind"], plugin["problems"]) == ("mine", "strategy", [])
    assert plugin["checks"] > 200
    assert line == f"mine (strategy, MODULE:Mine): {plugin['checks']} checks, no problem"


@pytest.mark.parametrize("name", ["direct", "multi-its", "first-in-group", "window"])
def test_an_installed_plugin(name, capsys):
    assert main(["plugins", "check", name]) == 0
    assert capsys.readouterr().out.endswith(" checks, no problem\n")


SELECTOR = """\
class Wrong(ItsSelector):
    name = "wrong"

    def vmm_msi_select_its(self, device, host):
        return {answer}
"""
PROBLEMS = {
    "import": (
        HEAD + "import nothing_of_this_name\n",
        "MODULE.py:10: cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_",
    ),
    "syntax": (HEAD + "def\n", "MODULE.py:10: cannot be imported: SyntaxError: invalid syntax"),
    "no plugin": (
        "x = 1\n",
        "MODULE.py:1: no hook vmm_msi_describe; derive a class from Strategy of vmm_msi.plugins",
    ),
    "unknown hook": (
        HEAD + "\n    def vmm_msi_atach_device(self, session, device): ...\n",
        "MODULE.py:11: unknown hook vmm_msi_atach_device; did you mean vmm_msi_attach_device?",
    ),
    "parameter": (
        HEAD + "\n    def vmm_msi_attach_device(self, session, dev): ...\n",
        "MODULE.py:11: vmm_msi_attach_device(session, dev): unknown parameter 'dev'; ",
    ),
    "returned type": (
        HEAD
        + "\n    def vmm_msi_bind_doorbell(self, session, device) -> bool:\n        return 1\n",
        "MODULE.py:11: vmm_msi_bind_doorbell is annotated to return bool; valid: None [types]",
    ),
    "type of a parameter": (
        HEAD + "\n    def vmm_msi_bind_doorbell(self, session, device: str) -> None: ...\n",
        "MODULE.py:11: vmm_msi_bind_doorbell: device is annotated as str; valid: PciAddress",
    ),
    "taken name": (
        HEAD.replace('"mine"', '"direct"'),
        "MODULE.py:4: the name 'direct' is taken by vmm_msi_plugins.direct:Direct; use ",
    ),
    "invalid name": (
        HEAD.replace('"mine"', '"my strategy"'),
        "MODULE.py:4: invalid name 'my strategy'; valid: letters, digits,",
    ),
    "needs that fail": (
        HEAD + "        \n    def needs(self, options):\n        return options.nothing\n",
        "MODULE.py:12: needs(Options()) failed with AttributeError: 'Options' object has no",
    ),
    "a leak": (
        HEAD + "\n    def vmm_msi_attach_domain(self, session):\n"
        "        session.backend.alloc_s2(0)\n",
        "stage 2 table left after all devices were detached; ",
    ),
    "a hook that fails": (
        HEAD + "\n    def vmm_msi_bind_doorbell(self, session, device):\n        {}[device]\n",
        "MODULE.py:12: strategy mine: bind-doorbell of 0000:01:00.0 failed with KeyError: ",
    ),
    "an ITS of another group": (
        HEAD.partition("class")[0] + SELECTOR.format(answer="7"),
        "MODULE.py:7: 0000:01:00.0: ITS selector wrong names ITS 7, which is not in the device's ",
    ),
    "a selector that fails": (
        HEAD.partition("class")[0] + SELECTOR.format(answer="device.nothing"),
        "MODULE.py:8: ITS selector wrong: selecting the ITS of 0000:01:00.0 failed with ",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_is_a_line_with_its_place(problem, check):
    text, expected = PROBLEMS[problem]
    _plugins, lines = check(text)
    assert expected in lines[0]
    # A leak shows in several checks.
    assert len(lines) == 2 or problem == "a leak", lines
    assert lines[-1].endswith(" problems" if problem == "a leak" else ", 1 problem")


def test_each_plugin_of_a_module_is_checked(check):
    plugins, lines = check(HEAD + HEAD.replace("Mine", "Other").replace('"mine"', '"other"'))
    assert [plugin["name"] for plugin in plugins] == ["mine", "other"]
    assert len(lines) == 2


def test_one_class_of_a_module(check):
    text = HEAD + HEAD.replace("Mine", "Other").replace('"mine"', '"other"')
    (plugin,), _lines = check(text, "Other")
    assert plugin["name"] == "other"


def test_a_missing_class(check):
    _plugins, lines = check(HEAD, "Nothing")
    assert "cannot be imported: AttributeError: module 'MODULE' has no attribute " in lines[0]


@pytest.mark.parametrize("target", ["drect", "no such/thing", "vmm_msi.nothing", "x:", ""])
def test_a_name_of_neither_plugin_nor_module(target, capsys):
    assert main(["plugins", "check", target]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"vmm-msi plugins: checking plugin {target!r}: no installed ")
    assert "installed: coerced, " in captured.err
    assert captured.err.count("\n") == 1
