"""A capture of the emulated host, whose kernel is real."""

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


def test_dry_run_counts_every_file_of_an_arm_host(link):
    answer = link.call("command", argv=["topology", "capture", "--dry-run"])
    assert (answer["status"], answer["stderr"]) == (0, "")
    counts = {}
    for line in answer["stdout"].splitlines():
        if line.startswith("  /"):
            path, count, *_ = line.split()
            counts[path] = 0 if count == "-" else int(count)
    assert counts.keys() == {captured.path for captured in CAPTURED_PATHS}
    device = "/sys/bus/pci/devices/*"
    group = "/sys/kernel/iommu_groups/*"
    devices = counts[device]
    assert devices >= len(link.call("devices"))
    for name in ("class", "vendor", "device", "config"):
        assert counts[f"{device}/{name}"] == devices
    assert 0 < counts[f"{device}/iommu"] == counts[f"{device}/iommu_group"] < devices
    assert counts[f"{group}/devices/*"] == counts[f"{device}/iommu_group"]
    assert counts[f"{group}/reserved_regions"] == counts[f"{group}/type"] > 0
    assert counts["/sys/class/iommu/*"] == 2
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
        assert counts[path] == 1, path


def test_capture_read_elsewhere_describes_the_same_host(link, tmp_path, capsys):
    name = "host.tar.zst"
    answer = link.call("command", argv=["topology", "capture", "-o", name], fetch=[name])
    assert answer["status"] == 0, answer["stderr"]
    (tmp_path / name).write_bytes(base64.b64decode(answer["files"][name]))
    for command in (["topology", "show"], ["doctor"]):
        live = link.call("command", argv=[*command, "--format", "json"])
        status = main([*command, "--format", "json", str(tmp_path / name)])
        output = capsys.readouterr().out
        assert status == live["status"]
        assert json.loads(output.replace(str(tmp_path / name), "this machine")) == json.loads(
            live["stdout"]
        )
