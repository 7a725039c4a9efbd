"""Names and messages from outside, in every command: nothing that a terminal obeys is printed."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from lxml import etree

from vmm_msi import samples

#: Every kind of character that a terminal obeys; XML allows the second set alone.
NAME = "g\x1b]0;t\x07\x1b[2J\x9b31m\r\n\t\u202e\u2066\x7f0"
XML_NAME = "g\x9b31m\u202e\u2066\x7f0"
SHOWN = r"g\x1b]0;t\x07\x1b[2J\x9b31m\r\n\t\u202e\u2066\x7f0"
XML_SHOWN = r"g\x9b31m\u202e\u2066\x7f0"
#: A file name that is not UTF-8, as Python keeps it.
NOT_UTF8 = os.fsdecode(b"g\x9b0")

BOARD = samples.path("eight-its-server.dtb")
A = "0000:01:00.0"


@pytest.fixture
def run(vmm_msi):
    """Run a command line; check what it prints, and return both streams as one text."""

    def command(*words):
        _code, out, err = vmm_msi(*words)
        text = out + err
        assert all(line.isprintable() for line in text.split("\n")), text
        return text

    return command


def guest_xml(name):
    """Return the first guest of the test driver, under another name."""
    domain = etree.parse(samples.path("test-driver.xml")).find("domain")
    domain.remove(domain[0])  # its run state
    domain.set("type", "kvm")
    domain.find("name").text = name
    return etree.tostring(domain)


@pytest.fixture
def node(tmp_path):
    """A host of libvirt's test driver, with a guest of that name."""
    path = Path(shutil.copy(samples.path("test-driver.xml"), tmp_path / "node.xml"))
    path.write_text(path.read_text().replace("guest0", XML_NAME), encoding="utf-8")
    return f"test://{path}"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("words", [["status"], ["attach", "--host", BOARD, "--dry-run"]])
def test_a_domain(run, node, words, form):
    command, *options = words
    devices = [A] if command == "attach" else []
    text = run(command, XML_NAME, *devices, "-c", node, *options, "--format", form)
    if form == "text":
        assert XML_SHOWN in text
    else:
        assert json.loads(text)["domain"] == XML_NAME


def test_a_domain_that_libvirt_does_not_know(run, node):
    assert SHOWN in run("status", NAME, "-c", node)


def test_an_error_of_libvirt(run):
    assert SHOWN in run("status", "guest0", "-c", f"test:///{NAME}")


@pytest.mark.parametrize("option", ["--print-diff", "--dry-run", "--strategy=nope"])
def test_a_domain_on_standard_input(run, monkeypatch, option):
    data = guest_xml(XML_NAME)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    words = ["render", "--device", A, "--host", BOARD, option]
    if option != "--print-diff":
        run(*words)
        return
    parent, child = pty.openpty()
    with os.fdopen(parent, "rb", buffering=0) as screen, os.fdopen(child, "wb") as terminal:
        subprocess.run(
            [sys.executable, "-m", "vmm_msi", *map(str, words)],
            input=data,
            stdout=terminal,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        shown = screen.read(1 << 16).decode()
    assert f"--- {XML_SHOWN} (before)" in shown
    assert all(line.expandtabs().isprintable() for line in shown.split("\r\n"))


@pytest.mark.parametrize("option", ["--print-diff", "--dry-run"])
def test_xml_for_a_program_is_unchanged(vmm_msi, monkeypatch, option):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(guest_xml(XML_NAME))))
    code, out, _err = vmm_msi("render", "--device", A, "--host", BOARD, option)
    assert code == 0
    assert (XML_NAME in out) == (option == "--print-diff")


@pytest.mark.parametrize("name", [NAME.replace("\n", ""), NOT_UTF8], ids=ascii)
@pytest.mark.parametrize(
    "words",
    [
        ["compare", "--scenario"],
        ["compare", "--format", "json", "--scenario"],
        ["topology", "show"],
        ["topology", "show", "--format", "json"],
        ["doctor"],
        ["doctor", "--format", "json"],
        ["config", "check", "--config"],
        ["explain", "--host"],
        ["replay"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("content", ["", samples.path("two-its.toml").read_text()])
def test_a_file(run, tmp_path, words, name, content):
    path = tmp_path / f"{name}.toml"
    path.write_text(content)
    run(*words, path)
    path.unlink()
    run(*words, path)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_value_in_a_configuration(run, nowhere, form):
    escaped = json.dumps(NAME).replace(r"\u007f", "\\u007F")
    (nowhere / "vmm-msi.toml").write_text(f"[[domain]]\nname = {escaped}\n", encoding="utf-8")
    run("config", "check", "--format", form)
    for text in (f"strategy = {escaped}", f"{escaped} = 1", f"[strategies.{escaped}]\na = 1"):
        (nowhere / "vmm-msi.toml").write_text(f"{text}\n", encoding="utf-8")
        error = run("config", "check", "--format", form)
        if form == "json":
            error = json.loads(error)["message"]
        assert r"\x1b[2J\x9b31m" in error


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_name_in_a_scenario(run, tmp_path, form):
    text = samples.path("two-its.toml").read_text().replace('"s1a"', json.dumps(NAME))
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    text = run("compare", "--scenario", path, "--strategy", "host-cookie", "--format", form)
    assert "s1-fault" in text
    if form == "json":
        (result,) = json.loads(text)["results"]
        assert result["verdicts"][0]["trace"][1]["stage1"] == NAME


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_of_a_log(run, form):
    line = f"vfio {A}: error getting device from group 12: Device or resource busy{NAME}"
    text = run("explain", line, "--format", form)
    assert "resource busy" in text


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_plugin(run, monkeypatch, form):
    """Its name, its distribution's and what it raises."""
    broken = EntryPoint(NAME, f"no_such_module_{NAME}", "vmm_msi")
    monkeypatch.setattr("vmm_msi.plugins.manager.entry_points", lambda **_group: [broken])
    text = run("plugins", "list", "--format", form)
    if form == "text":
        assert SHOWN in text
    else:
        assert json.loads(text[text.index("{") :])["plugins"][0]["name"] == NAME


def test_a_warning(run, monkeypatch, capfd):
    """A record that no handler takes goes to standard error."""
    run("plugins", "list")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logging.getLogger("vmm_msi.plugins").warning("observer %s failed", NAME)
    assert capfd.readouterr().err == f"observer {SHOWN} failed\n"


def test_a_word_of_the_command_line(run):
    assert SHOWN in run("doctor", f"--{NAME}")
    assert SHOWN in run(NAME).replace(r"\\", "\\")
