"""Findings about devices that are to be assigned."""

import pytest
from doctor.cases import A2, A, B, function, with_function, with_host
from doctor.guest_cases import case_of, changed, ids, only, rendered

from vmm_msi.doctor.finding import Severity
from vmm_msi.hosttree.memory import MemoryTree
from vmm_msi.model import PciAddress

ONE = rendered(A)
BRIDGE = PciAddress(0, 0, 1, 0)
VF = PciAddress(0, 1, 0, 1)


def without(case, address):
    """The host's system lists no such function."""
    host = case.host
    return with_host(
        case,
        functions=tuple(each for each in host.functions if each.address != address),
        devices=tuple(each for each in host.devices if each.address != address),
    )


def test_a_device_that_is_not_there():
    finding = only(without(case_of(ONE), A), "device-missing")
    assert (finding.severity, finding.subject) == (Severity.ERROR, str(A))
    assert str(finding.evidence[0]) == "host: there is no such PCI device"
    assert str(A2) in finding.remedy


@pytest.mark.parametrize("there", [True, False])
def test_a_device_by_the_files_of_the_host(there):
    files = {f"/sys/bus/pci/devices/{A2}/class": b"0x020000\n"}
    if there:
        files[f"/sys/bus/pci/devices/{A}/class"] = b"0x020000\n"
    case = without(case_of(ONE, tree=MemoryTree("host", files)), A)
    found = [f for f in ids(case) if "device-missing" in f]
    assert found == ([] if there else ["error device-missing"])
    if not there:
        assert only(case, "device-missing").evidence[0].where == f"/sys/bus/pci/devices/{A}"


def test_a_device_that_another_guest_has():
    finding = only(case_of(ONE, holders=[(A, "other"), (B, "third")]), "held-by-domain")
    assert (finding.severity, finding.subject) == (Severity.WARNING, str(A))
    assert str(finding.evidence[0]) == f"libvirt domain other: a <hostdev> for {A}"
    assert "in use by domain other" in finding.consequence
    assert "warning held-by-domain" not in ids(case_of(ONE, holders=[(A, "guest0")]))


@pytest.mark.parametrize(
    ("told", "kind"),
    [({"physical_function": VF}, "physical"), ({"virtual_functions": (VF,)}, "virtual")],
)
def test_a_device_whose_other_half_another_guest_has(told, kind):
    case = with_function(case_of(ONE, holders=[(VF, "other")]), A, **told)
    finding = only(case, "held-by-domain")
    assert finding.consequence == (
        f"Domain other has its {kind} function {VF}, and both cannot be in use."
    )


def test_a_part_of_a_group():
    case = with_function(case_of(ONE), A, members=(A, A2))
    finding = only(case, "partial-group")
    assert (finding.severity, finding.subject) == (Severity.ERROR, str(A))
    assert str(finding.evidence[0]) == f"/sys/kernel/iommu_groups/10/devices: {A2}, beside {A}"
    assert finding.remedy.startswith(f"Assign {A2} to the same guest")
    both = case_of(rendered(A, A2))
    for address, group in ((A, 10), (A2, 10)):
        both = with_function(both, address, iommu_group=group, members=(A, A2))
    assert not [found for found in ids(both) if "partial-group" in found]


def test_a_group_with_a_bridge():
    case = with_function(case_of(ONE), A, members=(BRIDGE, A))
    case = with_function(case, BRIDGE, class_code=0x060400, members=(BRIDGE, A), driver="pcieport")
    assert "a slot or a switch with ACS separates them" in only(case, "partial-group").remedy


def test_a_group_of_which_a_plain_device_is():
    """Behind no vSMMU: the rest of the group must be free, and nothing else."""
    xml = changed(ONE, ("bus='0x02' slot='0x00'", "bus='0x00' slot='0x05'"))
    case = with_function(case_of(xml), A, members=(A, A2))
    assert not [found for found in ids(case) if "partial-group" in found]


def test_groups_that_nothing_tells_of():
    case = without(case_of(ONE), A)
    finding = only(with_host(case, functions=()), "partial-group")
    assert finding.severity is Severity.UNKNOWN
    assert finding.evidence[0].what == f"no IOMMU group of {A}"


def test_a_physical_function_with_virtual_ones():
    case = with_function(case_of(ONE), A, virtual_functions=(VF,))
    finding = only(case, "sr-iov-pf")
    assert finding.severity is Severity.WARNING
    assert str(finding.evidence[0]) == (f"/sys/bus/pci/devices/{A}/virtfn0: {VF}, the first of 1")
    assert "warning sr-iov-pf" not in ids(case_of(ONE))


@pytest.mark.parametrize(
    ("driver", "raised"), [("vfio-pci", True), ("mlx5_vfio_pci", True), ("mlx5_core", False)]
)
def test_a_virtual_function_of_what_vfio_has(driver, raised):
    physical = function(A2, group=11, driver=driver, virtual_functions=(A,))
    case = with_function(case_of(ONE), A, physical_function=A2)
    case = with_host(
        case, functions=(*(f for f in case.host.functions if f.address != A2), physical)
    )
    assert ("error vf-token" in ids(case)) is raised
