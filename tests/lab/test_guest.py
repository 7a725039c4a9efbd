"""A real guest in the emulated host: real drivers, a nested SMMU, interrupts that are counted.

One shape is always run; the others (``guest_shapes.py``) when asked: ``make lab-guest``.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from vmm_msi.cli import main

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(900)]

WINDOW = {"base": "0x8000000", "size": "0x100000"}


class Shape(NamedTuple):
    words: list[str]
    devices: int
    phases: list[str]


ONE = Shape(["--count", "2000"], 1, ["start"])


def run_guest(capsys, *words):
    status = main(["lab", "guest", "--format", "json", *words])
    told = capsys.readouterr()
    assert told.out, told.err
    return status, json.loads(told.out)


def check_guest(found, shape):
    """Every interrupt arrived, the doctor saw nothing against it, nobody logged a fault."""
    assert found["complete"] is True
    assert found["rmrs"]
    assert all(rmr == WINDOW for rmr in found["rmrs"])
    assert [phase["after"].split()[0] for phase in found["phases"]] == shape.phases
    assert len(found["phases"][0]["devices"]) == shape.devices
    for phase in found["phases"]:
        for device in phase["devices"]:
            landed = sum(device["landed"].values())
            assert 0 < device["arrived"] <= landed
            if device["each"]:
                assert device["done"] == device["arrived"] == landed
    assert (found["host_faults"], found["guest_faults"], found["explained"]) == ([], [], [])
    assert {finding["severity"] for finding in found["predicted"]} == {"note"}
    for group in found["groups"]:
        assert "0x0000000008000000 0x00000000080fffff direct" in group["reserved"]


def test_one_device(lab_images, capsys, tmp_path):
    recording = str(tmp_path / "run.json")
    status, found = run_guest(capsys, *ONE.words, "--record", recording)
    assert status == 0
    check_guest(found, ONE)
    (device,) = found["phases"][0]["devices"]
    assert (device["driver"], device["done"]) == ("nvme", 2000)
    assert [vector["name"] for vector in device["vectors"]] == ["nvme0q0", "nvme0q1"]
    assert device["landed"] == {"1": 2000}
    # The model says the same of it, from what was recorded on the host.
    assert main(["replay", "--format", "json", recording]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "0x8000040" in json.dumps(told)
