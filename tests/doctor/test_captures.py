"""Captures of the emulated host, whose kernel is real, checked on another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from described_host import load_host

from vmm_msi.cli import main
from vmm_msi.types import PciAddress

CAPTURES = Path(__file__).resolve().parent.parent / "captures"


def findings_of(capsys, name, *options):
    status = main(["doctor", str(CAPTURES / f"{name}.tar.zst"), "--format", "json", *options])
    document = json.loads(capsys.readouterr().out)
    return status, [
        (finding["severity"], finding["id"], finding["subject"]) for finding in document["findings"]
    ]


def test_a_host_that_can_nest(capsys):
    """The only finding is that the host itself uses the drive."""
    assert findings_of(capsys, "two-smmus") == (0, [("note", "host-driver", "0000:14:00.0")])


def test_a_host_without_canwbs(capsys):
    releases = ("--libvirt", "12.8", "--qemu", "11.1")
    status, findings = findings_of(capsys, "no-canwbs", "--device", "0000:21:00.0", *releases)
    assert (status, findings) == (8, [("error", "smmu-no-s2fwb", "SMMU 1 (0xc020000)")])


def test_a_device_without_the_libvirt_that_is_to_start_its_guest(capsys):
    """The capture has no releases: the device is not known to work, and no rule says so."""
    status, findings = findings_of(capsys, "two-smmus", "--device", "0000:21:00.0")
    assert (status, findings) == (9, [("unknown", "libvirt-unknown", "host")])


def test_a_problem_of_a_device_is_an_error_only_if_selected(capsys):
    status, findings = findings_of(capsys, "two-smmus", "--device", "0000:00:01.0")
    assert (status, findings[0]) == (8, ("error", "no-smmu", "0000:00:01.0"))


@pytest.mark.parametrize("name", ["two-smmus", "no-canwbs"])
def test_functions_as_the_kernel_reported_them(name):
    host = load_host(CAPTURES / f"{name}.tar.zst")
    functions = host.function_by_address
    pair = [PciAddress.parse(text) for text in ("0000:13:00.0", "0000:13:00.1")]
    assert [functions[address].members for address in pair] == [tuple(pair), tuple(pair)]
    drive = functions[PciAddress.parse("0000:14:00.0")]
    assert (drive.driver, drive.vectors, drive.smmu) == ("nvme", 65, 0xC00_0000)
    assert [segment.canwbs for segment in host.segments] == [name == "two-smmus"]
