from importlib import resources

import pytest

from vmm_msi.domxml import editor
from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.support import Feature, Version, XmlLayout
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import (
    HypervisorError,
    InputError,
    NoHostDeviceError,
    RefusedError,
    TopologyError,
    UndoError,
)
from vmm_msi.host.resolve import resolve
from vmm_msi.libvirt_driver import connect, redefine, verify_defined
from vmm_msi.libvirt_driver.change import only_added
from vmm_msi.libvirt_driver.node_devices import host_of
from vmm_msi.types import Granule, GuestPlan, PciAddress, VsmmuPlan

A, B, C = (PciAddress.parse(f"000{segment}:01:00.0") for segment in range(3))
SAMPLES = resources.files("vmm_msi.samples")
URI = f"test://{SAMPLES.joinpath('test-driver.xml')}"
PLAN = GuestPlan((VsmmuPlan(0, (A, B)),))
ASSIGNMENTS = {host: editor.Assignment("identity", "sim") for host in (A, B)}


@pytest.fixture
def connection():
    with connect(URI) as opened:
        yield opened


def attached(domain, layout):
    return editor.apply(domain, PLAN, layout, ASSIGNMENTS)


def test_sample(connection):
    versions = connection.versions()
    assert versions.driver == "TEST"
    assert versions.libvirt >= Version(9, 0)
    assert versions.hypervisor is None
    assert connection.assigned() == []
    assert not connection.is_active("guest0")
    devices = {host: connection.node_device(host) for host in (A, B, C)}
    assert [device.iommu_group for device in devices.values()] == [10, 11, 12]
    assert [device.members for device in devices.values()] == [(A,), (B,), (C,)]
    assert [device.numa_node for device in devices.values()] == [0, 0, 1]


def test_sample_guest_with_three_devices():
    sample = SAMPLES.joinpath("three-devices.xml").read_bytes()
    domain = DomainXml.parse(sample, "three-devices.xml")
    assert tuple(device.host for device in guest_from_xml(domain).devices) == (A, B, C)
    domain.root.set("type", "test")
    with connect("test:///default") as connection:
        connection.define(domain)
        connection.undefine("three-devices")


@pytest.mark.parametrize("kind", ["test", "kvm", "qemu"])
def test_template_is_valid(kind, connection):
    domain = nested_guest("made", memory=1 << 30, kind=kind)
    domain.root.set("type", "test")
    assert connection.define(domain).memory == 1 << 30


def test_attach_and_detach(connection, capfd):
    old = connection.domain_xml("guest0")
    layout = connection.versions().support().layout()
    redefine(connection, "guest0", old, attached(old, layout))
    assert connection.assigned() == [(A, "guest0"), (B, "guest0")]
    for host in (B, A):
        now = connection.domain_xml("guest0")
        redefine(connection, "guest0", now, editor.remove(now, host))
    assert str(connection.domain_xml("guest0")) == str(old)
    assert capfd.readouterr() == ("", "")


def test_a_schema_error_restores_the_old_definition(connection):
    old = connection.domain_xml("guest0")
    new = attached(old, XmlLayout())
    with pytest.raises(
        HypervisorError,
        match=r"defining guest guest0 .*; valid is what this libvirt's schemas allow",
    ) as caught:
        redefine(connection, "guest0", old, new)
    assert "\n" not in str(caught.value)
    assert str(connection.domain_xml("guest0")) == str(old)


