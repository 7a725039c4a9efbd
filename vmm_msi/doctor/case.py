"""What the doctor examines: a host, and the guest and devices that are to run on it.

Three values combine host, guest, record and libvirt, each for one purpose:

* :class:`Case`: all facts that rules read, from files, libvirt or both; the doctor runs without
  libvirt, and with a read-only connection. One reader: :mod:`vmm_msi.doctor.case_reader`.
* :class:`~vmm_msi.provision.libvirt_facts.LibvirtFacts`: what a change of a guest is planned from,
  read in few calls with the right to write. One reader, in the same module.
* :class:`~vmm_msi.explain.log_context.LogContext`: looks devices up by what logs call them; it is
  made of a host and a definition and reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.host.pci.sysfs import DEVICES
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from vmm_msi.config import Choice, Config
    from vmm_msi.doctor.finding import Evidence
    from vmm_msi.domxml.attribute_values import BadValue
    from vmm_msi.domxml.domcaps import DomainCaps
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.domxml.placement import Placement
    from vmm_msi.domxml.support import Version
    from vmm_msi.engine.setup import Simulation
    from vmm_msi.host.crosscheck import Disagreement
    from vmm_msi.host.files import HostTree
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import HostDevice, HostTopology, PciAddress, PciFunction


@dataclass(frozen=True, slots=True)
class SmmuHardware:
    """Features of an SMMU, from its driver's lines in the kernel log or its ID registers.

    A feature that neither reports is None.

    :param nested: the driver nests the stages; with some errata it does not, although the SMMU has
        both.
    :param s2fwb: stage 2 can force write-back (IDR3.FWB).
    :param coherent: firmware describes its table walks as coherent.
    """

    stage1: bool | None = None
    stage2: bool | None = None
    nested: bool | None = None
    s2fwb: bool | None = None
    coherent: bool | None = None
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What is known of the host's kernel.

    :param release: as ``uname -r`` prints it.
    :param options: its configuration, names without ``CONFIG_``: ``y``, ``m`` or a value; options
        that are off are absent. None if the configuration could not be read.
    :param options_from: file that the configuration comes from.
    :param parameters: parameters of modules, by ``module.parameter``.
    :param log: lines of its log about SMMUs, ITSes, IOMMU groups and VFIO.
    :param smmus: features of each SMMU that the log shows, by the SMMU's id in the topology.
    :param cmdline: its command line; None if unknown.
    :param dev_iommu: whether /dev/iommu exists; None if unknown.
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
    """Releases of libvirt and QEMU on the host; None if unknown.

    :param source: where the releases come from.
    :param named: the programs whose releases the caller named instead.
    :param daemon_locked_memory: bytes that the daemon that starts guests may lock.
    """

    libvirt: Version | None = None
    qemu: Version | None = None
    driver: str | None = None
    caps: DomainCaps | None = None
    source: str = ""
    daemon_locked_memory: int | None = None
    named: frozenset[str] = frozenset()

    def source_of(self, program: str) -> str:
        """Return where the release of ``libvirt`` or ``qemu`` comes from."""
        return f"--{program}" if program in self.named else self.source


@dataclass(frozen=True)
class Guest:
    """The guest that is to run.

    :param xml: its definition, without values that libvirt refuses.
    :param written: the definition as its author wrote it, if it did not come from libvirt; it may
        have parts that libvirt drops silently, and values that it refuses.
    :param holders: assigned devices of all guests, each with the guest that has it.
    """

    xml: DomainXml
    written: DomainXml | None = None
    holders: Sequence[tuple[PciAddress, str]] = ()

    @classmethod
    def of_author(cls, written: DomainXml, holders: Sequence[tuple[PciAddress, str]] = ()) -> Guest:
        """Return the guest of a definition that did not come from libvirt."""
        from vmm_msi.domxml.attribute_values import readable

        guest = cls(written, written, holders)
        return cls(readable(written), written, holders) if guest.bad_values else guest

    @cached_property
    def bad_values(self) -> Sequence[BadValue]:
        """The values in the definition of its author that libvirt refuses or replaces."""
        if self.written is None:
            return ()
        from vmm_msi.domxml.attribute_values import bad_values

        return tuple(bad_values(self.written))

    @cached_property
    def placement(self) -> Placement:
        """The vSMMUs of the definition and the devices behind them."""
        from vmm_msi.domxml.placement import Placement

        return Placement(self.xml)

    @cached_property
    def record(self) -> DomainRecord:
        """What vmm-msi attached."""
        from vmm_msi.domxml.metadata import record_in

        return record_in(self.xml)

    @cached_property
    def is_nested(self) -> bool:
        """Whether the definition has an accelerated vSMMU."""
        from vmm_msi.domxml.placement import is_accelerated

        return any(map(is_accelerated, self.placement.vsmmus))


class SelectedDevice(NamedTuple):
    """A device to check.

    :param device: its path to an SMMU and an ITS; None if no source describes it.
    :param function: its PCI function as the system reports it; None if the system does not.
    """

    address: PciAddress
    device: HostDevice | None
    function: PciFunction | None

    @property
    def group(self) -> int | None:
        """The device's IOMMU group; None if the system does not report one."""
        return None if self.function is None else self.function.iommu_group


