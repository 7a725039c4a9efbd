"""What is asked for, and the change that was planned for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from vmm_msi.domxml.metadata import DomainRecord, read_record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.config import Choice
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.plugins.hookspecs import Event
    from vmm_msi.types import PciAddress, Verdict

#: Seconds that a running guest has to give a device back. libvirt itself waits 5 s
#: (``src/qemu/qemu_hotplug.c`` qemuDomainRemoveDeviceWaitTime).
RELEASE_S = 10.0


#: MiB of prefetchable memory for each port: what the BARs of network and NVMe controllers need.
SPARE_MEMORY_MIB = 64


class BinderKind(StrEnum):
    """Who binds the doorbells of a guest that runs."""

    #: QEMU and the kernel, by identity.
    QEMU = "qemu"
    #: The model: the XML is real, the binding is not.
    SIM = "sim"


class Scope(StrEnum):
    """What of a guest is changed, as virsh calls it."""

    #: Its definition: what its next start uses.
    CONFIG = "config"
    #: What runs now.
    LIVE = "live"
    BOTH = "both"

    @property
    def config(self) -> bool:
        """Whether the definition is changed."""
        return self is not Scope.LIVE

    @property
    def live(self) -> bool:
        """Whether the running guest is changed."""
        return self is not Scope.CONFIG


@dataclass(frozen=True)
class AttachRequest:
    """What the user asks for.

    :param named: strategy the user names for the new devices; else the configuration's.
    :param binder: None for what the hypervisor can do by itself.
    :param allow_faults: attach also where the model says that MSIs will not arrive.
    :param managed: libvirt binds the devices to vfio-pci and back by itself.
    :param driver: properties of new vSMMUs, such as ``{"oas": "48"}``
        (:data:`vmm_msi.domxml.support.DRIVER_VALUES`); what is left out is QEMU's choice.
    :param spare_ports: free root ports that each vSMMU with a new device is to have at least.
    :param spare_memory: MiB of prefetchable memory that is reserved for each root port of a vSMMU
        with free ones, where QEMU is to bind.
    :param fdgroup: name of the group of file descriptors that /dev/iommu will be handed over in.
    """

    domain: str
    devices: tuple[PciAddress, ...]
    named: Choice | None = None
    binder: BinderKind | None = None
    allow_faults: bool = False
    scope: Scope = Scope.CONFIG
    managed: bool = True
    driver: Mapping[str, str] = field(default_factory=dict)
    spare_ports: int = 0
    spare_memory: int = SPARE_MEMORY_MIB
    fdgroup: str | None = None

    def binder_on(self, driver: str | None) -> BinderKind:
        """Return who is to bind, on a connection of libvirt's ``driver``; None is no libvirt."""
        if self.binder is not None:
            return self.binder
        return BinderKind.QEMU if driver in {None, "QEMU"} else BinderKind.SIM


@dataclass(frozen=True)
class DetachRequest:
    """What the user wants taken out.

    :param devices: empty for all that vmm-msi attached.
    :param release_s: seconds that a running guest has to give each device back.
    """

    domain: str
    devices: tuple[PciAddress, ...] = ()
    scope: Scope = Scope.CONFIG
    release_s: float = RELEASE_S


@dataclass(frozen=True)
class LiveChange:
    """What is to be changed in a guest that runs.

    :param old: its XML as it runs.
    :param new: that with the devices in or out; libvirt makes it so device by device.
    :param devices: the devices and the XML of each, in order.
    :param plugging: they go in; else they come out.
    :param release_s: seconds that the guest has to give each device back.
    """

    old: DomainXml
    new: DomainXml
    devices: tuple[tuple[PciAddress, str], ...]
    plugging: bool
    release_s: float = RELEASE_S


@dataclass(frozen=True)
class Change:
    """A change of one domain that was planned.

    :param old: its definition; what ``new`` is to take the place of.
    :param new: the same where only the running guest is changed.
    :param live: what is changed in the running guest; None for nothing.
    :param verdicts: what the model says of each device's MSIs after the change.
    :param notes: what the user should know, a sentence each.
    :param events: what observers are told when it was carried out.
    """

    old: DomainXml
    new: DomainXml
    binder: BinderKind
    live: LiveChange | None = None
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def before(self) -> DomainXml:
        """The XML that is changed: the definition, else that of the running guest."""
        return self.old if self.live is None or self.new is not self.old else self.live.old

    @property
    def after(self) -> DomainXml:
        """What :attr:`before` becomes."""
        return self.new if self.live is None or self.new is not self.old else self.live.new

    @property
    def record(self) -> DomainRecord:
        """What vmm-msi records of the domain after the change."""
        return read_record(self.after) or DomainRecord()


@dataclass(frozen=True)
class Status:
    """What vmm-msi added to a guest.

    :param gone: what of it somebody took out since, a few words for each.
    """

    name: str
    record: DomainRecord
    gone: tuple[str, ...] = ()
