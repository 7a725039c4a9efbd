"""Findings about assigned devices."""

from dataclasses import replace

import pytest
from doctor.cases import (
    A2,
    HEALTHY,
    A,
    B,
    function,
    host_device,
    with_device,
    with_function,
    with_host,
)
from doctor.guest_cases import case_of, changed, ids, only, rendered

from vmm_msi.doctor.finding import Severity
from vmm_msi.host.files.in_memory import MemoryTree
from vmm_msi.types import PciAddress
from vmm_msi.types.pci_function import VfioEvidence

ONE = rendered(A)
BRIDGE = PciAddress(0, 0, 1, 0)
VF = PciAddress(0, 1, 0, 1)


def without(case, address):
    """The same host without a function."""
    host = case.host
    return with_host(
        case,
        functions=tuple(one for one in host.functions if one.address != address),
        devices=tuple(one for one in host.devices if one.address != address),
    )


def test_a_missing_device():
    finding = only(without(case_of(ONE), A), "device-missing")
    assert (finding.severity, finding.subject) == (Severity.ERROR, str(A))
    assert str(finding.evidence[0]) == "host: no such PCI device"
    assert str(A2) in finding.remedy


@pytest.mark.parametrize("present", [True, False])
def test_a_missing_device_by_the_host_files(present):
    files = {f"/sys/bus/pci/devices/{A2}/class": b"0x020000\n"}
    if present:
        files[f"/sys/bus/pci/devices/{A}/class"] = b"0x020000\n"
    case = without(case_of(ONE, tree=MemoryTree("host", files)), A)
    missing = [name for name in ids(case) if "device-missing" in name]
    assert missing == ([] if present else ["error device-missing"])
    if not present:
        assert only(case, "device-missing").evidence[0].where == f"/sys/bus/pci/devices/{A}"


def test_a_missing_device_without_a_guest():
    """Routes for its address do not matter, and the remedy does not suggest bridges."""
    gone = PciAddress(0, 1, 5, 0)
    case = replace(HEALTHY, devices=(gone,))
    case = with_host(case, devices=(*case.host.devices, host_device(gone, its=())))
    bridge = f"/sys/bus/pci/devices/{BRIDGE}/class"
    tree = MemoryTree("host", {f"/sys/bus/pci/devices/{A}/class": b"0x020000\n", bridge: b"0\n"})
    case = with_function(replace(case, tree=tree), BRIDGE, class_code=0x060400)
    assert [name for name in ids(case) if name.startswith("error")] == ["error device-missing"]
    finding = only(case, "device-missing")
    assert finding.remedy == f"Use a device from lspci -D, such as {A}, {A2}, {B}."
    assert "error device-missing" not in ids(replace(case, devices_selected=False))


def test_a_device_of_another_guest():
    finding = only(case_of(ONE, holders=[(A, "other"), (B, "third")]), "held-by-domain")
    assert (finding.severity, finding.subject) == (Severity.WARNING, str(A))
    assert str(finding.evidence[0]) == f"libvirt domain other: {A} is assigned to it"
    assert "in use by domain other" in finding.consequence
    assert "warning held-by-domain" not in ids(case_of(ONE, holders=[(A, "guest0")]))


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"physical_function": VF}, "physical"), ({"virtual_functions": (VF,)}, "virtual")],
)
def test_a_related_function_in_another_guest(fields, kind):
    case = with_function(case_of(ONE, holders=[(VF, "other")]), A, **fields)
    finding = only(case, "held-by-domain")
    assert finding.consequence == (
        f"Domain other has its {kind} function {VF}, and only one of them can be used."
    )


def test_a_partly_assigned_group():
    case = with_function(case_of(ONE), A, members=(A, A2))
    finding = only(case, "partial-group")
    assert (finding.severity, finding.subject) == (Severity.ERROR, str(A))
    assert str(finding.evidence[0]) == (
        f"/sys/kernel/iommu_groups/10/devices: IOMMU group 10 has {A2} besides {A}"
    )
    assert finding.remedy.endswith("only if the guest puts both behind one stage 1.")


def test_a_completely_assigned_group():
    """The simulator decides: each device has a stage 1 of its own, but a group has only one."""
    case = case_of(rendered(A, A2))
    for address in (A, A2):
        case = with_function(case, address, iommu_group=10, members=(A, A2))
        case = with_device(case, address, iommu_group=10)
    assert not [name for name in ids(case) if "partial-group" in name]
    assert "IOMMU group 10 is attached elsewhere" in only(case, "msi-lost").evidence[0].what


def test_a_group_by_a_description_of_the_host():
    case = with_host(case_of(ONE), functions=())
    case = with_device(case, A2, iommu_group=10)
    assert only(case, "partial-group").evidence[0].where == "host"


def test_a_group_with_a_bridge():
    case = with_function(case_of(ONE), A, members=(BRIDGE, A))
    case = with_function(case, BRIDGE, class_code=0x060400, members=(BRIDGE, A), driver="pcieport")
    assert only(case, "partial-group").remedy.endswith(
        f"{BRIDGE} is a bridge and cannot be assigned."
    )


def test_a_group_with_a_device_without_a_vsmmu():
    """Without a vSMMU, the rest of the group only has to be free."""
    xml = changed(ONE, ("bus='0x02' slot='0x00'", "bus='0x00' slot='0x05'"))
    case = with_function(case_of(xml), A, members=(A, A2))
    assert not [name for name in ids(case) if "partial-group" in name]


def test_unreported_groups():
    case = with_device(case_of(ONE), A, iommu_group=-1)
    finding = only(with_host(case, functions=()), "partial-group")
    assert finding.severity is Severity.UNKNOWN
    assert finding.evidence[0].what == f"IOMMU group of {A} not reported"


def test_a_physical_function_with_virtual_ones():
    case = with_function(case_of(ONE), A, virtual_functions=(VF,))
    finding = only(case, "sr-iov-pf")
    assert finding.severity is Severity.WARNING
    assert str(finding.evidence[0]) == (f"/sys/bus/pci/devices/{A}/virtfn0: {VF}, the first of 1")
    assert "warning sr-iov-pf" not in ids(case_of(ONE))


@pytest.mark.parametrize(
    ("driver", "vfio", "evidence"),
    [
        ("vfio-pci", VfioEvidence.VFIO_DEV, "a VFIO driver: the device has vfio-dev"),
        ("own_net", VfioEvidence.MODULES_ALIAS, "a VFIO driver: modules.alias lists it"),
        ("mlx5_vfio_pci", None, "a VFIO driver by its name"),
        ("mlx5_core", None, None),
    ],
)
def test_a_virtual_function_whose_physical_function_is_bound_to_vfio(driver, vfio, evidence):
    physical = function(A2, group=11, driver=driver, virtual_functions=(A,), vfio=vfio)
    case = with_function(case_of(ONE), A, physical_function=A2)
    case = with_host(
        case, functions=(*(f for f in case.host.functions if f.address != A2), physical)
    )
    if evidence is None:
        assert "error vf-token" not in ids(case)
        return
    finding = only(case, "vf-token")
    assert (finding.severity, finding.evidence[0].what) == (
        Severity.ERROR,
        f"{driver}, {evidence}",
    )