@dataclass(frozen=True)
class Case:
    """All that the rules read.

    :param tree: the host's files; None if only descriptions of it are available.
    :param devices: the devices to examine: the selected ones, else those of the guest, else all
        that could be assigned.
    :param devices_selected: the caller or the guest names the devices. Otherwise a problem of one
        device is only a reason to choose another.
    :param choice: the strategy to use; None for the one that a device was attached with, else the
        one of the configuration.
    :param binder: the binder of the doorbells; None for the recorded one, else QEMU.
    :param rehearsal: the guest in the simulator with these strategies, if the caller ran it; None
        for the rules to run it.
    :param plugins: the loaded strategies; None to run no rule about strategies.
    :param rules: the plugins whose doctor rules run; None for those of ``plugins``.
    :param config: the configuration; None for an empty one, see :attr:`settings`.
    :param disagreements: what the sources of ``host`` describe differently.
    :param unreadable: files that could not be read, and why.
    :param unlisted: devices that the libvirt which is to start the guest does not list.
    """

    host: HostTopology
    tree: HostTree | None = None
    kernel: KernelFacts = field(default_factory=KernelFacts)
    software: Software = field(default_factory=Software)
    guest: Guest | None = None
    devices: tuple[PciAddress, ...] = ()
    devices_selected: bool = True
    choice: Choice | None = None
    binder: BinderKind | None = None
    rehearsal: Simulation | None = None
    plugins: PluginManager | None = None
    rules: PluginManager | None = None
    config: Config | None = None
    disagreements: tuple[Disagreement, ...] = ()
    unreadable: tuple[Evidence, ...] = ()
    unlisted: tuple[PciAddress, ...] = ()

    @property
    def settings(self) -> Config:
        """The configuration; imported here, since a host by itself needs none."""
        from vmm_msi.config import Config

        return self.config or Config()

    def missing_from(self, address: PciAddress) -> str | None:
        """Return the source that lists the host's devices without a requested one.

        :return: None if the device exists, or may exist.
        """
        host = self.host
        if self.devices_selected and address in self.unlisted:
            return self.software.source
        if not self.devices_selected or address in host.function_by_address:
            return None
        if self.tree is not None and self.tree.exists(DEVICES):
            folder = f"{DEVICES}/{address}"
            return None if self.tree.exists(folder) else folder
        lists_all = bool(host.functions) and host.lists_all_functions
        if address in host.device_by_address or not (lists_all or host.is_described):
            return None
        return host.source

    @cached_property
    def present(self) -> tuple[PciAddress, ...]:
        """The devices that could be assigned; the others are missing or are bridges.

        Most rules skip those: what tables describe for their addresses means nothing.
        """
        bridges = {function.address for function in self.host.functions if function.is_bridge}
        return tuple(
            device
            for device in self.devices
            if device not in bridges and self.missing_from(device) is None
        )

    @cached_property
    def selected(self) -> Sequence[SelectedDevice]:
        """The devices to check, except missing ones and bridges."""
        devices, functions = self.host.device_by_address, self.host.function_by_address
        return [
            SelectedDevice(address, devices.get(address), functions.get(address))
            for address in self.present
        ]

    @cached_property
    def _elsewhere(self) -> Collection[PciAddress]:
        """The devices that the guest has, but not behind an accelerated vSMMU."""
        if self.guest is None:
            return ()
        from vmm_msi.domxml.placement import is_accelerated

        placement = self.guest.placement
        behind = {
            hostdev.host
            for iommu in placement.vsmmus
            if is_accelerated(iommu)
            for hostdev in placement.behind(iommu)
        }
        simulated = {
            device.host
            for device in self.guest.record.devices
            if device.backend == BinderKind.SIM.value
        }
        return {hostdev.host for hostdev in placement.hostdevs} - behind - simulated

    @cached_property
    def nested(self) -> Mapping[PciAddress, None]:
        """The present devices that are, or will be, behind an accelerated vSMMU.

        Those without a guest, those that the guest does not have yet, those that its definition
        has there, and those that the simulator binds. Only for these do strategies, an RMR and
        nesting matter.
        """
        return {device: None for device in self.present if device not in self._elsewhere}

    @cached_property
    def selected_nested(self) -> Sequence[SelectedDevice]:
        """The devices to check that are nested."""
        return [selected for selected in self.selected if selected.address in self.nested]

    @cached_property
    def choices(self) -> Mapping[PciAddress, Choice]:
        """The strategy for each nested device.

        :raise DomainXmlError: if the record in the guest cannot be read.
        """
        from vmm_msi.doctor.simulated import choices_of

        return choices_of(self)

    @cached_property
    def resolved_host(self) -> HostTopology:
        """The host with those of the devices that have a route to an SMMU and an ITS."""
        from vmm_msi.doctor.simulated import resolve_host

        return resolve_host(self)

    @cached_property
    def needs_nesting(self) -> bool:
        """Whether the host has to nest stages: for a device, a vSMMU, or any guest."""
        return (
            self.guest is None
            or self.guest.is_nested
            or any(device not in self._elsewhere for device in self.devices)
        )

    @cached_property
    def on_iommufd(self) -> Collection[PciAddress]:
        """The devices that use iommufd; the others use a VFIO container."""
        if self.guest is None:
            return self.nested
        xml = self.guest.xml
        own = {
            hostdev.host for hostdev in self.guest.placement.hostdevs if xml.uses_iommufd(hostdev)
        }
        return own | self.nested.keys()

    @property
    def needs_iommufd(self) -> bool:
        """Whether the host has to have iommufd: for nesting, or for a device that uses it."""
        return self.needs_nesting or bool(self.on_iommufd)

    @property
    def needs_vfio(self) -> bool:
        """Whether the host has to assign devices."""
        return self.needs_nesting or bool(self.devices)
