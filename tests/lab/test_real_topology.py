"""The topology that vmm-msi reads on the emulated host."""

from __future__ import annotations

import json

import pytest

from vmm_msi.lab.rpc.link import AgentLink
from vmm_msi.types import PciAddress


@pytest.fixture(scope="module")
def link(lab_host):
    with AgentLink(lab_host.agent_socket) as opened:
        yield opened


def show(link, *arguments):
    answer = link.call("command", argv=["topology", "show", "--format", "json", *arguments])
    assert answer["status"] == 0, answer["stderr"]
    return json.loads(answer["stdout"])


def test_tables_and_sysfs_of_a_real_kernel_agree(link):
    hello = link.call("hello")
    topology = show(link)
    assert (topology["source"], topology["missing"], topology["disagreements"]) == (
        "this machine",
        [],
        [],
    )
    assert topology["granule"] == f"{hello['page_size'] >> 10}K"
    functions = {function["address"]: function for function in topology["functions"]}
    assert functions.keys() >= {device["address"] for device in link.call("devices")}
    smmus = {smmu["id"]: smmu["base"] for smmu in topology["smmus"]}
    assert len(smmus) == 2
    members = [member for group in topology["iommu_groups"] for member in group["members"]]
    window = {"base": "0x8000000", "size": "0x100000", "type": "sw-msi"}
    for group in topology["iommu_groups"]:
        assert group["isolated_msi"] is True
        assert group["reserved"] == [window]
    for address, function in functions.items():
        # Devices on the root bus have no SMMU.
        behind = PciAddress.parse(address).bus > 0
        assert (function["smmu"] is not None) == behind == (address in members)
        assert function["msi_alias"] == address
        assert function["dma_aliases"] == [address]
        assert function["vectors"] is not None


def test_root_folder_describes_this_machine(link):
    live = show(link)
    for arguments in (["--root", "/"], ["/"]):
        read = show(link, *arguments)
        assert read["source"] == "/"
        assert {**read, "source": None} == {**live, "source": None}
