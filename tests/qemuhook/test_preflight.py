import pytest
from qemuhook.helpers import A, B, managed

from vmm_msi.domxml.metadata import read_record
from vmm_msi.qemuhook.preflight import problems

C = "0002:01:00.0"


def problems_of(host, domain):
    return problems(domain, read_record(domain), host.tree)


def test_a_guest_in_order(host):
    assert problems_of(host, managed()) == []


def test_a_missing_part(host):
    domain = managed()
    domain.devices.remove(domain.iommus()[0].element)
    (problem,) = problems_of(host, domain)
    assert problem == (
        "the <iommu model='smmuv3'> of the pcie-expander-bus with index 1 is gone from the "
        "definition"
    )


def test_a_guest_that_cannot_be_nested(host):
    domain = managed()
    domain.root.set("type", "qemu")
    domain.root.find("features/gic").set("version", "2")
    assert problems_of(host, domain) == [
        "<gic version> is '2'; an ITS needs '3'",
        "domain type is 'qemu'; an accelerated vSMMU needs 'kvm'",
    ]


def test_a_simulated_binding_does_not_need_kvm(host):
    assert problems_of(host, managed(kind="qemu", backend="sim")) == []


@pytest.mark.parametrize(
    ("driver", "missing"),
    [
        ({}, "ats, ril, ssidsize"),
        ({"ats": "auto", "ril": "on", "ssidsize": "0"}, "ats"),
        ({"ats": "off", "ril": "on", "ssidsize": "0"}, None),
    ],
    ids=["defaults", "one", "none"],
)
def test_an_accelerated_vsmmu_without_a_device(host, driver, missing):
    """QEMU: accel=on with 'auto' properties requires at least one cold-plugged VFIO device."""
    domain = managed()
    domain.devices.remove(domain.hostdevs()[0].element)
    for name, value in driver.items():
        domain.iommus()[0].element.find("driver").set(name, value)
    expected = [f"the <hostdev> of {A} is gone from the definition"]
    if missing is not None:
        expected.append(
            "no assigned device is behind the accelerated vSMMU of controller 1, from which QEMU "
            f"would take {missing}"
        )
    assert problems_of(host, domain) == expected


def test_controllers_in_a_circle(host):
    """libvirt refuses them; the check must terminate nevertheless."""
    domain = managed()
    for controller in domain.controllers()[1:3]:
        address = controller.element.find("address")
        if address is None:
            address = controller.element.makeelement("address", {"type": "pci"})
            controller.element.append(address)
        address.set("bus", "2" if controller.index == 1 else "1")
    assert problems_of(host, domain) == []


def test_a_device_that_the_host_lacks(empty_host):
    empty_host.device(A, group=1)
    assert problems_of(empty_host, managed()) == [f"the host has no PCI device {B}"]


def test_a_device_without_a_group(empty_host):
    empty_host.device(A, group=1)
    empty_host.device(B)
    assert problems_of(empty_host, managed()) == [
        f"{B} has no IOMMU group: no IOMMU translates its DMA"
    ]


@pytest.mark.parametrize(
    ("driver", "kind", "bad"),
    [
        ("nvme", "0x010802", True),
        ("e1000e", "0x020000", True),
        (None, "0x010802", False),
        ("vfio-pci", "0x010802", False),
        ("mlx5_vfio_pci", "0x020000", False),
        ("pci-stub", "0x010802", False),
        ("pcieport", "0x060400", False),
        ("shpchp", "0x060400", False),
    ],
)
def test_another_device_in_the_group(host, driver, kind, bad):
    host.device(C, group=1, driver=driver, kind=kind)
    problem = f"{C} shares the IOMMU group of {A} and is in use by the host's driver {driver}"
    assert problems_of(host, managed()) == ([problem] if bad else [])


def test_two_assigned_devices_in_one_group(empty_host):
    empty_host.device(A, group=1, driver="nvme")
    empty_host.device(B, group=1, driver="nvme")
    assert problems_of(empty_host, managed()) == []
