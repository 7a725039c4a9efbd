"""Messages of a real libvirt about guests that fail are explained."""

from __future__ import annotations

import libvirt  # noqa: TID251 - a definition that vmm-msi does not have validated
import pytest

from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import HypervisorError
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.libvirt_driver import connect

pytestmark = pytest.mark.lab_root

GUEST = """\
<domain type='qemu'>
  <name>explained</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='aarch64' machine='virt'>hvm</type></os>
  <features>{acpi}</features>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-expander-bus'><target busNr='16'/></controller>
    <controller type='pci' index='2' model='pcie-expander-bus'><target busNr='32'/></controller>
    {devices}
  </devices>
</domain>
"""
HOSTDEV = """\
<hostdev mode='subsystem' type='pci' managed='yes'>
  <source><address domain='0x0000' bus='0xff' slot='0x1f' function='0x7'/></source>
</hostdev>
"""
SMMU = "<iommu model='smmuv3'>{}</iommu>"

#: Changes of the guest, and the explanation of libvirt's message.
CASES = [
    ("libvirt-acpi-uefi", {"acpi": "<acpi/>"}),
    ("libvirt-iommu-acpi", {"devices": "<iommu model='virtio'/>"}),
    ("libvirt-iommu-x86", {"devices": "<iommu model='intel'/>"}),
    ("qemu-two-iommus", {"devices": SMMU.format("") + SMMU.format("<driver pciBus='1'/>")}),
    ("libvirt-iommu-attributes", {"devices": SMMU.format("<driver pciBus='1' ats='on'/>")}),
    ("libvirt-no-vfio", {"devices": HOSTDEV}),
]


def refused(connection, xml):
    """Define and start a guest and return libvirt's message."""
    try:
        connection.define(xml)
    except HypervisorError as error:
        return str(error)
    try:
        connection.start("explained")
    except HypervisorError as error:
        return str(error)
    finally:
        connection.undefine("explained")
    connection.destroy("explained")
    return ""


@pytest.mark.parametrize(("id_", "changes"), CASES, ids=[case[0] for case in CASES])
def test_messages_about_a_guest(id_, changes, lab_daemon):
    parts = dict.fromkeys(("acpi", "devices"), "") | changes
    xml = DomainXml.parse(GUEST.format(**parts), "the test")
    with connect(lab_daemon.uri) as connection:
        explanation = refused(connection, xml)
    (line,) = explain(f"error: {explanation}", LogContext()).lines
    assert line.explanation.id == id_, explanation


#: Devices with a value that libvirt does not accept, and words of the cause.
VALUES = [
    (SMMU.format("<driver pciBus='0x1'/>"), "decimal number"),
    (SMMU.format("<driver pciBus='1' ssidsize='a'/>"), "decimal number"),
    (SMMU.format("<driver pciBus='1' ats='yes'/>"), "'on' or 'off'"),
    ("<iommu model='smmuv3Dev'/>", "smmuv3Dev"),
    ("<iommu model='nestedSmmuv3'/>", "nestedSmmuv3"),
    ("<iommu/>", ""),
]


@pytest.mark.parametrize(("devices", "why"), VALUES, ids=[case[0] for case in VALUES])
def test_messages_about_a_value(devices, why, lab_daemon):
    """The parser refuses the value, and so does the schema if the caller asks for validation."""
    xml = DomainXml.parse(GUEST.format(acpi="", devices=devices), "the test")
    connection = libvirt.open(lab_daemon.uri)
    try:
        with pytest.raises(libvirt.libvirtError) as raised:
            connection.defineXML(str(xml))
    finally:
        connection.close()
    (line,) = explain(f"error: {raised.value}", LogContext()).lines
    assert line.explanation.id == "libvirt-invalid-value"
    assert why in line.explanation.why
    with connect(lab_daemon.uri) as checked:
        (line,) = explain(f"error: {refused(checked, xml)}", LogContext()).lines
    assert line.explanation.id == "libvirt-schema"
