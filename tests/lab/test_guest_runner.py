"""The report of a guest test, and options that are refused before a start."""

from __future__ import annotations

import json
from dataclasses import replace

import json_schemas
import pytest

from vmm_msi.cli import main
from vmm_msi.errors import UsageError
from vmm_msi.lab.guest.host_counter import HostCounter, reported_counts
from vmm_msi.lab.guest.result import (
    Counts,
    DeviceRun,
    GuestTestResult,
    Phase,
    Rmr,
    StatusCheck,
    Vector,
)
from vmm_msi.lab.guest.runner import shape_for
from vmm_msi.lab.machine.shape import GUESTS_MEMORY, Shape
from vmm_msi.report import lab_guest as report
from vmm_msi.types import Iova, Pa, PciAddress

HOST = PciAddress(0, 0x11, 0, 0)
GUEST = PciAddress(0, 0x21, 0, 0)
DRIVE = DeviceRun(
    HOST,
    GUEST,
    "nvme",
    "reads of nvme0n1",
    done=100,
    seconds=0.5,
    each=True,
    vectors=(Vector("nvme0q0", 10, 10), Vector("nvme0q1", 1, 101)),
    landed={1: 100},
)
CARD = DeviceRun(
    HOST,
    GUEST,
    "igbvf",
    "packets sent by eth0",
    done=100,
    seconds=1.0,
    vectors=(Vector("eth0-tx-0", 0, 80),),
    landed={0: 120},
)
RUN = GuestTestResult(
    {"linux": "7.2.12", "libvirt": "12.8.0", "qemu": "11.1.2"},
    [Phase("start", [DRIVE])],
    [Rmr(0x800_0000, 0x10_0000)] * 2,
    [{"id": 1, "devices": ["0000:21:00.0"], "reserved": ["0x1 0x2 direct"], "type": "DMA"}],
    predicted=[{"severity": "note", "id": "no-migration", "subject": "guest lab-guest"}],
)


HEAD = (
    "device        in the guest  driver  work              done  reached the ITS  "
    "reached the guest  per second  vectors"
)
RULE = (
    "------------  ------------  ------  ----------------  ----  ---------------  "
    "-----------------  ----------  ------------------------------"
)
ROW = (
    "0000:11:00.0  0000:21:00.0  nvme    reads of nvme0n1  100   100              "
    "100                200         nvme0q0 10->10, nvme0q1 1->101"
)


def test_report_as_text():
    assert list(report.to_lines(RUN, 200)) == [
        "linux 7.2.12, libvirt 12.8.0, qemu 11.1.2",
        "the guest's RMR: 0x8000000-0x80fffff",
        "the guest's IOMMU group 1: 0000:21:00.0; reserved 0x1 0x2 direct",
        "predicted by the doctor: 1",
        "  note no-migration: guest lab-guest",
        "",
        "after start:",
        HEAD,
        RULE,
        ROW,
        "",
        "faults that the host's kernel logged: none",
        "faults that the guest's kernel logged: none",
    ]


def test_repeated_faults_are_one_line():
    lines = list(report.to_lines(replace(RUN, guest_faults=["b", "a", "b"], explained=["why"])))
    assert lines[-5:] == [
        "faults that the guest's kernel logged: 3",
        "  2 times: b",
        "  1 time: a",
        "",
        "why",
    ]


@pytest.mark.parametrize(
    ("device", "complete"),
    [
        (DRIVE, True),
        (replace(DRIVE, landed={1: 101}), False),
        (replace(DRIVE, done=99), False),
        (replace(DRIVE, vectors=(Vector("nvme0q1", 1, 100),)), False),
        (replace(DRIVE, done=0, vectors=(), landed={}), False),
        (CARD, True),
        (replace(CARD, vectors=()), False),
        (DeviceRun(HOST, None), False),
        (replace(DRIVE, misrouted={Pa(0xB00_0000): 1}), False),
        (replace(CARD, misrouted={Pa(0xB00_0000): 1}), False),
    ],
)
def test_device_is_complete_if_its_interrupts_arrived(device, complete):
    """A drive signals every command; a network card may signal several packets at once."""
    assert device.complete is complete
    assert replace(RUN, phases=[Phase("start", [DRIVE, device])]).complete is complete