def test_a_dropped_driver_restores_the_old_definition(connection, monkeypatch):
    if connection.versions().support().has(Feature.PCI_BUS):
        pytest.skip("this libvirt knows <driver pciBus> and keeps it")
    old = connection.domain_xml("guest0")
    new = attached(old, XmlLayout())
    define = connection.define_text
    monkeypatch.setattr(
        connection, "define_text", lambda *what, **_flags: define(*what, validate=False)
    )
    with pytest.raises(HypervisorError) as caught:
        redefine(connection, "guest0", old, new)
    assert "dropped <iommufd enabled='yes'/>" in str(caught.value)
    assert "<driver pciBus='3' accel='on'> of <iommu model='smmuv3'>" in str(caught.value)
    assert str(connection.domain_xml("guest0")) == str(old)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("metadata", "the vmm-msi record"),
        ("devices/iommu/driver", "<driver pciBus='3' accel='on'>"),
        ("devices/iommu", "<iommu model='smmuv3'>"),
        ("devices/hostdev", "the <hostdev> of 0000:01:00.0"),
        ("devices/hostdev/address", "the guest address of the <hostdev> of 0000:01:00.0"),
        ("devices/controller[@index='3']", "the pcie-expander-bus with index 3"),
        ("devices/controller[@index='3']/target", "busNr 16 of the pcie-expander-bus"),
        ("devices/controller[@index='4']", "the pcie-root-port with index 4"),
        ("devices/controller[@index='4']/address", "the address of the pcie-root-port"),
        ("iommufd", "<iommufd enabled='yes'/>"),
    ],
)
def test_verify_names_what_is_missing(path, words, connection):
    written = attached(connection.domain_xml("guest0"), XmlLayout())
    verify_defined(written, written.copy())
    lossy = written.copy()
    element = lossy.root.find(path)
    element.getparent().remove(element)
    read_back = DomainXml.parse(str(lossy), "libvirt")
    with pytest.raises(HypervisorError) as caught:
        verify_defined(written, read_back)
    assert words in str(caught.value)
    # The comparison of lines detects it too.
    assert not only_added(str(written), str(read_back))


def test_a_failed_restore_is_an_undo_error(connection, monkeypatch):
    old = connection.domain_xml("guest0")

    def fail(*_what, **_flags):
        raise HypervisorError("it is gone")

    monkeypatch.setattr(connection, "define_text", fail)
    with pytest.raises(UndoError, match="restoring the old definition failed too"):
        redefine(connection, "guest0", old, old)


def test_another_guest_is_refused(connection):
    old = connection.domain_xml("guest0")
    with pytest.raises(HypervisorError, match="name and UUID would change"):
        redefine(connection, "guest0", old, connection.domain_xml("guest1"))


def test_a_guest_named_like_the_uuid_of_another(connection):
    """Any user who may define guests chooses such a name."""
    victim = connection.domain_xml("guest0")
    uuid = "0c0ffee0-0000-4000-8000-000000000001"
    text = str(victim).replace("<name>guest0</name>", f"<name>{victim.uuid}</name>")
    connection.define(
        DomainXml.parse(text.replace(f"<uuid>{victim.uuid}", f"<uuid>{uuid}"), "the test")
    )
    with pytest.raises(RefusedError, match=f"the UUID of guest guest0 .* whose UUID is {uuid}"):
        connection.domain_xml(victim.uuid)
    with pytest.raises(RefusedError, match="and rename the second"):
        connection.is_active(victim.uuid)
    assert connection.domain_xml(victim.uuid.upper()).name == "guest0"
    assert connection.domain_xml("guest0").uuid == victim.uuid
    assert connection.domain_xml(uuid).name == victim.uuid


def test_a_guest_named_like_its_own_uuid(connection):
    uuid = "0c0ffee0-0000-4000-8000-000000000002"
    old = connection.domain_xml("guest0")
    text = str(old).replace("<name>guest0</name>", f"<name>{uuid}</name>")
    connection.define(DomainXml.parse(text.replace(old.uuid, uuid), "the test"))
    assert connection.domain_xml(uuid).name == uuid


