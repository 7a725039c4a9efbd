"""Devices on QEMU's command line: how they are read, and which vSMMU translates for them."""

import pytest

from vmm_msi.domxml.buses import GuestBuses
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.placement import Placement, is_accelerated
from vmm_msi.domxml.qemu_arguments import MAX_VALUE, qemu_arguments
from vmm_msi.libvirt_driver import connect
from vmm_msi.types import PciAddress

A = PciAddress(0, 1, 0, 0)
B = PciAddress(1, 0x81, 0x1F, 7)

PXB = "pxb-pcie,id=pcie.1,bus_nr=8,bus=pcie.0"
VSMMU = "arm-smmuv3,primary-bus=pcie.1,id=smmuv3.1,accel=on"
PORT = "pcie-root-port,id=pcie.port1,chassis=2,bus=pcie.1"
DEVICE = "vfio-pci,host=0000:01:00.0,bus=pcie.port1,iommufd=iommufd0"

BUSES = """\
<controller type='pci' index='0' model='pcie-root'/>
<controller type='pci' index='1' model='pcie-expander-bus'><target busNr='16'/></controller>
<controller type='pci' index='2' model='pcie-root-port'>
<address type='pci' bus='0x01' slot='0x00' function='0x0'/></controller>
"""
HOSTDEV = """\
<hostdev mode='subsystem' type='pci' managed='yes'>
<source><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>
<address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/></hostdev>
"""


def guest(*words, devices="", override="", kind="kvm"):
    """Return a guest with these words on QEMU's command line."""
    args = "".join(f"<qemu:arg value='{word}'/>" for word in words)
    return DomainXml.parse(
        f"<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<name>g</name><memory unit='MiB'>512</memory>"
        "<os><type arch='aarch64' machine='virt'>hvm</type></os>"
        f"<devices>{devices}</devices><qemu:commandline>{args}</qemu:commandline>"
        f"<qemu:override>{override}</qemu:override></domain>",
        "g.xml",
    )


def of_devices(*values):
    return [word for value in values for word in ("-device", value)]


@pytest.mark.parametrize(
    "words",
    [
        ("-device", "vfio-pci,host=0000:01:00.0"),
        ("--device", "vfio-pci,host=01:00.0"),
        ("-device", "vfio-pci-nohotplug,host=0:1:0.0,bus=pci.2"),
        ("-device", "driver=vfio-pci,host=0x0:0x1:0x0.0"),
        ("-device", "vfio-pci,x-no-mmap,host=ff:00.0,host=0000:01:00.0"),
        ("-device", "vfio-pci,id=a,,b,host=0000:01:00.0"),
        ("-device", "vfio-pci,host=9:9.9,sysfsdev=/sys/bus/pci/devices/0000:01:00.0"),
        ("-device", "vfio-pci,sysfsdev=/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/"),
        ("-device", '{"driver":"vfio-pci","host":"0000:01:00.0","id":"d","rombar":0}'),
        ("-nodefaults", "-device", "vfio-pci,host=0000:01:00.0,fd=7"),
    ],
)
def test_an_assigned_device(words):
    domain = guest(*words)
    assert [hostdev.host for hostdev in domain.assigned()] == [A]
    assert domain.hostdevs() == ()
    assert qemu_arguments(domain.root).unexamined == ()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("-device",),
        ("-device=vfio-pci,host=0000:01:00.0",),
        ("-device vfio-pci,host=0000:01:00.0",),
        ("-name", "vfio-pci,host=0000:01:00.0"),
        ("-device", "virtio-net-pci,host=0000:01:00.0"),
        ("-device", "nvme,id=vfio-pci"),
        ("-device", ""),
        ("-device", ",,,,"),
        ("-global", "virtio-net-pci.mq=on"),
        ("-set", "drive.a.file=b"),
    ],
)
def test_no_assigned_device(words):
    """QEMU reads -device=… as one option, which it does not know."""
    domain = guest(*words)
    assert domain.assigned() == ()
    assert qemu_arguments(domain.root).unexamined == ()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("-device", "vfio-pci"), "-device: a device of the host that neither host nor sysfsdev"),
        (("-device", "vfio-pci,host=zz:00.0"), "-device: a device of the host"),
        (("-device", "vfio-pci,host=0000:01:20.0"), "-device: a device of the host"),
        (("-device", "vfio-pci,host=10000:01:00.0"), "-device: a device of the host"),
        (("-device", "vfio-pci,sysfsdev=/sys/bus/mdev/devices/c7a5"), "-device: a device of the"),
        (("-device", "{vfio-pci"), "-device: it is too long, or not valid JSON"),
        (("-device", "[" * 3 + "{"), None),
        (("-device", '{"driver":"vfio-pci","host":{}}'), "-device: a device of the host"),
        (("-device", '{"a":' + "[" * 30_000 + "}"), "-device: it is too long, or not valid JSON"),
        (("-device", '{"a":' + "1" * 5_000 + "}"), "-device: it is too long, or not valid JSON"),
        (("-device", "vfio-pci," + "a" * MAX_VALUE), "-device: it is too long"),
        (("-readconfig", "/etc/qemu/extra.cfg"), "-readconfig: the devices in that file"),
        (("-global", "vfio-pci.iommufd=iommufd0"), "-global: what it changes"),
        (("-set", "device.smmuv3.accel=on"), "-set: what it changes"),
    ],
)
def test_what_is_not_examined(words, part):
    domain = guest(*words)
    assert domain.assigned() == ()
    unexamined = [str(item) for item in qemu_arguments(domain.root).unexamined]
    assert len(unexamined) == (part is not None)
    assert part is None or unexamined[0].startswith(part)


