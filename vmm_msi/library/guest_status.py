"""Report what guests have, as ``vmm-msi status`` does: predicted, and measured on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi import arguments
from vmm_msi.domxml import added_elements
from vmm_msi.domxml.metadata import DomainRecord, record_in
from vmm_msi.domxml.placement import Placement
from vmm_msi.domxml.qemu_arguments import qemu_arguments
from vmm_msi.errors import RefusedError, TopologyError, UnreadableError, UsageError, VmmMsiError
from vmm_msi.host.msi_bindings import MsiBindingsFile
from vmm_msi.library.hosts import topology
from vmm_msi.provision import Scope
from vmm_msi.report import status as report
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.domxml.guest_state import GuestState
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.host.msi_bindings import KernelBinding
    from vmm_msi.library.hosts import AnyHost
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.recording.measure import Measured
    from vmm_msi.report.documents import StatusDocument, StatusListDocument
    from vmm_msi.types import Granule, HostTopology, PciAddress

#: Where stage 1 faults of a device with a vDEVICE go: Linux
#: ``drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c`` arm_smmu_handle_event.
STAGE1_FAULTS = (
    "faults of the guest's stage 1 are not counted: the host's kernel passes them to the guest's "
    "vSMMU, so they are in the guest's own dmesg"
)


@dataclass(frozen=True)
class Status(report.GuestStatus):
    """The status of a guest: what vmm-msi added, its other devices, predictions, measurements.

    :param gone: what vmm-msi added and another program removed since, a noun phrase each.
    """

    gone: tuple[str, ...] = ()

    def to_json(self) -> StatusDocument:
        """Return the document that ``vmm-msi status DOMAIN --format json`` prints."""
        return {"schema": 1, **report.to_json(self)}


@dataclass(frozen=True)
class StatusList:
    """The status of all guests, without measurements.

    :param notes: a reason for each guest that cannot be read.
    """

    guests: Sequence[Status]
    notes: Sequence[str]

    def to_json(self) -> StatusListDocument:
        """Return the document that ``vmm-msi status --format json`` prints."""
        guests = [report.to_json(guest) for guest in self.guests]
        return {"schema": 1, "domains": guests, "notes": list(self.notes)}


def status(
    connection: Connection,
    domain: str,
    scope: Scope | str = Scope.CONFIG,
    *,
    measure: bool = False,
    host: AnyHost | None = None,
    granule: Granule | str | int | None = None,
) -> Status:
    """Return the status of a guest.

    :param scope: the definition or the running guest.
    :param measure: read what the devices of a running guest did: their MSI addresses, interrupts
        and faults on this machine. What cannot be read is a note.
    :param host: with ``measure``: the host, or its names; None for this machine's own tables.
    :param granule: see :func:`~vmm_msi.library.hosts.load_host`.
    :raise RefusedError: for the running guest, if it is not running.
    :raise UsageError: if ``domain`` is not a text, or ``scope`` not one of the two.
    :raise DomainXmlError: if the record cannot be read.
    :raise HypervisorError: if libvirt cannot be queried or has no such domain.
    """
    part = arguments.member(Scope, "scope", scope)
    state = connection.state(arguments.text_value("guest", domain))
    xml = state.running if part.live else state.definition
    if xml is None:
        raise RefusedError(
            f"reading the running guest {state.definition.name}: it is not running; use --scope "
            "config to read its definition"
        )
    record, gone = _record_of(xml)
    notes = _notes(gone, "the running guest" if part.live else "the definition")
    notes += _unexamined(xml)
    measured = None
    bindings = None
    if record.devices and state.running is None:
        notes.append("the guest is off: its MSIs are as the simulator predicted at attach")
    elif state.running is not None and measure and (record.devices or state.running.assigned()):
        measured, unread = _measure(connection.uri, state.running, host, granule)
        notes += unread
        bindings, unread = _kernel_bindings(record, state.running, connection.uri)
        notes += unread
    others = _others(xml, record)
    running = state.running is not None
    return Status(xml.name, running, record, others, measured, notes, bindings, gone)


def status_of(xml: DomainXml) -> Status:
    """Return the status of the guest that a definition describes.

    :raise DomainXmlError: if the record cannot be read.
    """
    record, gone = _record_of(xml)
    notes = [*_notes(gone, "the definition"), *_unexamined(xml)]
    return Status(xml.name, None, record, _others(xml, record), notes=notes, gone=gone)


def statuses(connection: Connection) -> StatusList:
    """Return the status of every guest of a libvirt; of a running guest, as it runs.

    :raise HypervisorError: if libvirt cannot be queried.
    """
    guests, notes = [], []
    for name in connection.names():
        try:
            guest = _listed(connection.state(name))
            guests.append(guest)
            notes += [f"{name}: {note}" for note in guest.notes]
        except VmmMsiError as error:
            # The others are shown: its record was edited by hand, or it is gone meanwhile.
            notes.append(str(error))
    return StatusList(guests, notes)


def _listed(state: GuestState) -> Status:
    xml = state.running or state.definition
    record, gone = _record_of(xml)
    others, notes = _others(xml, record), _unexamined(xml)
    return Status(xml.name, state.running is not None, record, others, notes=notes, gone=gone)


def _record_of(xml: DomainXml) -> tuple[DomainRecord, tuple[str, ...]]:
    """Return the record in a definition, and which recorded parts the definition lacks."""
    record = record_in(xml)
    gone = () if record == DomainRecord() else added_elements.gone(Placement(xml), record)
    return record, tuple(gone)


def _others(xml: DomainXml, record: DomainRecord) -> list[PciAddress]:
    """Return the PCI devices of a guest that vmm-msi did not attach."""
    return [hostdev.host for hostdev in xml.assigned() if record.device(hostdev.host) is None]


def _unexamined(xml: DomainXml) -> list[str]:
    """Return a note for each part of QEMU's command line that may have further devices."""
    parts = qemu_arguments(xml.root).unexamined
    return [f"not examined: <qemu:commandline> {part}" for part in parts]


