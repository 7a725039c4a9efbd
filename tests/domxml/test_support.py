import pytest

from vmm_msi.domxml.domcaps import DomainCaps, read_domain_caps
from vmm_msi.domxml.parse import parse
from vmm_msi.domxml.support import (
    REQUIREMENTS,
    Feature,
    GuestKind,
    IommufdForm,
    Support,
    Version,
    XmlLayout,
)


def test_table_is_complete():
    assert set(REQUIREMENTS) == set(Feature)


def test_gaps_as_text():
    (gap,) = Support(Version.from_int(9_000_000)).missing([Feature.SMMUV3, Feature.PCI_BUS])
    assert gap.feature is Feature.PCI_BUS
    assert str(gap) == (
        "libvirt 9.0.0 cannot write <driver pciBus> (several vSMMUs): needs libvirt 11.10.0"
    )


def test_a_release_of_qemu_is_required_if_known():
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


NEWEST = (Version(12, 8), Version(11, 1))


@pytest.mark.parametrize("kind", ["kvm", "test", None])
def test_a_guest_with_kvm_supports_every_feature(kind):
    guest = GuestKind(kind, "aarch64", "virt-11.1")
    assert Support(*NEWEST, guest).missing(Feature) == []
    assert Support(*NEWEST, guest).layout() == XmlLayout()


def test_features_that_an_emulated_guest_lacks():
    support = Support(*NEWEST, GuestKind("qemu", "aarch64", "virt"))
    assert [gap.feature for gap in support.missing(Feature)] == [
        Feature.ACCEL, Feature.HOSTDEV_IOMMUFD, Feature.DOMAIN_IOMMUFD, Feature.FDGROUP,
    ]  # fmt: skip
    (gap,) = support.missing([Feature.ACCEL])
    assert str(gap) == (
        "a guest of type 'qemu' cannot write <driver accel> (a nested vSMMU): needs type 'kvm'"
    )
    assert support.layout() == XmlLayout(accel=False, iommufd=IommufdForm.NONE)


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        (GuestKind("kvm", "x86_64", "q35"), "a guest with arch 'x86_64' cannot write <iommu"),
        (GuestKind("kvm", "aarch64", "sbsa-ref"), "a guest with machine 'sbsa-ref' cannot write"),
    ],
)
def test_guests_without_an_smmuv3(guest, words):
    (gap,) = Support(*NEWEST, guest).missing([Feature.SMMUV3])
    assert str(gap).startswith(words)


def test_features_that_the_host_lacks():
    support = Support(*NEWEST, caps=DomainCaps(iommufd=False))
    assert support.layout().iommufd is IommufdForm.NONE
    (gap,) = support.missing([Feature.DOMAIN_IOMMUFD])
    assert (gap.has, gap.needs) == ("libvirt on this host", "iommufd in its domain capabilities")
    assert Support(*NEWEST, caps=DomainCaps(iommufd=True)).missing(Feature) == []


HOSTDEV = (
    "<devices><hostdev supported='yes'><enum name='subsysType'>{}</enum>"
    "<enum name='iommufd'>{}</enum></hostdev></devices>"
)
REST = (
    "<os><enum name='firmware'><value>efi</value></enum></os>"
    "<features><gic supported='yes'><enum name='version'><value>2</value></enum></gic></features>"
)


def capabilities(text):
    return read_domain_caps(parse(f"<domainCapabilities>{text}</domainCapabilities>", "the test"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", DomainCaps()),
        ("<devices><hostdev supported='no'/></devices>", DomainCaps(pci_hostdev=False)),
        (
            HOSTDEV.format("<value>usb</value>", ""),
            DomainCaps(pci_hostdev=False, iommufd=False),
        ),
        (
            HOSTDEV.format("<value>pci</value>", "<value>no</value><value>yes</value>") + REST,
            DomainCaps(pci_hostdev=True, iommufd=True, gic3=False, efi=True),
        ),
        ("<features><gic supported='no'/></features>", DomainCaps(gic3=False)),
    ],
)
def test_domain_capabilities(text, expected):
    assert capabilities(text) == expected
