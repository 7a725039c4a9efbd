"""Devices that libvirt does not bind to VFIO: bound in advance, or an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from doctor.cases import HEALTHY, A, with_function
from doctor.guest_cases import case_of, ids, only, rendered

from vmm_msi.doctor.case import Software

UNMANAGED = rendered(A, managed=False)


@pytest.mark.parametrize("driver", ["vfio-pci", "mlx5-vfio-pci"])
def test_a_device_bound_to_vfio(driver):
    case = case_of(UNMANAGED, base=with_function(HEALTHY, A, driver=driver))
    assert "error not-bound-to-vfio" not in ids(case)


@pytest.mark.parametrize(
    ("driver", "shown"), [("nvme", "nvme, not shown to be a VFIO driver"), (None, "no driver")]
)
def test_a_device_that_is_not(driver, shown):
    case = case_of(UNMANAGED, base=with_function(HEALTHY, A, driver=driver))
    finding = only(case, "not-bound-to-vfio")
    assert finding.evidence[0].what == shown
    assert "virsh nodedev-detach pci_0000_01_00_0" in finding.remedy
    managed = case_of(rendered(A), base=with_function(HEALTHY, A, driver=driver))
    assert "error not-bound-to-vfio" not in ids(managed)


def test_a_source_that_reports_no_drivers():
    """A posted listing has no driver where the host may have one."""
    base = replace(with_function(HEALTHY, A, driver=None), software=Software())
    assert "error not-bound-to-vfio" not in ids(case_of(UNMANAGED, base=base))
