"""The systemd unit, as systemd reads it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import unavailable

from vmm_msi.cli import main
from vmm_msi.qemuhook import imported_code
from vmm_msi.types import Granule
from vmm_msi.watch import unit

ACPI = [Path("/sys/firmware/acpi/tables", name) for name in ("IORT", "APIC")]


def line_of(text, name):
    (setting,) = (line for line in text.splitlines() if line.startswith(f"{name}="))
    return setting.removeprefix(f"{name}=")


def verified(text, folder):
    """Return the complaints of systemd about a unit."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        unavailable("no systemd-analyze to verify the unit with")
    path = folder / "vmm-msi-watch.service"
    path.write_text(text)
    result = subprocess.run(
        [analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    # It complains about the machine's other units, too.
    return [line for line in result.stderr.splitlines() if "vmm-msi-watch" in line]


@pytest.mark.parametrize("tables", [[], ACPI, [Path("/sys/firmware/fdt")]], ids=len)
def test_systemd_accepts_the_unit(tmp_path, tables):
    text = unit.render([sys.executable, "-m", "vmm_msi", "watch", "-c", "a%b $c 'd\"e"], tables)
    assert verified(text, tmp_path) == []


def test_systemd_reports_an_error(tmp_path):
    text = unit.render(["/no/such/program"], []).replace("ProtectSystem=", "ProtectSytem=")
    assert len(verified(text, tmp_path)) == 2


@pytest.mark.parametrize(
    ("tables", "arguments"),
    [([], ""), (ACPI, " --host %d"), ([Path("/sys/firmware/fdt")], " --host %d/fdt")],
    ids=["named", "acpi", "device-tree"],
)
def test_systemd_passes_files_that_only_root_can_read(tables, arguments):
    text = unit.render(["/usr/bin/vmm-msi", "watch"], tables)
    assert line_of(text, "ExecStart") == f"/usr/bin/vmm-msi watch{arguments}"
    credentials = [line for line in text.splitlines() if line.startswith("LoadCredential=")]
    assert credentials == [f"LoadCredential={table.name}:{table}" for table in tables]
    assert "@" not in text.replace("@system-service", "").replace("@privileged @resources", "")


def test_arguments_are_quoted():
    arguments = ["/x", "a b", "100%", "$HOME", 'q"q', "back\\slash", ""]
    text = line_of(unit.render(arguments, []), "ExecStart")
    assert text == r'/x "a b" 100%% $$HOME "q\"q" "back\\slash" ""'


HOSTILE = [
    "a\nExecStartPre=/bin/x",
    "\r",
    "\x1b[2J",
    "\t",
    "\x7f",
    "\u202e",
    "\u2028",
    "\udcff",
    "é",
]


def test_arguments_are_printable(tmp_path):
    """Also those with line breaks, which would be lines of the unit, and with terminal escapes."""
    text = unit.render([sys.executable, *HOSTILE], [])
    assert all(line.isprintable() for line in text.splitlines())
    assert len(text.splitlines()) == len(unit.render(["/x"], []).splitlines())
    words = line_of(text, "ExecStart").split(" ")[1:]
    escapes = re.compile(rb"\\x([0-9a-f]{2})")
    arguments = [
        escapes.sub(lambda match: bytes.fromhex(match[1].decode()), word.strip('"').encode())
        for word in words
    ]
    assert arguments == [os.fsencode(argument) for argument in HOSTILE]
    assert verified(text, tmp_path) == []


@pytest.mark.parametrize("mark", ["@HOST@", "@COMMAND@"])
def test_marks_of_the_template_in_arguments(mark):
    text = unit.render(["/x", mark], [])
    assert line_of(text, "ExecStart") == f"/x {mark}"
    assert text.replace(f"/x {mark}", "/x") == unit.render(["/x"], [])


def test_code_that_another_user_may_change_is_noted(capsys, tmp_path, monkeypatch):
    """The user of the service may change guests, which is almost what root may."""
    monkeypatch.setattr(imported_code, "OWNERS", frozenset({0, os.geteuid()}))
    words = ["watch", "--print-unit", "-c", "test:///default"]
    assert main(words) == 0
    assert capsys.readouterr().err == ""
    (tmp_path / "vmm-msi").touch(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    tmp_path.chmod(0o777)
    assert main(words) == 0
    assert capsys.readouterr().err == (
        f"note: the service may change guests, and {tmp_path} is writable by every user; install "
        "vmm-msi where only root may write\n"
    )


def test_the_unit_has_the_arguments_of_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = (
        "watch --print-unit -c qemu:///system -c test:///default --metrics :9177 --host h.toml"
    )
    uri = "qemu+ssh://h/system"
    more = ["--host", uri, "--config", "c.toml", "--disable-plugin", "x"]
    assert main([*command.split(), *more]) == 0
    program, _, rest = line_of(capsys.readouterr().out, "ExecStart").partition(" watch ")
    assert program.endswith(("vmm-msi", "-m vmm_msi"))
    assert rest == (
        "-c qemu:///system -c test:///default --metrics :9177 --disable-plugin x "
        f"--config {tmp_path}/c.toml --host {tmp_path}/h.toml --host {uri}"
    )


def test_invalid_arguments_are_refused(capsys):
    assert main(["watch", "--print-unit", "-c", "qemu+ssh://host/system"]) == 2
    assert "describe it with --host" in capsys.readouterr().err
    assert main(["watch", "--print-unit", "--metrics", "9177"]) == 2
    assert main(["watch", "--once", "--metrics", ":9177"]) == 2
    assert capsys.readouterr().out == ""


def test_the_unit_names_an_existing_program(capsys):
    assert main(["watch", "--print-unit"]) == 0
    text = capsys.readouterr().out
    assert line_of(text, "Type") == "notify"
    granule = Granule(os.sysconf("SC_PAGE_SIZE"))
    assert f" --granule {granule} --host %d" in line_of(text, "ExecStart")
    assert Path(line_of(text, "ExecStart").split()[0]).is_file()


def test_systemd_passes_the_kernels_file(monkeypatch, capsys, tmp_path):
    """It opens the file, which only root can; before release 253 it ignores the setting."""
    path = tmp_path / "msi_bindings"
    words = ["watch", "--print-unit", "-c", "test:///default"]
    monkeypatch.setattr("vmm_msi.host.msi_bindings.PATH", path)
    assert main(words) == 0
    assert "OpenFile=" not in capsys.readouterr().out
    path.touch()
    assert main(words) == 0
    setting = line_of(capsys.readouterr().out, "OpenFile")
    assert setting == "/sys/kernel/debug/iommufd/msi_bindings:msi-bindings:graceful"
