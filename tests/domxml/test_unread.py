"""Check the parts that libvirt does not read against a real libvirt."""

import pytest

from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.template import nested_guest
from vmm_msi.domxml.unread import unread
from vmm_msi.errors import HypervisorError
from vmm_msi.libvirt_driver import connect

GUEST = "unread"
PARTS = """
    <controller type='pci' index='1' model='pcie-expander-bus'>
      <target busNr='16'/>
    </controller>
    <controller type='pci' index='2' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </controller>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <driver iommufd='yes'/>
      <source>
        <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
      </source>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>
    </hostdev>
    <iommu model='smmuv3'>
      <driver pciBus='1' accel='on' ats='off' ril='on' ssidsize='4' oas='48' cmdqv='off'/>
    </iommu>
"""
#: The original text, its replacement, the part that is not read then, and the intended part.
MISSPELLED = {
    "ssidSize": ("ssidsize=", "ssidSize=", "ssidSize='4'", "ssidsize"),
    "ATS": ("ats=", "ATS=", "ATS='off'", "ats"),
    "RIL": ("ril=", "Ril=", "Ril='on'", "ril"),
    "OAS": ("oas=", "OAS=", "OAS='48'", "oas"),
    "cmdQV": ("cmdqv=", "cmdQV=", "cmdQV='off'", "cmdqv"),
    "pci-bus": ("pciBus=", "pci-bus=", "pci-bus='1'", "pciBus"),
    "pcibus": ("pciBus=", "pcibus=", "pcibus='1'", "pciBus"),
    "stage": (" ats=", " stage='nested' ats=", "stage='nested'", None),
    "granule": (" ats=", " granule='4k' ats=", "granule='4k'", None),
    "iommu attribute": ("'smmuv3'", "'smmuv3' accel='on'", "accel='on'", None),
    "Driver": ("<driver pciBus", "<Driver pciBus", "<Driver>", "<driver>"),
    "two drivers": (" ats=", "/><driver ats=", "<driver>", "one <driver> with all attributes"),
    "hostdev iommufd": ("<driver iommufd=", "<driver ioMMUfd=", "ioMMUfd='yes'", "iommufd"),
    "hostdev fdgroup": ("'yes'/>", "'yes' fdgroup='x'/>", "fdgroup='x'", None),
    "managed": ("managed=", "Managed=", "Managed='yes'", "managed"),
    "busnr": ("busNr", "busnr", "busnr='16'", "busNr"),
    "node": ("busNr='16'", "busNr='16' node='0'", "node='0'", None),
    "gic": ("<gic version='3'", "<gic version='3' its='on'", "its='on'", None),
    "IOMMUFD": ("<os ", "<IOMMUFD enabled='yes'/><os ", "<IOMMUFD>", "<iommufd>"),
    "fdGroup": (
        "<os ", "<iommufd enabled='yes' fdGroup='g'/><os ", "fdGroup='g'", "fdgroup",
    ),
    "iommufd of devices": (
        "<devices>", "<devices><iommufd enabled='yes'/>", "<iommufd>", "<iommufd> below <domain>",
    ),
    "Iommu": ("<devices>", "<devices><Iommu model='smmuv3'/>", "<Iommu>", "<iommu>"),
    "override": (
        "</devices>", "</devices><override/>", "<override>",
        "<qemu:override> with xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'",
    ),
}  # fmt: skip


def text(kind):
    whole = str(nested_guest(GUEST, memory=256 << 20, kind=kind))
    return whole.replace("<devices>", f"<devices>{PARTS}")


def test_libvirt_reads_correct_spelling():
    assert unread(DomainXml.parse(text("kvm"), "guest.xml")) == ()


@pytest.mark.parametrize("name", MISSPELLED)
def test_libvirt_drops_misspelled_parts(name, lab_daemon):
    """libvirt drops it silently without validation, and refuses it with validation."""
    right, wrong, words, intended = MISSPELLED[name]
    assert right in text("qemu")
    broken = DomainXml.parse(text("qemu").replace(right, wrong, 1), "guest.xml")
    (part,) = unread(broken)
    assert (str(part), part.intended) == (words, intended)
    with connect(lab_daemon.uri) as connection:
        kept = connection.define_text(GUEST, str(broken), validate=False)
        connection.undefine(GUEST)
        assert unread(DomainXml.parse(kept, "libvirt")) == ()
        with pytest.raises(HypervisorError, match="valid is what this libvirt's schemas"):
            connection.define_text(GUEST, str(broken))


def test_libvirt_keeps_correct_parts(lab_daemon):
    whole = DomainXml.parse(text("qemu"), "guest.xml")
    with connect(lab_daemon.uri) as connection:
        kept = connection.define(whole)
        connection.undefine(GUEST)
    assert kept.iommus()[0].driver == whole.iommus()[0].driver
    assert kept.hostdevs()[0].iommufd
