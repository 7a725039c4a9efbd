"""Which libvirt and QEMU can carry which XML: the one table, and the questions asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Version(NamedTuple):
    """A release of libvirt or QEMU."""

    major: int
    minor: int
    release: int = 0

    @classmethod
    def from_int(cls, number: int) -> Version:
        """Take apart what virConnectGetLibVersion and virConnectGetVersion return.

        :param number: 1,000,000 * major + 1,000 * minor + release.
        """
        return cls(number // 1_000_000, number // 1_000 % 1_000, number % 1_000)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.release}"


class Feature(StrEnum):
    """Something that domain XML can say since some release."""

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


@dataclass(frozen=True, slots=True)
class Requirement:
    """The first releases that have a feature.

    :param xml: how the feature is written.
    :param purpose: what it is for.
    :param qemu: None where no release of QEMU matters.
    """

    xml: str
    purpose: str
    libvirt: Version
    qemu: Version | None = None


# libvirt's documentation names no release for accel and what came with it, so the entry is the
# first release that was tried; an earlier one that has it too is refused rather than trusted.
_TRIED = Version(12, 8)

REQUIREMENTS: Mapping[Feature, Requirement] = {
    Feature.SMMUV3: Requirement("<iommu model='smmuv3'>", "a vSMMU", Version(5, 5)),
    Feature.PCI_BUS: Requirement(
        "<driver pciBus>", "several vSMMUs", Version(11, 10), Version(10, 2)
    ),
    Feature.ACCEL: Requirement("<driver accel>", "a nested vSMMU", _TRIED, Version(11, 0)),
    Feature.ATS: Requirement("<driver ats>", "ATS in a vSMMU", _TRIED, Version(11, 0)),
    Feature.RIL: Requirement("<driver ril>", "range invalidation", _TRIED, Version(11, 0)),
    Feature.SSIDSIZE: Requirement("<driver ssidsize>", "PASIDs", _TRIED, Version(11, 0)),
    Feature.OAS: Requirement("<driver oas>", "an output address size", _TRIED, Version(11, 0)),
    Feature.CMDQV: Requirement("<driver cmdqv>", "command queues", _TRIED, Version(11, 1)),
    Feature.HOSTDEV_IOMMUFD: Requirement(
        "<hostdev><driver iommufd>", "iommufd for a device", Version(12, 1)
    ),
    Feature.DOMAIN_IOMMUFD: Requirement("<iommufd>", "iommufd for all devices", Version(12, 2)),
    Feature.FDGROUP: Requirement("<iommufd fdgroup>", "/dev/iommu from the caller", _TRIED),
}


#: What can be said of a vSMMU in its ``<driver>``: the values libvirt and QEMU 11.1 take (QEMU
#: ``hw/arm/smmuv3.c`` smmuv3_properties). Left out, QEMU takes what the physical SMMU has.
DRIVER_VALUES: Mapping[str, tuple[Feature, tuple[str, ...]]] = {
    "ats": (Feature.ATS, ("on", "off")),
    "ril": (Feature.RIL, ("on", "off")),
    "ssidsize": (Feature.SSIDSIZE, tuple(map(str, range(21)))),
    "oas": (Feature.OAS, ("44", "48")),
    "cmdqv": (Feature.CMDQV, ("on", "off")),
}


class Gap(NamedTuple):
    """A feature that is missing.

    :param needs: the first release that has it, with the name of the program.
    :param has: the release that runs, with the name of the program.
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
    """How iommufd is asked for."""

    NONE = "none"
    HOSTDEV = "hostdev"
    DOMAIN = "domain"


@dataclass(frozen=True, slots=True)
class XmlLayout:
    """The XML that is written for a plan.

    :param pci_bus: an ``<iommu>`` per vSMMU, tied to its bus; else one for the whole machine.
    :param accel: write accel='on' for vSMMUs that are planned as accelerated.
    :param iommufd: where iommufd is asked for when the plan wants it.
    :param driver: further attributes of each ``<driver>``, for instance ``{"oas": "48"}``.
    :param fdgroup: name of the group of file descriptors that /dev/iommu is handed over in.
    :param managed: libvirt binds the devices to vfio-pci and back by itself.
    :param spare_ports: free root ports that each vSMMU with a new device is to have at least.
    """

    pci_bus: bool = True
    accel: bool = True
    iommufd: IommufdForm = IommufdForm.DOMAIN
    driver: Mapping[str, str] = field(default_factory=dict)
    fdgroup: str | None = None
    managed: bool = True
    spare_ports: int = 0


@dataclass(frozen=True, slots=True)
class Support:
    """What one connection can carry.

    :param libvirt: release of the daemon.
    :param qemu: release of the hypervisor; None where there is none (the test driver).
    """

    libvirt: Version
    qemu: Version | None = None

    def has(self, feature: Feature) -> bool:
        """Tell whether ``feature`` can be written and carried out."""
        return self._gap(feature) is None

    def missing(self, features: Iterable[Feature]) -> list[Gap]:
        """Return those of ``features`` that are not there, with what they need, in words."""
        return [gap for gap in map(self._gap, features) if gap is not None]

    def layout(self) -> XmlLayout:
        """Return the fullest XML that can be written."""
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
        needs = REQUIREMENTS[feature]
        if self.libvirt < needs.libvirt:
            return Gap(feature, f"libvirt {needs.libvirt}", f"libvirt {self.libvirt}")
        if needs.qemu is not None and self.qemu is not None and self.qemu < needs.qemu:
            return Gap(feature, f"QEMU {needs.qemu}", f"QEMU {self.qemu}")
        return None


@dataclass(frozen=True, slots=True)
class Versions:
    """Who answers on a connection.

    :param driver: libvirt's name of the driver: ``QEMU``, ``TEST``.
    :param libvirt: release of the daemon, not of the library here.
    :param hypervisor: release of QEMU; None for other drivers.
    """

    driver: str
    libvirt: Version
    hypervisor: Version | None

    @property
    def support(self) -> Support:
        """What the connection can carry."""
        return Support(self.libvirt, self.hypervisor)