def test_report_as_json():
    document = json.loads(json.dumps(report.to_json(RUN)))
    json_schemas.check("lab-guest", document)
    (phase,) = document["phases"]
    (device,) = phase["devices"]
    assert (phase["after"], device["host"], device["guest"]) == ("start", str(HOST), str(GUEST))
    assert (device["arrived"], device["complete"], document["complete"]) == (100, True, True)
    assert (
        document["rmrs"]
        == [{"base": "0x8000000", "size": "0x100000", "remap_permitted": False}] * 2
    )


OTHER = PciAddress(0, 0x12, 0, 0)


def test_report_of_several_itses():
    """Each device's MSIs are counted at its own ITS; the others are misrouted."""
    first, second = Pa(0x808_0000), Pa(0xB00_0000)
    drive = replace(DRIVE, its=first)
    assert "own ITS" not in "\n".join(
        report.to_lines(replace(RUN, phases=[Phase("start", [drive])]))
    )
    lost = replace(DRIVE, host=OTHER, its=second, landed={}, misrouted={first: 2})
    run = replace(RUN, phases=[Phase("start", [drive, lost])])
    lines = list(report.to_lines(run))
    at = next(number for number, line in enumerate(lines) if "own ITS" in line)
    assert lines[at - 1 : at + 5] == [
        "",
        "device        its own ITS  reached it  reached another ITS",
        "------------  -----------  ----------  -------------------",
        "0000:11:00.0  0x8080000    100         none",
        "0000:12:00.0  0xb000000    0           2 at 0x8080000",
        "",
    ]
    document = json.loads(json.dumps(report.to_json(run)))
    json_schemas.check("lab-guest", document)
    devices = document["phases"][0]["devices"]
    assert [(d["its"], d["misrouted"], d["complete"]) for d in devices] == [
        ("0x8080000", {}, True),
        ("0xb000000", {"0x8080000": 2}, False),
    ]


def counts(interrupts=9, faults=0, address=0x8000040):
    return Counts((Iova(address),), interrupts, faults)


@pytest.mark.parametrize(
    ("reported", "agrees"),
    [
        (counts(), True),
        (counts(10, 1), True),
        (counts(8), False),
        (counts(11), False),
        (counts(faults=2), False),
        (counts(address=0x8001040), False),
        (Counts(None, 9, 0), False),
        (Counts((Iova(0x8000040),), None, 0), False),
        (Counts((Iova(0x8000040),), 9, None), False),
        (None, False),
    ],
)
def test_status_agrees_if_it_lies_between_two_counts(reported, agrees):
    """A device may signal, and a fault may be logged, while the command runs."""
    check = StatusCheck(reported, (counts(), counts(10, 1)))
    assert check.agrees is agrees
    run = replace(RUN, phases=[Phase("start", [replace(DRIVE, checks=(check, check))])])
    assert (run.complete, run.status_agrees) == (True, agrees)
    json_schemas.check("lab-guest", json.loads(json.dumps(report.to_json(run))))
    lines = list(report.to_lines(run, 200))
    row = lines[lines.index("", lines.index(ROW)) + 3]
    assert row.endswith("yes" if agrees else "no")


def test_report_of_the_status():
    before, after = counts(), counts(109, 2, 0x8001040)
    checks = (StatusCheck(before, (before, before)), StatusCheck(after, (after, after)))
    phase = Phase("start", [replace(DRIVE, checks=checks)])
    lines = list(report.to_lines(replace(RUN, phases=[phase], status=["lab-guest: running"]), 200))
    at = lines.index(ROW)
    assert lines[at + 1 : at + 6] == [
        "",
        "vmm-msi status  MSI address           interrupts  faults  as the lab counts",
        "--------------  --------------------  ----------  ------  -----------------",
        "0000:11:00.0    0x8000040->0x8001040  9->109      0->2    yes",
        "",
    ]
    assert lines[-2:] == ["", "lab-guest: running"]


