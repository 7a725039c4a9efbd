"""What the emulated host is found to be by its own firmware tables and sysfs, as its user would."""

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
    told = link.call("command", argv=["topology", "show", "--format", "json", *arguments])
    assert told["status"] == 0, told["stderr"]
    return json.loads(told["stdout"])


def test_tables_and_sysfs_of_a_real_kernel_agree(link):
    hello = link.call("hello")
    found = show(link)
    assert (found["source"], found["missing"], found["disagreements"]) == ("this machine", [], [])
    assert found["granule"] == f"{hello['page_size'] >> 10}K"
    functions = {function["address"]: function for function in found["functions"]}
    assert functions.keys() >= {device["address"] for device in link.call("devices")}
    smmus = {smmu["id"]: smmu["base"] for smmu in found["smmus"]}
    assert len(smmus) == 2
    members = [member for group in found["iommu_groups"] for member in group["members"]]
    window = {"base": "0x8000000", "size": "0x100000", "type": "sw-msi"}
    for group in found["iommu_groups"]:
        assert group["isolated_msi"] is True
        assert group["reserved"] == [window]
    for address, function in functions.items():
        # Those of the root bus are behind no SMMU.
        behind = PciAddress.parse(address).bus > 0
        assert (function["smmu"] is not None) == behind == (address in members)
        assert function["msi_alias"] == address
        assert function["dma_aliases"] == [address]
        assert function["vectors"] is not None


def test_a_folder_of_the_same_kernel(link):
    """``--root /`` is this machine, and a HOST that is its root folder too."""
    whole = show(link)
    for arguments in (["--root", "/"], ["/"]):
        other = show(link, *arguments)
        assert other["source"] == "/"
        assert {**other, "source": None} == {**whole, "source": None}
