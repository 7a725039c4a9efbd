"""An emulated host with two ITSes: its tables, its kernel, its MSIs, and a real guest on it."""

from __future__ import annotations

import json

import pytest
from depth import depth
from lab.test_guest import WINDOW, run_guest

from vmm_msi import samples
from vmm_msi.cli import main
from vmm_msi.iommu.sim.call_machine import SimMachine
from vmm_msi.lab.conformance import conform
from vmm_msi.lab.conformance.random_sequences import draw_sequences
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.lab.rpc.link import AgentLink

pytestmark = pytest.mark.timeout(900)

FIRST, SECOND = 0x808_0000, 0xB00_0000
SLOTS = {"0x8000040", "0x8001040"}
TWO_ITSES = str(samples.path("two-its.toml"))


@pytest.fixture(scope="module")
def host(its_emulator, tmp_path_factory):
    """A running host with two ITSes."""
    with LabHost(Shape(itses=2), keep_logs=tmp_path_factory.mktemp("logs")) as running:
        yield running


def test_kernel_has_both_itses(host):
    with AgentLink(host.agent_socket) as link:
        log = link.call("kernel-log")
    for base in (FIRST, SECOND):
        assert f"ITS [mem {base:#010x}-" in log
        assert f"ITS@{base:#018x}: allocated" in log
    assert [its.base for its in host.board.topology.itses] == [FIRST, SECOND]


def test_simulator_agrees_with_the_kernel(host):
    with AgentLink(host.agent_socket) as link:
        link.call("hello")
        topology = conform.conform_host(host.board.topology, link.call("devices"))
        assert {(device.smmu, device.its) for device in topology.devices} == {
            (smmu, its) for smmu in (0, 1) for its in (0, 1)
        }
        simulator = SimMachine(topology, output_bits=conform.OUTPUT_BITS)
        side = conform.KernelSide(link, [device.address for device in topology.devices])
        sequences = draw_sequences(simulator, depth(50), 1)
        report = conform.compare(simulator, side, sequences, lambda _done, _of: None)
    assert not report.mismatches, [list(conform.lines(m)) for m in report.mismatches]
    assert report.steps > len(sequences)


def test_compare_uses_the_devices_own_itses(its_emulator, run_folder, capsys):
    """A guest that honours an RMR gets all MSIs; without one none passes stage 1."""
    options = ["--backend", "lab", "--doorbells", "its", "--format", "json"]
    strategies = ["--strategy", "identity", "--strategy", "host-cookie"]
    assert main(["compare", "--scenario", TWO_ITSES, *options, *strategies]) == 0
    captured = capsys.readouterr()
    assert "2 ITSes" in captured.err
    identity, cookie = json.loads(captured.out)["results"]
    assert [verdict["outcome"] for verdict in identity["verdicts"]] == ["delivered"] * 2
    assert {verdict["programmed_iova"] for verdict in identity["verdicts"]} == SLOTS
    assert [verdict["outcome"] for verdict in cookie["verdicts"]] == ["s1-fault"] * 2


def test_each_drive_of_a_guest_signals_its_own_its(its_emulator, capsys):
    """Then the second drive's MSIs are led to the first one's ITS, and no kernel sees it."""
    options = ["--devices", "nvme,nvme", "--itses", "2", "--count", "300", "--then", "misdirect"]
    status, report = run_guest(capsys, *options)
    assert (status, report["complete"], report["status_agrees"]) == (1, False, True)
    assert all(rmr == WINDOW for rmr in report["rmrs"])
    start, misdirected = (phase["devices"] for phase in report["phases"])
    assert [device["its"] for device in start] == [f"{FIRST:#x}", f"{SECOND:#x}"]
    for device in start:
        assert (device["driver"], device["complete"]) == ("nvme", True)
        assert device["done"] == device["arrived"] == sum(device["landed"].values()) == 300
        assert device["misrouted"] == {}
    slots = [device["checks"][-1]["reported"]["programmed_iovas"] for device in start]
    # Which drive gets which depends on the order in which their drivers start.
    assert {slot for (slot,) in slots} == SLOTS
    first, second = misdirected
    assert first["complete"]
    assert (second["complete"], second["arrived"], second["landed"]) == (False, 0, {})
    assert second["misrouted"][f"{FIRST:#x}"] > 0
    assert (report["host_faults"], report["guest_faults"]) == ([], [])
