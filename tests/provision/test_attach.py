"""Attach and detach on libvirt's test driver: a real libvirt, a node file, no hypervisor."""

from __future__ import annotations

import itertools

import pytest
from provision.helpers import (
    A2,
    GUESTS,
    A,
    B,
    C,
    attach,
    detach,
    holders,
    plan,
    texts,
)

from vmm_msi import config
from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, ROOT_PORT, DomainXml
from vmm_msi.domxml.metadata import read_record
from vmm_msi.domxml.support import Feature
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import (
    DomainXmlError,
    FindingsError,
    HypervisorError,
    RefusedError,
    UsageError,
)
from vmm_msi.libvirt_driver import connect
from vmm_msi.provision import apply_change
from vmm_msi.types import BinderKind, Outcome, PciAddress


def names(devices):
    return "-".join(map(str, devices))


FAR = PciAddress.parse("0009:01:00.0")


def with_hostdev(domain, host):
    """Return ``domain`` with a <hostdev> for ``host`` that the user wrote."""
    text = (
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address "
        f"domain='{host.segment:#x}' bus='{host.bus:#x}' slot='{host.device:#x}' "
        f"function='{host.function:#x}'/></source></hostdev></devices>"
    )
    return DomainXml.parse(str(domain).replace("</devices>", text), "the test")


def settings_of(tmp_path, text):
    path = tmp_path / "vmm-msi.toml"
    path.write_text(text, encoding="utf-8")
    return config.load_config(path)


def several_vsmmus(connection):
    return connection.versions().support().has(Feature.PCI_BUS)


@pytest.mark.parametrize("devices", [(A,), (A, B), (B, A)], ids=names)
def test_attached_parts_are_in_the_definition(connection, devices):
    before = connection.domain_xml("guest0")
    change = attach(connection, *devices)
    xml = connection.domain_xml("guest0")
    assert str(xml) == str(change.new)
    added = xml.controllers()[len(before.controllers()) :]
    pxb, *ports = added
    assert (pxb.model, pxb.bus_nr is not None) == (EXPANDER_BUS, True)
    assert [port.model for port in ports] == [ROOT_PORT] * len(devices)
    assert [port.address for port in ports] == [
        PciAddress(0, pxb.index, slot, 0) for slot in range(len(devices))
    ]
    (iommu,) = xml.iommus()
    assert iommu.model == "smmuv3"
    assert [(hostdev.host, hostdev.guest) for hostdev in xml.hostdevs()] == [
        (device, PciAddress(0, port.index, 0, 0))
        for device, port in zip(devices, ports, strict=True)
    ]
    assert all(hostdev.managed for hostdev in xml.hostdevs())

    record = read_record(xml)
    assert record == change.record
    (vsmmu,) = record.vsmmus
    assert (vsmmu.pxb, vsmmu.bus_nr, vsmmu.smmu, vsmmu.its) == (pxb.index, pxb.bus_nr, 0, None)
    assert [device.host for device in record.devices] == list(devices)
    for number, device in enumerate(record.devices):
        assert (device.strategy, device.backend) == ("identity", "sim")
        assert (device.pxb, device.root_port) == (pxb.index, ports[number].index)
        assert (device.smmu, device.its) == (0, device.host.segment)
        binding = device.binding
        assert binding.outcome is Outcome.DELIVERED
        # The n-th doorbell in order of first use has the n-th page of the MSI window.
        assert binding.programmed == tuple(0x8000040 + n * 0x1000 for n in range(len(devices)))
        assert binding.gdb == 0x8090000
    assert [verdict.device for verdict in change.verdicts] == list(devices)


@pytest.mark.parametrize("order", [*itertools.permutations((A, B, A2))], ids=names)
def test_detaching_in_any_order_restores_the_text(connection, order):
    before = texts(connection)
    attach(connection, A, B, A2)
    left = [A, B, A2]
    for device in order:
        change = detach(connection, device)
        left.remove(device)
        xml = connection.domain_xml("guest0")
        assert [hostdev.host for hostdev in xml.hostdevs()] == left
        assert [device.host for device in change.record.devices] == left
    assert texts(connection) == before


