"""``vmm-msi record`` and ``vmm-msi replay``: arguments, output and exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vmm_msi.samples import path as sample

RECORDINGS = Path(__file__).parent.parent / "recording"


def test_a_recording_that_agrees(vmm_msi):
    code, out, error = vmm_msi("replay", RECORDINGS / "two-nvmes.json")
    assert (code, error) == (0, "")
    assert out.splitlines()[-1] == "the simulator agrees"


def test_a_recording_that_does_not_agree(vmm_msi, tmp_path):
    document = json.loads((RECORDINGS / "no-rmr.json").read_bytes())
    document["guest"]["honours_rmr"] = True
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document))
    code, out, _error = vmm_msi("replay", path)
    assert code == 1
    assert out.splitlines()[-2:] == [
        (
            "0000:11:00.0: F_TRANSLATION (stage 1) StreamID 0x1100, IOVA 0x8000040 was logged; in "
            "the simulator its MSIs are delivered"
        ),
        "the simulator does not agree",
    ]


def test_json(vmm_msi):
    code, out, _error = vmm_msi("replay", RECORDINGS / "no-rmr.json", "--format", "json")
    document = json.loads(out)
    assert (code, document["schema"], document["agrees"]) == (0, 1, True)


def test_another_strategy(vmm_msi):
    path = RECORDINGS / "two-nvmes.json"
    code, out, _error = vmm_msi("replay", path, "--strategy", "host-cookie")
    assert code == 1
    assert "s1-fault" in out


def test_escape_sequences_are_shown(vmm_msi, tmp_path):
    document = json.loads((RECORDINGS / "two-nvmes.json").read_bytes())
    document["releases"]["linux"] = "7.2\x1b[2J"
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document))
    _code, out, _error = vmm_msi("replay", path)
    assert out.splitlines()[0].startswith("recorded on Linux 7.2\\x1b[2J, libvirt 12.8.0")


def test_a_file_without_a_recording(vmm_msi, tmp_path):
    path = tmp_path / "run.json"
    path.write_text("{}")
    assert vmm_msi("replay", path) == (
        3,
        "",
        f"vmm-msi replay: reading recording {path}: schema is None; this vmm-msi reads 1\n",
    )


def test_recording_requires_root(vmm_msi, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, out, error = vmm_msi("record", "guest0", "-o", "run.json")
    assert (code, out) == (2, "")
    assert error.startswith("vmm-msi record: recording requires root, ")


def test_a_missing_guest_log(vmm_msi, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    code, _out, error = vmm_msi("record", "guest0", "-o", "run.json", "--guest-log", "dmesg")
    assert (code, error) == (
        3,
        "vmm-msi record: reading the guest's log dmesg: No such file or directory\n",
    )


def test_an_existing_file_is_kept(vmm_msi, nowhere):
    (nowhere / "run.json").write_text("mine")
    code, _out, error = vmm_msi("record", "guest0", "-o", "run.json")
    assert (code, error) == (
        1,
        "vmm-msi record: writing run.json: it exists already; --force overwrites it\n",
    )


def test_another_machine(vmm_msi):
    code, _out, error = vmm_msi("record", "guest0", "-o", "run.json", "-c", "qemu+ssh://far/system")
    assert code == 2
    assert "another machine" in error


def test_a_guest_without_a_nested_smmu(vmm_msi, monkeypatch, nowhere):
    """libvirt's test driver has a running guest."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    where = ("-c", "test:///default", "--host", sample("eight-its-server.dtb"))
    code, _out, error = vmm_msi("record", "test", "-o", "run.json", *where)
    assert (code, error) == (
        2,
        (
            "vmm-msi record: recording test: the guest has no device behind an accelerated "
            "vSMMU; assign one with vmm-msi attach\n"
        ),
    )
    assert not (nowhere / "run.json").exists()


def test_a_guest_that_is_off(vmm_msi, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    driver = f"test://{sample('test-driver.xml')}"
    code, _out, error = vmm_msi("record", "guest0", "-o", "run.json", "-c", driver)
    assert (code, error) == (
        2,
        (
            "vmm-msi record: recording guest0: the guest does not run; start it and let its "
            "devices work first\n"
        ),
    )


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.json")), ids=lambda path: path.stem)
def test_recordings_do_not_name_the_host(path):
    text = path.read_text()
    assert "lab-guest" not in text
