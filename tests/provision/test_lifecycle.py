"""Plans for guests, devices and releases of libvirt of all kinds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from provision.helpers import HOST, PLUGINS, A, B, C

from vmm_msi.config import Choice, Config
from vmm_msi.domxml.domcaps import DomainCaps
from vmm_msi.domxml.guest_state import GuestState
from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, DomainXml
from vmm_msi.domxml.metadata import read_record
from vmm_msi.domxml.support import Support, Version
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import DomainXmlError, FindingsError, RefusedError, UsageError
from vmm_msi.provision import AttachRequest, DetachRequest, LibvirtFacts, Scope, planner
from vmm_msi.types import BinderKind, PciAddress, PciFunction
from vmm_msi.types.pci_function import VfioEvidence

NEWEST = Support(Version(12, 8), Version(11, 1))
GUEST = nested_guest("guest0", memory=4 << 30, vcpus=4)
VF = PciAddress(0, 1, 0, 1)
NODES = {device: PciFunction(device, number) for number, device in enumerate((A, B, C, VF), 10)}


def facts(driver="QEMU", support=NEWEST, nodes=NODES, holders=(), caps=None, guest=GUEST, **state):
    return LibvirtFacts(
        driver=driver,
        support=replace(support, guest=guest.kind, caps=caps or DomainCaps()),
        guest=GuestState(guest, **state),
        holders=holders,
        nodes=nodes,
    )


def plan(libvirt_facts, *devices, strategy=None, host=HOST, **request):
    named = None if strategy is None else Choice.parse(strategy)
    attach_request = AttachRequest("guest0", devices, named, **request)
    return planner.plan_attach(libvirt_facts, PLUGINS, Config(), host, attach_request)


def with_cells(*pairs, memory=None):
    """Return the guest with NUMA cells, each bound to a set of host nodes."""
    cells = "".join(f"<cell id='{cell}' cpus='{cell}' memory='1048576'/>" for cell, _ in pairs)
    nodes = "".join(
        f"<memnode cellid='{cell}' mode='strict' nodeset='{nodeset}'/>"
        for cell, nodeset in pairs
        if nodeset is not None
    )
    if memory is not None:
        nodes = f"<memory mode='strict' nodeset='{memory}'/>{nodes}"
    text = str(GUEST).replace(
        "<cpu mode='host-passthrough'/>",
        f"<cpu mode='host-passthrough'><numa>{cells}</numa></cpu><numatune>{nodes}</numatune>",
    )
    return DomainXml.parse(text, "the test")


def cells_of_buses(change):
    return [c.node for c in change.new.controllers() if c.model == EXPANDER_BUS]


def on_nodes(**numbers):
    devices = {"a": A, "b": B, "c": C}
    return NODES | {
        devices[name]: replace(NODES[devices[name]], numa_node=node)
        for name, node in numbers.items()
    }


@pytest.mark.parametrize(
    ("pairs", "nodes", "devices", "cells"),
    [
        ([(0, "0"), (1, "1")], {"a": 1, "b": 1, "c": 0}, (A, B, C), [1, 0]),
        ([(0, "0"), (1, "1")], {"a": 1}, (A,), [1]),
        ([(0, "0-1,^0"), (1, "0")], {"a": 1}, (A,), [0]),
        ([(0, "0"), (1, "1")], {"a": 1, "b": 0}, (A, B), [None]),
        ([(0, "0"), (1, "1")], {"a": 1}, (A, B), [None]),
        ([(0, "0-1")], {"a": 1}, (A,), [None]),
        ([], {"a": 1}, (A,), [None]),
    ],
)
def test_a_bus_is_on_the_cell_of_its_devices(pairs, nodes, devices, cells):
    change = plan(facts(guest=with_cells(*pairs), nodes=on_nodes(**nodes)), *devices)
    assert cells_of_buses(change) == cells


def test_memory_of_all_cells_counts_for_those_without_a_node_of_their_own():
    guest = with_cells((0, "0"), (1, None), memory="3")
    change = plan(facts(guest=guest, nodes=on_nodes(a=3)), A)
    assert cells_of_buses(change) == [1]


def test_a_note_names_a_node_without_a_cell():
    change = plan(facts(guest=with_cells((0, "0")), nodes=on_nodes(a=1)), A)
    assert (
        "0000:01:00.0: on NUMA node 1 of the host, and no cell of the guest has its memory there "
        "alone: the bus gets no <node>"
    ) in change.notes


@pytest.mark.parametrize("nodeset", ["", "a", "1-", "3-1", "^1-2", "99999", "-1", "0x1"])
def test_an_invalid_node_set(nodeset):
    guest = with_cells((0, nodeset))
    with pytest.raises(DomainXmlError, match=r"reading the NUMA cells of guest0: .* such as 0-3,"):
        plan(facts(guest=guest, nodes=on_nodes(a=1)), A)


# Virtual functions.


def functions():
    return NODES | {
        A: replace(NODES[A], virtual_functions=(VF,)),
        VF: replace(NODES[VF], physical_function=A),
    }


def test_a_virtual_function():
    change = plan(facts(nodes=functions()), VF)
    assert [hostdev.host for hostdev in change.new.hostdevs()] == [VF]
    assert {verdict.outcome for verdict in change.verdicts} == {"delivered"}


@pytest.mark.parametrize(
    ("device", "held", "words"),
    [
        (A, VF, "Domain other has its virtual function 0000:01:00.1"),
        (VF, A, "Domain other has its physical function 0000:01:00.0"),
    ],
)
def test_a_function_whose_physical_or_virtual_one_a_guest_has(device, held, words):
    with pytest.raises(RefusedError, match=words):
        plan(facts(nodes=functions(), holders=[(held, "other")]), device)


# Unmanaged devices.


@pytest.mark.parametrize("driver", ["vfio-pci", "mlx5-vfio-pci", "nvgrace-gpu-vfio-pci"])
def test_an_unmanaged_device_bound_to_vfio(driver):
    nodes = {A: replace(NODES[A], driver=driver)}
    change = plan(facts(nodes=nodes), A, managed=False)
    assert [hostdev.managed for hostdev in change.new.hostdevs()] == [False]


@pytest.mark.parametrize("driver", [None, "nvme"])
def test_an_unmanaged_device_with_another_driver(driver):
    nodes = {A: replace(NODES[A], driver=driver)}
    with pytest.raises(FindingsError) as caught:
        plan(facts(nodes=nodes), A, managed=False)
    assert caught.value.findings == ("not-bound-to-vfio",)
    assert str(caught.value) == (
        "attaching 0000:01:00.0 to guest0: not-bound-to-vfio (0000:01:00.0): libvirt refuses to "
        "start the guest: Unmanaged PCI device must be manually detached from the host. Bind it to "
        "vfio-pci with virsh nodedev-detach pci_0000_01_00_0, or attach it managed, so that "
        "libvirt does. Run vmm-msi doctor --explain not-bound-to-vfio for details, or use "
        "--allow-faults to do it all the same"
    )
    assert plan(facts(nodes=nodes), A).new.hostdevs()[0].managed
    allowed = plan(facts(nodes=nodes), A, managed=False, allow_faults=True)
    assert any(note.startswith("not-bound-to-vfio (") for note in allowed.notes)
    assert plan(facts(nodes=nodes), A, managed=False, binder=BinderKind.SIM).new.hostdevs()


def test_an_unmanaged_device_of_a_driver_that_the_host_shows_as_vfio():
    nodes = {A: replace(NODES[A], driver="migratable_net")}
    shown = replace(nodes[A], vfio=VfioEvidence.VFIO_DEV)
    host = replace(HOST, functions=(shown,))
    assert plan(facts(nodes=nodes), A, managed=False, host=host).new.hostdevs()
    outdated = replace(HOST, functions=(replace(shown, driver="vfio-pci"),))
    with pytest.raises(FindingsError, match=r"not-bound-to-vfio \(0000:01:00.0\)"):
        plan(facts(nodes=nodes), A, managed=False, host=outdated)
    unbound = replace(HOST, functions=(nodes[A],))
    with pytest.raises(FindingsError, match=r"not-bound-to-vfio \(0000:01:00.0\)"):
        plan(facts(nodes=nodes), A, managed=False, host=unbound)


def test_a_device_unknown_to_libvirt():
    with pytest.raises(RefusedError, match=r"device-missing .* virsh nodedev-list --cap pci"):
        plan(facts(nodes={}), A)
    assert plan(facts(nodes={}), A, binder=BinderKind.SIM).new.hostdevs()
    assert plan(facts(nodes={}, driver=None), A).new.hostdevs()


# What libvirt reports about the guest and about itself.


@pytest.mark.parametrize(
    ("state", "scope", "words"),
    [
        ({}, Scope.LIVE, "it is not running; use --scope config to change its"),
        ({}, Scope.BOTH, "it is not running; use --scope config to change its"),
        (
            {"persistent": False},
            Scope.CONFIG,
            "the guest is transient and has none; use --scop",
        ),
        ({"saved": True}, Scope.CONFIG, "virsh managedsave-remove guest0"),
    ],
)
def test_a_guest_in_another_state(state, scope, words):
    with pytest.raises(RefusedError, match=words):
        plan(facts(**state), A, scope=scope)
    with pytest.raises(RefusedError, match=words):
        planner.plan_detach(GuestState(GUEST, **state), DetachRequest("guest0", (A,), scope))


def test_a_note_counts_snapshots():
    change = plan(facts(snapshots=2), A)
    assert any(note.startswith("the guest has 2 snapshots: reverting") for note in change.notes)
    assert not any("snapshots" in note for note in plan(facts(), A).notes)


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        (DomainCaps(iommufd=False), "cannot assign them through iommufd"),
        (DomainCaps(pci_hostdev=False), "cannot assign PCI devices"),
        (DomainCaps(gic3=False, efi=False), "a GICv3 nor give the guest a UEFI firmware"),
    ],
)
def test_features_that_domain_capabilities_exclude(caps, words):
    with pytest.raises(FindingsError, match=words) as caught:
        plan(facts(caps=caps), A)
    assert caught.value.findings == ("domain-capabilities",)


def test_empty_capabilities_exclude_nothing():
    assert plan(facts(caps=DomainCaps()), A).new.hostdevs()


# Properties of vSMMUs, free ports, file descriptors.


def test_properties_of_new_vsmmus():
    change = plan(facts(), A, C, driver={"oas": "48", "ats": "on"})
    assert [iommu.driver for iommu in change.new.iommus()] == [
        {"pciBus": "1", "accel": "on", "oas": "48", "ats": "on"},
        {"pciBus": "3", "accel": "on", "oas": "48", "ats": "on"},
    ]


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (
            {"ssidSize": "1"},
            "vSMMU property 'ssidSize': unknown; did you mean ssidsize. valid: ats",
        ),
        ({"ssidsize": "21"}, "vSMMU property ssidsize=21: valid: 0 to 20"),
        ({"oas": "52"}, "vSMMU property oas=52: valid: 44 and 48"),
        ({"accel": "off"}, "vSMMU property 'accel': unknown"),
    ],
)
def test_unknown_properties_of_vsmmus(driver, words):
    with pytest.raises(UsageError, match=words):
        plan(facts(), A, driver=driver)


def test_properties_that_this_libvirt_lacks():
    older = Support(Version(11, 10), Version(11, 1))
    words = r"libvirt 11\.10\.0 cannot write <driver oas>.* Omit --vsmmu"
    with pytest.raises(FindingsError, match=words) as caught:
        plan(facts(support=older), A, binder=BinderKind.SIM, driver={"oas": "48"})
    assert caught.value.findings == ("libvirt-too-old",)
    older = Support(Version(12, 8), Version(11, 0))
    with pytest.raises(FindingsError, match=r"QEMU 11\.0\.0 cannot write <driver cmdqv>") as caught:
        plan(facts(support=older), A, driver={"cmdqv": "on"})
    assert caught.value.findings == ("qemu-too-old",)


def test_spare_ports():
    change = plan(facts(), A, spare_ports=3)
    (vsmmu,) = read_record(change.new).vsmmus
    assert len(vsmmu.spare_ports) == 3
    undone = planner.plan_detach(GuestState(change.new), DetachRequest("guest0"))
    assert str(undone.new) == str(GUEST)
    with pytest.raises(UsageError, match="spare ports: -1; valid: 0 or more"):
        plan(facts(), A, spare_ports=-1)


RESERVE = """
  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:arg value='-global'/>
    <qemu:arg value='pcie-root-port.pref64-reserve=67108864'/>
  </qemu:commandline>
