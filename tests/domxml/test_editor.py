import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_msi.domxml import editor
from vmm_msi.domxml.editor import Assignment
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import BindingRecord, read_record
from vmm_msi.domxml.support import IommufdForm, XmlLayout
from vmm_msi.errors import DomainXmlError
from vmm_msi.types import GuestPlan, PciAddress, VsmmuPlan

A, B, C, D = (PciAddress.parse(f"000{segment}:01:00.0") for segment in range(4))
HOSTS = (A, B, C, D)
FULL = XmlLayout()

LAYOUTS = (
    FULL,
    XmlLayout(pci_bus=False, accel=False, iommufd=IommufdForm.NONE),
    XmlLayout(accel=False, iommufd=IommufdForm.HOSTDEV, driver={"oas": "48"}),
)

FLAT = (
    "<domain type='kvm'><name>flat</name><memory>1048576</memory><vcpu>1</vcpu><devices>"
    "<controller type='pci' index='0' model='pcie-root'/></devices></domain>\n"
)
EMPTY_DEVICES = "<domain type='kvm'>\n\t<name>tab</name>\n\t<metadata/>\n\t<devices/>\n</domain>\n"

NO_DEVICES = "<domain type='kvm'>\n  <name>bare</name>\n  <memory>1048576</memory>\n</domain>\n"


def plan(*groups, iommufd=True):
    """Return a plan with a vSMMU for each (smmu, its) and the devices behind it."""
    return GuestPlan(
        tuple(VsmmuPlan(smmu, tuple(hosts), its) for (smmu, its), hosts in groups), iommufd
    )


def assign(*hosts):
    return {host: Assignment("identity", "qemu") for host in hosts}


@pytest.mark.parametrize("name", ["plain", "busy"])
def test_golden(name, read, golden, level, layout, plan_name, plan, assignments):
    old = read(name)
    before = str(old)
    new = editor.apply(old, plan, layout, assignments)
    assert str(old) == before
    golden(f"{name}.{plan_name}.{level}.xml", str(new))


@pytest.mark.parametrize("name", ["plain", "busy"])
def test_inputs_are_canonical(name, read):
    text = str(read(name))
    assert str(DomainXml.parse(text, name)) == text


@st.composite
def steps(draw):
    """Draw a grouping of the devices and the orders in which they are attached and detached."""
    keys = [draw(st.sampled_from([(0, None), (0, 0), (0, 1), (1, 1)])) for _ in HOSTS]
    come = draw(st.permutations(HOSTS))
    cut = draw(st.integers(1, len(HOSTS)))
    go = draw(st.permutations(HOSTS))
    return dict(zip(HOSTS, keys, strict=True)), (come[:cut], come[cut:]), go


@settings(deadline=None, max_examples=60)
@given(
    steps(),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["plain", "busy", "flat", "empty", "none"]),
    st.booleans(),
)
def test_detach_undoes_attach(scenario, layout, name, iommufd):
    from pathlib import Path

    keys, batches, go = scenario
    texts = {"flat": FLAT, "empty": EMPTY_DEVICES, "none": NO_DEVICES}
    path = Path(__file__).parent / "golden" / f"{name}.in.xml"
    text = texts.get(name) or path.read_text(encoding="utf-8")
    original = DomainXml.parse(text, name)
    before = str(original)
    now = original
    present = []
    for batch in batches:
        present.extend(batch)
        groups = {}
        for host in present:
            groups.setdefault(keys[host], []).append(host)
        now = editor.apply(now, plan(*groups.items(), iommufd=iommufd), layout, assign(*batch))
        check(now, groups, layout)
        now = DomainXml.parse(str(now), name)
    for host in go:
        now = editor.remove(now, host)
        assert host not in {hostdev.host for hostdev in now.hostdevs()}
    assert str(now) == before


def check(domain, groups, layout):
    """Check every device against the record, and that no bus ranges overlap."""
    record = read_record(domain)
    assert {(v.smmu, v.its) for v in record.vsmmus} == set(groups)
    controllers = domain.controllers()
    indexes = [controller.index for controller in controllers]
    assert len(set(indexes)) == len(indexes)
    hostdevs = {hostdev.host: hostdev for hostdev in domain.hostdevs()}
    for device in record.devices:
        port = next(c for c in controllers if c.index == device.root_port)
        assert port.address.bus == device.pxb < port.index
        assert hostdevs[device.host].guest.bus == device.root_port
    starts = {c.index: c.bus_nr for c in controllers if c.bus_nr is not None}
    for index, start in starts.items():
        end = start + 1 + sum(1 for _ in domain.on_bus(index))
        assert end <= 256
        assert not any(start < other < end for other in starts.values())
    buses = [iommu.pci_bus for iommu in domain.iommus()]
    if layout.pci_bus:
        assert sorted(buses) == sorted(str(v.pxb) for v in record.vsmmus)
    else:
        assert buses == [None]


