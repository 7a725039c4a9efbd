"""Changes of running guests on a real daemon: its test driver plugs devices in, QEMU runs guests.

The test driver cannot unplug a device, so unplugging is tested by its refusal.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from provision.helpers import A2, GUEST, HOST, PLUGINS, A, B, C
from provision.test_real_daemon import vmm_msi, without_hostdevs

from vmm_msi import provision
from vmm_msi.config import Config
from vmm_msi.domxml import editor
from vmm_msi.domxml.libvirt_domain import ROOT_PORT, DomainXml
from vmm_msi.domxml.metadata import read_record
from vmm_msi.domxml.support import IommufdForm
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import HypervisorError, RefusedError, UndoError
from vmm_msi.libvirt_driver import connect
from vmm_msi.provision import AttachRequest, DetachRequest, Scope
from vmm_msi.types import BinderKind, GuestPlan, PciAddress, VsmmuPlan

pytestmark = pytest.mark.lab_root

#: Behind SMMU 0, like A and B.
A3 = PciAddress(0, 3, 0, 0)


@pytest.fixture
def guest(lab_daemon):
    """The daemon's test driver with a guest that runs, with A and two free ports."""
    with connect(lab_daemon.test_uri) as connection:
        connection.define(nested_guest(GUEST, memory=1 << 30, kind="test"))
        attach(connection, A, spare_ports=2)
        connection.start(GUEST)
        yield connection
        if connection.is_active(GUEST):
            connection.destroy(GUEST)
        connection.undefine(GUEST)


def attach(connection, *devices, **request):
    attach_request = AttachRequest(GUEST, devices, binder=BinderKind.SIM, **request)
    return provision.attach(connection, PLUGINS, Config(), HOST, attach_request)


def state(connection):
    guest_state = connection.state(GUEST)
    return str(guest_state.definition), None if guest_state.running is None else str(
        guest_state.running
    )


def devices_of(xml):
    return [device.host for device in read_record(xml).devices]


def test_definition_and_running_guest_get_a_device(guest):
    before, _running = state(guest)
    attach(guest, B, scope=Scope.BOTH)
    guest_state = guest.state(GUEST)
    assert devices_of(guest_state.definition) == devices_of(guest_state.running) == [A, B]
    places = [
        {hostdev.host: hostdev.guest for hostdev in xml.hostdevs()}
        for xml in (guest_state.definition, guest_state.running)
    ]
    assert places[0] == places[1]
    assert len(places[0]) == 2
    assert guest.assigned() == [(A, GUEST), (B, GUEST)]
    provision.detach(guest, DetachRequest(GUEST, (B,)))
    undone, _running = state(guest)
    (vsmmu,) = read_record(DomainXml.parse(undone, "it")).vsmmus
    assert len(vsmmu.spare_ports) == 1
    assert before != undone


def test_the_running_guest_gets_devices_in_two_steps(guest):
    before, _running = state(guest)
    attach(guest, B, scope=Scope.LIVE)
    attach(guest, A2, scope=Scope.LIVE)
    guest_state = guest.state(GUEST)
    assert str(guest_state.definition) == before
    assert devices_of(guest_state.running) == [A, B, A2]
    assert read_record(guest_state.running).vsmmus[0].spare_ports == ()
    full = state(guest)
    with pytest.raises(RefusedError, match=r"has too few free root ports \(0 of \d\)"):
        attach(guest, A3, scope=Scope.LIVE)
    assert state(guest) == full


def test_an_impossible_plug_is_refused_before_the_call(guest):
    before = state(guest)
    with pytest.raises(RefusedError, match="has no vSMMU for SMMU 1, and QEMU cannot plug one"):
        attach(guest, C, scope=Scope.BOTH)
    assert state(guest) == before


def test_the_definition_is_restored_if_the_guest_keeps_a_device(guest):
    before = state(guest)
    with pytest.raises(HypervisorError) as caught:
        provision.detach(guest, DetachRequest(GUEST, (A,), Scope.BOTH))
    assert "unplugging a device from the running guest" in str(caught.value)
    assert "this driver of libvirt cannot do that" in str(caught.value)
    assert "failed too" not in str(caught.value)
    assert state(guest) == before


def test_the_error_names_a_device_that_stays(guest):
    """The second device is refused, and this driver cannot unplug the first one."""
    before, _running = state(guest)
    request = AttachRequest(GUEST, (B, A2), binder=BinderKind.SIM, scope=Scope.BOTH)
    change = provision.plan_attach(guest, PLUGINS, Config(), HOST, request)
    first, (device, _xml) = change.live.devices
    broken = replace(change.live, devices=(first, (device, "<hostdev/>")))
    with pytest.raises(UndoError) as caught:
        provision.apply_change(guest, replace(change, live=broken))
    assert "plugging a device into the running guest nested" in str(caught.value)
    assert f"undoing it in the running guest failed too: {B} may be plugged in: unplugging" in str(
        caught.value
    )
    guest_state = guest.state(GUEST)
    assert str(guest_state.definition) == before
    # It is plugged in and recorded, so that it can be detached.
    assert [hostdev.host for hostdev in guest_state.running.hostdevs()] == [A, B]
    assert devices_of(guest_state.running) == [A, B]


