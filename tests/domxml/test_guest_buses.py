"""Devices by their address in the guest, also those on QEMU's command line."""

from __future__ import annotations

import pytest

from vmm_msi.domxml.guest_buses import guest_addresses
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.placement import Placement
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.types import PciAddress

XML = """\
<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
<name>guest0</name><memory unit="GiB">4</memory>
<os firmware="efi"><type arch="aarch64" machine="virt">hvm</type></os>
<features><acpi/><gic version="3"/></features>
<devices>
<controller type="pci" index="0" model="pcie-root"/>
<controller type="pci" index="1" model="pcie-expander-bus"><target busNr="64"/>
<address type="pci" domain="0x0000" bus="0x00" slot="0x01" function="0x0"/></controller>
<controller type="pci" index="2" model="pcie-root-port">
<address type="pci" domain="0x0000" bus="0x01" slot="0x01" function="0x0"/></controller>
<hostdev mode="subsystem" type="pci"><source>
<address domain="0x0000" bus="0x0a" slot="0x00" function="0x0"/></source>
<address type="pci" domain="0x0000" bus="0x02" slot="0x00" function="0x0"/></hostdev>
</devices>
<qemu:commandline>{}</qemu:commandline></domain>"""
EXPANDER = "pxb-pcie,id=pcie.1,bus_nr=8,bus=pcie.0"
FIRST, SECOND = PciAddress(0, 1, 0, 0), PciAddress(0, 2, 0, 0)
OF_LIBVIRT = {PciAddress(0, 65, 0, 0): PciAddress(0, 10, 0, 0)}


def guest_with(*devices):
    words = (word for device in devices for word in ("-device", device))
    arguments = "".join(f'<qemu:arg value="{word}"/>' for word in words)
    return DomainXml.parse(XML.format(arguments), "the test")


def on_the_command_line(*devices):
    addresses = dict(guest_addresses(Placement(guest_with(*devices))))
    for address, host in OF_LIBVIRT.items():
        assert addresses.pop(address) == host
    return addresses


def test_devices_of_libvirt():
    assert on_the_command_line() == {}


@pytest.mark.parametrize(
    ("first_port", "second_port", "numbers"),
    [
        ("", "", (9, 10)),
        (",addr=1", ",addr=0", (10, 9)),
        (",addr=0x3.0x1", ",addr=3.0", (10, 9)),
        (",addr=0", "", (9, 10)),
        (",addr=2", "", (10, 9)),
        (",addr=1f.7", ",addr=0", (10, 9)),
    ],
)
def test_ports_are_numbered_by_their_addresses(first_port, second_port, numbers):
    devices = on_the_command_line(
        EXPANDER,
        f"pcie-root-port,id=p1,bus=pcie.1{first_port}",
        f"pcie-root-port,id=p2,bus=pcie.1{second_port}",
        "vfio-pci,host=0000:01:00.0,bus=p1",
        "vfio-pci,host=0000:02:00.0,bus=p2,addr=0.1",
    )
    first, second = numbers
    assert devices == {PciAddress(0, first, 0, 0): FIRST, PciAddress(0, second, 0, 1): SECOND}


def test_a_port_on_an_expander_bus_of_libvirt():
    """libvirt's port is in slot 1, so QEMU puts the other one into slot 0."""
    xml = guest_with("pcie-root-port,id=p1,bus=pci.1", "vfio-pci,host=0000:01:00.0,bus=p1")
    assert guest_addresses(Placement(xml)) == {
        PciAddress(0, 65, 0, 0): FIRST,
        PciAddress(0, 66, 0, 0): PciAddress(0, 10, 0, 0),
    }


def test_a_device_on_a_port_of_libvirt():
    free = XML.replace('bus="0x02" slot="0x00"', 'bus="0x03" slot="0x00"')
    arguments = '<qemu:arg value="-device"/><qemu:arg value="vfio-pci,host=01:00.0,bus=pci.2"/>'
    xml = DomainXml.parse(free.format(arguments), "the test")
    assert guest_addresses(Placement(xml)) == {PciAddress(0, 65, 0, 0): FIRST}


@pytest.mark.parametrize(
    "devices",
    [
        ("pcie-root-port,id=p1,bus=pcie.0", "vfio-pci,host=0000:01:00.0,bus=p1"),
        (EXPANDER, "pcie-root-port,id=p1,bus=pcie.1", "vfio-pci,host=0000:01:00.0,bus=p2"),
        (
            "pxb-pcie,id=pcie.1,bus_nr=x",
            "pcie-root-port,id=p1,bus=pcie.1",
            "vfio-pci,host=0000:01:00.0,bus=p1",
        ),
        (
            "pxb-pcie,id=pcie.1,bus_nr=255",
            "pcie-root-port,id=p1,bus=pcie.1",
            "vfio-pci,host=0000:01:00.0,bus=p1",
        ),
    ],
)
def test_a_device_whose_bus_is_unknown(devices):
    assert on_the_command_line(*devices) == {}


def test_explain_names_the_host_device():
    xml = guest_with(
        EXPANDER,
        "arm-smmuv3,primary-bus=pcie.1,id=smmu1,accel=on",
        "pcie-root-port,id=p1,bus=pcie.1",
        "vfio-pci,host=0000:01:00.0,bus=p1",
    )
    line = (
        "arm-smmu-v3 arm-smmu-v3.0.auto: event: F_TRANSLATION client: 0000:09:00.0 sid: 0x900 "
        "ssid: 0x0 iova: 0x8000040 ipa: 0x0"
    )
    report = explain(line, LogContext(None, None, xml, in_guest=True))
    assert report.notes == ()
    (entry,) = report.lines
    assert [subject.address for subject in entry.explanation.devices] == [FIRST]


def test_explain_names_the_words_that_were_not_examined():
    words = '<qemu:arg value="-readconfig"/><qemu:arg value="/etc/more.cfg"/>'
    xml = DomainXml.parse(XML.format(words), "the test")
    report = explain("unrelated", LogContext(None, None, xml, in_guest=True))
    assert report.notes == (
        "not examined: <qemu:commandline> -readconfig: the devices in that file",
    )