def test_detach_leaves_no_gap_in_the_controllers_indexes(connection):
    """libvirt's QEMU driver would fill it with a root port of its own."""
    attach(connection, A, B, A2)
    before = connection.domain_xml("guest0")
    slots = {h.host: before.controllers()[h.guest.bus].address.device for h in before.hostdevs()}
    detach(connection, A)
    xml = connection.domain_xml("guest0")
    assert [controller.index for controller in xml.controllers()] == [0, 1, 2, 3, 4, 5]
    record = read_record(xml)
    ports = {controller.index: controller for controller in xml.controllers()}
    for hostdev in xml.hostdevs():
        assert hostdev.guest.bus == record.device(hostdev.host).root_port
        # What the guest sees is where it was: the slot on the expander bus, and its bus number.
        assert ports[hostdev.guest.bus].address.device == slots[hostdev.host]
    assert record.vsmmus == read_record(before).vsmmus


def test_detach_without_names_removes_all(connection):
    before = texts(connection)
    attach(connection, A, B)
    assert detach(connection).record.devices == ()
    assert texts(connection) == before


@pytest.mark.parametrize("order", [*itertools.permutations((A, B))], ids=names)
def test_attaching_one_by_one_equals_attaching_together(connection, order):
    before = texts(connection)
    attach(connection, *order)
    together = texts(connection)
    detach(connection)
    assert texts(connection) == before
    for device in order:
        attach(connection, device)
    assert texts(connection) == together


def test_a_guest_is_found_by_uuid(connection):
    uuid = connection.domain_xml("guest0").uuid
    attach(connection, A, guest=uuid)
    assert holders(connection, A) == ["guest0"]
    detach(connection, A, guest=uuid)
    assert holders(connection, A) == []


def test_two_guests_have_devices_of_their_own(connection):
    before = texts(connection)
    attach(connection, A)
    attach(connection, B, guest="guest1", strategy="direct")
    assert (holders(connection, A), holders(connection, B)) == (["guest0"], ["guest1"])
    detach(connection)
    detach(connection, guest="guest1")
    assert texts(connection) == before


def test_a_plan_changes_nothing(connection):
    before = texts(connection)
    change = plan(connection, A, B)
    assert texts(connection) == before
    assert str(change.new) != before["guest0"] == str(change.old)


def test_a_running_guest_changes_at_its_next_start(connection):
    before = texts(connection)
    connection.start("guest0")
    live = str(connection.domain_xml("guest0", inactive=False))
    for change in (attach(connection, A), detach(connection, A)):
        assert "the change takes effect at its next start" in " ".join(change.notes)
        assert str(connection.domain_xml("guest0", inactive=False)) == live
    assert texts(connection) == before


def test_later_edits_of_the_user_stay(connection):
    attach(connection, A)
    attached = connection.domain_xml("guest0")
    connection.define(with_hostdev(attached, C))
    attach(connection, B)
    detach(connection)
    xml = connection.domain_xml("guest0")
    assert [hostdev.host for hostdev in xml.hostdevs()] == [C]
    assert read_record(xml) is None


# Strategies.

#: What each of two devices of two ITSes may be programmed with.
SLOTS = (0x8000040, 0x8001040)