class Agent:
    """The answers of the emulated host's agent."""

    def call(self, verb, **_arguments):
        fault = "arm-smmu-v3 arm-smmu-v3.0.auto: event: F_TRANSLATION client: {} sid: {} ssid: 0x0"
        return {
            "look": {
                "interrupts": {
                    "55": [f"vfio-msix[0]({HOST})", 10],
                    "56": [f"vfio-msix[1]({HOST})", 7],
                    "57": ["vfio-msix[0](0000:12:00.0)", 5],
                }
            },
            "kernel-log": "\n".join(
                [fault.format(HOST, "0x1100"), fault.format("0000:12:00.0", "0x1200"), "event"]
            ),
            "msi-table": {"address": 0x1000_2000, "entries": 3},
        }[verb]


def test_the_lab_counts_by_itself():
    words = {
        (0x1000_2000, 12): [0x8000040, 1, 7, 0, 0x8000040, 1, 8, 0, 0, 0, 0, 1],
    }
    counter = HostCounter(Agent(), lambda address, number: words[address, number])
    assert counter.counts([HOST]) == {HOST: Counts((Iova(0x1_0800_0040),), 17, 1)}


def test_counts_in_the_output_of_status():
    measured = {"programmed_iovas": ["0x8000040"], "interrupts": 9, "vectors": 2, "faults": 0}
    unknown = {"programmed_iovas": None, "interrupts": None, "vectors": 0, "faults": None}
    devices = [
        {"device": str(HOST), "measured": measured},
        {"device": "0000:12:00.0", "measured": unknown},
        {"device": "0000:13:00.0", "measured": None},
    ]
    assert reported_counts(json.dumps({"devices": devices})) == {
        HOST: counts(),
        PciAddress(0, 0x12, 0, 0): Counts(None, None, None),
    }


def test_host_shape_follows_the_devices():
    assert shape_for(["nvme", "igb-vf", "nvme"], 2) == Shape(
        smmus=2, devices=0, pairs=0, nvmes=2, igbs=1, guests=True, memory=GUESTS_MEMORY
    )
    with pytest.raises(UsageError, match=r"^lab guest: device 'edu'; valid: nvme, e1000e, igb, "):
        shape_for(["nvme", "edu"], 1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--devices", ""], "lab guest: device ''; valid: nvme, e1000e, igb, igb-vf"),
        (["--devices", "nvme,"], "lab guest: device ''; valid"),
        (["--count", "0"], "lab guest: --count 0; valid is 1 to 1000000"),
        (
            ["--then", "reboot,sleep"],
            "lab guest: --then 'sleep'; valid: reboot, unplug, vfio",
        ),
        (["--then", "unplug,unplug"], "lab guest: --then has more unplug than there are devices"),
        (
            ["--then", "rebind"],
            "lab guest: --then rebind: the emulated host's kernel binds no MSIs",
        ),
        (
            ["--strategy", "direct", "--kernel", "stock", "--then", "withdraw"],
            "lab guest: --then withdraw: the emulated host's kernel binds no MSIs",
        ),
        (["--vsmmus", "9"], "lab host: 9 smmus; valid is 1 to 8"),
        *(
            (
                ["--strategy", strategy],
                f"lab guest: --strategy {strategy}: neither QEMU nor a kernel of the lab applies",
            )
            for strategy in ("host-cookie", "placed", "preset", "window", "mapped-page:mode=s2")
        ),
    ],
)
def test_bad_options_start_no_host(options, error, capsys):
    assert main(["lab", "guest", *options]) == UsageError.exit_code
    message = capsys.readouterr().err
    assert message.startswith(f"vmm-msi lab: {error}")
    assert message.count("\n") == 1
