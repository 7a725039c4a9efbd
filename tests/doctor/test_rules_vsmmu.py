"""Findings about vSMMUs and their devices, and the QEMU messages that they quote."""

import re

import libvirt  # noqa: TID251 - the command line that only libvirt itself can write
import pytest
from doctor.cases import A2, HOST, A, B
from doctor.guest_cases import GUEST, NIC, PLUGINS, case_of, changed, ids, only, rendered
from doctor.test_other_guests import HOSTDEV

from vmm_msi.config import Config
from vmm_msi.doctor import pages
from vmm_msi.doctor.case import Software
from vmm_msi.doctor.finding import Severity
from vmm_msi.doctor.rules import examine
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.support import Version, newest
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import HypervisorError
from vmm_msi.libvirt_driver import connect
from vmm_msi.provision import AttachRequest, definition_file

ONE, TWO = rendered(A), rendered(A, B)
PORT = """
    <controller type='pci' index='7' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>
    </controller>"""
DRIVER = "<driver pciBus='1' accel='on'/>"


def test_an_emulated_vsmmu():
    finding = only(case_of(changed(ONE, (DRIVER, "<driver pciBus='1'/>"))), "no-accel")
    assert (finding.severity, finding.subject) == (Severity.ERROR, str(A))
    assert str(finding.evidence[0]) == f"{GUEST}.xml: /domain/devices/iommu: accel not set"


#: The vSMMU of ONE, and the same for the whole machine.
ON_BUS = f"<iommu model='smmuv3'>\n      {DRIVER}\n    </iommu>"
MACHINE_WIDE = "<iommu model='smmuv3'><driver accel='on'/></iommu>"


def test_an_emulated_machine_wide_vsmmu():
    xml = changed(ONE, (ON_BUS, "<iommu model='smmuv3'/>"))
    finding = only(case_of(xml), "no-accel")
    assert finding.subject == str(A)
    assert "<driver pciBus='N' accel='on'/>" in finding.remedy
    assert f"render --take-over --device {A}" in finding.remedy


@pytest.mark.parametrize(
    "properties", ["", " ats='on'", " ril='off' ssidsize='4'", " oas='48' cmdqv='on'"]
)
def test_a_machine_wide_vsmmu_is_not_accelerated(properties):
    """libvirt accepts accel without pciBus and drops it, with the properties that need it."""
    vsmmu = MACHINE_WIDE.replace("accel='on'", f"accel='on'{properties}")
    case = case_of(changed(ONE, (ON_BUS, vsmmu)))
    finding = only(case, "xml-dropped")
    assert finding.severity is Severity.ERROR
    assert finding.evidence[0].what == f"accel='on'{properties}"
    assert f"With {A} behind it, QEMU exits" in finding.consequence
    assert "<driver pciBus='N' accel='on'/>" in finding.remedy
    assert not {"no-accel", "rmr-needed", "no-migration"} & {
        name.partition(" ")[2] for name in ids(case)
    }


def test_a_machine_wide_vsmmu_without_a_device():
    text = str(nested_guest(GUEST, memory=1 << 30)).replace("<devices>", f"<devices>{MACHINE_WIDE}")
    finding = only(case_of(DomainXml.parse(text, f"{GUEST}.xml")), "xml-dropped")
    assert finding.severity is Severity.ERROR
    assert "QEMU exits" not in finding.consequence


def test_the_remedy_of_a_machine_wide_vsmmu():
    """Without the <iommu>, render moves the device behind a vSMMU of its own; nothing is wrong."""
    text = str(nested_guest(GUEST, memory=1 << 30)).replace("<devices>", f"<devices>{HOSTDEV}")
    start = DomainXml.parse(text, f"{GUEST}.xml")
    request = AttachRequest(GUEST, (A,), None)
    fixed = definition_file.plan_attach(
        start, newest(), PLUGINS, Config(), HOST, request, take_over=True
    ).new
    assert [name for name in ids(case_of(fixed)) if name.startswith("error")] == []