def test_lookup(connection):
    uuid = connection.domain_xml("guest0").uuid
    assert connection.domain_xml(uuid).name == "guest0"
    with pytest.raises(HypervisorError, match="no such guest; valid: guest0, guest1"):
        connection.domain_xml("absent")
    with pytest.raises(HypervisorError, match="no such guest"):
        connection.is_active(uuid.replace("5b", "6b", 1))
    with pytest.raises(NoHostDeviceError, match=r"host device 0000:09:00\.0 "):
        connection.node_device(PciAddress.parse("09:00.0"))


def test_errors_list_a_few_names(connection):
    for number in range(10):
        connection.define(nested_guest(f"more{number}", memory=1 << 20, kind="test"))
    with pytest.raises(HypervisorError, match=r"guest0, guest1, more0, .* and 4 more"):
        connection.domain_xml("absent")


def test_start_and_destroy(connection):
    connection.start("guest0")
    assert connection.is_active("guest0")
    with pytest.raises(HypervisorError, match="starting guest guest0"):
        connection.start("guest0")
    with pytest.raises(HypervisorError, match="this driver of libvirt cannot do that"):
        connection.monitor("guest0", "query-status")
    connection.destroy("guest0")
    assert not connection.is_active("guest0")


def test_read_only():
    with connect(URI, readonly=True) as connection:
        domain = connection.domain_xml("guest0")
        with pytest.raises(HypervisorError, match="connect for reading and writing"):
            connection.define(domain)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("test:///nowhere/node.xml", "there is no file /nowhere/node.xml"),
        ("qemu+unix:///system?socket=/nowhere/libvirt-sock", "is the libvirt daemon of that URI"),
        (f"test://{SAMPLES.joinpath('__init__.py')}", "connecting to test://"),
    ],
)
def test_no_connection(uri, words, capfd):
    with pytest.raises(HypervisorError) as caught, connect(uri):
        pass
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_invalid_node_device(connection):
    from vmm_msi.domxml.nodedev import read_node_device
    from vmm_msi.domxml.parse import parse
    from vmm_msi.errors import InputError

    root = parse("<device><driver><name>x</name></driver></device>", "here")
    assert read_node_device(root, A).driver == "x"
    root = parse("<device><capability type='pci'><numa node='x'/></capability></device>", "here")
    with pytest.raises(InputError, match=r"reading host device 0000:01:00\.0"):
        read_node_device(root, A)


def test_all_pci_devices_of_a_host():
    with connect(URI, readonly=True) as connection:
        host = host_of(connection)
        assert host.functions == tuple(connection.node_device(address) for address in (A, B, C))
    assert (host.source, host.granule, host.granule_known) == (URI, Granule.K4, True)
    assert [function.class_code for function in host.functions] == [0x010802] * 3
    assert (host.routes, host.smmus, host.itses) == ((), (), ())
    with pytest.raises(TopologyError) as caught:
        resolve(host, A)
    assert f"finding {A} in {URI}: {URI} reports PCI functions and IOMMU groups" in str(
        caught.value
    )
    assert "name a second HOST" in str(caught.value)


def test_a_host_without_pci_devices():
    with connect("test:///default", readonly=True) as connection:
        assert host_of(connection).functions == ()


def test_invalid_node_devices():
    from vmm_msi.domxml.hostcaps import read_page_size
    from vmm_msi.domxml.nodedev import read_pci_function
    from vmm_msi.domxml.parse import parse

    for text in (
        "<device><driver><name>x</name></driver></device>",
        "<device><capability type='pci'><domain>0</domain><bus>one</bus></capability></device>",
    ):
        with pytest.raises(InputError, match="reading host device x: it has no PCI address"):
            read_pci_function(parse(text, "x"), "host device x")
    for pages, expected in (
        ("", None),
        ("<pages unit='KiB' size='64'/><pages unit='KiB' size='524288'/>", Granule.K64),
        ("<pages unit='KiB' size='8'/>", None),
        ("<pages unit='KiB' size='x'/>", None),
    ):
        text = f"<capabilities><host><cpu>{pages}</cpu></host></capabilities>"
        assert read_page_size(parse(text, "x")) == expected
