"""Every shape of a real guest in the emulated host; ``make lab-guest`` runs it, ten minutes.

Each is a start of the emulated host and of a guest in it, so that changes are held against one of
them only (``test_guest.py``).
"""

from __future__ import annotations

import pytest
from lab.test_guest import Shape, check_guest, run_guest

from vmm_msi.cli import main

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(900)]

SHAPES = {
    "two vSMMUs on two pSMMUs": Shape(["--devices", "nvme,nvme", "--vsmmus", "2"], 2, ["start"]),
    "two behind one": Shape(["--devices", "nvme,e1000e"], 2, ["start"]),
    "a virtual function": Shape(["--devices", "igb-vf"], 1, ["start"]),
    "unplug": Shape(["--devices", "nvme,nvme", "--then", "unplug"], 2, ["start", "unplug"]),
    "reboot": Shape(["--then", "reboot"], 1, ["start", "reboot"]),
    "multi-its": Shape(["--strategy", "multi-its:mode=vsmmu"], 1, ["start"]),
    "storm": Shape(["--count", "100000"], 1, ["start"]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name, lab_images, capsys):
    status, found = run_guest(capsys, *SHAPES[name].words)
    assert status == 0
    check_guest(found, SHAPES[name])


def test_a_guest_without_rmr(lab_images, capsys, tmp_path):
    """No interrupt, a fault in the guest's log, which was foretold and is explained."""
    recording = str(tmp_path / "run.json")
    status, found = run_guest(capsys, "--no-rmr", "--record", recording)
    assert (status, found["complete"], found["rmrs"]) == (1, False, [])
    (device,) = found["phases"][0]["devices"]
    assert (device["arrived"], device["landed"]) == (0, {})
    fault = "F_TRANSLATION client: 0000:11:00.0 sid: 0x1100 ssid: 0x0 iova: 0x8000040"
    assert any(fault in line for line in found["guest_faults"])
    (foretold,) = (each for each in found["predicted"] if each["id"] == "rmr-needed")
    assert "F_TRANSLATION (stage 1)" in foretold["evidence"][0]["what"]
    assert "IOVA 0x8000040" in foretold["evidence"][0]["what"]
    explained = " ".join(" ".join(found["explained"]).split())
    assert "the guest was not told of it by an RMR, or does not heed it" in explained
    assert "S1: 0x8000000 -> 0x8000000" in explained
    assert main(["replay", recording]) == 0
    assert "s1-fault" in capsys.readouterr().out