def test_a_vsmmu_on_pcie_0_is_no_place_to_accelerate():
    """Emulated devices on pcie.0 would be behind it, too."""
    xml = changed(
        ONE,
        (DRIVER, "<driver pciBus='0'/>"),
        ("bus='0x01' slot='0x00'", "bus='0x00' slot='0x05'"),
    )
    assert "Replace this <iommu>" in only(case_of(xml), "no-accel").remedy


def test_a_device_without_a_vsmmu():
    """Only the host translates a device on a port of pcie.0."""
    xml = changed(
        ONE,
        ("<serial ", f"{PORT}<serial "),
        ("bus='0x02' slot='0x00'", "bus='0x07' slot='0x00'"),
    )
    case = case_of(xml)
    finding = only(case, "hostdev-not-behind-vsmmu")
    assert (finding.severity, finding.subject) == (Severity.NOTE, str(A))
    assert finding.evidence[0].what == f"{A}, on the bus of controller 7"
    assert only(case, "empty-vsmmu").severity is Severity.ERROR


def test_a_device_without_an_address():
    xml = changed(
        ONE,
        ("      <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>\n", ""),
    )
    finding = only(case_of(xml), "hostdev-not-behind-vsmmu")
    assert finding.severity is Severity.UNKNOWN


@pytest.mark.parametrize(
    ("driver", "missing"),
    [
        ("accel='on'", "ats, ril, ssidsize"),
        ("accel='on' ats='off' ril='on' ssidsize='0'", None),
    ],
)
def test_a_vsmmu_without_a_device(driver, missing):
    text = str(ONE)
    start, end = text.index("<hostdev"), text.index("</hostdev>") + len("</hostdev>")
    xml = DomainXml.parse(text[:start] + text[end:], f"{GUEST}.xml")
    case = case_of(changed(xml, ("accel='on'", driver)))
    if missing is None:
        assert "error empty-vsmmu" not in ids(case)
    else:
        assert missing in only(case, "empty-vsmmu").evidence[0].what


def test_an_emulated_device_behind_a_vsmmu():
    xml = changed(rendered(A, spare_ports=1), ("<serial ", f"{NIC.format(bus='0x03')}<serial "))
    finding = only(case_of(xml), "emulated-behind-vsmmu")
    assert finding.severity is Severity.ERROR
    assert finding.evidence[0].where == f"{GUEST}.xml: /domain/devices/interface"
    beside = changed(ONE, ("<serial ", f"{NIC.format(bus='0x00')}<serial "))
    assert "error emulated-behind-vsmmu" not in ids(case_of(beside))


@pytest.mark.parametrize("bus", ["2", "16", "9"], ids=["a root port", "a busNr", "nothing"])
def test_a_vsmmu_on_an_unsuitable_bus(bus):
    xml = changed(ONE, (DRIVER, f"<driver pciBus='{bus}' accel='on'/>"))
    finding = only(case_of(xml), "misplaced-vsmmu")
    assert str(finding.evidence[0]) == f"{GUEST}.xml: /domain/devices/iommu: pciBus='{bus}'"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("<iommu model='smmuv3'/>", ON_BUS, "virt machine already has iommu=smmuv3 set"),
        ("<iommu model='virtio'/>", ON_BUS, "virt machine already has virtio-iommu set"),
        ("<iommu model='smmuv3'/>", "<iommu model='virtio'/>", "does not support multiple IOMMUs"),
        (ON_BUS, "<iommu model='virtio'/>", None),
        (ON_BUS, "<iommu model='smmuv3'/>", None),
    ],
)
def test_a_machine_wide_iommu_beside_another(first, second, message):
    names = {
        finding.id: finding for finding in examine(case_of(changed(ONE, (ON_BUS, first + second))))
    }
    if message is None:
        assert "misplaced-vsmmu" not in names
    else:
        assert names["misplaced-vsmmu"].severity is Severity.ERROR
        assert message in names["misplaced-vsmmu"].consequence