def test_an_outdated_plan(guest):
    request = AttachRequest(GUEST, (B,), binder=BinderKind.SIM, scope=Scope.BOTH)
    change = provision.plan_attach(guest, PLUGINS, Config(), HOST, request)
    attach(guest, A2, scope=Scope.LIVE)
    before = state(guest)
    with pytest.raises(HypervisorError, match="another program changed it since this was planned"):
        provision.apply_change(guest, change)
    assert state(guest) == before


def test_a_guest_without_a_definition(lab_daemon):
    """Only what runs can be changed; the record is in its live metadata."""
    with connect(lab_daemon.test_uri) as connection:
        connection.define(nested_guest(GUEST, memory=1 << 30, kind="test"))
        attach(connection, A, spare_ports=1)
        connection.start(GUEST)
        connection.undefine(GUEST)
        assert not connection.state(GUEST).persistent
        with pytest.raises(RefusedError, match="use --scope live to change the running guest"):
            attach(connection, B)
        attach(connection, B, scope=Scope.LIVE)
        assert devices_of(connection.state(GUEST).running) == [A, B]
        connection.destroy(GUEST)


def test_the_command_reports_what_was_changed(guest):
    out = vmm_msi(guest, "attach", B, "--scope", "live")
    assert out.startswith(f"{GUEST}: attached {B}\n")
    assert "note: only the running guest changes: its next start is without the change" in out
    xml = DomainXml.parse(vmm_msi(guest, "attach", A2, "--scope", "live", "--print-xml"), "it")
    assert [hostdev.host for hostdev in xml.hostdevs()] == [A, B, A2]
    assert xml.root.get("id") is not None


# QEMU.


def test_a_device_that_qemu_refuses_changes_nothing(qemu):
    """This machine has no VFIO: libvirt's refusal of the plug undoes the definition, too."""
    layout = replace(
        qemu.versions().support().layout(), accel=False, iommufd=IommufdForm.NONE, spare_ports=1
    )
    plan = GuestPlan((VsmmuPlan(0, (A,), accelerated=False),))
    new = editor.apply(
        qemu.domain_xml(GUEST), plan, layout, {A: editor.Assignment("identity", "sim")}
    )
    qemu.define(without_hostdevs(new))
    qemu.start(GUEST)
    before = state(qemu)
    with pytest.raises(HypervisorError, match="plugging a device into the running guest"):
        attach(qemu, B, scope=Scope.BOTH, allow_faults=True)
    assert state(qemu) == before


def test_qemu_saved_state(qemu):
    qemu.start(GUEST)
    qemu._raw.lookupByName(GUEST).managedSave(0)
    before = state(qemu)
    words = vmm_msi(qemu, "attach", A, "--backend", "sim", code=5)
    assert "libvirt saved its state, and its next start restores that state" in words
    assert state(qemu) == before
    qemu._raw.lookupByName(GUEST).managedSaveRemove(0)
    attach(qemu, A)
    provision.detach(qemu, DetachRequest(GUEST))
    assert state(qemu) == before


def test_qemu_reports_a_host_without_iommufd(qemu):
    caps = qemu.capabilities_for(qemu.domain_xml(GUEST))
    assert (caps.pci_hostdev, caps.iommufd, caps.gic3, caps.efi) == (True, False, True, True)


def test_qemu_reserves_memory_for_the_ports(qemu):
    """QEMU uses the value of the override, and detaching removes the override."""
    before = qemu.domain_xml(GUEST)
    layout = replace(
        qemu.versions().support().layout(),
        accel=False,
        iommufd=IommufdForm.NONE,
        spare_ports=1,
        reserve=64 << 20,
    )
    plan = GuestPlan((VsmmuPlan(0, (A,), accelerated=False),))
    new = editor.apply(before, plan, layout, {A: editor.Assignment("identity", "sim")})
    got = qemu.define(without_hostdevs(new))
    qemu.start(GUEST)
    ports = [f"pci.{c.index}" for c in got.controllers() if c.model == ROOT_PORT]
    reserved = [
        qemu.monitor(
            GUEST, "qom-get", {"path": f"/machine/peripheral/{port}", "property": "pref64-reserve"}
        )
        for port in ports
    ]
    (vsmmu,) = read_record(got).vsmmus
    ours = {f"pci.{port}" for port in (*vsmmu.spare_ports, read_record(got).devices[0].root_port)}
    assert {port for port, size in zip(ports, reserved, strict=True) if size == 64 << 20} == ours
    qemu.destroy(GUEST)
    provision.detach(qemu, DetachRequest(GUEST))
    assert str(qemu.domain_xml(GUEST)) == str(before)
