"""Cases from files, from libvirt's test driver and from a real daemon."""

from dataclasses import replace

import pytest
from doctor.cases import A2, HOST, A, B
from doctor.guest_cases import GUEST, PLUGINS, changed, ids, rendered
from provision.helpers import HOST as SERVER
from provision.helpers import node_file

from vmm_msi.config import Choice, Config
from vmm_msi.doctor.case_reader import Selection, read_case
from vmm_msi.doctor.devices import representatives
from vmm_msi.doctor.rules import examine
from vmm_msi.domxml.support import Version
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import DomainXmlError, HypervisorError, UsageError
from vmm_msi.host.files.in_memory import MemoryTree
from vmm_msi.host.sources import HostSources
from vmm_msi.libvirt_driver import connect
from vmm_msi.types import PciAddress


def read(domain=None, uri=None, *, host=HOST, choice=None, devices=(), tree=()):
    selection = Selection(devices, domain, uri, choice, PLUGINS, Config())
    return read_case(HostSources(host.source, (host,), tree), selection)


@pytest.fixture
def written(tmp_path):
    def write(xml, name="guest0.xml"):
        path = tmp_path / name
        path.write_text(str(xml))
        return str(path)

    return write


def test_a_guest_in_a_file(written):
    path = written(rendered(A, B))
    case = read(path, choice=Choice("identity"))
    assert case.devices == (A, B)
    assert case.guest.written is case.guest.xml
    assert case.guest.xml.source == path
    assert case.software.libvirt is None
    assert ids(case) == [
        "note rmr-needed",
        "note rmr-direct",
        "note slot-order",
        "note no-migration",
        "unknown kernel-not-checked",
        "unknown libvirt-unknown",
    ]


def test_selected_devices(written):
    assert read(written(rendered(A)), devices=(B,)).devices == (B,)
    assert read(devices=(A2,)).devices == (A2,)


def test_assignable_devices_without_a_guest():
    assert read().devices == (A, A2, B)
    assert read(host=SERVER).devices == representatives(SERVER)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.xml", "No such file or directory"),
        ("a\0b.xml", r"reading 'a\\x00b\.xml': .+; use a file"),
    ],
)
def test_a_file_that_cannot_be_read(name, message):
    with pytest.raises(DomainXmlError, match=message):
        read(name)


def test_a_domain_name_without_libvirt():
    with pytest.raises(UsageError, match="no libvirt to query; name one with --connect, or a file"):
        read("guest0")


def test_an_unknown_guest(tmp_path):
    with pytest.raises(HypervisorError, match=r"no such guest; .*valid: guest0, guest1"):
        read("guest9", f"test://{node_file(tmp_path)}")


def test_a_guest_of_the_test_driver(tmp_path):
    """What libvirt knows of the device is joined with the host; nothing is written."""
    device = PciAddress(0, 1, 0, 0)
    uri = f"test://{node_file(tmp_path)}"
    case = read("guest0", uri, host=SERVER, devices=(device,))
    assert case.guest.written is None
    assert case.guest.xml.name == "guest0"
    assert case.software.driver == "TEST"
    assert case.software.source == f"libvirt at {uri}"
    (function,) = case.host.functions
    assert (function.address, function.iommu_group, function.members) == (device, 10, (device,))


def test_functions_of_the_host_take_precedence(tmp_path):
    case = read("guest0", f"test://{node_file(tmp_path)}", devices=(A,))
    function = HOST.function_by_address[A]
    assert case.host.function_by_address[A] == replace(function, numa_node=0)


def test_the_files_of_a_host(written):
    """Kernel and releases come from the host's files."""
    tree = MemoryTree("host", {"/proc/sys/kernel/osrelease": b"7.2.0\n"})
    path = written(rendered(A))
    case = read(path, tree=(tree,))
    assert (case.tree, case.kernel.release) == (tree, "7.2.0")


def test_a_real_daemon(lab_daemon, written):
    """Two guests with one device, by its QEMU driver: who has it, and which releases."""
    first = changed(rendered(A, kind="qemu"), (f"<name>{GUEST}<", "<name>first<"))
    second = changed(rendered(A, kind="qemu"), (f"<name>{GUEST}<", "<name>second<"))
    with connect(lab_daemon.uri) as connection:
        for xml in (first, second):
            connection.define(xml)
        try:
            case = read("first", lab_daemon.uri)
            of_file = read(written(first), lab_daemon.uri)
        finally:
            for name in ("first", "second"):
                connection.undefine(name)
    assert case.software.libvirt >= Version(12, 8)
    assert case.software.qemu >= Version(11, 0)
    assert case.devices == (A,)
    assert list(case.guest.holders) == [(A, "first"), (A, "second")]
    for one in (case, of_file):
        (held,) = [finding for finding in examine(one) if finding.id == "held-by-domain"]
        assert held.evidence[0].where == "libvirt domain second"


def test_a_read_only_connection(lab_daemon):
    """The definition has no secrets; a guest without assigned devices has no devices."""
    with connect(lab_daemon.uri) as connection:
        connection.define(nested_guest("plain", memory=128 << 20, kind="qemu"))
        try:
            case = read("plain", lab_daemon.uri)
        finally:
            connection.undefine("plain")
    assert case.devices == ()
    assert ids(case) == []
