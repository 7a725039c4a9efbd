"""Record a running guest on its host.

The recorder reads libvirt's XML, sysfs, /proc/interrupts and the kernel's log; it changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.domxml.metadata import read_record
from vmm_msi.domxml.qemu_arguments import qemu_arguments
from vmm_msi.engine.setup import guest_with, with_reported_devices
from vmm_msi.errors import BackendError, UsageError
from vmm_msi.explain import log_lines
from vmm_msi.explain.event_text import EventText
from vmm_msi.explain.faults import subjects_of
from vmm_msi.explain.log_context import LogContext
from vmm_msi.iommu.linux import local_pci
from vmm_msi.iommu.linux.msi_table import read_addresses
from vmm_msi.recording import (
    LogOrigin,
    RecordedBinding,
    RecordedDevice,
    RecordedEvent,
    RecordedVector,
    Recording,
    Releases,
    Slot,
)
from vmm_msi.types import SW_MSI_WINDOW, HostTopology, Iova, PciAddress

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.host.msi_bindings import MsiBindings
    from vmm_msi.iommu.smmu_events import SmmuEvent
    from vmm_msi.types import GuestDomain

#: Maximum number of distinct events in a recording.
MAX_EVENTS = 256
#: The strategy of a device that vmm-msi did not attach: that of QEMU and the kernel.
DEFAULT_STRATEGY = "identity"

#: VFIO's interrupts (Linux ``drivers/vfio/pci/vfio_pci_intrs.c`` vfio_msi_set_vector_signal).
_VFIO_INTERRUPT = re.compile(r"vfio-msix?\[(\d{1,4})\]\(([0-9a-f:.]{7,16})\)\s*$")
#: Linux ``arch/arm64/kvm/vgic/vgic-v3.c`` vgic_v3_probe.
_VLPIS = re.compile(r"GICv4(?:\.1)? support enabled")


@dataclass(frozen=True)
class Observations:
    """The texts that were read on the host, unparsed.

    :param interrupts: the content of /proc/interrupts.
    :param kernel_log: the lines of the host's kernel log.
    :param recent_log: the lines in which to search for events; None for all of ``kernel_log``.
    :param guest_log: the guest's kernel log; None without one.
    :param rmr: the guest's kernel maps the RMRs of its IORT 1:1.
    :param bindings: the content of the kernel's file of guest MSI bindings.
    :param unread: the sources that could not be read, with the reason.
    """

    interrupts: str
    kernel_log: Sequence[str]
    recent_log: Sequence[str] | None = None
    guest_log: str | None = None
    rmr: bool = True
    bindings: MsiBindings | None = None
    unread: tuple[str, ...] = ()


def record_guest(
    xml: DomainXml,
    host: HostTopology,
    releases: Releases,
    observations: Observations,
    devices_folder: Path = local_pci.DEVICES,
) -> Recording:
    """Return the recording of a running guest.

    :param xml: the live XML of the guest.
    :param devices_folder: the folder of PCI devices in sysfs.
    :raise UsageError: when the guest has no device behind an accelerated vSMMU.
    :raise TopologyError: when the host description lacks a device.
    :raise DomainXmlError: when the XML, or the record in it, cannot be read.
    """
    strategies = _strategies(xml)
    if not strategies:
        raise UsageError(
            f"recording {xml.name}: the guest has no device behind an accelerated vSMMU; assign "
            "one with vmm-msi attach"
        )
    context = LogContext(host, None, xml)
    full, host = host, _reduced_host(host, strategies)
    guest = guest_with(xml, strategies)
    guest = replace(
        guest,
        name="guest",
        honours_rmr=guest.honours_rmr and observations.rmr,
    )
    used = {device.stage1 for device in guest.devices}
    guest = replace(guest, stage1=tuple(stage1 for stage1 in guest.stage1 if stage1.id in used))
    unread = list(observations.unread)
    unread += [f"<qemu:commandline> {part}" for part in qemu_arguments(xml.root).unexamined]
    counts = interrupt_counts(observations.interrupts)
    devices = []
    for address, (strategy, options) in strategies.items():
        programmed: Mapping[int, Iova] = {}
        try:
            programmed = read_addresses(devices_folder / str(address))
        except BackendError as failure:
            unread.append(failure.reason)
        vectors = _vectors(programmed, counts.get(address, {}))
        bindings = _bindings(observations.bindings, address)
        devices.append(RecordedDevice(address, strategy, options, vectors, bindings))
    guest = _with_giovas(guest, devices)
    context = replace(context, host=full, guest=guest)
    log = observations.recent_log
    if log is None:
        log = observations.kernel_log
    events = _events(log, context, LogOrigin.HOST)
    if observations.guest_log is not None:
        inside = replace(context, in_guest=True)
        events += _events(observations.guest_log.splitlines(), inside, LogOrigin.GUEST)
    return Recording(
        releases,
        _with_vectors(host, devices),
        guest,
        tuple(devices),
        slots_of(devices, host),
        tuple(event for event in events if event.device in strategies)[:MAX_EVENTS],
        any(_VLPIS.search(line) for line in observations.kernel_log),
        tuple(unread),
    )


def interrupt_counts(interrupts: str) -> dict[PciAddress, dict[int, int]]:
    """Return the count of each MSI of each VFIO device, from /proc/interrupts."""
    counts: dict[PciAddress, dict[int, int]] = {}
    processors = len(interrupts.partition("\n")[0].split())
    for line in interrupts.splitlines():
        match = _VFIO_INTERRUPT.search(line)
        if match is None:
            continue
        numbers = line.partition(":")[2].split()[:processors]
        count = sum(int(number) for number in numbers if number.isdigit())
        counts.setdefault(PciAddress.parse(match[2]), {})[int(match[1])] = count
    return counts


def slots_of(devices: Iterable[RecordedDevice], host: HostTopology) -> tuple[Slot, ...]:
    """Return the pages of the software MSI window that devices were programmed with."""
    its_by_page: dict[Iova, int] = {}
    for device in devices:
        on_host = host.device_by_address[device.address]
        window = on_host.sw_msi_window or SW_MSI_WINDOW
        for address in device.programmed:
            if window.overlaps(address, 1):
                its_by_page.setdefault(address.align_down(host.granule), on_host.its)
    return tuple(Slot(page, its) for page, its in sorted(its_by_page.items()))


def _strategies(xml: DomainXml) -> dict[PciAddress, tuple[str, Mapping[str, str]]]:
    """Return strategy and options of each device behind an accelerated vSMMU."""
    record = read_record(xml)
    context = LogContext(xml=xml)
    strategies: dict[PciAddress, tuple[str, Mapping[str, str]]] = {}
    for hostdev in xml.assigned():
        device = None if record is None else record.device(hostdev.host)
        if device is not None:
            strategies[hostdev.host] = (device.strategy, dict(device.options))
        elif context.is_accelerated(hostdev.host):
            strategies[hostdev.host] = (DEFAULT_STRATEGY, {})
    return strategies


def _reduced_host(host: HostTopology, addresses: Collection[PciAddress]) -> HostTopology:
    """Return the host with these devices only, and with the SMMUs and ITSes that they use."""
    host = with_reported_devices(host, addresses)
    devices = [host.device_by_address[address] for address in addresses]
    smmus = {device.smmu for device in devices}
    itses = {its for device in devices for its in device.its_group}
    return HostTopology(
        source="recording",
        granule=host.granule,
        smmus=tuple(smmu for smmu in host.smmus if smmu.id in smmus),
        itses=tuple(its for its in host.itses if its.id in itses),
        devices=tuple(devices),
        granule_known=host.granule_known,
    )


def _with_vectors(host: HostTopology, devices: Iterable[RecordedDevice]) -> HostTopology:
    vectors = {
        device.address: max((vector.number + 1 for vector in device.vectors), default=1)
        for device in devices
    }
    return replace(
        host,
        devices=tuple(replace(device, vectors=vectors[device.address]) for device in host.devices),
    )


def _vectors(
    programmed: Mapping[int, Iova], counts: Mapping[int, int]
) -> tuple[RecordedVector, ...]:
    numbers = sorted({*programmed, *counts})
    return tuple(RecordedVector(n, programmed.get(n), counts.get(n, 0)) for n in numbers)


def _bindings(content: MsiBindings | None, device: PciAddress) -> tuple[RecordedBinding, ...]:
    """Return the bindings of a device, without pending ones, which the kernel does not use."""
    if content is None:
        return ()
    return tuple(
        RecordedBinding(b.giova, b.gdb, b.page_shift, b.hpa, b.used)
        for b in content.of(device)
        if not b.pending
    )


def _with_giovas(guest: GuestDomain, devices: Iterable[RecordedDevice]) -> GuestDomain:
    """Return the guest with the gIOVAs of the bindings; the XML has none, so they were predicted.

    A device may be programmed with another one's binding: its own is the one that counts.
    """
    bound = {device.address: device.bindings for device in devices if len(device.bindings) == 1}
    return replace(
        guest,
        devices=tuple(
            replace(device, giova=bound[device.host][0].giova) if device.host in bound else device
            for device in guest.devices
        ),
    )


def fault_counts(lines: Iterable[str], context: LogContext) -> dict[PciAddress, int]:
    """Return the number of events in the host's log, by the device that is their only cause."""
    return dict(Counter(address for address, _event in _events_of(lines, context)))


def _events(lines: Iterable[str], context: LogContext, origin: LogOrigin) -> list[RecordedEvent]:
    """Return the distinct events in a log that have exactly one device as their cause."""
    events = (RecordedEvent(address, origin, e) for address, e in _events_of(lines, context))
    return list(dict.fromkeys(events))


def _events_of(lines: Iterable[str], context: LogContext) -> Iterator[tuple[PciAddress, SmmuEvent]]:
    """Yield the events in a log that have exactly one device as their cause, with the device."""
    text = EventText()
    for line in log_lines.lines("\n".join(lines)):
        if not line.writer:
            text.line(line, line.text)
    for pending in text.end():
        logged = pending.logged
        subjects = subjects_of(logged, context)
        address = subjects[0].address if len(subjects) == 1 else None
        if logged.event is not None and address is not None:
            yield address, logged.event