@pytest.mark.parametrize(
    ("strategy", "devices", "kernel", "programmed"),
    [
        ("identity", (A, B), "linux-7.2", (SLOTS, SLOTS)),
        ("multi-its", (A, B), "linux-7.2-bind", ((0xFFFFF040,), (0xFFFFF040,))),
        ("multi-its:mode=vsmmu", (A,), "linux-7.2", ((0x8000040,),)),
        ("direct", (A,), "linux-7.2-bind", ((0xFFFFF040,),)),
        ("direct", (A, A2), "linux-7.2-bind", ((0xFFFFF040,), (0xFFFFF040,))),
        ("direct:profile=series-v8", (A,), "series-v8", ((0xFFFFF040,),)),
        ("coerced", (A,), "linux-7.2-bind", ((0xFFFFF040,),)),
        ("coerced:revision=v2", (A, A2), "linux-7.2-bind", ((0xFFFFF040,), (0xFFFFF040,))),
    ],
    ids=lambda value: names(value) if isinstance(value, tuple) else str(value),
)
def test_strategies(connection, strategy, devices, kernel, programmed):
    before = texts(connection)
    change = attach(connection, *devices, strategy=strategy)
    assert change.binder is BinderKind.SIM
    assert f"the doorbell binding is simulated ({kernel})" in " ".join(change.notes)
    record = read_record(connection.domain_xml("guest0"))
    name, _, options = strategy.partition(":")
    for device, address in zip(record.devices, programmed, strict=True):
        assert (device.strategy, device.binding.programmed) == (name, address)
        assert ",".join(f"{key}={value}" for key, value in device.options.items()) == options
        assert device.binding.outcome is Outcome.DELIVERED
    detach(connection)
    assert texts(connection) == before


def test_a_recorded_strategy_with_options_is_used_again(connection):
    attach(connection, A, strategy="coerced:revision=v2")
    change = attach(connection, A2, strategy="coerced:revision=v2")
    assert "(linux-7.2-bind)" in " ".join(change.notes)
    assert [verdict.outcome for verdict in change.verdicts] == [Outcome.DELIVERED] * 2


def test_bindings_of_remaining_devices_are_updated(connection):
    attach(connection, A, B)
    detach(connection, A)
    change = attach(connection, A2)
    record = read_record(connection.domain_xml("guest0"))
    shown = {device.host: device.binding.programmed for device in record.devices}
    assert shown == {verdict.device: verdict.possible for verdict in change.verdicts}
    assert shown == {B: SLOTS, A2: SLOTS}


def test_faults_are_attached_if_allowed(connection):
    before = texts(connection)
    attach(connection, A, strategy="host-cookie", allow_faults=True)
    (device,) = read_record(connection.domain_xml("guest0")).devices
    assert (device.binding.outcome, device.binding.programmed) == (Outcome.S1_FAULT, (0x8000040,))
    detach(connection)
    assert texts(connection) == before


def test_an_allowed_fault_does_not_block_others(connection):
    attach(connection, A, strategy="host-cookie", allow_faults=True)
    with pytest.raises(RefusedError, match=f"msi-lost .{B}.: .*: s1-fault"):
        attach(connection, B, strategy="host-cookie")
    attach(connection, B, strategy="host-cookie", allow_faults=True)


def test_the_configuration_names_a_strategy_for_each_device(connection, tmp_path):
    settings = settings_of(
        tmp_path,
        f"""
        strategy = "identity"
        [[domain]]
        name = "guest0"
        strategy = "multi-its"
        [[domain.device]]
        address = "{A2}"
        strategy = "direct"
        [strategies.multi-its]
        mode = "s2"
        """,
    )
    before = texts(connection)
    attach(connection, A, A2, settings=settings)
    record = read_record(connection.domain_xml("guest0"))
    assert {d.host: (d.strategy, dict(d.options)) for d in record.devices} == {
        A: ("multi-its", {"mode": "s2"}),
        A2: ("direct", {}),
    }
    # Two strategies, one physical SMMU: one vSMMU, as if they came one after the other.
    assert len(record.vsmmus) == 1
    detach(connection)
    attach(connection, A, guest="guest0", settings=settings, strategy="coerced")
    assert read_record(connection.domain_xml("guest0")).devices[0].strategy == "coerced"
    detach(connection)
    attach(connection, B, settings=settings_of(tmp_path, 'strategy = "coerced"'))
    assert read_record(connection.domain_xml("guest0")).devices[0].strategy == "coerced"
    detach(connection)
    assert texts(connection) == before


def test_strategies_without_a_common_kernel_are_refused(connection):
    attach(connection, A, strategy="direct:profile=series-v8")
    before = texts(connection)
    with pytest.raises(RefusedError, match="name two kernels"):
        attach(connection, A2, strategy="direct:profile=series-v15")
    assert texts(connection) == before


# Refusals: the words, the class, and nothing changed.