def test_an_expander_bus_of_the_user_keeps_its_numbers(read):
    new = editor.apply(read("busy"), plan(((0, 0), [A]), ((1, 1), [B])), FULL, assign(A, B))
    starts = {c.index: c.bus_nr for c in new.controllers() if c.bus_nr is not None}
    # The user's expander bus 2 is at 18 with one root port; a range from 16 would overlap it.
    assert starts == {2: 18, 3: 32, 6: 48}


def test_a_new_device_goes_behind_the_recorded_vsmmu(read):
    one = editor.apply(read("plain"), plan(((0, None), [A])), FULL, assign(A))
    two = editor.apply(one, plan(((0, None), [A, B])), FULL, assign(B))
    record = read_record(two)
    assert len(record.vsmmus) == 1
    assert [device.root_port for device in record.devices] == [2, 3]
    assert len(two.iommus()) == 1
    assert str(editor.apply(two, plan(((0, None), [A, B])), FULL, {})) == str(two)


def test_bus_numbers_run_out(read):
    groups = [((smmu, None), [PciAddress(100 + smmu, 1, 0, 0)]) for smmu in range(127)]
    hosts = [host for _key, (host,) in groups]
    with pytest.raises(DomainXmlError, match=r"no 2 consecutive bus numbers of 256 are free"):
        editor.apply(read("plain"), plan(*groups, ((200, None), [D])), FULL, assign(*hosts, D))
    new = editor.apply(read("plain"), plan(*groups[:15]), FULL, assign(*hosts))
    assert [v.bus_nr for v in read_record(new).vsmmus] == [*range(16, 256, 16)]


@pytest.mark.parametrize(
    ("device", "fits"),
    [
        ("<disk><target dev='sda' bus='scsi'/></disk>", True),
        ("<hostdev type='usb'/>", True),
        ("<disk><target dev='vda' bus='virtio'/></disk>", False),
        ("<rng model='virtio'/>", False),
    ],
)
def test_devices_without_a_pci_slot_are_not_counted(device, fits, read):
    many = edited(read("plain"), "<memballoon", f"{device * 300}<memballoon")
    if fits:
        new = editor.apply(many, plan(((0, None), [A])), FULL, assign(A))
        assert [v.bus_nr for v in read_record(new).vsmmus] == [16]
    else:
        with pytest.raises(DomainXmlError, match="bus numbers of 256 are free"):
            editor.apply(many, plan(((0, None), [A])), FULL, assign(A))


def test_a_vsmmu_cannot_grow_into_the_next(read):
    hosts = [PciAddress(7, bus, 0, 0) for bus in range(16)]
    old = editor.apply(
        read("plain"), plan(((0, 0), hosts[:15]), ((1, 1), [A])), FULL, assign(*hosts, A)
    )
    with pytest.raises(DomainXmlError, match="the bus numbers of expander bus 1, 16 to 31, are"):
        editor.apply(old, plan(((0, 0), hosts)), FULL, assign(*hosts))


def test_slots_run_out(read):
    hosts = [PciAddress(7, bus, 0, 0) for bus in range(33)]
    with pytest.raises(DomainXmlError, match="the 32 slots of expander bus 1 are used"):
        editor.apply(read("plain"), plan(((0, 0), hosts)), FULL, assign(*hosts))


def edited(domain, old, new):
    text = str(domain)
    assert old in text
    return DomainXml.parse(text.replace(old, new), "here")


@pytest.mark.parametrize(
    ("extra", "layout", "words"),
    [
        ("<iommu model='virtio'/>", FULL, "only smmuv3 is compatible with it"),
        ("<iommu model='smmuv3'/>", FULL, "without pciBus"),
        ("<iommu model='smmuv3'><driver pciBus='9'/></iommu>", LAYOUTS[1], "does not support"),
        ("<controller type='pci' index='9' model='pcie-expander-bus'/>", FULL, "no index or busNr"),
        (
            "<hostdev mode='subsystem' type='pci'><source><address bus='0x1'/></source></hostdev>",
            FULL,
            "a <hostdev> or <qemu:arg> that vmm-msi did not add assigns it",
        ),
        (
            "<controller type='pci' index='zz' model='pcie-root-port'/>",
            FULL,
            "index is 'zz'; valid is a decimal number",
        ),
        (
            "<disk><address type='pci' bus='0x1' slot='0x20'/></disk>",
            FULL,
            "slot is '0x20'; valid is 0 to 0x1f",
        ),
    ],
)
def test_refused(extra, layout, words, read):
    domain = edited(read("plain"), "<memballoon", f"{extra}<memballoon")
    with pytest.raises(DomainXmlError) as caught:
        editor.apply(domain, plan(((0, None), [A])), layout, assign(A))
    assert words in str(caught.value)
    assert "plain" in str(caught.value)