def test_arguments_of_another_namespace_are_not_passed_on():
    """libvirt drops them: https://libvirt.org/drvqemu.html."""
    text = str(guest(*of_devices(DEVICE))).replace("/qemu/1.0", "/qemu/2.0")
    assert DomainXml.parse(text, "g").assigned() == ()


def test_a_vsmmu_and_its_buses():
    placement = Placement(guest(*of_devices(PXB, VSMMU, PORT, DEVICE)))
    (vsmmu,) = placement.vsmmus
    (device,) = placement.behind(vsmmu)
    assert (device.host, vsmmu.pci_bus) == (A, "pcie.1")
    assert is_accelerated(vsmmu)
    assert placement.is_root("pcie.1")
    assert not placement.is_root("pcie.port1")
    assert placement.domain.uses_iommufd(device)
    assert [*placement.empty_vsmmus()] == [*placement.emulated_behind(vsmmu)] == []


@pytest.mark.parametrize("accel", ["on", "yes", "true", "y"])
def test_words_for_on(accel):
    (vsmmu,) = Placement(guest(*of_devices(PXB, VSMMU.replace("=on", f"={accel}")))).vsmmus
    assert is_accelerated(vsmmu)


def test_a_flag_is_on_or_off():
    flag = VSMMU.replace("accel=on", "accel,noats")
    (vsmmu,) = Placement(guest(*of_devices(PXB, flag))).vsmmus
    assert (vsmmu.driver["accel"], vsmmu.driver["ats"]) == ("on", "off")


def test_a_vsmmu_without_devices_of_the_host():
    placement = Placement(guest(*of_devices(PXB, VSMMU, PORT, "virtio-net-pci,bus=pcie.port1")))
    (vsmmu,) = placement.vsmmus
    assert [empty.iommu for empty in placement.empty_vsmmus()] == [vsmmu]
    (element,) = placement.emulated_behind(vsmmu)
    assert element.get("value") == "virtio-net-pci,bus=pcie.port1"


def test_a_vsmmu_of_the_command_line_on_a_bus_of_libvirt():
    """libvirt's name of the bus of controller 1 is pci.1."""
    words = of_devices("arm-smmuv3,primary-bus=pci.1,accel=on")
    placement = Placement(guest(*words, devices=BUSES + HOSTDEV))
    (vsmmu,) = placement.vsmmus
    (hostdev,) = placement.behind(vsmmu)
    assert (hostdev.host, vsmmu.pci_bus, placement.is_root("1")) == (A, "1", True)