def test_a_machine_wide_vsmmu_after_another_is_dropped():
    """libvirt writes it only if it is the first <iommu>; a device on pcie.0 is behind none."""
    xml = changed(
        rendered(A, B),
        (DRIVER + "\n    </iommu>", DRIVER + "\n    </iommu><iommu model='smmuv3'/>"),
        ("bus='0x04' slot='0x00'", "bus='0x07' slot='0x00'"),
        ("<serial ", f"{PORT}<serial "),
    )
    finding = only(case_of(xml), "xml-dropped")
    assert finding.severity is Severity.WARNING
    assert only(case_of(xml), "hostdev-not-behind-vsmmu").subject == str(B)


def test_two_vsmmus_on_one_bus():
    xml = changed(TWO, ("<driver pciBus='3' accel='on'/>", DRIVER))
    finding = only(case_of(xml), "misplaced-vsmmu")
    assert finding.consequence.endswith("An iommu is already attached to this bus.")


def test_a_vsmmu_with_devices_of_two_smmus():
    at_host = "domain='{0:#06x}' bus='{1:#04x}' slot='0x00' function='0x0'/>\n      </source>"
    xml = changed(rendered(A, A2), (at_host.format(0, 2), at_host.format(1, 1)))
    finding = only(case_of(xml), "vsmmu-spans-smmus")
    assert finding.severity is Severity.ERROR
    assert [evidence.what for evidence in finding.evidence] == [
        "pciBus='1'",
        f"{A}, behind host SMMU 0",
        f"{B}, behind host SMMU 1",
    ]
    assert "error vsmmu-spans-smmus" not in ids(case_of(rendered(A, A2)))
    assert "error vsmmu-spans-smmus" not in ids(case_of(TWO))


@pytest.mark.parametrize(
    ("changes", "raised"),
    [
        ([("<iommufd enabled='yes'/>", "")], True),
        ([("<iommufd enabled='yes'/>", "<iommufd enabled='no'/>")], True),
        ([("managed='yes'>", "managed='yes'><driver iommufd='no'/>")], True),
        (
            [
                ("<iommufd enabled='yes'/>", ""),
                ("managed='yes'>", "managed='yes'><driver iommufd='yes'/>"),
            ],
            False,
        ),
    ],
)
def test_a_device_without_iommufd(changes, raised):
    names = ids(case_of(changed(ONE, *changes)))
    assert ("error hostdev-without-iommufd" in names) is raised


def test_a_file_descriptor_group():
    xml = changed(ONE, ("<iommufd enabled='yes'/>", "<iommufd enabled='yes' fdgroup='group'/>"))
    finding = only(case_of(xml), "fdgroup-needs-opener")
    assert finding.severity is Severity.WARNING
    assert "'group' was not associated" in finding.consequence


def test_an_unprivileged_libvirt():
    session = Software(Version(12, 8), Version(11, 1), "QEMU", source="libvirt at qemu:///session")
    assert only(case_of(ONE, software=session), "missing-fdgroup").severity is Severity.ERROR
    system = Software(Version(12, 8), Version(11, 1), "QEMU", source="libvirt at qemu:///system")
    assert "error missing-fdgroup" not in ids(case_of(ONE, software=system))


QUOTED = (
    "Emulated endpoint devices are not allowed when using arm-smmuv3,accel=on",
    "vfio-pci endpoint devices without an iommufd backend not allowed when using arm-smmuv3",
    "arm-smmuv3 accel=on with 'auto' properties requires at least one cold-plugged VFIO device",
    "requires iommu MAP notifier which is not currently supported",
    "Migration not supported with SMMUv3 accelerator mode enabled",
    "SMMUv3 accel=on requires KVM with kernel-irqchip=on support",
    "IOMMU_VDEVICE_ALLOC failed",
)


def test_quoted_messages_are_in_the_qemu_binary(lab_root):
    """Messages that need a device and an SMMU are at least in the program."""
    program = (lab_root.path / "usr/bin/qemu-system-aarch64").read_bytes()
    assert [message for message in QUOTED if message.encode() not in program] == []