def test_disabled_iommufd_is_refused_and_enabled_iommufd_is_kept(read):
    off = edited(read("plain"), "<os ", "<iommufd enabled='no'/><os ")
    with pytest.raises(DomainXmlError, match="has <iommufd enabled='no'/>"):
        editor.apply(off, plan(((0, None), [A])), FULL, assign(A))
    on = edited(read("plain"), "<os ", "<iommufd enabled='yes'/><os ")
    new = editor.apply(on, plan(((0, None), [A])), FULL, assign(A))
    assert not read_record(new).iommufd_added
    assert editor.remove(new, A).iommufd is True


def test_a_machine_wide_iommu_of_the_user_is_shared_and_kept(read):
    old = edited(read("plain"), "</devices>", "  <iommu model='smmuv3'/>\n  </devices>")
    new = editor.apply(old, plan(((0, None), [A])), LAYOUTS[1], assign(A))
    assert len(new.iommus()) == 1
    assert str(editor.remove(new, A)) == str(old)


def test_a_device_planned_behind_another_vsmmu_is_refused(read):
    old = editor.apply(read("plain"), plan(((0, 0), [A])), FULL, assign(A))
    with pytest.raises(DomainXmlError, match="now planned behind another; detach it first"):
        editor.apply(old, plan(((0, 1), [A])), FULL, assign(A))
    with pytest.raises(DomainXmlError, match="pass an assignment"):
        editor.apply(old, plan(((0, 0), [A, B])), FULL, {})


def test_removing_an_unrecorded_device_is_refused(read):
    with pytest.raises(DomainXmlError, match="vmm-msi did not attach it; it attached no device"):
        editor.remove(read("busy"), PciAddress.parse("0000:41:00.0"))


def test_removing_a_port_with_a_device_of_the_user_is_refused(read):
    old = editor.apply(read("plain"), plan(((0, 0), [A])), FULL, assign(A))
    used = edited(
        old,
        "    <memballoon",
        "    <controller type='usb' index='0' model='qemu-xhci'><address type='pci' bus='0x01' "
        "slot='0x05'/></controller>\n    <memballoon",
    )
    with pytest.raises(DomainXmlError, match=r"the <controller> on line .* is plugged into it"):
        editor.remove(used, A)


def test_remove_skips_missing_elements(read):
    old = editor.apply(read("plain"), plan(((0, 0), [A])), FULL, assign(A))
    for element in [*old.devices.iterchildren("hostdev", "iommu")]:
        old.devices.remove(element)
    new = editor.remove(old, A)
    assert read_record(new) is None
    assert len(new.controllers()) == 1


def test_a_guest_without_devices():
    old = DomainXml.parse(NO_DEVICES, "bare")
    assert str(editor.apply(old, plan(), FULL, {})) == NO_DEVICES
    new = editor.apply(old, plan(((0, None), [A])), FULL, assign(A))
    assert [hostdev.host for hostdev in new.hostdevs()] == [A]
    assert str(editor.remove(new, A)) == NO_DEVICES
    used = edited(new, "  </devices>", "    <hub type='usb'/>\n  </devices>")
    assert len(editor.remove(used, A).devices) == 1


def test_numa_node(read):
    assignment = dataclasses.replace(assign(A)[A], node=1)
    new = editor.apply(read("plain"), plan(((0, 0), [A])), FULL, {A: assignment})
    assert [c.node for c in new.controllers() if c.bus_nr is not None] == [1]


def test_record_bindings(read):
    old = editor.apply(read("plain"), plan(((0, 0), [A])), FULL, assign(A))
    binding = BindingRecord(outcome=None)
    new = editor.record_bindings(old, {A: binding})
    assert read_record(new).device(A).binding == binding
    assert str(editor.remove(new, A)) == str(read("plain"))
    with pytest.raises(DomainXmlError, match=r"recording the binding of 0001:01:00\.0"):
        editor.record_bindings(old, {B: binding})
