"""Every command that writes a file writes it through vmm_msi.output, and so follows no link."""

from __future__ import annotations

import argparse
import ast
import os
from pathlib import Path

import pytest
from other_user import give_away

from vmm_msi import cli, output, samples

CLI = Path(cli.__file__).parent
#: Options that name a file or a folder to write, and the module that does.
WRITERS = {
    "compare": ("output", "compare"),
    "record": ("output", "record"),
    "topology capture": ("output", "topology_capture"),
    "lab capture": ("output", "lab_capture"),
    "scenario init": ("output", "scenario"),
    "scenario minimise": ("output", "scenario"),
    "lab conform": ("save", "lab_conform"),
    "lab guest": ("record", "lab_guest"),
    "plugins new": ("output", "../testing/new_distribution"),
}


def parsers(parser, name=""):
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from parsers(below, f"{name} {word}".strip())


def test_every_option_that_names_an_output_is_known():
    options = {
        (name, action.dest)
        for name, parser in parsers(cli.build_parser(tuple(cli.COMMANDS)))
        for action in parser._actions
        if action.dest in {"output", "save"} or (action.help or "").startswith("write ")
    }
    assert options == {(name, option) for name, (option, _module) in WRITERS.items()}


def test_no_command_writes_files_itself():
    writing = {"write_text", "write_bytes", "touch", "rename", "replace_file", "NamedTemporaryFile"}
    for path in CLI.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
                opens = node.func.attr == "open" and {"w", "wb", "a", "ab", "x", "xb"} & {*modes}
                assert node.func.attr not in writing, f"{path.name}:{node.lineno}"
                assert not opens, f"{path.name}:{node.lineno}"
    for _option, module in WRITERS.values():
        assert "from vmm_msi.output import" in (CLI / f"{module}.py").read_text(encoding="utf-8")


@pytest.fixture
def commands(tmp_path):
    """The commands that write a file without a lab or a guest."""
    root = tmp_path / "root"
    (root / "sys/bus/pci/devices/0000:01:00.0").mkdir(parents=True)
    (root / "sys/bus/pci/devices/0000:01:00.0/class").write_text("0x020000\n")
    scenario = samples.path("two-its.toml")
    return {
        "compare": ("compare", "--scenario", scenario, "--strategy", "identity"),
        "capture": ("topology", "capture", "--root", root),
    }


@pytest.mark.parametrize("name", ["compare", "capture"])
def test_links_of_another_user(vmm_msi, commands, shared, tmp_path, monkeypatch, name):
    """Also under names that a temporary file could have."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    links = [shared / name for name in ("out", ".out.partial", "out.partial", "out.tmp", ".out")]
    for link in links:
        link.symlink_to(victim)
        if os.geteuid() == 0:
            give_away(link, monkeypatch)
    words = commands[name]
    code, out, err = vmm_msi(*words, "-o", shared / "out")
    assert (code, out) == (output.OutputError.exit_code, "")
    assert err.endswith("it exists already; --force overwrites it\n")
    assert vmm_msi(*words, "-o", shared / "out", "--force")[0] == 0
    assert not (shared / "out").is_symlink()
    assert all(link.is_symlink() for link in links[1:])
    assert sorted(shared.iterdir()) == sorted(links)
    assert victim.read_text() == "kept"


@pytest.mark.parametrize("name", ["compare", "capture"])
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_pipe_of_another_user(vmm_msi, commands, shared, monkeypatch, name, force):
    """Without a reader; opening it would wait for one."""
    pipe = shared / "out"
    os.mkfifo(pipe, 0o666)
    give_away(pipe, monkeypatch)
    code, out, err = vmm_msi(*commands[name], "-o", pipe, *force)
    assert (code, out) == (output.OutputError.exit_code, "")
    assert "it is a pipe or device of user" in err
