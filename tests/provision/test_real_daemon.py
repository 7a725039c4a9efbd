"""Attach and detach from the command line against a current libvirt: test driver and QEMU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from provision.helpers import DEVICES, GUEST, HOST_FILE, A, B, C, texts

from vmm_msi.domxml import editor, iommufd_objects
from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, DomainXml
from vmm_msi.domxml.metadata import read_record
from vmm_msi.domxml.support import IommufdForm, Version
from vmm_msi.domxml.template import nested_guest
from vmm_msi.libvirt_driver import connect
from vmm_msi.recording.measure import log_time_us, read_clocks, start_time_us
from vmm_msi.types import GuestPlan, VsmmuPlan

pytestmark = pytest.mark.lab_root

NAMES = [str(device) for device in DEVICES]


def vmm_msi(connection, command, *arguments, code=0):
    """Run a command in a process of its own; return what it printed, or its error."""
    words = [command, "--connect", connection.uri, GUEST, *map(str, arguments)]
    if command == "attach":
        words += ["--host", str(HOST_FILE)]
    environment = {key: text for key, text in os.environ.items() if key != "VMM_MSI_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-m", "vmm_msi", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == code, done.stderr
    if code:
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        return done.stderr
    assert done.stderr == ""
    return done.stdout


def status(connection):
    return json.loads(vmm_msi(connection, "status", "--format", "json"))


@pytest.fixture
def test_driver(lab_daemon):
    """The daemon's test driver with a guest.

    Its state lasts while a client is connected, so this connection stays open.
    """
    with connect(lab_daemon.test_uri) as connection:
        connection.define(nested_guest(GUEST, memory=1 << 30, kind="test"))
        yield connection
        connection.undefine(GUEST)


def buses(xml):
    """Return the <driver> of each expander bus."""
    drivers = {iommu.pci_bus: iommu.driver for iommu in xml.iommus()}
    return [
        drivers.pop(str(controller.index))
        for controller in xml.controllers()
        if controller.model == EXPANDER_BUS
    ]


def test_two_physical_smmus_in_processes_of_their_own(test_driver):
    before = texts(test_driver)
    assert test_driver.versions().libvirt >= Version(12, 8)
    vmm_msi(test_driver, "attach", *NAMES)
    xml = test_driver.domain_xml(GUEST)
    first, second = (c.index for c in xml.controllers() if c.model == EXPANDER_BUS)
    assert buses(xml) == [
        {"pciBus": str(first), "accel": "on"},
        {"pciBus": str(second), "accel": "on"},
    ]
    assert xml.iommufd is True
    assert [hostdev.host for hostdev in xml.hostdevs()] == list(DEVICES)
    shown = status(test_driver)
    assert [vsmmu["smmu"] for vsmmu in shown["vsmmus"]] == [0, 1]
    assert {vsmmu["accelerated"] for vsmmu in shown["vsmmus"]} == {True}
    assert [
        (d["device"], d["smmu"], d["its"], d["predicted"]["possible_iovas"])
        for d in shown["devices"]
    ] == [
        (name, smmu, its, ["0x8000040", "0x8001040", "0x8002040"])
        for name, smmu, its in zip(NAMES, (0, 0, 1), (0, 1, 2), strict=True)
    ]
    assert {device["predicted"]["outcome"] for device in shown["devices"]} == {"delivered"}
    assert {device["measured"] for device in shown["devices"]} == {None}
    (note,) = shown["notes"]
    assert note.startswith("the guest is off: ")
    vmm_msi(test_driver, "detach", NAMES[1])
    assert [device["device"] for device in status(test_driver)["devices"]] == [NAMES[0], NAMES[2]]
    vmm_msi(test_driver, "detach", "all")
    assert status(test_driver)["devices"] == []
    assert texts(test_driver) == before


def test_a_vsmmu_per_physical_its(test_driver):
    before = texts(test_driver)
    vmm_msi(test_driver, "attach", *NAMES, "--strategy", "multi-its:mode=vsmmu")
    shown = status(test_driver)
    assert [(v["smmu"], v["its"]) for v in shown["vsmmus"]] == [(0, 0), (0, 1), (1, 2)]
    assert len(buses(test_driver.domain_xml(GUEST))) == 3
    for name in reversed(NAMES):
        vmm_msi(test_driver, "detach", name)
    assert texts(test_driver) == before


def test_one_by_one_is_all_at_once(test_driver):
    vmm_msi(test_driver, "attach", *NAMES)
    together = texts(test_driver)
    vmm_msi(test_driver, "detach", "all")
    vmm_msi(test_driver, "attach", *NAMES[:2])
    vmm_msi(test_driver, "attach", NAMES[2])
    assert texts(test_driver) == together


def test_another_process_sees_who_holds_a_device(test_driver):
    vmm_msi(test_driver, "attach", NAMES[0])
    before = texts(test_driver)
    words = vmm_msi(test_driver, "attach", NAMES[0])
    assert "0000:01:00.0: attached in this way already; nothing was changed" in words
    words = vmm_msi(test_driver, "attach", NAMES[0], "--strategy", "direct", code=5)
    assert "attaching 0000:01:00.0 to nested: it is already attached in another way" in words
    assert texts(test_driver) == before


def test_previews_change_nothing(test_driver):
    before = texts(test_driver)
    xml = vmm_msi(test_driver, "attach", *NAMES, "--print-xml")
    assert [hostdev.host for hostdev in DomainXml.parse(xml, "it").hostdevs()] == list(DEVICES)
    said = vmm_msi(test_driver, "attach", *NAMES, "--dry-run")
    assert said.startswith(f"{GUEST}: nothing was changed; the result would be\n")
    assert texts(test_driver) == before


# QEMU.


def test_qemu_with_the_binding_simulated(qemu):
    before = texts(qemu)
    out = vmm_msi(qemu, "attach", *NAMES, "--backend", "sim")
    assert "note: the XML is real, the doorbell binding is simulated (linux-7.2)" in out
    xml = qemu.domain_xml(GUEST)
    assert [{*driver} for driver in buses(xml)] == [{"pciBus"}, {"pciBus"}]
    assert xml.iommufd is None
    assert [hostdev.host for hostdev in xml.hostdevs()] == list(DEVICES)
    shown = status(qemu)
    assert {device["backend"] for device in shown["devices"]} == {"sim"}
    assert {vsmmu["accelerated"] for vsmmu in shown["vsmmus"]} == {False}
    vmm_msi(qemu, "detach", "all")
    assert texts(qemu) == before


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_qemu_detached_in_any_order(qemu, order):
    """libvirt's QEMU driver fills gaps in the controllers' indexes; there must be none."""
    before = texts(qemu)
    vmm_msi(qemu, "attach", *NAMES, "--backend", "sim")
    for number in order:
        vmm_msi(qemu, "detach", NAMES[number])
    assert texts(qemu) == before


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=str)
def test_qemu_with_an_iommufd_object_for_each_vsmmu(qemu, order):
    """libvirt's QEMU driver validates and keeps the words, the override and the aliases."""
    before = texts(qemu)
    strategy = "multi-its:mode=vsmmu,iommufd=each"
    vmm_msi(qemu, "attach", *NAMES, "--backend", "sim", "--strategy", strategy)
    xml = qemu.domain_xml(GUEST)
    objects = [iommufd_objects.used_by(xml, device) for device in DEVICES]
    assert objects == [None, "vmm-msi-iommufd1", "vmm-msi-iommufd2"]
    assert set(iommufd_objects.elements_by_id(xml)) == set(objects[1:])
    for number in order:
        vmm_msi(qemu, "detach", NAMES[number])
    assert texts(qemu) == before