REFUSALS = {
    "named twice": ({"devices": (A, A)}, UsageError, "0000:01:00.0: named twice"),
    "not on the host": (
        {"devices": (FAR,)},
        FindingsError,
        "device-missing .0009:01:00.0.: .* lspci -D, in 0000:00:00.0-0000:ff:1f.7",
    ),
    "no such guest": (
        {"guest": "absent"},
        HypervisorError,
        "looking for guest absent at test://.*: no such guest; valid: guest0, guest1",
    ),
    "unknown strategy": (
        {"strategy": "nope"},
        UsageError,
        "strategy 'nope': no such plugin; valid: coerced, direct, host-cookie, identity",
    ),
    "unknown option": (
        {"strategy": "direct:x=1"},
        UsageError,
        "strategy direct: unknown option 'x'; valid: profile",
    ),
    "wrong value": (
        {"strategy": "coerced:revision=v9"},
        UsageError,
        r"strategy coerced: .*'v9'.*revision: v15 \| v2 \| v4 \| v8",
    ),
    "no ACPI": (
        {"guest": "guest1"},
        FindingsError,
        "to guest1: no-acpi .guest guest1.: The guest gets no RMR, .*Add <acpi/> .* msi-lost",
    ),
    "faults": (
        {"strategy": "host-cookie"},
        FindingsError,
        "msi-lost .0000:01:00.0.: .*: s1-fault: .*IOVA 0x8000040. .*--allow-faults",
    ),
    "conflict": (
        {"strategy": "direct", "devices": (A, B)},
        RefusedError,
        "doorbell 0x8090000 of 0001:01:00.0 to ITS 1: conflict, 0000:01:00.0 has it .* ITS 0 ",
    ),
    "another ITS": (
        {"strategy": "coerced:revision=v8", "devices": (A, B)},
        RefusedError,
        "EINVAL: .*0001:01:00.0 uses ITS 1, 0000:01:00.0 uses ITS 0",
    ),
    "reserved window": (
        {"strategy": "direct:profile=linux-7.2"},
        RefusedError,
        "0x8000000-0x80fffff",
    ),
    "kernel without the interface": (
        {"strategy": "identity:profile=series-v8"},
        RefusedError,
        "strategy identity: the backend .*series-v8.* lacks",
    ),
    "not a QEMU": (
        {"binder": BinderKind.QEMU},
        RefusedError,
        "--backend qemu: the driver of this libvirt connection is TEST; use --backend sim",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(connection, case, capfd):
    request, kind, words = REFUSALS[case]
    request = {"devices": (A,), **request}
    before = texts(connection)
    with pytest.raises(kind, match=words) as caught:
        attach(connection, *request.pop("devices"), **request)
    assert "\n" not in str(caught.value)
    assert texts(connection) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("strategy", ["identity", "multi-its", "direct", "coerced"])
def test_two_physical_smmus_require_pci_bus(connection, strategy):
    if several_vsmmus(connection):
        pytest.skip("this libvirt knows <driver pciBus>")
    before = texts(connection)
    with pytest.raises(RefusedError) as caught:
        attach(connection, A, C, strategy=strategy)
    words = str(caught.value)
    assert "to guest0, with 2 vSMMUs: libvirt-too-old (guest guest0): " in words
    assert "cannot write <driver pciBus> (several vSMMUs): needs libvirt 11.10" in words
    assert "Use devices behind one physical SMMU" in words
    assert texts(connection) == before
    attach(connection, A, strategy=strategy)
    attached = texts(connection)
    with pytest.raises(RefusedError, match="with 2 vSMMUs: libvirt-too-old "):
        attach(connection, C, strategy=strategy)
    assert texts(connection) == attached


def test_a_vsmmu_per_its_requires_pci_bus(connection):
    if several_vsmmus(connection):
        pytest.skip("this libvirt knows <driver pciBus>")
    before = texts(connection)
    with pytest.raises(RefusedError, match=r"needs libvirt 11\.10.*multi-its:mode=s2"):
        attach(connection, A, B, strategy="multi-its:mode=vsmmu")
    assert texts(connection) == before


def test_a_device_that_is_attached_in_this_way_already(connection):
    attach(connection, A)
    before = texts(connection)
    change = attach(connection, A)
    assert change.is_empty
    assert f"{A}: attached in this way already; nothing was changed" in change.notes
    assert texts(connection) == before
    change = attach(connection, B, A)
    assert not change.is_empty
    assert [event.device for event in change.events] == [B]
    assert {hostdev.host for hostdev in connection.domain_xml("guest0").hostdevs()} == {A, B}


@pytest.mark.parametrize(
    "request_",
    [{"strategy": "multi-its"}, {"managed": False}, {"spare_ports": 1}],
    ids=lambda request_: next(iter(request_)),
)
def test_a_device_that_is_attached_in_another_way(connection, request_):
    attach(connection, A)
    before = texts(connection)
    with pytest.raises(
        RefusedError, match=r"attaching 0000:01:00\.0 to guest0: it is already attached in another"
    ):
        attach(connection, A, **request_)
    with pytest.raises(RefusedError, match=r"held-by-domain .*: Domain guest0 already has"):
        attach(connection, A, guest="guest1", strategy="direct")
    assert texts(connection) == before


def test_a_hostdev_of_the_user_blocks_the_device(connection):
    connection.define(with_hostdev(connection.domain_xml("guest0"), A))
    before = texts(connection)
    with pytest.raises(RefusedError, match="the guest already has a <hostdev> for it; remove that"):
        attach(connection, A)
    with pytest.raises(RefusedError, match=r"held-by-domain .*: Domain guest0 already has"):
        attach(connection, A, guest="guest1", strategy="direct")
    assert texts(connection) == before


@pytest.mark.parametrize(
    "gic",
    ["", "<gic version='2'/>"],
)
def test_a_guest_without_an_its(connection, gic):
    text = str(nested_guest("other", memory=1 << 30, kind="test"))
    assert "<gic version='3'/>" in text
    connection.define(DomainXml.parse(text.replace("<gic version='3'/>", gic), "the test"))
    before = texts(connection)
    with pytest.raises(FindingsError, match="Add <gic version='3'/> to <features>") as caught:
        attach(connection, A, guest="other", strategy="direct")
    assert caught.value.findings == ("guest-gic",)
    assert texts(connection) == before


def test_an_its_selector_that_does_not_exist(connection, tmp_path):
    before = texts(connection)
    with pytest.raises(UsageError, match="its-selector 'mine': no such plugin; valid: first-in"):
        attach(connection, A, settings=settings_of(tmp_path, 'its_selector = "mine"'))
    assert texts(connection) == before


@pytest.mark.parametrize(
    ("devices", "kind", "words"),
    [
        ((B,), DomainXmlError, "from guest0: vmm-msi did not attach it; it attached 0000:01:00.0"),
        ((A, B), DomainXmlError, "removing 0001:01:00.0 from guest0"),
        ((A, A), UsageError, "0000:01:00.0: named twice"),
    ],
    ids=str,
)
def test_detach_refused(connection, devices, kind, words):
    attach(connection, A)
    before = texts(connection)
    with pytest.raises(kind, match=words):
        detach(connection, *devices)
    assert texts(connection) == before


@pytest.mark.parametrize("guest", GUESTS)
def test_detach_of_nothing(connection, guest):
    with pytest.raises(UsageError, match=f"detaching from {guest}: vmm-msi has attached no device"):
        detach(connection, guest=guest)


def test_a_read_only_connection_plans_and_changes_nothing(connection):
    with connect(connection.uri, readonly=True) as readonly:
        before = texts(readonly)
        change = plan(readonly, A)
        with pytest.raises(HypervisorError, match="connect for reading and writing"):
            apply_change(readonly, change)
        assert texts(readonly) == before


def test_a_device_unknown_to_libvirt_is_in_the_description(connection):
    device = PciAddress.parse("0005:03:1f.7")
    change = attach(connection, device)
    assert change.notes[0].startswith(f"libvirt knows no host device {device};")
    (device,) = change.record.devices
    assert (device.smmu, device.its) == (2, 5)
