"""Values that libvirt refuses or replaces: the generated table, and its use."""

import pytest
from domxml.value_probes import ELEMENTS, GUEST, MODULE, Prober, generate
from lxml import etree

from vmm_msi.domxml.attribute_values import Kind, bad_values, readable
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.libvirt_values import ATTRIBUTES
from vmm_msi.domxml.parse import parse
from vmm_msi.errors import HypervisorError
from vmm_msi.libvirt_driver import connect

#: Values that people write, of all kinds.
VALUES = [
    "", " ", "0", "1", "01", "010", "+1", " 1", "1 ", "-1", "0x1", "0X1F", "0x20", "0x", "1.0",
    "7", "8", "31", "32", "254", "255", "256", "0x100", "65536", "2147483648", "99999999999",
    "9" * 40, "yes", "no", "on", "off", "On", "true", "false", "enabled", "auto", "default",
    "smmuv3", "smmuv3Dev", "nestedSmmuv3", "SMMUv3", "intel", "virtio", "subsystem", "pci", "pcie",
    "vfio", "pcie-root-port", "pcie-rootport", "1_0", "\u0661",
]  # fmt: skip


#: Values that libvirt refuses before it compares them with the range of the attribute.
FAR = {"-1", "2147483648", "99999999999", "9" * 40}


def changed(path, name, value):
    """Return the probe's guest with one value."""
    root = parse(GUEST, "the probe")
    root.find(ELEMENTS[path]).set(name, value)
    return DomainXml.parse(etree.tostring(root), "probe.xml")


def only(domain):
    (bad,) = bad_values(domain)
    return bad


def test_the_table_is_that_of_a_real_libvirt(lab_root, lab_daemon):
    assert generate(lab_root, lab_daemon) == MODULE.read_text()


def test_the_probe_has_no_bad_value():
    domain = DomainXml.parse(GUEST, "probe.xml")
    assert [*bad_values(domain)] == []
    assert str(readable(domain)) == GUEST


@pytest.mark.parametrize("path", ELEMENTS)
def test_predictions_about_values(path, lab_daemon, counts):
    """Each value is refused with the predicted message, kept, or replaced, by a real libvirt."""
    with connect(lab_daemon.test_uri) as connection:
        prober = Prober(connection)
        connection.define_text("probe", GUEST, validate=False)
        try:
            for name, known in ATTRIBUTES[path].items():
                for value in VALUES:
                    refusal = prober.refusal(path, name, value)
                    problem = known.problem(value)
                    counts["values given to libvirt and predicted"] += 1
                    if problem is None:
                        # Another part of the guest may not suit a valid value.
                        assert not (refusal or "").startswith("XML error: Invalid"), (name, value)
                    elif problem.message is None:
                        assert refusal == "", (name, value)
                    else:
                        assert refusal is not None, (name, value)
                        if known.kind is not Kind.NEVER and value not in FAR:
                            assert refusal == problem.message, (name, value)
        finally:
            connection.undefine("probe")


