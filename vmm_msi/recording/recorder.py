"""Making a recording on the host that a guest runs on.

Nothing is changed: libvirt's XML, sysfs, /proc/interrupts and the kernel's log are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.domxml.metadata import read_record
from vmm_msi.engine.setup import with_groups
from vmm_msi.errors import BackendError, UsageError
from vmm_msi.explain import log_lines
from vmm_msi.explain.event_text import EventText
from vmm_msi.explain.faults import subjects_of
from vmm_msi.explain.situation import Situation
from vmm_msi.iommu.linux import sysfs
from vmm_msi.iommu.linux.msi_table import read_addresses
from vmm_msi.recording import Log, Recording, Releases, SeenDevice, SeenEvent, SeenVector, Slot
from vmm_msi.types import SW_MSI_WINDOW, HostTopology, Iova, PciAddress

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from vmm_msi.domxml.libvirt_domain import DomainXml

#: Different events that are kept.
MAX_EVENTS = 256
#: What a device was attached with that vmm-msi did not attach: what QEMU and the kernel do.
UNRECORDED = "identity"

#: VFIO's interrupts (Linux ``drivers/vfio/pci/vfio_pci_intrs.c`` vfio_msi_set_vector_signal).
_COUNTED = re.compile(r"vfio-msix?\[(\d{1,4})\]\(([0-9a-f:.]{7,16})\)\s*$")
#: Linux ``arch/arm64/kvm/vgic/vgic-v3.c`` vgic_v3_probe.
_VLPIS = re.compile(r"GICv4(?:\.1)? support enabled")


@dataclass(frozen=True)
class Found:
    """What was read on the host, as it was read.

    :param interrupts: the content of /proc/interrupts.
    :param kernel_log: lines of the host's kernel log.
    :param recent_log: those among which events are looked for; None for all.
    :param guest_log: the guest's, None where it was not given.
    :param rmr: the guest's kernel maps what its IORT wants mapped 1:1.
    :param unread: what could not be read, and why.
    """

    interrupts: str
    kernel_log: Sequence[str]
    recent_log: Sequence[str] | None = None
    guest_log: str | None = None
    rmr: bool = True
    unread: tuple[str, ...] = ()


def make(
    xml: DomainXml,
    host: HostTopology,
    releases: Releases,
    found: Found,
    devices_folder: Path = sysfs.DEVICES,
) -> Recording:
    """Return the recording of a guest that runs.

    :param xml: what libvirt says that it runs with.
    :param devices_folder: sysfs's folder of PCI devices.
    :raise UsageError: when it has no device behind an accelerated vSMMU.
    :raise TopologyError: when the host description lacks a device.
    :raise DomainXmlError: when the XML, or the record in it, cannot be read.
    """
    chosen = _chosen(xml)
    if not chosen:
        raise UsageError(
            f"recording {xml.name}: it has no device behind an accelerated vSMMU; valid is a guest "
            "that vmm-msi attach gave one"
        )
    situation = Situation(host, None, xml)
    full, host = host, _part_of(host, chosen)
    guest = guest_from_xml(xml)
    guest = replace(
        guest,
        name="guest",
        devices=tuple(device for device in guest.devices if device.host in chosen),
        honours_rmr=guest.honours_rmr and found.rmr,
    )
    used = {device.stage1 for device in guest.devices}
    guest = replace(guest, stage1=tuple(each for each in guest.stage1 if each.id in used))
    unread = list(found.unread)
    counts = counted(found.interrupts)
    devices = []
    for address, (strategy, options) in chosen.items():
        programmed: Mapping[int, Iova] = {}
        try:
            programmed = read_addresses(devices_folder / str(address))
        except BackendError as failure:
            unread.append(failure.reason)
        vectors = _vectors(programmed, counts.get(address, {}))
        devices.append(SeenDevice(address, strategy, options, vectors))
    situation = replace(situation, host=full, guest=guest)
    log = found.kernel_log if found.recent_log is None else found.recent_log
    events = _events(log, situation, Log.HOST)
    if found.guest_log is not None:
        inside = replace(situation, in_guest=True)
        events += _events(found.guest_log.splitlines(), inside, Log.GUEST)
    return Recording(
        releases,
        _with_vectors(host, devices),
        guest,
        tuple(devices),
        slots_of(devices, host),
        tuple(event for event in events if event.device in chosen)[:MAX_EVENTS],
        any(_VLPIS.search(line) for line in found.kernel_log),
        tuple(unread),
    )


def counted(interrupts: str) -> dict[PciAddress, dict[int, int]]:
    """Return how often each MSI of each device came that VFIO has, from /proc/interrupts."""
    found: dict[PciAddress, dict[int, int]] = {}
    processors = len(interrupts.partition("\n")[0].split())
    for line in interrupts.splitlines():
        named = _COUNTED.search(line)
        if named is None:
            continue
        numbers = line.partition(":")[2].split()[:processors]
        count = sum(int(number) for number in numbers if number.isdigit())
        found.setdefault(PciAddress.parse(named[2]), {})[int(named[1])] = count
    return found


def slots_of(devices: Iterable[SeenDevice], host: HostTopology) -> tuple[Slot, ...]:
    """Return the pages of the software MSI window that devices were programmed with."""
    found: dict[Iova, int] = {}
    for device in devices:
        known = host.device_by_address[device.address]
        window = known.sw_msi_window or SW_MSI_WINDOW
        for address in device.programmed:
            if window.overlaps(address, 1):
                found.setdefault(address.align_down(host.granule), known.its)
    return tuple(Slot(page, its) for page, its in sorted(found.items()))


def _chosen(xml: DomainXml) -> dict[PciAddress, tuple[str, Mapping[str, str]]]:
    """Return strategy and options of each device that is behind an accelerated vSMMU."""
    record = read_record(xml)
    situation = Situation(xml=xml)
    found: dict[PciAddress, tuple[str, Mapping[str, str]]] = {}
    for hostdev in xml.hostdevs():
        known = None if record is None else record.device(hostdev.host)
        if known is not None:
            found[hostdev.host] = (known.strategy, dict(known.options))
        elif situation.is_accelerated(hostdev.host):
            found[hostdev.host] = (UNRECORDED, {})
    return found


def _part_of(host: HostTopology, wanted: Collection[PciAddress]) -> HostTopology:
    """Return the host with these devices, and of the rest what they use."""
    known = host.function_by_address
    host = with_groups(host, wanted, known)
    devices = []
    for address in wanted:
        device = host.device_by_address[address]
        function = known.get(address)
        told = None if function is None else function.reserved
        devices.append(device if told is None else replace(device, reserved=told))
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


def _with_vectors(host: HostTopology, devices: Iterable[SeenDevice]) -> HostTopology:
    most = {each.address: max((v.number + 1 for v in each.vectors), default=1) for each in devices}
    return replace(
        host, devices=tuple(replace(each, vectors=most[each.address]) for each in host.devices)
    )


def _vectors(programmed: Mapping[int, Iova], counts: Mapping[int, int]) -> tuple[SeenVector, ...]:
    numbers = sorted({*programmed, *counts})
    return tuple(SeenVector(n, programmed.get(n), counts.get(n, 0)) for n in numbers)


def _events(lines: Iterable[str], situation: Situation, log: Log) -> list[SeenEvent]:
    """Return the different events in a log, of which one device is known to be the cause."""
    text = EventText()
    for line in log_lines.lines("\n".join(lines)):
        text.line(line)
    found: dict[SeenEvent, None] = {}
    for pending in text.end():
        logged = pending.logged
        subjects = subjects_of(logged, situation)
        address = subjects[0].address if len(subjects) == 1 else None
        if logged.event is not None and address is not None:
            found[SeenEvent(address, log, logged.event)] = None
    return list(found)
