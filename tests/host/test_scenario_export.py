"""Hosts and guests written as scenario files: reading the file gives an equal value."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import debian_kernel
import pytest
from described_host import load_host
from host.hosts import read_tree, server
from hypothesis import given
from random_scenarios import scenarios

from vmm_msi import samples
from vmm_msi.domxml.guest_domain import virt_guest
from vmm_msi.host.firmware.device_tree import load_devicetree
from vmm_msi.host.resolve import with_devices
from vmm_msi.host.scenario import parse_host, parse_scenario, scenario_of_document
from vmm_msi.host.scenario_export import host_document, left_out, scenario_document
from vmm_msi.host.scenario_text import toml_lines
from vmm_msi.libvirt_driver import connect
from vmm_msi.libvirt_driver.node_devices import host_of
from vmm_msi.report.scenario import host_text
from vmm_msi.types import (
    DeviceId,
    Granule,
    HostDevice,
    HostTopology,
    Its,
    Pa,
    PciAddress,
    Scenario,
    Smmu,
    StreamId,
    TableError,
)

CAPTURES = Path(__file__).parents[1] / "captures"
HOSTS = [
    *(Path(samples.path(name)) for name in ("eight-its-server.dtb", "eight-its.toml")),
    Path(samples.path("two-its.toml")),
    *sorted(CAPTURES.glob("*.tar.zst")),
]


def check_host(host, text=None):
    """Check that the text of a host reads as the host."""
    text = host_text(host) if text is None else text
    assert parse_host(text, host.source) == host


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.name)
@pytest.mark.parametrize("granule", [None, Granule.K64])
def test_samples_and_captures(path, granule):
    check_host(load_host(path, granule))


@pytest.mark.parametrize("memory", [(), ((0x8000000, 0x100000),)])
def test_a_server(memory):
    """It has ACPI tables, a list of functions with SR-IOV and a bridge, and reserved memory."""
    check_host(read_tree(server(memory=memory).tree()))


def test_the_host_of_a_libvirt():
    with connect("test:///default", readonly=True) as connection:
        check_host(host_of(connection))


@pytest.mark.lab_root
def test_every_board_of_debian():
    paths = debian_kernel.dtbs()
    assert len(paths) > 1000
    for path in paths:
        check_host(load_devicetree(path, Granule.K4))


def test_what_a_host_may_have():
    host = replace(
        load_host(samples.path("two-its.toml")),
        missing=('no table "IORT"', "no\ttable\x1b[31m \U0001f600 \u202e"),
        table_errors=(TableError("APIC", "0x10: \\ is odd"),),
        lists_all_functions=False,
        unsafe_interrupts=frozenset({"iommufd", "vfio_iommu_type1"}),
        msi_bindings=1,
        smmus=(Smmu(0), Smmu(7, Pa(0x1000), nested=False, version=2)),
    )
    text = host_text(host)
    assert text.replace("\n", "").isprintable()
    check_host(host, text)


def test_an_its_that_the_host_lacks():
    address = PciAddress(0, 1, 0, 0)
    device = HostDevice(address, 0, StreamId(0x100), (3, 0), DeviceId(0x100), 1)
    host = HostTopology("h", Granule.K4, (Smmu(0),), (Its(0, Pa(0x200000000)),), (device,))
    assert "[[host.its]]\nid = 3\n\n" in host_text(host)
    check_host(host)


def test_a_device_without_an_msi_region_is_left_out():
    host = load_host(samples.path("two-its.toml"))
    devices = tuple(replace(device, reserved=()) for device in host.devices)
    (sentence,) = left_out(replace(host, devices=devices))
    assert sentence.startswith("left out: 0000:01:00.0 has no MSI region")
    assert f"# {sentence}\n" in host_text(replace(host, devices=devices))
    assert list(left_out(host)) == []


@given(scenarios())
def test_random_scenarios(drawn):
    """Doorbells of a file neither overlap nor lie in RAM."""
    *vits, last = drawn.guest.vits
    vits.append(replace(last, base=last.base.offset(0x100000)))
    memory = (replace(drawn.guest.memory[0], size=0x4000000), *drawn.guest.memory[1:])
    scenario = replace(drawn, guest=replace(drawn.guest, vits=tuple(vits), memory=memory))
    for complete in (False, True):
        document = scenario_document(scenario, complete=complete)
        assert scenario_of_document(document, "random") == scenario
        text = "\n".join(toml_lines(document))
        assert tomllib.loads(text) == document
        assert parse_scenario(text, "random") == scenario


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.name)
def test_a_guest_on_each_host(path):
    """A device that only a route leads to is listed, and may also be left to the route."""
    host = load_host(path)
    addresses = _addresses(host)
    guest = virt_guest("guest", addresses)
    scenario = Scenario(with_devices(host, addresses), guest)
    document = scenario_document(scenario)
    assert document["guest"] == {"device": [{"host": str(address)} for address in addresses]}
    assert scenario_of_document(document, host.source) == scenario
    document["host"] = host_document(host)["host"]
    assert scenario_of_document(document, host.source) == scenario


def _addresses(host):
    if host.devices:
        return [device.address for device in host.devices]
    route = next(route for route in host.routes if route.smmu is not None and route.its_group)
    return [PciAddress.from_rid(route.segment, route.first + 8 * number) for number in (1, 2)]
