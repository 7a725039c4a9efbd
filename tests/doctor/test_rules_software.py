"""Findings about releases of libvirt and QEMU."""

from dataclasses import replace

import pytest
from doctor.cases import A, B
from doctor.guest_cases import GUEST, PLUGINS, case_of, changed, ids, only, rendered

from vmm_msi.config import Choice
from vmm_msi.doctor import rules_software
from vmm_msi.doctor.case import Software
from vmm_msi.doctor.finding import Severity
from vmm_msi.domxml.support import Version

ONE = rendered(A)


def software(libvirt, qemu, **fields):
    return Software(
        Version(*libvirt), Version(*qemu), "QEMU", source="libvirt at qemu:///system", **fields
    )


def findings_of(case, name):
    return [finding for finding in rules_software.too_old(case) if finding.id == name]


def test_an_old_libvirt():
    (finding,) = findings_of(case_of(ONE, software=software((12, 2), (11, 1))), "libvirt-too-old")
    assert (finding.severity, finding.subject) == (Severity.ERROR, f"guest {GUEST}")
    assert [str(evidence) for evidence in finding.evidence] == [
        "libvirt at qemu:///system: libvirt 12.2.0",
        f"{GUEST}.xml: /domain/devices/iommu: <driver accel>",
    ]
    assert finding.consequence.startswith(
        "libvirt 12.2.0 cannot write <driver accel> (a nested vSMMU): needs libvirt 12.8.0"
    )
    assert finding.remedy == "Use libvirt 12.8.0 or newer."


def test_a_libvirt_of_debian_12():
    (finding,) = findings_of(case_of(ONE, software=software((9, 0), (7, 2))), "libvirt-too-old")
    assert [evidence.what for evidence in finding.evidence[1:]] == [
        "<driver pciBus>", "<driver accel>", "<iommufd>",
    ]  # fmt: skip
    (finding,) = findings_of(case_of(ONE, software=software((9, 0), (7, 2))), "qemu-too-old")
    assert [evidence.what for evidence in finding.evidence[1:]] == [
        "<driver pciBus>",
        "<driver accel>",
    ]


def test_an_old_qemu():
    (finding,) = findings_of(case_of(ONE, software=software((12, 8), (10, 0))), "qemu-too-old")
    assert finding.consequence == (
        "QEMU 10.0.0 cannot write <driver pciBus> (several vSMMUs): needs QEMU 10.2.0; "
        "QEMU 10.0.0 cannot write <driver accel> (a nested vSMMU): needs QEMU 11.0.0."
    )
    assert finding.remedy == "Use QEMU 11.0.0 or newer."


def test_features_in_the_xml_are_required():
    xml = changed(ONE, ("accel='on'", "accel='on' cmdqv='on'"))
    (finding,) = findings_of(case_of(xml, software=software((12, 8), (11, 0))), "qemu-too-old")
    assert [evidence.what for evidence in finding.evidence[1:]] == ["<driver cmdqv>"]
    assert findings_of(case_of(ONE, software=software((12, 8), (11, 0))), "qemu-too-old") == []


def test_without_a_guest_the_features_of_a_plan_are_required():
    case = replace(case_of(ONE, software=software((11, 3), (10, 0))), guest=None, devices=(A, B))
    old = findings_of(case, "libvirt-too-old")
    assert {finding.subject for finding in old} == {"host"}
    assert old[0].evidence[1].where == "XML that strategy identity writes"
    direct = replace(case, choice=Choice("direct"))
    assert findings_of(direct, "libvirt-too-old") == []
    assert PLUGINS is case.plugins


@pytest.mark.parametrize(
    ("guest", "selected", "strategy", "raised"),
    [
        (True, True, None, True),
        (False, True, None, True),
        (False, False, "identity", True),
        (False, False, None, False),
    ],
)
def test_unknown_libvirt(guest, selected, strategy, raised):
    """The releases matter with a guest, a selected device or a strategy, not for a host alone."""
    case = case_of(ONE, software=Software(), choice=strategy and Choice(strategy))
    case = replace(case, devices_selected=selected)
    if not guest:
        case = replace(case, guest=None)
    assert ("unknown libvirt-unknown" in ids(case)) is raised
    if raised:
        assert only(case, "libvirt-unknown").severity is Severity.UNKNOWN
