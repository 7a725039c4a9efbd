"""NVMe controllers of the emulated host, which use MSI-X and send an MSI after DMA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from host_shell import GUEST, driver_of, shell
from scenarios import A, Device, Sample, guest_run
from test_truth_table import by_device

from vmm_msi.errors import BackendError
from vmm_msi.host.scenario import load_scenario
from vmm_msi.iommu.linux.abilities import Doorbells
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.lab.backend.remote import RemoteBackend
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.lab.rpc.link import AgentLink
from vmm_msi.types import Outcome, PciAddress

pytestmark = pytest.mark.lab_root

QEMU_NVME = (0x1B36, 0x0010)


@pytest.fixture(scope="module")
def nvme_host(lab_root, lab_images):
    logs = Path(__file__).resolve().parents[2] / "build" / "lab-logs"
    with LabHost(Shape(smmus=1, devices=1, pairs=0, nvmes=2), keep_logs=logs) as host:
        yield host


@pytest.fixture
def link(nvme_host):
    with AgentLink(nvme_host.agent_socket) as link:
        link.call("hello")
        yield link


@pytest.fixture
def nvmes(link, nvme_host):
    """Unbind the driver of both controllers and return their addresses."""
    devices = link.call("devices")
    addresses = [d["address"] for d in devices if (d["vendor"], d["device"]) == QEMU_NVME]
    assert len(addresses) == 2
    for address in addresses:
        if driver_of(nvme_host, address)[0]:
            shell(nvme_host, f"echo {address} >/sys/bus/pci/drivers/nvme/unbind")
        assert driver_of(nvme_host, address) == ("", "(null)")
    return addresses


def compare(link, address, *options):
    bus = PciAddress.parse(address).bus
    argv = ["compare", "--backend", "iommufd", "--host", "/sys/firmware/acpi/tables"]
    return link.call(
        "command",
        argv=[*argv, "--guest", "guest.xml", "--format", "json", *options],
        files={"guest.xml": GUEST.format(bus=bus)},
        timeout_s=120,
    )


def outcomes_of(answer, address):
    """Return the outcome of a device's MSIs under each strategy."""
    assert answer["status"] == 0, answer["stderr"]
    results = json.loads(answer["stdout"])["results"]
    return {result["strategy"]: by_device(result)[address] for result in results}


def test_controller_in_use_by_its_driver_is_refused(link, nvme_host, nvmes):
    shell(nvme_host, f"echo {nvmes[0]} >/sys/bus/pci/drivers/nvme/bind")
    assert driver_of(nvme_host, nvmes[0])[0] == "nvme"
    answer = compare(link, nvmes[0])
    assert answer["status"] == 5
    assert "the driver nvme has it" in answer["stderr"]


def test_outcomes_with_the_hosts_own_its(link, nvme_host, nvmes):
    for address in nvmes:
        outcomes = outcomes_of(compare(link, address), address)
        assert outcomes["identity"] == "delivered"
        assert outcomes["host-cookie"] == "s1-fault"
        assert outcomes["direct"] == "refused"
        assert driver_of(nvme_host, address) == ("", "(null)")


def test_outcomes_with_witness_doorbells(link, nvmes):
    outcomes = outcomes_of(compare(link, nvmes[0], "--doorbells", "witness"), nvmes[0])
    assert outcomes["direct"] == "delivered"
    assert outcomes["multi-its"] == "delivered"
    assert outcomes["identity"] == "delivered"
    assert outcomes["host-cookie"] == "s1-fault"


@pytest.fixture
def open_backend(link, nvmes, tmp_path):
    def open_backend(sample, doorbells, profile):
        path = tmp_path / "scenario.toml"
        path.write_text(sample.toml())
        scenario = load_scenario(path)
        controllers = map(PciAddress.parse, nvmes)
        devices = (device.host for device in scenario.guest.devices)
        stand_ins = dict(zip(devices, controllers, strict=False))
        backend = RemoteBackend(
            link,
            scenario.host,
            scenario.guest,
            doorbells,
            profile_named(profile),
            stand_ins,
        )
        return scenario, backend

    return open_backend


@pytest.mark.parametrize("granule", ["4K", "16K", "64K"])
def test_more_vectors_than_queue_entries_are_delivered(granule, open_backend):
    sample = Sample(
        (Device(A, vectors=40, giova=0xFFFF_0000),),
        s1_granule=granule,
        vits_bases={0: 0x0908_0000},
    )
    scenario, backend = open_backend(sample, Doorbells.WITNESS, "series-v15")
    device, before = PciAddress.parse(A), backend.snapshot()
    run = guest_run(scenario, backend, "direct")
    for _ in range(2):
        run.attach_all()
        verdict = run.deliver(device)
        assert verdict.outcome is Outcome.DELIVERED, verdict.reason
        assert verdict.trace[-1].values["data"] == 39
        run.detach_all()
        assert backend.snapshot() == before
    backend.close()


def test_two_controllers_share_a_stage_1(open_backend):
    sample = Sample((Device("0000:01:00.0", vectors=1), Device("0000:02:00.0", vectors=1)))
    scenario, backend = open_backend(sample, Doorbells.ITS, "linux-7.2")
    addresses = [device.host for device in scenario.guest.devices]
    run = guest_run(scenario, backend, "identity")
    run.attach_all()
    for address in addresses * 20:
        verdict = run.deliver(address)
        assert verdict.outcome is Outcome.DELIVERED, verdict.reason
    run.detach_all()
    backend.close()


def test_reset_controller_is_restarted(open_backend, nvme_host, nvmes):
    _scenario, backend = open_backend(Sample((Device(A, vectors=1),)), Doorbells.ITS, "linux-7.2")
    device = PciAddress.parse(A)
    s2 = backend.alloc_s2(0)
    backend.attach(device, s2)
    backend.prepare_msi(device)
    assert backend.deliver(device).outcome is Outcome.S1_FAULT
    shell(nvme_host, f"echo 1 >/sys/bus/pci/devices/{nvmes[0]}/reset")
    assert backend.deliver(device).outcome is Outcome.S1_FAULT
    with pytest.raises(BackendError, match="EBUSY"):
        backend.free_s2(s2)
    backend.close()
    assert driver_of(nvme_host, nvmes[0]) == ("", "(null)")


def test_silent_controller_is_an_error(open_backend, nvme_host, nvmes):
    def power_state(value):
        # PMCSR; QEMU's hw/nvme/ctrl.c has the capability at 0x60. In D3 no BAR answers.
        config = f"/sys/bus/pci/devices/{nvmes[0]}/config bs=1 seek=100 conv=notrunc"
        shell(nvme_host, f"printf '\\{value:03o}' | dd of={config} 2>/dev/null")

    _scenario, backend = open_backend(Sample((Device(A, vectors=1),)), Doorbells.ITS, "linux-7.2")
    device = PciAddress.parse(A)
    backend.attach(device, backend.alloc_s2(0))
    backend.prepare_msi(device)
    assert backend.deliver(device).outcome is Outcome.S1_FAULT
    power_state(3)
    with pytest.raises(BackendError, match=r"EIO.*completion of Identify .* reads 0xffffffff"):
        backend.deliver(device)
    with pytest.raises(BackendError, match=r"EIO.*NVMe CAP reads 0xffffffff"):
        backend.deliver(device)
    power_state(0)
    assert backend.deliver(device).outcome is Outcome.S1_FAULT
    backend.close()
