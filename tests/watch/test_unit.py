"""The systemd unit: as systemd reads it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import unavailable

from vmm_msi.cli import main
from vmm_msi.types import Granule
from vmm_msi.watch import unit

ACPI = [Path("/sys/firmware/acpi/tables", name) for name in ("IORT", "APIC")]


def line_of(text, name):
    (found,) = (line for line in text.splitlines() if line.startswith(f"{name}="))
    return found.removeprefix(f"{name}=")


def verified(text, folder):
    """Return what systemd has to say of a unit."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        unavailable("no systemd-analyze to verify the unit with")
    path = folder / "vmm-msi-watch.service"
    path.write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    # Of the machine's other units it speaks too.
    return [line for line in done.stderr.splitlines() if "vmm-msi-watch" in line]


@pytest.mark.parametrize("tables", [[], ACPI, [Path("/sys/firmware/fdt")]], ids=len)
def test_systemd_takes_it(tmp_path, tables):
    text = unit.render([sys.executable, "-m", "vmm_msi", "watch", "-c", "a%b $c 'd\"e"], tables)
    assert verified(text, tmp_path) == []


def test_an_error_would_be_seen(tmp_path):
    text = unit.render(["/no/such/program"], []).replace("ProtectSystem=", "ProtectSytem=")
    assert len(verified(text, tmp_path)) == 2


@pytest.mark.parametrize(
    ("tables", "arguments"),
    [([], ""), (ACPI, " --host %d"), ([Path("/sys/firmware/fdt")], " --host %d/fdt")],
    ids=["named", "acpi", "device-tree"],
)
def test_what_root_alone_can_read_is_given_to_it(tables, arguments):
    text = unit.render(["/usr/bin/vmm-msi", "watch"], tables)
    assert line_of(text, "ExecStart") == f"/usr/bin/vmm-msi watch{arguments}"
    given = [line for line in text.splitlines() if line.startswith("LoadCredential=")]
    assert given == [f"LoadCredential={table.name}:{table}" for table in tables]
    assert "@" not in text.replace("@system-service", "").replace("@privileged @resources", "")


def test_words_are_quoted():
    words = ["/x", "a b", "100%", "$HOME", 'q"q', "back\\slash", ""]
    text = line_of(unit.render(words, []), "ExecStart")
    assert text == r'/x "a b" 100%% $$HOME "q\"q" "back\\slash" ""'


def test_the_command_prints_it_for_its_own_arguments(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "watch --print-unit -c qemu:///system -c test:///default --metrics :9177 --host h.toml"
    uri = "qemu+ssh://h/system"
    more = ["--host", uri, "--config", "c.toml", "--disable-plugin", "x"]
    assert main([*words.split(), *more]) == 0
    program, _, rest = line_of(capsys.readouterr().out, "ExecStart").partition(" watch ")
    assert program.endswith(("vmm-msi", "-m vmm_msi"))
    assert rest == (
        "-c qemu:///system -c test:///default --metrics :9177 --disable-plugin x "
        f"--config {tmp_path}/c.toml --host {tmp_path}/h.toml --host {uri}"
    )


def test_what_cannot_work_is_refused(capsys):
    assert main(["watch", "--print-unit", "-c", "qemu+ssh://host/system"]) == 2
    assert "name a description of it with --host" in capsys.readouterr().err
    assert main(["watch", "--print-unit", "--metrics", "9177"]) == 2
    assert main(["watch", "--once", "--metrics", ":9177"]) == 2
    assert capsys.readouterr().out == ""


def test_the_program_can_be_read_by_systemd(capsys):
    assert main(["watch", "--print-unit"]) == 0
    text = capsys.readouterr().out
    assert line_of(text, "Type") == "notify"
    granule = Granule(os.sysconf("SC_PAGE_SIZE"))
    assert f" --granule {granule} --host %d" in line_of(text, "ExecStart")
    assert Path(line_of(text, "ExecStart").split()[0]).is_file()
