"""What a capture would have of the emulated host, whose kernel is real."""

from __future__ import annotations

import base64
import json

import pytest

from vmm_msi.cli import main
from vmm_msi.host.files.capture_list import CAPTURED_PATHS
from vmm_msi.lab.rpc.link import AgentLink


@pytest.fixture(scope="module")
def link(lab_host):
    with AgentLink(lab_host.agent_socket) as opened:
        yield opened


def test_all_that_an_arm_host_tells_is_found(link):
    told = link.call("command", argv=["topology", "capture", "--dry-run"])
    assert (told["status"], told["stderr"]) == (0, "")
    counted = {}
    for line in told["stdout"].splitlines():
        words = line.split()
        if line.startswith("  /"):
            counted[words[0]] = 0 if words[1] == "-" else int(words[1])
    assert counted.keys() == {captured.path for captured in CAPTURED_PATHS}
    device = "/sys/bus/pci/devices/*"
    group = "/sys/kernel/iommu_groups/*"
    devices = counted[device]
    assert devices >= len(link.call("devices"))
    for name in ("class", "vendor", "device", "config"):
        assert counted[f"{device}/{name}"] == devices
    assert 0 < counted[f"{device}/iommu"] == counted[f"{device}/iommu_group"] < devices
    assert counted[f"{group}/devices/*"] == counted[f"{device}/iommu_group"]
    assert counted[f"{group}/reserved_regions"] == counted[f"{group}/type"] > 0
    assert counted["/sys/class/iommu/*"] == 2
    for path in (
        "/sys/firmware/acpi/tables/IORT",
        "/sys/firmware/acpi/tables/APIC",
        "/vmm-msi/page-size",
        "/vmm-msi/kernel-log",
        "/proc/sys/kernel/osrelease",
        "/proc/cmdline",
        "/dev/iommu",
        "/sys/module/iommufd",
    ):
        assert counted[path] == 1, path


def test_a_capture_says_what_the_host_says(link, tmp_path, capsys):
    """Taken there and read here, it is the same host."""
    name = "host.tar.zst"
    made = link.call("command", argv=["topology", "capture", "-o", name], fetch=[name])
    assert made["status"] == 0, made["stderr"]
    (tmp_path / name).write_bytes(base64.b64decode(made["files"][name]))
    for words in (["topology", "show"], ["doctor"]):
        there = link.call("command", argv=[*words, "--format", "json"])
        status = main([*words, "--format", "json", str(tmp_path / name)])
        here = capsys.readouterr().out
        assert status == there["status"]
        assert json.loads(here.replace(str(tmp_path / name), "this machine")) == json.loads(
            there["stdout"]
        )
