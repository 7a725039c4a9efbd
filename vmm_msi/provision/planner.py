"""Plan attaching and detaching: the new XML, what the model says of it, what is refused.

Nothing is asked of libvirt here and nothing is changed: a plan is made from
:class:`~vmm_msi.provision.libvirt_facts.LibvirtFacts`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.config import Choice
from vmm_msi.domxml import editor, numa
from vmm_msi.domxml.index_gaps import close_gaps
from vmm_msi.domxml.metadata import BindingRecord, DomainRecord, read_record
from vmm_msi.domxml.parse import fragment
from vmm_msi.domxml.prerequisites import keeps_bars
from vmm_msi.domxml.support import Feature
from vmm_msi.engine.session import GuestSession
from vmm_msi.engine.setup import group_notes, guest_of, profile_for, with_groups
from vmm_msi.errors import UsageError
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.plugins.hookspecs import Action, Event
from vmm_msi.provision import checks
from vmm_msi.provision.request import BinderKind, Change, LiveChange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vmm_msi.config import Config
    from vmm_msi.domxml.domain_state import GuestState
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DeviceRecord
    from vmm_msi.domxml.support import Support
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision.libvirt_facts import LibvirtFacts
    from vmm_msi.provision.request import AttachRequest, DetachRequest, Scope
    from vmm_msi.types import GuestDomain, GuestPlan, HostTopology, PciAddress, Verdict, VsmmuPlan


@dataclass(frozen=True)
class _Edited:
    """One XML with the devices in it, and what the model says of it."""

    xml: DomainXml
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    choices: Mapping[PciAddress, Choice]


def plan_attach(
    facts: LibvirtFacts,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology,
    request: AttachRequest,
) -> Change:
    """Plan to attach devices.

    :raise RefusedError: when the strategy, the model, the libvirt or the guest cannot do it.
    :raise UsageError: when something is asked for that does not exist.
    :raise TopologyError: when the host description lacks a device.
    """
    checks.check_request(request)
    guest = facts.guest
    checks.check_state(guest, request.scope)
    checks.check_free(facts, request)
    old = guest.definition
    inputs = (facts, plugins, settings, host, request)
    config = _edited(editor.apply, old, *inputs) if request.scope.config else None
    live = None
    if request.scope.live and guest.running is not None:
        live = _edited(editor.plug, guest.running, *inputs)
    edits = [edited for edited in (config, live) if edited is not None]
    notes = list(dict.fromkeys(note for edited in edits for note in edited.notes))
    binder = request.binder_on(facts.driver)
    events = tuple(
        Event(
            Action.ATTACH_DEVICE,
            old.name,
            edits[0].choices[device].strategy,
            device,
            {"binder": binder.value},
        )
        for device in request.devices
    )
    return Change(
        old=old,
        new=old if config is None else config.xml,
        binder=binder,
        live=None if live is None else _plugging(guest, live.xml, request.devices),
        verdicts=edits[-1].verdicts,
        notes=(
            *notes,
            *_memory_notes(guest.running, config, request, binder),
            *_notes(guest, request.scope),
        ),
        events=events,
    )


def _reserve(support: Support, old: DomainXml, binder: BinderKind, request: AttachRequest) -> int:
    """Return the bytes to reserve for each port; 0 for a guest that does it for all by itself."""
    able = binder is BinderKind.QEMU and support.has(Feature.OVERRIDE)
    needed = request.spare_ports and not keeps_bars(old, for_each_port=False)
    return request.spare_memory << 20 if able and needed else 0


def _memory_notes(
    running: DomainXml | None, config: _Edited | None, request: AttachRequest, binder: BinderKind
) -> list[str]:
    """Say what plugging a device in needs that this guest does not show."""
    plugged = [running] if request.scope.live else []
    if request.spare_ports and config is not None:
        plugged.append(config.xml)
    if binder is not BinderKind.QEMU or all(keeps_bars(xml) for xml in plugged if xml is not None):
        return []
    note = (
        "a Linux guest takes the BARs of the devices behind the same bus away when one is plugged "
        "in, unless QEMU reserves memory for the ports from the start (--spare-ports with "
        "--spare-memory) or its kernel has pci=hpiosize=0,hpmmioprefsize=0"
    )
    return [note]


def _edited(
    edit: Callable[..., DomainXml],
    old: DomainXml,
    facts: LibvirtFacts,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology,
    request: AttachRequest,
) -> _Edited:
    """Bring a guest up on the model, and put the devices into its XML with ``edit``."""
    record = read_record(old) or DomainRecord()
    choices = {
        device.host: Choice.of(device.strategy, dict(device.options)) for device in record.devices
    }
    for device in request.devices:
        choices[device] = settings.choice(old.name, device, request.named)
    selector = settings.its_selector(old.name)
    binder = request.binder_on(facts.driver)
    needs = {choice: checks.needs_of(plugins, choice) for choice in choices.values()}
    checks.check_binder(plugins, binder, facts.driver, needs)
    checks.check_guest(old, binder, needs.values())
    checks.check_devices(facts, host, binder, request)
    host = with_groups(host, choices, facts.nodes)
    notes = [] if facts.driver is None else list(group_notes(choices, facts.nodes))
    guest = guest_of(old, choices)
    profile = profile_for(needs)
    backend = SimBackend(host, guest, profile)
    run = GuestSession(plugins, host, guest, backend, choices, selector, dry_run=True)
    plan = _merged(run.plan())
    layout = replace(
        facts.support.layout(),
        driver=dict(request.driver),
        managed=request.managed,
        spare_ports=request.spare_ports,
        fdgroup=request.fdgroup,
        reserve=_reserve(facts.support, old, binder, request),
    )
    checks.check_support(facts.support, plan, binder, request)
    checks.check_caps(facts.support, old.name)
    run.attach_all()
    verdicts = tuple(run.deliver(device.host) for device in guest.devices)
    if not request.allow_faults:
        checks.check_verdicts(verdicts, record)
    if binder is BinderKind.SIM:
        notes.append(
            f"the XML is real, the doorbell binding is modelled ({profile.name}): nothing carries "
            "it out when the guest runs"
        )
    cells, more = _cells(old, plan, facts)
    notes += more
    assignments = {
        device: _assignment(choices[device], binder, guest, device, verdicts, cells.get(device))
        for device in request.devices
    }
    new = edit(old, plan, layout, assignments)
    stay = {device.host: device.binding for device in record.devices}
    now = {device: _binding(guest, device, verdicts) for device in stay}
    if now != stay:
        new = editor.record_bindings(new, now)
    return _Edited(new, verdicts, tuple(notes), choices)


def _cells(
    guest: DomainXml, plan: GuestPlan, facts: LibvirtFacts
) -> tuple[dict[PciAddress, int], list[str]]:
    """Return the guest NUMA cell for the bus that each device is to be behind.

    A bus has one cell: the one on the host node of all its devices.
    """
    found: dict[PciAddress, int] = {}
    notes = []
    for vsmmu in plan.vsmmus:
        known = [facts.nodes[device] for device in vsmmu.devices if device in facts.nodes]
        nodes = {node.numa_node for node in known}
        if len(known) < len(vsmmu.devices) or len(nodes) != 1 or None in nodes:
            continue
        node = next(node.numa_node for node in known if node.numa_node is not None)
        cell = numa.cell_on(guest, node)
        if cell is not None:
            found |= dict.fromkeys(vsmmu.devices, cell)
        elif numa.cells(guest):
            notes.append(
                f"{', '.join(map(str, vsmmu.devices))}: on NUMA node {node} of the host, and no "
                "cell of the guest has its memory there alone: the bus gets no <node>"
            )
    return found, notes


def _plugging(guest: GuestState, new: DomainXml, devices: Iterable[PciAddress]) -> LiveChange:
    if guest.running is None:
        raise UsageError(f"changing the running guest {new.name}: it does not run")
    parts = {hostdev.host: fragment(hostdev.element) for hostdev in new.hostdevs()}
    return LiveChange(
        guest.running, new, tuple((device, parts[device]) for device in devices), plugging=True
    )


def plan_detach(guest: GuestState, request: DetachRequest) -> Change:
    """Plan to take devices out that were attached by vmm-msi; all of them when none is named.

    :raise DomainXmlError: when one was not attached by vmm-msi.
    :raise RefusedError: when what is to be changed is not there.
    :raise UsageError: when there is nothing to take out.
    """
    checks.check_once(request.devices)
    checks.check_release(request.release_s)
    checks.check_state(guest, request.scope)
    old = guest.definition
    new, live = old, None
    events: dict[PciAddress, Event] = {}
    binders = set()
    notes = []
    if request.scope.config:
        record = read_record(old) or DomainRecord()
        for device in _to_detach(old, record, request):
            events[device.host] = _detached(old, device)
            binders.add(device.backend)
        new = close_gaps(editor.remove(old, *events, record=record))
        stay = {
            each.host: each.binding and replace(each.binding, programmed=None, outcome=None)
            for each in (read_record(new) or DomainRecord()).devices
        }
        if stay:
            new = editor.record_bindings(new, stay)
            notes.append(
                "addresses may change at the guest's next start: what the devices that stay were "
                "given is no longer known"
            )
    if request.scope.live and guest.running is not None:
        running = guest.running
        devices = _to_detach(running, read_record(running) or DomainRecord(), request)
        parts = {hostdev.host: fragment(hostdev.element) for hostdev in running.hostdevs()}
        left = running
        for device in devices:
            left = editor.unplug(left, device.host)
            events[device.host] = _detached(old, device)
            binders.add(device.backend)
        present = tuple((d.host, parts[d.host]) for d in devices if d.host in parts)
        live = LiveChange(running, left, present, plugging=False, release_s=request.release_s)
    return Change(
        old=old,
        new=new,
        binder=BinderKind.QEMU if BinderKind.QEMU in binders else BinderKind.SIM,
        live=live,
        notes=(*notes, *_notes(guest, request.scope)),
        events=tuple(events.values()),
    )


def _to_detach(xml: DomainXml, record: DomainRecord, request: DetachRequest) -> list[DeviceRecord]:
    if not record.devices and not request.devices:
        raise UsageError(f"detaching from {xml.name}: vmm-msi has attached nothing to it")
    return [editor.recorded(xml, record, device) for device in request.devices] or [*record.devices]


def _detached(guest: DomainXml, device: DeviceRecord) -> Event:
    return Event(Action.DETACH_DEVICE, guest.name, device.strategy, device.host)


def _notes(guest: GuestState, scope: Scope) -> list[str]:
    """Return what is to be known of a change of any kind."""
    notes = []
    if guest.running is not None and not scope.live:
        notes.append("the guest is running: the change takes effect at its next start")
    if not scope.config:
        notes.append("what runs was changed, not the definition: the next start is without it")
    if guest.snapshots and scope.config:
        notes.append(
            f"the guest has {guest.snapshots} snapshots: going back to one brings back the "
            "definition of that time"
        )
    return notes


def _merged(plan: GuestPlan) -> GuestPlan:
    """Put what several strategies have behind one physical SMMU and ITS behind one vSMMU."""
    merged: dict[tuple[int, int | None], VsmmuPlan] = {}
    for vsmmu in plan.vsmmus:
        first = merged.setdefault((vsmmu.smmu, vsmmu.its), vsmmu)
        if first is not vsmmu:
            merged[vsmmu.smmu, vsmmu.its] = replace(
                first,
                devices=(*first.devices, *vsmmu.devices),
                accelerated=first.accelerated and vsmmu.accelerated,
            )
    return replace(plan, vsmmus=tuple(merged.values()))


def _assignment(
    choice: Choice,
    binder: BinderKind,
    guest: GuestDomain,
    device: PciAddress,
    verdicts: Iterable[Verdict],
    cell: int | None,
) -> editor.Assignment:
    options = {key: str(value) for key, value in choice.options}
    if choice.profile is not None:
        options["profile"] = choice.profile
    return editor.Assignment(
        strategy=choice.strategy,
        backend=binder.value,
        its=_its_reached(verdicts, device),
        options=options,
        binding=_binding(guest, device, verdicts),
        node=cell,
    )


def _verdict(verdicts: Iterable[Verdict], device: PciAddress) -> Verdict:
    return next(verdict for verdict in verdicts if verdict.device == device)


def _its_reached(verdicts: Iterable[Verdict], device: PciAddress) -> int:
    """Return the ITS that the device's MSIs reach, or were to reach where they do not arrive."""
    verdict = _verdict(verdicts, device)
    return verdict.expected_its if verdict.its is None else verdict.its


def _binding(guest: GuestDomain, device: PciAddress, verdicts: Iterable[Verdict]) -> BindingRecord:
    guest_device = guest.device_by_address[device]
    verdict = _verdict(verdicts, device)
    return BindingRecord(
        giova=guest_device.giova,
        gdb=guest.gdb(guest_device),
        programmed=verdict.programmed,
        outcome=verdict.outcome,
    )