</domain>"""
OVERRIDE = """
  <qemu:override xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:device alias='pci.3'>
      <qemu:frontend>
        <qemu:property name='pref64-reserve' type='unsigned' value='67108864'/>
      </qemu:frontend>
    </qemu:device>
  </qemu:override>
</domain>"""


def with_cmdline(words):
    text = str(GUEST).replace("</os>", f"<kernel>/k</kernel><cmdline>{words}</cmdline></os>")
    return DomainXml.parse(text, "the test")


def bars(change):
    words = ("takes the BARs", "hotplug-bar-loss")
    return [note for note in change.notes if any(word in note for word in words)]


def reserved_by_us(change):
    """Return the root ports that an override reserves memory for, and how much."""
    devices = change.new.root.iter("{http://libvirt.org/schemas/domain/qemu/1.0}device")
    return {device.get("alias"): int(device[0][0].get("value")) for device in devices}


def test_memory_is_reserved_for_spare_ports():
    change = plan(facts(), A, spare_ports=1)
    assert reserved_by_us(change) == {"pci.2": 64 << 20, "pci.3": 64 << 20}
    assert bars(change) == []
    more = plan(facts(guest=change.new), B, C, spare_ports=2, spare_memory=1024)
    assert reserved_by_us(more) == reserved_by_us(change) | {
        f"pci.{port}": 1024 << 20 for port in (4, 5, 7, 8, 9)
    }
    undone = planner.plan_detach(GuestState(more.new), DetachRequest("guest0", (A, B)))
    assert set(reserved_by_us(undone)) == {
        f"pci.{port}"
        for vsmmu in undone.record.vsmmus
        for port in (*vsmmu.spare_ports, undone.record.device(C).root_port)
    }
    undone = planner.plan_detach(GuestState(undone.new), DetachRequest("guest0"))
    assert str(undone.new) == str(GUEST)


def test_memory_is_not_reserved_needlessly():
    assert reserved_by_us(plan(facts(), A)) == {}
    assert reserved_by_us(plan(facts(), A, spare_ports=1, binder=BinderKind.SIM)) == {}
    reserved = DomainXml.parse(str(GUEST).replace("</domain>", RESERVE), "the test")
    for guest in (reserved, with_cmdline("quiet pci=hpiosize=0,hpmmioprefsize=0")):
        change = plan(facts(guest=guest), A, spare_ports=1)
        assert (reserved_by_us(change), bars(change)) == ({}, [])
        assert str(planner.plan_detach(GuestState(change.new), DetachRequest("g")).new) == str(
            guest
        )


def test_an_override_of_the_user_stays():
    mine = DomainXml.parse(str(GUEST).replace("</domain>", OVERRIDE), "the test")
    change = plan(facts(guest=mine), A, spare_ports=2)
    assert reserved_by_us(change) == {"pci.3": 67108864, "pci.2": 64 << 20, "pci.4": 64 << 20}


def test_a_note_if_no_memory_is_reserved():
    assert len(bars(plan(facts(), A, spare_ports=1, spare_memory=0))) == 1
    assert bars(plan(facts(), A)) == []
    for memory in (-1, 1 << 20):
        with pytest.raises(UsageError, match=r"spare memory: .* MiB; valid: 0 to 524288"):
            plan(facts(), A, spare_ports=1, spare_memory=memory)


def test_memory_for_a_device_that_is_plugged_in():
    first = plan(facts(), A, spare_ports=2, spare_memory=0)
    assert len(bars(plan(facts(**running(first)), B, scope=Scope.LIVE))) == 1
    reserved = DomainXml.parse(str(first.new).replace("</domain>", RESERVE), "the test")
    # What counts is what QEMU was started with.
    reserving = facts(guest=reserved, running=first.new)
    assert len(bars(plan(reserving, B, scope=Scope.LIVE))) == 1
    assert bars(plan(reserving, B)) == []
    assert bars(plan(facts(guest=reserved, running=reserved), B, scope=Scope.BOTH)) == []


def test_a_group_of_file_descriptors():
    change = plan(facts(), A, fdgroup="iommu")
    assert change.new.iommufd_fdgroup == "iommu"
    undone = planner.plan_detach(GuestState(change.new), DetachRequest("guest0"))
    assert str(undone.new) == str(GUEST)
    older = Support(Version(12, 2), Version(11, 1))
    words = "cannot write <iommufd fdgroup>.* Omit --fdgroup"
    with pytest.raises(RefusedError, match=words):
        plan(facts(support=older), A, fdgroup="iommu", binder=BinderKind.SIM)
    with pytest.raises(UsageError, match="file descriptor group: the name is empty"):
        plan(facts(), A, fdgroup="")


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_an_invalid_release_timeout(seconds):
    attached = plan(facts(), A)
    request = DetachRequest("guest0", release_s=seconds)
    with pytest.raises(UsageError, match=r"release timeout: .* s; valid: 0 or more"):
        planner.plan_detach(GuestState(attached.new), request)


# What runs.


def running(change):
    """Return the definition of a change as what runs."""
    return {"running": change.new, "guest": change.new}


def test_definition_and_running_guest_have_one_place_for_a_device():
    first = plan(facts(), A, spare_ports=1)
    change = plan(facts(**running(first)), B, scope=Scope.BOTH)
    assert str(change.new) == str(change.live.new)
    ((device, xml),) = change.live.devices
    assert device == B
    assert xml == (
        "<hostdev mode='subsystem' type='pci' managed='yes'>\n      <source>\n        "
        "<address domain='0x0001' bus='0x01' slot='0x00' function='0x0'/>\n      </source>\n      "
        "<address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>\n    "
        "</hostdev>"
    )
    assert not any("next start" in note for note in change.notes)


def test_the_running_guest_alone():
    first = plan(facts(), A, spare_ports=1)
    change = plan(facts(**running(first)), B, scope=Scope.LIVE)
    assert change.new is change.old
    assert [device.host for device in change.record.devices] == [A, B]
    assert "its next start is without the change" in " ".join(change.notes)
    out = planner.plan_detach(
        GuestState(first.new, change.live.new), DetachRequest("guest0", (), Scope.LIVE)
    )
    assert [device for device, _xml in out.live.devices] == [A, B]
    assert len(read_record(out.live.new).vsmmus[0].spare_ports) == 2


def test_a_device_of_the_definition_can_be_plugged_in():
    first = plan(facts(), A, spare_ports=1)
    later = plan(facts(guest=first.new), B)
    state = {"guest": later.new, "running": first.new, "holders": [(A, "guest0"), (B, "guest0")]}
    change = plan(facts(**state), B, scope=Scope.LIVE)
    assert [device for device, _xml in change.live.devices] == [B]
    with pytest.raises(RefusedError, match="it is already attached in another way; detach"):
        plan(facts(**state), B, scope=Scope.BOTH)


@pytest.mark.parametrize(
    "options", [{"spare_ports": 1}, {"driver": {"oas": "48"}}, {"fdgroup": "x"}]
)
def test_options_of_the_definition_alone(options):
    first = plan(facts(), A, spare_ports=1)
    with pytest.raises(UsageError, match="attaching with --scope live: spare ports, vSMMU prop"):
        plan(facts(**running(first)), B, scope=Scope.LIVE, **options)