@pytest.mark.parametrize(
    ("path", "name", "value", "intended"),
    [
        ("devices/iommu/driver", "pciBus", "0x01", "1"),
        ("devices/iommu/driver", "pciBus", "1 ", "1"),
        ("devices/iommu/driver", "pciBus", "pci.1", None),
        ("devices/iommu/driver", "pciBus", "", None),
        ("devices/iommu/driver", "accel", "true", "on"),
        ("devices/iommu/driver", "ats", "yes", "on"),
        ("devices/iommu/driver", "ril", "0", "off"),
        ("devices/iommu/driver", "ssidsize", "0x10", "16"),
        ("devices/iommu/driver", "iotlb", "on", None),
        ("devices/iommu", "model", "smmuv3Dev", "smmuv3"),
        ("devices/iommu", "model", "nestedSmmuv3", "smmuv3"),
        ("devices/iommu", "model", "SMMUv3", "smmuv3"),
        ("devices/iommu", "model", "virtio-iommu", "virtio"),
        ("iommufd", "enabled", "on", "yes"),
        ("devices/hostdev", "type", "PCI", "pci"),
        ("devices/hostdev", "mode", "subsys", "subsystem"),
        ("devices/hostdev/driver", "iommufd", "on", "yes"),
        ("devices/hostdev/driver", "name", "vfio-pci", "vfio"),
        ("devices/hostdev/source/address", "bus", "0x100", None),
        ("devices/hostdev/source/address", "slot", "0x20", None),
        ("devices/hostdev/address", "type", "PCI", "pci"),
        ("devices/controller", "index", "0x3", "3"),
        ("devices/controller", "model", "pcie-rootport", "pcie-root-port"),
        ("devices/controller/target", "busNr", "255", None),
    ],
)
def test_refused_values(path, name, value, intended):
    bad = only(changed(path, name, value))
    assert (str(bad), bad.problem.intended) == (f"{name}='{value}'", intended)
    assert bad.problem.message


@pytest.mark.parametrize(
    ("path", "name", "value", "intended"),
    [
        ("devices/iommu/driver", "pciBus", "-1", None),
        ("devices/hostdev", "managed", "true", "yes"),
        ("devices/hostdev", "managed", "No", "no"),
    ],
)
def test_replaced_values(path, name, value, intended):
    bad = only(changed(path, name, value))
    assert bad.problem == (None, intended)


@pytest.mark.parametrize("parent", ["source", "interface"])
def test_addresses_of_assigned_network_devices(parent, lab_daemon):
    bad = "<address type='pci' bus='0x100'/>"
    good = "<address type='pci' bus='0x01'/>"
    source, guest = (bad, good) if parent == "source" else (good, bad)
    interface = f"<interface type='hostdev'><source>{source}</source>{guest}</interface>"
    text = GUEST.replace("<devices>", f"<devices>{interface}")
    refused = only(DomainXml.parse(text, "probe.xml"))
    assert refused.element.getparent().tag == parent
    with (
        connect(lab_daemon.test_uri) as connection,
        pytest.raises(HypervisorError, match="Invalid PCI address bus='0x100', must be <= 0xFF"),
    ):
        connection.define_text("probe", text, validate=False)


def test_missing_attributes():
    without = GUEST.replace(" enabled='yes'", "").replace("<iommu model='smmuv3'>", "<iommu>")
    domain = DomainXml.parse(without, "probe.xml")
    assert [str(bad) for bad in bad_values(domain)] == ["enabled is missing", "model is missing"]
    alone = GUEST.replace("accel='on'", "ats='on'")
    bad = only(DomainXml.parse(alone, "probe.xml"))
    assert bad.problem.message.startswith("XML error: accel must be enabled for iommu model")


def test_other_devices_are_not_checked():
    others = """
      <controller type='usb' index='0x1' model='x'/>
      <controller type='scsi' index='0' model='virtio-scsi'/>
      <hostdev mode='capabilities' type='net'><source><interface>e</interface></source></hostdev>
      <hostdev mode='subsystem' type='usb' managed='maybe'><address bus='9999'/></hostdev>
      <iommu model='intel'><driver intremap='on' aw_bits='48'/></iommu>"""
    domain = DomainXml.parse(GUEST.replace("<devices>", f"<devices>{others}"), "probe.xml")
    assert [*bad_values(domain)] == []


def test_a_readable_copy():
    text = GUEST.replace("pciBus='1'", "pciBus='0x01'").replace("slot='0x01'", "slot='0x20'")
    domain = DomainXml.parse(text, "probe.xml")
    copied = readable(domain)
    (iommu,) = copied.iommus()
    (hostdev,) = copied.hostdevs()
    assert (iommu.pci_bus, hostdev.guest.device) == ("1", 0)
    assert str(domain) == text
