"""Documents that describe a guest: a domain XML, and libvirt's own documents around one."""

import io
from types import SimpleNamespace

import pytest

from vmm_msi import samples
from vmm_msi.domxml.document import (
    is_document,
    named_in_libvirt,
    read_document,
    read_domain,
    read_editable,
)
from vmm_msi.errors import DomainXmlError, HypervisorError, UsageError
from vmm_msi.types import PciAddress

GUEST = samples.path("three-devices.xml").read_text()
#: As libvirt writes them: in /run/libvirt/qemu, and virsh snapshot-dumpxml, checkpoint-dumpxml.
STATUS = (
    "<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE.\n-->\n"
    "<domstatus state='running' reason='booted' pid='7'>\n  <taint flag='custom-argv'/>\n"
    "  <monitor path='/m' type='unix'/>\n  {}\n</domstatus>\n"
)
SNAPSHOT = (
    "<domainsnapshot><name>s1</name><state>running</state>{}"
    "<inactiveDomain type='kvm'><name>other</name></inactiveDomain></domainsnapshot>"
)
CHECKPOINT = "<domaincheckpoint><name>c1</name><disks/>{}</domaincheckpoint>"
WRAPPERS = pytest.mark.parametrize("wrapper", [STATUS, SNAPSHOT, CHECKPOINT])


def test_a_domain_is_printed_as_it_was_read():
    text = '<domain  type="kvm"><name>a</name></domain>\n'
    assert str(read_domain(text.encode(), "x")) == text
    assert str(read_editable(text.encode(), "x")) == text


@WRAPPERS
def test_the_domain_inside(wrapper):
    alone = read_domain(GUEST.encode(), "x")
    domain = read_domain(wrapper.format(GUEST).encode(), "x.xml")
    assert domain.name == alone.name
    assert [h.host for h in domain.hostdevs()] == [h.host for h in alone.hostdevs()]
    assert domain.path(domain.devices) == "x.xml: /domain/devices"
    assert str(domain).startswith("<domain")
    assert domain.copy().name == domain.name


@WRAPPERS
def test_a_wrapper_is_not_edited(wrapper):
    with pytest.raises(DomainXmlError, match="which libvirt writes for its own use; use the guest"):
        read_editable(wrapper.format(GUEST).encode(), "standard input")


@WRAPPERS
def test_a_wrapper_without_a_domain(wrapper):
    with pytest.raises(DomainXmlError, match=r"its <dom\w+> has no <domain>"):
        read_domain(wrapper.format("").encode(), "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<node><domain/></node>", "the root element is <node>; valid is <domain>"),
        (b"LibvirtQemudSave\x02\0\0\0\xff", "the saved state of a guest; use what virsh save-im"),
        (
            b"<domain><name>a</name></domain>\n<domain ></domain>",
            "it has 2 domains; use one: virt-install",
        ),
        (b"<domain/>", "it has no <name>"),
    ],
)
def test_refused(data, message):
    for read in (read_domain, read_editable):
        with pytest.raises(DomainXmlError, match=message):
            read(data, "x")


def test_the_device_that_a_network_gave():
    """In its status, libvirt keeps the device of an <interface type='network'> in <actual>."""
    interface = (
        "<interface type='network'><source network='vfs'/><actual type='hostdev' managed='yes'>"
        "<source><address type='pci' domain='0x0000' bus='0x03' slot='0x10' function='0x1'/>"
        "</source></actual></interface>"
    )
    guest = f"<domain type='kvm'><name>a</name><devices>{interface}</devices></domain>"
    (hostdev,) = read_domain(STATUS.format(guest).encode(), "x").hostdevs()
    assert (hostdev.host, hostdev.managed) == (PciAddress(0, 3, 0x10, 1), True)


@pytest.mark.parametrize(
    ("guest", "is_file"),
    [
        ("-", True),
        ("/dev/stdin", True),
        ("/dev/fd/63", True),
        ("./guest0", True),
        ("guest0.xml", True),
        ("guest0.XML", True),
        ("guest0", False),
        ("guest0.xml.bak", False),
        ("--", False),
        ("", False),
        ("c7a5fdbd-edaf-9455-926a-d65c16db1809", False),
    ],
)
def test_how_a_guest_is_named(guest, is_file):
    assert is_document(guest) is is_file


def test_standard_input(monkeypatch):
    stdin = SimpleNamespace(buffer=io.BytesIO(GUEST.encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert read_document("-").source == "standard input"
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        read_document("-")


def test_a_file(tmp_path):
    path = tmp_path / "guest0"
    path.write_text(STATUS.format(GUEST))
    assert read_document(str(path)).source == str(path)
    with pytest.raises(DomainXmlError, match=r"Is a directory; use a file with a libvirt domain"):
        read_document(str(tmp_path))


def test_a_file_with_the_name_of_a_guest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guest0").write_text(GUEST)
    with (
        pytest.raises(HypervisorError, match=r"no libvirt; to read the file guest0 .+ use \./gue"),
        named_in_libvirt("guest0"),
    ):
        raise HypervisorError("no libvirt")
    with pytest.raises(HypervisorError, match=r"^no libvirt$"), named_in_libvirt("guest1"):
        raise HypervisorError("no libvirt")
