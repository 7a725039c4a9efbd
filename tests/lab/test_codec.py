"""Hosts and guests survive the way to the emulated host as JSON."""

from __future__ import annotations

from dataclasses import replace

from described_host import load_host

from vmm_msi.host.scenario import load_scenario
from vmm_msi.lab.rpc.codec import from_wire, to_wire
from vmm_msi.samples import path as sample
from vmm_msi.types import (
    SW_MSI_WINDOW,
    HostTopology,
    Pa,
    PciAddress,
    PciFunction,
    PciSegment,
    ReservedMemory,
    Scenario,
)


def test_host_with_every_field_is_decoded_unchanged():
    address = PciAddress.parse("0000:01:00.0")
    host = replace(
        load_host(sample("eight-its.toml")),
        functions=(
            PciFunction(address, 1, (address,), smmu=Pa(0x1000), reserved=(SW_MSI_WINDOW,)),
        ),
        segments=(PciSegment(0, ats=True, canwbs=False),),
        reserved_memory=(ReservedMemory(0x1000, 0x1000, 0, 1, 2),),
    )
    assert from_wire(HostTopology, to_wire(host)) == host


def test_scenario_is_decoded_unchanged():
    scenario = load_scenario(sample("two-its.toml"))
    assert from_wire(Scenario, to_wire(scenario)) == scenario