def test_libvirt_drops_accel_of_a_machine_wide_vsmmu(lab_daemon):
    """It accepts and keeps the properties, also when it validates, and passes none to QEMU."""
    driver = "<driver accel='on' cmdqv='on' ats='on' ril='on' ssidsize='4' oas='48'/>"
    text = str(nested_guest("drops", memory=128 << 20, kind="qemu"))
    vsmmu = f"<iommu model='smmuv3'>{driver}</iommu>"
    xml = DomainXml.parse(text.replace("<devices>", f"<devices>{vsmmu}"), "guest.xml")
    with connect(lab_daemon.uri) as connection:
        connection.define(xml)
        try:
            kept = connection.domain_xml("drops")
        finally:
            connection.undefine("drops")
    (iommu,) = kept.iommus()
    assert iommu.driver["accel"] == "on"
    (finding,) = [f for f in examine(case_of(kept)) if f.id == "xml-dropped"]
    assert finding.evidence[0].what.startswith("accel='on' ats='on'")
    own = libvirt.open(lab_daemon.uri)
    try:
        argv = own.domainXMLToNative("qemu-argv", str(kept))
    finally:
        own.close()
    assert "iommu=smmuv3" in argv
    assert "arm-smmuv3" not in argv


VSMMUS = """
    <controller type='pci' index='1' model='pcie-expander-bus'><target busNr='16'/></controller>
    <controller type='pci' index='2' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </controller>
    <iommu model='smmuv3'><driver pciBus='{}'/></iommu>
"""


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (VSMMUS.format("2"), "SMMU should be attached to a default PCIe root complex"),
        (
            VSMMUS.format("1") + "<iommu model='smmuv3'><driver pciBus='1'/></iommu>",
            "An iommu is already attached to this bus",
        ),
        (
            VSMMUS.replace("<iommu", "<iommu model='smmuv3'/><iommu", 1).format("1"),
            "virt machine already has iommu=smmuv3 set",
        ),
        (
            VSMMUS.replace("<iommu", "<iommu model='virtio'/><iommu", 1).format("1"),
            "virt machine already has virtio-iommu set",
        ),
        (
            "<iommu model='smmuv3'/><iommu model='virtio'/>",
            "virt machine does not support multiple IOMMUs",
        ),
        (
            VSMMUS.format("1' accel='on"),
            "SMMUv3 accel=on requires KVM with kernel-irqchip=on support",
        ),
    ],
    ids=[
        "a root port",
        "two on one bus",
        "beside a machine-wide one",
        "beside a virtio-iommu",
        "a virtio-iommu beside a machine-wide one",
        "emulated",
    ],
)
def test_libvirt_accepts_guests_for_which_qemu_exits(parts, message, lab_daemon):
    name = "exits"
    text = str(nested_guest(name, memory=128 << 20, kind="qemu"))
    xml = DomainXml.parse(text.replace("<devices>", f"<devices>{parts}"), "guest.xml")
    with connect(lab_daemon.uri) as connection:
        connection.define(xml)
        try:
            with pytest.raises(HypervisorError, match=message):
                connection.start(name)
        finally:
            connection.undefine(name)


def test_libvirt_defines_the_xml_that_the_page_advises(lab_daemon):
    (advised,) = re.findall(r"```xml\n(.*?)```", pages.page("no-accel"), re.DOTALL)
    text = str(nested_guest("advised", memory=128 << 20, kind="qemu"))
    text = text.replace("<devices>", f"<devices>{advised}")
    with connect(lab_daemon.uri) as connection:
        connection.define(DomainXml.parse(text, "guest.xml"))
        try:
            kept = connection.domain_xml("advised")
        finally:
            connection.undefine("advised")
    kvm = changed(kept, ("type='qemu'", "type='kvm'"), ("<name>", "<iommufd enabled='yes'/><name>"))
    assert [name for name in ids(case_of(kvm)) if name.startswith("error")] == []


def test_libvirt_refuses_acpi_without_uefi(lab_daemon):
    xml = changed(rendered(A, kind="qemu"), ("<os firmware='efi'>", "<os>"))
    xml.root.find("os").remove(xml.root.find("os/firmware"))
    message = "ACPI requires UEFI on this architecture"
    with connect(lab_daemon.uri) as connection, pytest.raises(HypervisorError, match=message):
        connection.define(xml, validate=False)
