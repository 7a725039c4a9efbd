"""Run real guests of every shape in the emulated host: ``make lab-guest``, a quarter of an hour.

Each test starts an emulated host and a guest in it. ``make test`` runs only one of them
(``test_guest.py``).
"""

from __future__ import annotations

import json

import pytest
from lab.test_guest import (
    DOORBELL,
    Shape,
    check_bound,
    check_guest,
    check_status,
    run_guest,
    status_row,
)

from vmm_msi.cli import main

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(900)]

SHAPES = {
    "two vSMMUs on two pSMMUs": Shape(["--devices", "nvme,nvme", "--vsmmus", "2"], 2, ["start"]),
    "two devices behind one vSMMU": Shape(["--devices", "nvme,e1000e"], 2, ["start"]),
    "virtual function": Shape(["--devices", "igb-vf"], 1, ["start"]),
    "unplug": Shape(["--devices", "nvme,nvme", "--then", "unplug"], 2, ["start", "unplug"]),
    "reboot": Shape(["--then", "reboot"], 1, ["start", "reboot"]),
    "multi-its": Shape(["--strategy", "multi-its:mode=vsmmu"], 1, ["start"]),
    "storm": Shape(["--count", "100000"], 1, ["start"]),
}


#: Guests whose MSIs the kernel binds: options and number of devices.
TWO = ("--devices", "nvme,nvme")
ITSES = ("--itses", "2", "--count", "300")
BOUND = {
    "direct on two pSMMUs": (["--strategy", "direct", *TWO, "--vsmmus", "2"], 2),
    "direct without RMR": (["--strategy", "direct", *TWO, "--no-rmr"], 2),
    "direct, reboot and unplug": (["--strategy", "direct", *TWO, "--then", "reboot,unplug"], 2),
    "coerced v2": (["--strategy", "coerced:revision=v2", *TWO, "--then", "reboot,unplug"], 2),
    "coerced v4": (["--strategy", "coerced:revision=v4"], 1),
    "coerced v15": (["--strategy", "coerced", *TWO], 2),
    "coerced v15 without RMR": (["--strategy", "coerced", *TWO, "--no-rmr"], 2),
    "multi-its": (["--strategy", "multi-its", *TWO], 2),
    "multi-its without RMR": (["--strategy", "multi-its:mode=s2", *TWO, "--no-rmr"], 2),
    "multi-its with two ITSes": (
        ["--strategy", "multi-its:mode=s2,iommufd=each", *TWO, *ITSES, "--then", "unplug"],
        2,
    ),
    "multi-its with one vITS": (["--strategy", "multi-its:mode=vits", *TWO], 2),
    "storm, direct": (["--strategy", "direct", "--count", "100000"], 1),
    "storm, coerced": (["--strategy", "coerced", "--count", "100000"], 1),
}


@pytest.mark.parametrize("name", BOUND)
def test_every_interrupt_arrives_at_the_guests_own_address(name, bind_images, its_emulator, capsys):
    options, devices = BOUND[name]
    status, report = run_guest(capsys, *options)
    assert status == 0
    check_bound(report, devices)


@pytest.mark.parametrize("name", SHAPES)
def test_every_interrupt_arrives(name, lab_images, capsys):
    status, report = run_guest(capsys, *SHAPES[name].options)
    assert status == 0
    check_guest(report, SHAPES[name])


def test_an_iommufd_object_for_each_vsmmu(its_emulator, capsys):
    """Two ITSes on one pSMMU: one slot address in two stage 2s; unplug and restart work."""
    strategy = "multi-its:mode=vsmmu,iommufd=each"
    options = ["--devices", "nvme,nvme", "--itses", "2", "--strategy", strategy, "--count", "300"]
    status, report = run_guest(capsys, *options, "--then", "unplug,reboot")
    assert (status, report["complete"], report["status_agrees"]) == (0, True, True)
    start, unplugged, restarted = (phase["devices"] for phase in report["phases"])
    assert [device["its"] for device in start] == ["0x8080000", "0xb000000"]
    assert (len(start), len(unplugged), len(restarted)) == (2, 1, 1)
    for device in (*start, *unplugged, *restarted):
        check_status(device)
        assert device["done"] == device["arrived"] == sum(device["landed"].values()) == 300
        assert device["misrouted"] == {}
    assert (report["host_faults"], report["guest_faults"]) == ([], [])
    findings = {finding["id"] for finding in report["predicted"]}
    assert "iommufd-objects" in findings
    assert "slot-order" not in findings


