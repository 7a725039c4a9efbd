import pytest

from vmm_msi.domxml.support import (
    REQUIREMENTS,
    Feature,
    IommufdForm,
    Support,
    Version,
    XmlLayout,
)


def test_table_is_complete():
    assert set(REQUIREMENTS) == set(Feature)


def test_words():
    (gap,) = Support(Version.from_int(9_000_000)).missing([Feature.SMMUV3, Feature.PCI_BUS])
    assert gap.feature is Feature.PCI_BUS
    assert str(gap) == (
        "libvirt 9.0.0 cannot write <driver pciBus> (several vSMMUs): needs libvirt 11.10.0"
    )


def test_qemu_counts_where_there_is_one():
    assert Support(Version(11, 10)).has(Feature.PCI_BUS)
    support = Support(Version(11, 10), Version(10, 1, 3))
    assert not support.has(Feature.PCI_BUS)
    (gap,) = support.missing([Feature.PCI_BUS])
    assert (gap.needs, gap.has) == ("QEMU 10.2.0", "QEMU 10.1.3")


@pytest.mark.parametrize(
    ("libvirt", "qemu", "layout"),
    [
        ((9, 0), None, XmlLayout(pci_bus=False, accel=False, iommufd=IommufdForm.NONE)),
        ((11, 10), (10, 2), XmlLayout(accel=False, iommufd=IommufdForm.NONE)),
        ((12, 1), (11, 0), XmlLayout(accel=False, iommufd=IommufdForm.HOSTDEV)),
        ((12, 2), (11, 0), XmlLayout(accel=False)),
        ((12, 8), (11, 0), XmlLayout()),
        ((12, 8), (10, 2), XmlLayout(accel=False)),
    ],
)
def test_layout(libvirt, qemu, layout):
    support = Support(Version(*libvirt), None if qemu is None else Version(*qemu))
    assert support.layout() == layout
