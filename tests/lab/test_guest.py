"""A real guest in the emulated host: real drivers, a nested SMMU, counted interrupts.

``make lab-guest`` runs the other shapes (``guest_shapes.py``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import json_schemas
import pytest

from vmm_msi.cli import main

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(900)]

#: QEMU's RMR: flags 0 (``hw/arm/virt-acpi-build.c`` build_iort_rmr_nodes).
WINDOW = {"base": "0x8000000", "size": "0x100000", "remap_permitted": False}


#: The ITS's doorbell in page 0 of the window.
DOORBELL = "0x8000040"
#: The same page at the address that Linux in the guest gives it.
GIOVA = "0xfffff040"
#: An address that stage 1 of the guest does not map.
LOW = "0x100040"


class Shape(NamedTuple):
    options: list[str]
    devices: int
    phases: list[str]


ONE = Shape(["--count", "2000"], 1, ["start"])


def run_guest(capsys, *options):
    status = main(["lab", "guest", "--format", "json", *options])
    captured = capsys.readouterr()
    assert captured.out, captured.err
    document = json.loads(captured.out)
    json_schemas.check("lab-guest", document)
    return status, document


def check_status(device):
    """Check that ``vmm-msi status`` measured the interrupts that reached the ITS, and no fault."""
    assert [check["agrees"] for check in device["checks"]] == [True, True]
    before, after = (check["reported"] for check in device["checks"])
    assert after["programmed_iovas"] == [DOORBELL]
    assert (before["faults"], after["faults"]) == (0, 0)
    if device["each"]:
        landed = sum(device["landed"].values())
        assert before["programmed_iovas"] == [DOORBELL]
        assert after["interrupts"] - before["interrupts"] == landed
    else:
        # The driver of a network card enables MSIs when the interface is switched on.
        assert before["programmed_iovas"] in ([], [DOORBELL])


def check_samples(device):
    """Check that the guest counted while the device worked, and never less than before."""
    samples = device["samples"]
    assert 3 <= len(samples) <= 31
    for count in ("seconds", "done", "interrupts"):
        values = [sample[count] for sample in samples]
        assert values[0] == 0
        assert values == sorted(values)
    end = (device["seconds"], device["done"], device["arrived"])
    assert tuple(samples[-1].values()) == end
    if device["each"]:
        assert all(sample["done"] == sample["interrupts"] for sample in samples)


def status_row(report, device):
    """Return address, interrupts and faults of a device in the text of the status."""
    lines = report["status"]
    head = next(at for at, line in enumerate(lines) if "MSI address" in line)
    return next(line.split()[-3:] for line in lines[head:] if line.startswith(device["host"]))


def check_guest(report, shape):
    """Check that every interrupt arrived, as the doctor predicted, and that no fault was logged."""
    assert (report["complete"], report["status_agrees"]) == (True, True)
    assert report["rmrs"]
    assert all(rmr == WINDOW for rmr in report["rmrs"])
    assert [phase["after"].split()[0] for phase in report["phases"]] == shape.phases
    assert len(report["phases"][0]["devices"]) == shape.devices
    for phase in report["phases"]:
        for device in phase["devices"]:
            landed = sum(device["landed"].values())
            assert 0 < device["arrived"] <= landed
            if device["each"]:
                assert device["done"] == device["arrived"] == landed
            check_status(device)
            check_samples(device)
    assert {expected["outcome"] for expected in report["expected"].values()} == {"delivered"}
    assert len(report["expected"]) == shape.devices
    assert (report["host_faults"], report["guest_faults"], report["explained"]) == ([], [], [])
    for device in report["phases"][-1]["devices"]:
        if device["each"]:
            last = device["checks"][-1]["reported"]
            assert status_row(report, device) == [DOORBELL, str(last["interrupts"]), "0"]
    assert {finding["severity"] for finding in report["predicted"]} == {"note"}
    for group in report["groups"]:
        assert "0x0000000008000000 0x00000000080fffff direct" in group["reserved"]


def check_bound(report, devices):
    """Check that every interrupt arrived at the guest's own address, and that the kernel bound."""
    assert (report["complete"], report["status_agrees"]) == (True, True)
    assert len(report["phases"][0]["devices"]) == devices
    for phase in report["phases"]:
        for device in phase["devices"]:
            assert device["done"] == device["arrived"] == sum(device["landed"].values()) > 0
            for check in device["checks"]:
                assert check["counted"][-1]["programmed_iovas"] == [GIOVA]
    assert (report["host_faults"], report["guest_faults"], report["explained"]) == ([], [], [])
    left = {device["host"] for device in report["phases"][-1]["devices"]}
    bindings = [line.split() for line in report["bindings"] if line.startswith("binding ")]
    assert {words[1] for words in bindings} == left
    assert {words[-1] for words in bindings} == {"used"}
    assert any(line.startswith("kernel-bound ") for line in report["watch"])


