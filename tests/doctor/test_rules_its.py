"""Findings about ITSes."""

from doctor.cases import HEALTHY, A, found, with_device

from vmm_msi.doctor import rules_its
from vmm_msi.doctor.finding import Severity


def test_a_device_without_an_its():
    finding = found(rules_its.no_its, with_device(HEALTHY, A, its_group=()))["no-its"]
    assert (finding.severity, finding.subject) == (Severity.ERROR, str(A))
    assert str(finding.evidence[0]) == "host: no ITS group for RequesterID 0x100"
    assert found(rules_its.no_its, HEALTHY) == {}
