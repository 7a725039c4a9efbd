"""The features of domain XML and the libvirt, QEMU, host and guest that they require."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.domxml.domcaps import DomainCaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Version(NamedTuple):
    """A release of libvirt or QEMU."""

    major: int
    minor: int
    release: int = 0

    @classmethod
    def from_int(cls, number: int) -> Version:
        """Decode a number that virConnectGetLibVersion or virConnectGetVersion returns.

        :param number: 1,000,000 * major + 1,000 * minor + release.
        """
        return cls(number // 1_000_000, number // 1_000 % 1_000, number % 1_000)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.release}"


class Feature(StrEnum):
    """A feature of domain XML that libvirt supports since some release."""

    SMMUV3 = "smmuv3"
    PCI_BUS = "pciBus"
    ACCEL = "accel"
    ATS = "ats"
    RIL = "ril"
    SSIDSIZE = "ssidsize"
    OAS = "oas"
    CMDQV = "cmdqv"
    HOSTDEV_IOMMUFD = "hostdev-iommufd"
    DOMAIN_IOMMUFD = "domain-iommufd"
    FDGROUP = "fdgroup"
    OVERRIDE = "override"


#: The only architecture and machine type with an SMMUv3 (QEMU ``hw/arm/virt.c``, ``virt-9.2`` and
#: the like are versions of it).
ARCH = "aarch64"
MACHINE = "virt"


class GuestKind(NamedTuple):
    """Type, architecture and machine of a guest; None if the definition does not set one.

    :param type: libvirt's domain type: ``kvm``, ``qemu`` (emulated), ``test``.
    """

    type: str | None = None
    arch: str | None = None
    machine: str | None = None

    @property
    def is_virt(self) -> bool:
        """Whether its machine type is a version of QEMU's ``virt``."""
        return self.machine is not None and self.machine.partition("-")[0] == MACHINE


@dataclass(frozen=True, slots=True)
class Requirement:
    """The requirements of a feature.

    :param xml: its XML.
    :param purpose: its purpose.
    :param libvirt: the first release that supports it.
    :param qemu: the first release that supports it; None if every release does.
    :param virt: the guest must have :data:`ARCH` and :data:`MACHINE`.
    :param kvm: the guest's CPU must not be emulated.
    :param caps: field of :class:`DomainCaps` that must not be False.
    """

    xml: str
    purpose: str
    libvirt: Version
    qemu: Version | None = None
    virt: bool = False
    kvm: bool = False
    caps: str | None = None


# libvirt's documentation names no release for accel and the features that came with it, so this is
# the first release that was tried; earlier ones are refused.
_TRIED = Version(12, 8)

_QEMU_ACCEL = Version(11, 0)

REQUIREMENTS: Mapping[Feature, Requirement] = {
    Feature.SMMUV3: Requirement("<iommu model='smmuv3'>", "a vSMMU", Version(5, 5), virt=True),
    Feature.PCI_BUS: Requirement(
        "<driver pciBus>", "several vSMMUs", Version(11, 10), Version(10, 2), virt=True
    ),
    Feature.ACCEL: Requirement(
        "<driver accel>", "a nested vSMMU", _TRIED, _QEMU_ACCEL, virt=True, kvm=True
    ),
    Feature.ATS: Requirement("<driver ats>", "ATS in a vSMMU", _TRIED, _QEMU_ACCEL, virt=True),
    Feature.RIL: Requirement("<driver ril>", "range invalidation", _TRIED, _QEMU_ACCEL, virt=True),
    Feature.SSIDSIZE: Requirement("<driver ssidsize>", "PASIDs", _TRIED, _QEMU_ACCEL, virt=True),
    Feature.OAS: Requirement(
        "<driver oas>", "an output address size", _TRIED, _QEMU_ACCEL, virt=True
    ),
    Feature.CMDQV: Requirement(
        "<driver cmdqv>", "command queues", _TRIED, Version(11, 1), virt=True
    ),
    Feature.HOSTDEV_IOMMUFD: Requirement(
        "<hostdev><driver iommufd>",
        "iommufd for a device",
        Version(12, 1),
        kvm=True,
        caps="iommufd",
    ),
    Feature.DOMAIN_IOMMUFD: Requirement(
        "<iommufd>", "iommufd for all devices", Version(12, 2), kvm=True, caps="iommufd"
    ),
    Feature.FDGROUP: Requirement(
        "<iommufd fdgroup>", "/dev/iommu from the caller", _TRIED, kvm=True
    ),
    Feature.OVERRIDE: Requirement(
        "<qemu:override>",
        "memory for hotplugged devices, iommufd objects",
        Version(8, 2),
        Version(6, 2),
    ),
}


#: Properties of a vSMMU in its ``<driver>`` and the values that libvirt and QEMU 11.1 accept (QEMU
#: ``hw/arm/smmuv3.c`` smmuv3_properties). QEMU takes the others from the physical SMMU.
DRIVER_VALUES: Mapping[str, tuple[Feature, tuple[str, ...]]] = {
    "ats": (Feature.ATS, ("on", "off")),
    "ril": (Feature.RIL, ("on", "off")),
    "ssidsize": (Feature.SSIDSIZE, tuple(map(str, range(21)))),
    "oas": (Feature.OAS, ("44", "48")),
    "cmdqv": (Feature.CMDQV, ("on", "off")),
}


