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


def software(libvirt, qemu, **told):
    return Software(
        Version(*libvirt), Version(*qemu), "QEMU", source="libvirt at qemu:///system", **told
    )


def found(case, name):
    return [each for each in rules_software.too_old(case) if each.id == name]


def test_an_old_libvirt():
    (finding,) = found(case_of(ONE, software=software((12, 2), (11, 1))), "libvirt-too-old")
    assert (finding.severity, finding.subject) == (Severity.ERROR, f"guest {GUEST}")
    assert [str(each) for each in finding.evidence] == [
        "libvirt at qemu:///system: libvirt 12.2.0",
        f"{GUEST}.xml: /domain/devices/iommu: <driver accel>",
    ]
    assert finding.consequence.startswith(
        "libvirt 12.2.0 cannot write <driver accel> (a nested vSMMU): needs libvirt 12.8.0"
    )
    assert finding.remedy == "Use libvirt 12.8.0 or newer."


def test_a_libvirt_of_debian_12():
    (finding,) = found(case_of(ONE, software=software((9, 0), (7, 2))), "libvirt-too-old")
    assert [each.what for each in finding.evidence[1:]] == [
        "<driver pciBus>", "<driver accel>", "<iommufd>",
    ]  # fmt: skip
    (finding,) = found(case_of(ONE, software=software((9, 0), (7, 2))), "qemu-too-old")
    assert [each.what for each in finding.evidence[1:]] == ["<driver pciBus>", "<driver accel>"]


def test_an_old_qemu():
    (finding,) = found(case_of(ONE, software=software((12, 8), (10, 0))), "qemu-too-old")
    assert finding.consequence == (
        "QEMU 10.0.0 cannot write <driver pciBus> (several vSMMUs): needs QEMU 10.2.0; "
        "QEMU 10.0.0 cannot write <driver accel> (a nested vSMMU): needs QEMU 11.0.0."
    )
    assert finding.remedy == "Use QEMU 11.0.0 or newer."


def test_features_in_the_xml_are_required():
    xml = changed(ONE, ("accel='on'", "accel='on' cmdqv='on'"))
    (finding,) = found(case_of(xml, software=software((12, 8), (11, 0))), "qemu-too-old")
    assert [each.what for each in finding.evidence[1:]] == ["<driver cmdqv>"]
    assert found(case_of(ONE, software=software((12, 8), (11, 0))), "qemu-too-old") == []


def test_without_a_guest_the_features_of_a_plan_are_required():
    case = replace(case_of(ONE, software=software((11, 3), (10, 0))), guest=None, devices=(A, B))
    old = found(case, "libvirt-too-old")
    assert {each.subject for each in old} == {"host"}
    assert old[0].evidence[1].where == "XML that strategy identity writes"
    direct = replace(case, choice=Choice("direct"))
    assert found(direct, "libvirt-too-old") == []
    assert PLUGINS is case.plugins


@pytest.mark.parametrize(
    ("guest", "strategy", "raised"),
    [(True, None, True), (False, None, False), (False, "identity", True)],
)
def test_unknown_libvirt(guest, strategy, raised):
    """It matters where a guest or a strategy is asked for."""
    case = case_of(ONE, software=Software(), choice=strategy and Choice(strategy))
    if not guest:
        case = replace(case, guest=None)
    assert ("unknown libvirt-unknown" in ids(case)) is raised
    if raised:
        assert only(case, "libvirt-unknown").severity is Severity.UNKNOWN
