"""Requests to attach and detach, the planned change, and the status of a guest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from vmm_msi import arguments
from vmm_msi.domxml.metadata import DomainRecord, record_in
from vmm_msi.errors import UsageError
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.arguments import Devices
    from vmm_msi.config import Choice
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.plugins.hookspecs import Event
    from vmm_msi.types import PciAddress, Verdict

#: Seconds that a running guest has to release a device. libvirt itself waits 5 s
#: (``src/qemu/qemu_hotplug.c`` qemuDomainRemoveDeviceWaitTime).
RELEASE_S = 10.0
#: MiB of prefetchable memory for each port: enough for the BARs of network and NVMe controllers.
SPARE_MEMORY_MIB = 64


class Scope(StrEnum):
    """The part of a guest to change, named as in virsh."""

    #: Its definition, which its next start uses.
    CONFIG = "config"
    #: The running guest.
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


@dataclass(frozen=True, init=False)
class AttachRequest:
    """A request to attach devices to a guest.

    Text is read as on the command line: ``AttachRequest("guest0", ["0000:01:00.0"], "identity")``.

    :param devices: one or several, as addresses or text.
    :param strategy: strategy for the new devices; None for the configuration's.
    :param binder: QEMU or the simulator; None for QEMU on a QEMU connection, else the simulator.
        With QEMU the kernel binds the devices whose strategies QEMU cannot apply, if it has the
        interface (:func:`vmm_msi.engine.binders.binder_of_device`).
    :param allow_faults: attach even if MSIs are not delivered in the simulator.
    :param managed: libvirt binds the devices to vfio-pci and back by itself.
    :param driver: properties of new vSMMUs, such as ``{"oas": "48"}`` or ``"oas=48"``
        (:data:`vmm_msi.domxml.support.DRIVER_VALUES`); QEMU chooses the others.
    :param spare_ports: minimum of free root ports for each vSMMU with a new device.
    :param spare_memory: MiB of prefetchable memory to reserve for each root port of a vSMMU with
        free ports, if QEMU binds.
    :param fdgroup: name of the group of file descriptors in which /dev/iommu will be passed.
    :raise UsageError: for no device, or a value of another type or form.
    :raise InputError: for a text that is not a PCI address.
    """

    domain: str
    devices: tuple[PciAddress, ...]
    strategy: Choice | None
    binder: BinderKind | None
    allow_faults: bool
    scope: Scope
    managed: bool
    driver: Mapping[str, str]
    spare_ports: int
    spare_memory: int
    fdgroup: str | None

    def __init__(
        self,
        domain: str,
        devices: Devices,
        strategy: Choice | str | None = None,
        binder: BinderKind | str | None = None,
        allow_faults: bool = False,
        scope: Scope | str = Scope.CONFIG,
        managed: bool = True,
        driver: Mapping[str, str] | str = "",
        spare_ports: int = 0,
        spare_memory: int = SPARE_MEMORY_MIB,
        fdgroup: str | None = None,
    ) -> None:
        _set(
            self,
            domain=arguments.text_value("guest", domain),
            devices=arguments.device_addresses(devices),
            strategy=None if strategy is None else arguments.strategy_choice(strategy),
            binder=None if binder is None else arguments.member(BinderKind, "backend", binder),
            allow_faults=arguments.switch("allow_faults", allow_faults),
            scope=arguments.member(Scope, "scope", scope),
            managed=arguments.switch("managed", managed),
            driver=arguments.vsmmu_properties(driver),
            spare_ports=arguments.whole_number("spare ports", spare_ports),
            spare_memory=arguments.whole_number("spare memory", spare_memory),
            fdgroup=None if fdgroup is None else arguments.fdgroup_name(fdgroup),
        )
        if self.binder is BinderKind.KERNEL:
            raise UsageError(
                "backend 'kernel': the strategy of each device decides; use 'qemu', with which the "
                "kernel binds where it has the interface"
            )
        if not self.devices:
            raise UsageError(f"attaching to {domain}: no device; name one or several")

    def binder_on(self, driver: str | None) -> BinderKind:
        """Return the binder on a connection of libvirt's ``driver``; None means no libvirt."""
        if self.binder is not None:
            return self.binder
        return BinderKind.QEMU if driver in {None, "QEMU"} else BinderKind.SIM


@dataclass(frozen=True, init=False)
class DetachRequest:
    """A request to detach devices from a guest.

    :param devices: one or several, as addresses or text; empty for all that vmm-msi attached.
    :param release_s: seconds that a running guest has to release each device.
    :raise UsageError: for a value of another type or form.
    :raise InputError: for a text that is not a PCI address.
    """

    domain: str
    devices: tuple[PciAddress, ...]
    scope: Scope
    release_s: float

    def __init__(
        self,
        domain: str,
        devices: Devices = (),
        scope: Scope | str = Scope.CONFIG,
        release_s: float = RELEASE_S,
    ) -> None:
        _set(
            self,
            domain=arguments.text_value("guest", domain),
            devices=arguments.device_addresses(devices),
            scope=arguments.member(Scope, "scope", scope),
            release_s=arguments.seconds("release timeout", release_s),
        )


def _set(request: AttachRequest | DetachRequest, **fields: object) -> None:
    """Set the fields of a frozen request while it is constructed."""
    for name, value in fields.items():
        object.__setattr__(request, name, value)


@dataclass(frozen=True)
class LiveChange:
    """A change of a running guest.

    :param old: its live XML.
    :param new: its live XML after the change; libvirt changes it device by device.
    :param devices: the devices and the XML of each, in order.
    :param plugging: whether they are plugged in; else they are unplugged.
    :param release_s: seconds that the guest has to release each device.
    """

    old: DomainXml
    new: DomainXml
    devices: tuple[tuple[PciAddress, str], ...]
    plugging: bool
    release_s: float = RELEASE_S


@dataclass(frozen=True)
class Change:
    """A planned change of one domain.

    :param old: its definition, which ``new`` replaces.
    :param new: its definition after the change; the same if only the running guest changes.
    :param live: the change of the running guest; None for none.
    :param verdicts: the simulator's verdicts on each device's MSIs after the change.
    :param notes: notes for the user, a sentence each.
    :param events: events for observers once the change is applied.
    """

    old: DomainXml
    new: DomainXml
    binder: BinderKind
    live: LiveChange | None = None
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes: the guest already is as requested."""
        return self.new is self.old and self.live is None

    @property
    def before(self) -> DomainXml:
        """The XML to change: the definition, else that of the running guest."""
        return self.old if self.live is None or self.new is not self.old else self.live.old

    @property
    def after(self) -> DomainXml:
        """The XML that replaces :attr:`before`."""
        return self.new if self.live is None or self.new is not self.old else self.live.new

    @property
    def record(self) -> DomainRecord:
        """The record of vmm-msi in the domain after the change."""
        return record_in(self.after)