@pytest.mark.parametrize("backend", [(), ("--backend", "qemu")], ids=["default", "qemu"])
@pytest.mark.parametrize("strategy", ["host-cookie", "coerced", "direct", "multi-its"])
def test_a_strategy_that_qemu_cannot_apply(qemu, strategy, backend):
    before = texts(qemu)
    words = vmm_msi(qemu, "attach", NAMES[0], "--strategy", strategy, *backend, code=5)
    assert "strategy-not-carried (guest " in words
    assert "QEMU and the kernel bind doorbells by identity" in words
    assert "Use identity or multi-its:mode=vsmmu, or --backend sim" in words
    assert texts(qemu) == before


@pytest.mark.parametrize("strategy", ["identity", "multi-its:mode=vsmmu"])
def test_what_needs_kvm(qemu, strategy):
    before = texts(qemu)
    words = vmm_msi(qemu, "attach", NAMES[0], "--strategy", strategy, code=5)
    assert "guest-kvm (guest " in words
    assert texts(qemu) == before


def without_hostdevs(xml):
    """Return ``xml`` without the assigned devices, which this machine does not have."""
    copy = xml.copy()
    for hostdev in copy.hostdevs():
        copy.devices.remove(hostdev.element)
    return copy


def test_two_vsmmus_that_were_written_run_in_qemu(qemu):
    old = qemu.domain_xml(GUEST)
    vsmmus = (VsmmuPlan(0, (A, B), accelerated=False), VsmmuPlan(1, (C,), accelerated=False))
    layout = qemu.versions().support().layout()
    assert (layout.pci_bus, layout.iommufd) == (True, IommufdForm.DOMAIN)
    assignments = {device: editor.Assignment("identity", "sim") for device in DEVICES}
    new = editor.apply(old, GuestPlan(vsmmus, iommufd=False), layout, assignments)
    defined = qemu.define(without_hostdevs(new))
    record = read_record(defined)
    assert len(record.vsmmus) == 2
    now = read_clocks()
    begun_us = log_time_us(now.boottime // 1000, now)
    qemu.start(GUEST)
    # libvirt's QEMU has the words and its own PID namespace.
    assert start_time_us(qemu.domain_xml(GUEST, inactive=False).uuid) > begun_us - 1e6
    peripherals = qemu.monitor(GUEST, "qom-list", {"path": "/machine/peripheral"})
    smmus = [item["name"] for item in peripherals if item["type"] == "child<arm-smmuv3>"]
    assert len(smmus) == 2
    primary = {
        qemu.monitor(
            GUEST, "qom-get", {"path": f"/machine/peripheral/{name}", "property": "primary-bus"}
        ).rpartition("/")[2]
        for name in smmus
    }
    # libvirt calls the bus of the controller with index n pci.n.
    assert primary == {f"pci.{vsmmu.pxb}" for vsmmu in record.vsmmus}
    ports = [item["name"] for item in peripherals if item["type"] == "child<pcie-root-port>"]
    assert {f"pci.{device.root_port}" for device in record.devices} <= set(ports)
    qemu.destroy(GUEST)
    qemu.define(old)
    assert str(qemu.domain_xml(GUEST)) == str(old)
