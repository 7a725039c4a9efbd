"""The doctor's findings about the emulated host match the behaviour of its kernel."""

from __future__ import annotations

import errno
import json

import pytest
from scenarios import pair

from vmm_msi.config import Choice
from vmm_msi.engine import compare as comparing
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.iommu.linux.abilities import Doorbells
from vmm_msi.lab.backend import device_roles
from vmm_msi.lab.backend.remote import RemoteBackend
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.lab.rpc.link import AgentLink
from vmm_msi.plugins.manager import PluginManager

pytestmark = pytest.mark.lab_root


def doctor(link):
    answer = link.call("command", argv=["doctor", "--format", "json"])
    assert answer["stderr"] == ""
    return answer["status"], json.loads(answer["stdout"])["findings"]


def verdicts(link, strategy):
    """Run a strategy on the kernel behind a link."""
    scenario = parse_scenario(pair("shared").toml(), "scenario")

    def opened(scenario, profile):
        stand_ins = device_roles.assign(scenario, link.call("devices"))
        return RemoteBackend(
            link, scenario.host, scenario.guest, Doorbells.WITNESS, profile, stand_ins
        )

    plugins = PluginManager.load()
    (result,) = comparing.compare(
        plugins, scenario, [Choice.parse(strategy)], "first-in-group", opened
    )
    return result.verdicts


def test_working_host_has_no_findings(lab_host):
    with AgentLink(lab_host.agent_socket) as link:
        status, findings = doctor(link)
        assert (status, findings) == (0, [])
        assert {verdict.outcome.value for verdict in verdicts(link, "identity")} == {"delivered"}


def test_host_without_canwbs_cannot_nest(lab_root, lab_images):
    """With QEMU's own tables the kernel refuses a vIOMMU, as the doctor predicts."""
    shape = Shape(smmus=1, devices=2, pairs=0)
    with LabHost(shape, canwbs=False) as host, AgentLink(host.agent_socket) as link:
        status, findings = doctor(link)
        assert (status, [finding["id"] for finding in findings]) == (8, ["smmu-no-s2fwb"])
        assert "EOPNOTSUPP" in findings[0]["consequence"]
        for verdict in verdicts(link, "identity"):
            assert (verdict.outcome.value, verdict.errno) == ("refused", errno.EOPNOTSUPP)