def _notes(gone: Sequence[str], where: str) -> list[str]:
    return [
        f"{part} is missing from {where}: another program removed it; detach the device and attach "
        "it again"
        for part in gone
    ]


def _measure(
    uri: str,
    xml: DomainXml,
    host: AnyHost | None,
    granule: Granule | str | int | None,
) -> tuple[Mapping[PciAddress, Measured] | None, list[str]]:
    """Measure the devices of a running guest; return None if it runs elsewhere.

    :return: and notes about what was not measured, and why.
    """
    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.recording.measure import measure, read_interrupts

    if uri.partition(":")[0].partition("+")[0] != "qemu":
        return None, ["not measured: the guests of this connection do not run in QEMU"]
    if arguments.is_other_machine(uri):
        return None, [f"not measured: {uri} is another machine; run vmm-msi there"]
    notes: list[str] = []
    described: HostTopology | None = None
    interrupts: str | None = None
    log: list[str] | None = None
    try:
        interrupts = read_interrupts()
    except UnreadableError as error:
        notes.append(f"interrupts not measured: {error}")
    try:
        described = topology(host, granule).topology
        log = _log_since(xml)
    except (UsageError, TopologyError, UnreadableError) as error:
        notes.append(f"faults not measured: {error}")
    addresses = [hostdev.host for hostdev in xml.assigned()]
    context = LogContext(described, None, xml)
    measured, unread = measure(addresses, interrupts, log, context)
    notes += [f"MSI address not measured: {reason}" for reason in unread]
    if log is not None and any(map(context.is_accelerated, addresses)):
        notes.append(STAGE1_FAULTS)
    return measured, notes


def _kernel_bindings(
    record: DomainRecord, xml: DomainXml, uri: str
) -> tuple[Mapping[PciAddress, Sequence[KernelBinding]] | None, list[str]]:
    """Return the kernel's bindings of a running guest's devices; None if they cannot be read.

    :return: and notes about devices that the kernel is to bind, and does not.
    """
    if arguments.is_other_machine(uri):
        return None, []
    own = [device.host for device in record.devices if device.backend == BinderKind.KERNEL]
    try:
        content = MsiBindingsFile().read()
    except UnreadableError as error:
        return None, [f"bindings in the kernel not read: {error}"] if own else []
    bindings = {hostdev.host: content.of(hostdev.host) for hostdev in xml.assigned()}
    return bindings, [
        f"{device}: the kernel is to bind its doorbell and does not: start vmm-msi watch, or run "
        f"vmm-msi bind {xml.name}"
        for device in own
        if not bindings.get(device)
    ]


def _log_since(xml: DomainXml) -> list[str]:
    """Return the kernel's log since the guest started.

    :raise UnreadableError: when it or the guest's process cannot be read.
    """
    from vmm_msi.host.files.folder import this_machine
    from vmm_msi.host.files.kernel_log import kernel_log
    from vmm_msi.recording.measure import start_time_us

    return kernel_log(this_machine(), since_us=start_time_us(xml.uuid or ""))