class Gap(NamedTuple):
    """An unsupported feature.

    :param needs: the requirement, such as the name of a program with a release.
    :param has: what does not meet it, such as the name of the program with its release.
    """

    feature: Feature
    needs: str
    has: str

    def __str__(self) -> str:
        requirement = REQUIREMENTS[self.feature]
        return f"{self.has} cannot write {requirement.xml} ({requirement.purpose}): needs " + (
            self.needs
        )


class IommufdForm(StrEnum):
    """The element that selects iommufd."""

    NONE = "none"
    HOSTDEV = "hostdev"
    DOMAIN = "domain"


@dataclass(frozen=True, slots=True)
class XmlLayout:
    """The form of the XML for a plan.

    :param pci_bus: write an ``<iommu>`` per vSMMU, tied to its bus; else one for the machine.
    :param accel: write accel='on' for vSMMUs that are planned as accelerated.
    :param iommufd: the element that selects iommufd, if the plan uses it.
    :param driver: further attributes of each ``<driver>``, for instance ``{"oas": "48"}``.
    :param fdgroup: name of the FD group that contains /dev/iommu.
    :param managed: libvirt binds the devices to vfio-pci and back.
    :param spare_ports: free root ports of each vSMMU with a new device, at least.
    :param iommufd_objects: write further iommufd objects, where a plan has them.
    :param reserve: bytes of prefetchable memory for each root port of a vSMMU with free ports; 0
        for the firmware's own choice.
    """

    pci_bus: bool = True
    accel: bool = True
    iommufd: IommufdForm = IommufdForm.DOMAIN
    driver: Mapping[str, str] = field(default_factory=dict)
    fdgroup: str | None = None
    managed: bool = True
    spare_ports: int = 0
    reserve: int = 0
    iommufd_objects: bool = True


_ANY = GuestKind()
_SILENT = DomainCaps()


@dataclass(frozen=True, slots=True)
class Support:
    """The features that one connection supports for one guest.

    :param libvirt: release of the daemon.
    :param qemu: release of the hypervisor; None for libvirt's test driver.
    :param guest: the kind of guest.
    :param caps: libvirt's domain capabilities for a guest of that kind.
    """

    libvirt: Version
    qemu: Version | None = None
    guest: GuestKind = _ANY
    caps: DomainCaps = _SILENT

    def has(self, feature: Feature) -> bool:
        """Return whether ``feature`` can be written and applied."""
        return self._gap(feature) is None

    def missing(self, features: Iterable[Feature]) -> list[Gap]:
        """Return the unsupported ones of ``features`` with their requirements."""
        return [gap for gap in map(self._gap, features) if gap is not None]

    def layout(self) -> XmlLayout:
        """Return the layout with every supported feature."""
        if self.has(Feature.DOMAIN_IOMMUFD):
            iommufd = IommufdForm.DOMAIN
        elif self.has(Feature.HOSTDEV_IOMMUFD):
            iommufd = IommufdForm.HOSTDEV
        else:
            iommufd = IommufdForm.NONE
        return XmlLayout(
            pci_bus=self.has(Feature.PCI_BUS), accel=self.has(Feature.ACCEL), iommufd=iommufd
        )

    def _gap(self, feature: Feature) -> Gap | None:
        """Return the first requirement that is not met, in the order of the table's columns."""
        needs = REQUIREMENTS[feature]
        guest = self.guest
        if self.libvirt < needs.libvirt:
            return Gap(feature, f"libvirt {needs.libvirt}", f"libvirt {self.libvirt}")
        if needs.qemu is not None and self.qemu is not None and self.qemu < needs.qemu:
            return Gap(feature, f"QEMU {needs.qemu}", f"QEMU {self.qemu}")
        if needs.virt and guest.arch not in {None, ARCH}:
            return Gap(feature, f"arch {ARCH!r}", f"a guest with arch {guest.arch!r}")
        if needs.virt and guest.machine is not None and not guest.is_virt:
            return Gap(feature, f"machine {MACHINE!r}", f"a guest with machine {guest.machine!r}")
        if needs.kvm and guest.type == "qemu":
            return Gap(feature, "type 'kvm'", "a guest of type 'qemu'")
        if needs.caps is not None and getattr(self.caps, needs.caps) is False:
            return Gap(feature, f"{needs.caps} in its domain capabilities", "libvirt on this host")
        return None


@cache
def newest() -> Support:
    """Return the first releases of libvirt and QEMU that have every feature of the table."""
    libvirt = max(needs.libvirt for needs in REQUIREMENTS.values())
    return Support(libvirt, max(needs.qemu for needs in REQUIREMENTS.values() if needs.qemu))


@dataclass(frozen=True, slots=True)
class Versions:
    """The driver and the releases of a connection.

    :param driver: libvirt's name of the driver: ``QEMU``, ``TEST``.
    :param libvirt: release of the daemon, not of the library here.
    :param hypervisor: release of QEMU; None for other drivers.
    """

    driver: str
    libvirt: Version
    hypervisor: Version | None

    def support(self, guest: GuestKind = _ANY, caps: DomainCaps = _SILENT) -> Support:
        """Return the features that the connection supports for a guest."""
        return Support(self.libvirt, self.hypervisor, guest, caps)