def test_a_device_of_the_command_line_behind_a_vsmmu_of_libvirt():
    iommu = "<iommu model='smmuv3'><driver pciBus='01' accel='on'/></iommu>"
    words = of_devices("vfio-pci,host=0001:81:1f.7,bus=pci.2")
    placement = Placement(guest(*words, devices=BUSES + iommu))
    (vsmmu,) = placement.vsmmus
    assert [hostdev.host for hostdev in placement.behind(vsmmu)] == [B]
    assert [*placement.free_ports(vsmmu)] == []
    assert not placement.domain.uses_iommufd(placement.hostdevs[0])


@pytest.mark.parametrize("option", ["-machine", "-M"])
@pytest.mark.parametrize("value", ["virt,iommu=smmuv3", "iommu=smmuv3"])
def test_a_vsmmu_for_the_machine(option, value):
    placement = Placement(guest(option, value, *of_devices("vfio-pci,host=0000:01:00.0")))
    (vsmmu,) = placement.vsmmus
    assert (vsmmu.pci_bus, is_accelerated(vsmmu)) == (None, False)
    assert [hostdev.host for hostdev in placement.behind(vsmmu)] == [A]
    assert Placement(guest("-machine", "iommu=none")).vsmmus == ()


def test_buses_that_lead_in_a_circle():
    ports = ("pcie-root-port,id=a,bus=b", "pcie-root-port,id=b,bus=a")
    placement = Placement(guest(*of_devices(*ports, "vfio-pci,host=0:1:0.0,bus=a")))
    assert placement.root_bus("a") is None
    assert placement.vsmmu_of(placement.hostdevs[0].element) is None


@pytest.mark.parametrize("alias", ["", "<alias name='ua-gpu'/>"])
def test_iommufd_by_override(alias):
    name = "ua-gpu" if alias else "hostdev0"
    override = (
        f"<qemu:device alias='{name}'><qemu:frontend>"
        "<qemu:property name='iommufd' type='string' value='iommufd0'/>"
        "</qemu:frontend></qemu:device>"
    )
    hostdev = HOSTDEV.replace("</hostdev>", f"{alias}</hostdev>")
    for used, text in ((True, override), (False, override.replace(name, "hostdev1"))):
        placement = Placement(guest(devices=BUSES + hostdev, override=text))
        assert placement.domain.uses_iommufd(placement.hostdevs[0]) is used


def test_bus_numbers_of_the_command_line_are_kept():
    pxb = PXB.replace("bus_nr=8", "bus_nr=16")
    buses = GuestBuses(guest(*of_devices(pxb, PORT, "pxb-pcie,id=x,bus_nr=99999999")))
    assert buses.take_bus_nr(1, 3) == 32


def test_another_guest_has_the_device(lab_daemon):
    domain = guest(*of_devices(PXB, VSMMU, PORT, DEVICE), kind="qemu")
    with connect(lab_daemon.uri) as connection:
        connection.define(domain)
        try:
            assert (A, "g") in connection.assigned()
        finally:
            connection.undefine("g")


def test_paths_to_arguments():
    domain = guest(*of_devices(PXB, VSMMU))
    tree = domain.root.getroottree()
    for device in qemu_arguments(domain.root).devices:
        assert domain.path(device.element) == f"g.xml: {tree.getpath(device.element)}"


def test_thousands_of_buses_in_a_row():
    ports = [f"pcie-root-port,id=p{number},bus=p{number + 1}" for number in range(4000)]
    words = of_devices(*ports, *(f"vfio-pci,host=01:00.0,bus=p{n}" for n in range(4000)))
    placement = Placement(guest(*words, PXB))
    assert {placement.root_bus(f"p{number}") for number in range(4000)} == {None}
