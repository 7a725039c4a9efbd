"""Findings about values that libvirt refuses or replaces."""

import pytest
from doctor.cases import HOST, A
from doctor.guest_cases import PLUGINS, ids, only, rendered

from vmm_msi.config import Config
from vmm_msi.doctor.case_reader import Selection, read_case
from vmm_msi.doctor.finding import Severity
from vmm_msi.doctor.rules import examine
from vmm_msi.domxml.libvirt_values import LIBVIRT
from vmm_msi.host.sources import HostSources


@pytest.fixture
def case_with(tmp_path):
    """Return the case of a guest file with a replacement."""

    def case(*pairs):
        text = str(rendered(A))
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "guest0.xml"
        path.write_text(text)
        selection = Selection((), str(path), None, None, PLUGINS, Config())
        return read_case(HostSources(HOST.source, (HOST,), ()), selection)

    return case


@pytest.mark.parametrize(
    ("old", "new", "message", "remedy"),
    [
        (
            "pciBus='1'",
            "pciBus='0x01'",
            "Invalid value for attribute 'pciBus' in element 'driver': '0x01'. Expected integer",
            "Use pciBus='1'.",
        ),
        (
            "model='smmuv3'",
            "model='smmuv3Dev'",
            "Invalid value for attribute 'model' in element 'iommu': 'smmuv3Dev'. Until",
            "Use model='smmuv3'.",
        ),
        (
            "accel='on'",
            "accel='on' ats='yes'",
            "Invalid value for attribute 'ats' in element 'driver': 'yes'. Until",
            "Use ats='on'.",
        ),
        (
            "<iommufd enabled='yes'/>",
            "<iommufd/>",
            "Missing required attribute 'enabled' in element 'iommufd'",
            "Add enabled; valid: no, yes.",
        ),
        (
            "accel='on'",
            "accel='on' iotlb='on'",
            "iommu model 'smmuv3' doesn't support some additional attributes",
            "Remove it.",
        ),
        ("accel='on'", "ats='on'", "accel must be enabled for iommu", "Add accel, or remove it."),
        (
            "index='1' model='pcie-exp",
            "index='0x1' model='pcie-exp",
            "Invalid value for attribute 'index' in element 'controller': '0x1'",
            "Use index='1'.",
        ),
        (
            "bus='0x01' slot='0x00' function='0x0'/>\n      </source>",
            "bus='0x01' slot='0x20' function='0x0'/>\n      </source>",
            "Invalid PCI address slot='0x20', must be <= 0x1F",
            "Use a valid value: 0 to 31, decimal, or hexadecimal after 0x.",
        ),
    ],
)
def test_a_refused_value_is_the_only_finding_about_the_guest(case_with, old, new, message, remedy):
    case = case_with((old, new))
    (finding,) = [finding for finding in examine(case) if finding.subject == "guest guest0"]
    assert (finding.id, finding.severity) == ("libvirt-refuses", Severity.ERROR)
    assert f"libvirt {LIBVIRT} rejects the definition: " in finding.consequence
    assert message in finding.consequence
    assert finding.remedy == remedy
    assert case.devices


def test_a_value_that_libvirt_drops(case_with):
    case = case_with(("pciBus='1'", "pciBus='-1'"))
    assert [name for name in ids(case) if "error" in name] == ["error xml-dropped"]


def test_a_value_that_libvirt_replaces(case_with):
    case = case_with(("managed='yes'", "managed='true'"))
    errors = [finding for finding in examine(case) if finding.severity is Severity.ERROR]
    assert [(finding.id, finding.remedy) for finding in errors] == [
        ("xml-dropped", "Use managed='yes'.")
    ]
    assert "note rmr-needed" in ids(case)


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ("ssidsize='33'", "Parameter 'ssidsize' does not accept value '33'"),
        ("ssidsize='021'", "Parameter 'ssidsize' does not accept value '21'"),
        ("oas='32'", "QEMU SMMUv3 model only implements auto, 44 bit, or 48 bit OAS"),
        ("oas='52'", "QEMU SMMUv3 model only implements auto, 44 bit, or 48 bit OAS"),
    ],
)
def test_properties_that_qemu_refuses(case_with, properties, message):
    finding = only(case_with(("accel='on'", f"accel='on' {properties}")), "qemu-refuses")
    assert finding.severity is Severity.ERROR
    assert message in finding.consequence


def test_properties_that_qemu_accepts(case_with):
    every = "ats='off' ril='on' ssidsize='020' oas='48' cmdqv='off'"
    names = ids(case_with(("accel='on'", f"accel='on' {every}")))
    assert not [name for name in names if "error" in name]


def test_no_value_is_refused(case_with):
    assert not [name for name in ids(case_with()) if "libvirt-refuses" in name]