def test_vfio_inside_the_guest_is_refused(lab_images, capsys):
    """QEMU's RMR makes the MSI window a direct region there, as the doctor predicts."""
    status, report = run_guest(capsys, "--then", "vfio")
    assert status == 0
    (group,) = (group for group in report["groups"] if "0000:11:00.0" in group["devices"])
    assert "0x0000000008000000 0x00000000080fffff direct" in group["reserved"]
    assert [phase["after"] for phase in report["phases"]] == ["start", "vfio 0000:11:00.0: EINVAL"]
    assert "rmr-direct" in {finding["id"] for finding in report["predicted"]}
    explained = " ".join(" ".join(report["explained"]).split())
    assert "Linux in the guest refuses VFIO for this device (EINVAL)" in explained


def test_misdirected_msis_fault_in_stage_2(lab_images, capsys, tmp_path):
    """The host's kernel logs them, status counts them and shows the address in the device."""
    recording = tmp_path / "run.json"
    options = ("--then", "misdirect", "--record", str(recording))
    status, report = run_guest(capsys, *options)
    assert (status, report["complete"], report["status_agrees"]) == (1, False, True)
    start, misdirected = report["phases"]
    check_status(start["devices"][0])
    assert misdirected["after"] == "misdirect 0000:11:00.0: 0x8001040"
    (device,) = misdirected["devices"]
    assert (device["arrived"], device["landed"]) == (0, {})
    before, after = (check["reported"] for check in device["checks"])
    assert before["programmed_iovas"] == after["programmed_iovas"] == ["0x8001040"]
    assert before["interrupts"] == after["interrupts"]
    assert (before["faults"], after["faults"] > 0) == (0, True)
    assert status_row(report, device) == [
        "0x8001040",
        str(after["interrupts"]),
        str(after["faults"]),
    ]
    fault = "F_TRANSLATION client: 0000:11:00.0 sid: 0x1100 ssid: 0x0 iova: 0x8001040"
    assert sum(fault in line for line in report["host_faults"]) >= after["faults"]
    assert report["guest_faults"] == []
    explained = " ".join(" ".join(report["explained"]).split())
    assert "event F_TRANSLATION at stage 2" in explained
    (event,) = json.loads(recording.read_text())["events"]
    assert (event["log"], event["event"]["iova"]) == ("host", "0x8001040")


def test_guest_without_rmr_gets_no_interrupt(lab_images, capsys, tmp_path):
    """The guest logs a fault, which the doctor predicted and the report explains."""
    recording = str(tmp_path / "run.json")
    status, report = run_guest(capsys, "--no-rmr", "--record", recording)
    assert (status, report["complete"], report["rmrs"]) == (1, False, [])
    (device,) = report["phases"][0]["devices"]
    assert (device["arrived"], device["landed"]) == (0, {})
    fault = "F_TRANSLATION client: 0000:11:00.0 sid: 0x1100 ssid: 0x0 iova: 0x8000040"
    assert any(fault in line for line in report["guest_faults"])
    (prediction,) = (f for f in report["predicted"] if f["id"] == "rmr-needed")
    assert "F_TRANSLATION (stage 1)" in prediction["evidence"][0]["what"]
    assert "IOVA 0x8000040" in prediction["evidence"][0]["what"]
    explained = " ".join(" ".join(report["explained"]).split())
    assert "the guest has no RMR for it, or ignores the RMR" in explained
    assert "S1: 0x8000000 -> 0x8000000" in explained
    # The host's kernel passed the faults on: status says where they are.
    for check in device["checks"]:
        counts = check["reported"]
        assert check["agrees"]
        assert counts == {"programmed_iovas": [DOORBELL], "interrupts": 0, "faults": 0}
    assert status_row(report, device) == [DOORBELL, "0", "0"]
    assert any("guest's own dmesg" in line for line in report["status"])
    assert main(["replay", recording]) == 0
    assert "s1-fault" in capsys.readouterr().out
