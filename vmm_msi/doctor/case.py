"""What the doctor looks at: a host, and what is to run on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm_msi.config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.config import Choice
    from vmm_msi.doctor.finding import Evidence
    from vmm_msi.domxml.domcaps import DomainCaps
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.support import Version
    from vmm_msi.host.files import HostTree
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import HostTopology, PciAddress


@dataclass(frozen=True, slots=True)
class SmmuHardware:
    """What an SMMU's driver said of it in the kernel's log, or its ID registers through iommufd.

    None where nothing was said.

    :param nested: the driver nests the stages; it does not on some that have both, for errata.
    :param s2fwb: stage 2 can force write-back (IDR3.FWB).
    :param coherent: its table walks are coherent, as firmware has it.
    """

    stage1: bool | None = None
    stage2: bool | None = None
    nested: bool | None = None
    s2fwb: bool | None = None
    coherent: bool | None = None
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Kernel:
    """What is known of the host's kernel.

    :param release: as ``uname -r`` has it.
    :param options: its configuration, without ``CONFIG_``: ``y``, ``m`` or a value; what is off is
        not there. None where the configuration could not be read.
    :param options_from: where the configuration is from.
    :param parameters: parameters of modules, by ``module.parameter``.
    :param log: lines of its log about SMMUs, ITSes, IOMMU groups and VFIO.
    :param smmus: what the log says of each SMMU, by the id it has in the topology.
    :param cmdline: its command line; None where that is not known.
    :param dev_iommu: there is a /dev/iommu; None where that is not known.
    """

    release: str | None = None
    options: Mapping[str, str] | None = None
    options_from: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    log: Sequence[str] = ()
    smmus: Mapping[int, SmmuHardware] = field(default_factory=dict)
    cmdline: str | None = None
    dev_iommu: bool | None = None


@dataclass(frozen=True, slots=True)
class Software:
    """Which libvirt and QEMU are there; None where that is not known.

    :param said_by: where the releases are from.
    :param daemon_locked_memory: bytes that the daemon that starts guests may lock.
    """

    libvirt: Version | None = None
    qemu: Version | None = None
    driver: str | None = None
    caps: DomainCaps | None = None
    said_by: str = ""
    daemon_locked_memory: int | None = None


@dataclass(frozen=True)
class Guest:
    """The guest that is to run.

    :param xml: its definition.
    :param written: the definition as it was given, where it did not come from libvirt: what libvirt
        would drop from it without a word is only there.
    :param holders: which other guest has which device.
    """

    xml: DomainXml
    written: DomainXml | None = None
    holders: Sequence[tuple[PciAddress, str]] = ()


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Sources that tell different things of the same.

    :param subject: what they are about: a device, an SMMU, an ITS.
    :param told: what each of them says.
    """

    subject: str
    told: tuple[Evidence, ...]


@dataclass(frozen=True)
class Case:
    """All that is looked at; rules read it and nothing else.

    :param tree: the host's files; None where there is only a description of it.
    :param devices: the host's devices that are meant: those of the guest, else all that could be
        assigned.
    :param asked: they were named, by the guest or by whoever asks; else what is wrong with one of
        them is no more than good reason to take another.
    :param choice: the strategy that is to be used; None for the one a device was attached with,
        else the configuration's.
    :param plugins: the strategies there are; None where nothing is asked of strategies.
    :param disagreements: what the sources of ``host`` disagree about.
    :param unreadable: files that could not be read, and why.
    """

    host: HostTopology
    tree: HostTree | None = None
    kernel: Kernel = field(default_factory=Kernel)
    software: Software = field(default_factory=Software)
    guest: Guest | None = None
    devices: tuple[PciAddress, ...] = ()
    asked: bool = True
    choice: Choice | None = None
    plugins: PluginManager | None = None
    config: Config = field(default_factory=Config)
    disagreements: tuple[Disagreement, ...] = ()
    unreadable: tuple[Evidence, ...] = ()