def phase_of(report, name):
    (phase,) = (phase for phase in report["phases"] if phase["after"] == name)
    return phase["devices"]


def test_direct_binding_is_spoiled_repaired_and_rebound_under_load(bind_images, capsys, tmp_path):
    """The kernel binds; vmm-msi watch repairs what it finds changed, while the guest runs."""
    recording = str(tmp_path / "run.json")
    acts = ["wrong-gdb", "wrong-giova", "withdraw", "rebind"]
    status, report = run_guest(
        capsys,
        *("--strategy", "direct", "--count", "1000", "--then", ",".join(acts)),
        *("--record", recording),
    )
    # The interrupts of the wrong bindings are lost.
    assert status == 1
    assert report["status_agrees"]
    for after in ("start", *(f"repair of {act}" for act in acts[:3])):
        (device,) = phase_of(report, after)
        assert device["done"] == device["arrived"] == device["landed"]["1"] == 1000
        assert device["checks"][0]["counted"][-1]["programmed_iovas"] == [GIOVA]
    # gDB is wrong: stage 2 of the host has no page. gIOVA is wrong: stage 1 of the guest has none.
    for act, address in (("wrong-gdb", GIOVA), ("wrong-giova", LOW)):
        (device,) = phase_of(report, act)
        assert (device["arrived"], device["landed"]) == (0, {})
        assert device["checks"][0]["counted"][-1]["programmed_iovas"] == [address]
    assert any(f"iova: {GIOVA} ipa: 0x8090000" in line for line in report["host_faults"])
    assert any(f"iova: {LOW} ipa: 0x0" in line for line in report["guest_faults"])
    # Withdrawn: the slot serves, by the guest's RMR.
    (device,) = phase_of(report, "withdraw")
    assert device["checks"][0]["counted"][-1]["programmed_iovas"] == [DOORBELL]
    assert device["complete"]
    (name,) = (p["after"] for p in report["phases"] if p["after"].startswith("rebind "))
    assert int(name.split()[1]) > 0
    (device,) = phase_of(report, name)
    assert device["done"] == device["arrived"] == device["landed"]["1"] == 1000
    (recorded,) = json.loads(Path(recording).read_text())["devices"]
    (binding,) = recorded["bindings"]
    assert (binding["giova"], binding["gdb"], binding["used"]) == ("0xfffff000", "0x8090000", True)
    assert [line for line in report["bindings"] if line.startswith("binding ")] == [
        "binding 0000:11:00.0 iova 0xfffff000 gpa 0x8090000 shift 12 hpa 0x8090000 used"
    ]
    assert any(line.startswith("kernel-bound ") for line in report["watch"])
    explained = " ".join(" ".join(report["explained"]).split())
    assert "event F_TRANSLATION at stage 2" in explained
    assert "event F_TRANSLATION at stage 1" in explained


def test_every_interrupt_of_a_drive_arrives(lab_images, capsys, tmp_path):
    recording = str(tmp_path / "run.json")
    status, report = run_guest(capsys, *ONE.options, "--record", recording)
    assert status == 0
    check_guest(report, ONE)
    (device,) = report["phases"][0]["devices"]
    assert (device["driver"], device["done"]) == ("nvme", 2000)
    assert [vector["name"] for vector in device["vectors"]] == ["nvme0q0", "nvme0q1"]
    assert device["landed"] == {"1": 2000}
    # Replayed in the simulator, the recording gives the same address.
    assert main(["replay", "--format", "json", recording]) == 0
    replayed = json.loads(capsys.readouterr().out)
    assert "0x8000040" in json.dumps(replayed)
