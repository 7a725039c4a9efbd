"""Plan attaching and detaching: the new XML, the simulator's verdicts on it, refusals.

A plan is made from :class:`~vmm_msi.provision.libvirt_facts.LibvirtFacts`: planning neither calls
libvirt nor changes anything. The doctor's rules examine the planned guest: their errors refuse the
plan, their warnings are notes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.doctor import refusal
from vmm_msi.doctor.case_reader import host_case
from vmm_msi.domxml import editor, numa
from vmm_msi.domxml.index_gaps import close_gaps
from vmm_msi.domxml.metadata import BindingRecord, DomainRecord, record_in
from vmm_msi.domxml.parse import fragment
from vmm_msi.domxml.prerequisites import keeps_bars
from vmm_msi.domxml.support import Feature
from vmm_msi.engine.binders import binder_of_device
from vmm_msi.engine.setup import (
    Simulation,
    guest_with,
    needs_of,
    recorded_choices,
    simulated_session,
    with_reported_devices,
)
from vmm_msi.errors import RefusedError, TopologyError, UsageError, VetoError
from vmm_msi.plugins.hookspecs import Action, Event
from vmm_msi.provision import checks
from vmm_msi.provision.attached import attached_alike
from vmm_msi.provision.examiner import GuestExaminer
from vmm_msi.provision.request import Change, LiveChange
from vmm_msi.quantity import quantity
from vmm_msi.types import BinderKind, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vmm_msi.config import Choice, Config
    from vmm_msi.doctor.finding import Finding
    from vmm_msi.domxml.guest_state import GuestState
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DeviceRecord
    from vmm_msi.domxml.support import XmlLayout
    from vmm_msi.host.sources import HostSources
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision.libvirt_facts import LibvirtFacts
    from vmm_msi.provision.request import AttachRequest, DetachRequest, Scope
    from vmm_msi.types import (
        GuestDomain,
        GuestPlan,
        HostTopology,
        PciAddress,
        PciFunction,
        Verdict,
        VsmmuPlan,
    )


#: The finding that says what a note about memory for hotplug says.
_BAR_LOSS = "hotplug-bar-loss"


def plan_attach(
    facts: LibvirtFacts,
    plugins: PluginManager,
    settings: Config,
    host: HostTopology | HostSources,
    request: AttachRequest,
    finish: Callable[[DomainXml], DomainXml] | None = None,
) -> Change:
    """Plan to attach devices; those that are attached in the requested way already stay as is.

    :param host: a description, or the sources of one, whose files also show the kernel.
    :param finish: edits the new definition before it is examined; None for no further edit.
    :raise FindingsError: if the doctor reports errors for the planned guest.
    :raise RefusedError: if the strategy, the simulator, libvirt or the guest cannot do it.
    :raise UsageError: if the request names something that does not exist.
    :raise TopologyError: if the host description lacks a fact about a device.
    """
    checks.check_request(request)
    checks.check_state(facts.guest, request.scope)
    base = host_case(host)
    alike = attached_alike(facts, plugins, settings, base.host, request)
    pending = tuple(device for device in request.devices if device not in alike)
    if alike and pending:
        request = replace(request, devices=pending)
    if pending:
        checks.check_free(facts, request)
    checks.check_machine(facts.guest.definition)
    examiner = GuestExaminer(base, facts, plugins, settings, request)
    checks.check_binder(examiner.binder, facts.driver)
    if pending:
        examiner.check_holders()
    names = ", ".join(map(str, alike))
    notes = [f"{names}: attached in this way already; nothing was changed"] if alike else []
    if alike and not pending:
        notes += refusal.notes(examiner.findings_on_attached())
        old = facts.guest.definition
        return Change(old=old, new=old, binder=examiner.binder, notes=tuple(notes))
    change = _AttachPlanner(facts, plugins, settings, examiner, request, finish).change()
    return replace(change, notes=(*notes, *change.notes)) if notes else change


@dataclass(frozen=True)
class _Edited:
    """One XML with the devices in it, and the verdicts of the simulator on their MSIs."""

    xml: DomainXml
    simulation: Simulation
    notes: tuple[str, ...]
    choices: Mapping[PciAddress, Choice]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _AttachPlanner:
    """Plans one request to attach: edits the definition, the live XML or both."""

    facts: LibvirtFacts
    plugins: PluginManager
    settings: Config
    examiner: GuestExaminer
    request: AttachRequest
    finish: Callable[[DomainXml], DomainXml] | None

    @property
    def binder(self) -> BinderKind:
        """Which software binds the doorbells, unless the kernel binds those of a device."""
        return self.examiner.binder

    @property
    def host(self) -> HostTopology:
        """The host without what libvirt reports."""
        return self.examiner.base.host

    def _binder_of(self, choice: Choice) -> BinderKind:
        """Return the binder of a device with a strategy."""
        needs = needs_of(self.plugins, choice)
        return binder_of_device(self.binder, choice, needs, self.host)

    def change(self) -> Change:
        """Return the planned change."""
        guest, request = self.facts.guest, self.request
        old, running = guest.definition, guest.running
        config = self._edited(editor.apply, old) if request.scope.config else None
        live = None
        if request.scope.live and running is not None:
            live = self._edited(editor.plug, running)
        edits = [edited for edited in (config, live) if edited is not None]
        notes = dict.fromkeys(note for edited in edits for note in edited.notes)
        if not any(finding.id == _BAR_LOSS for edited in edits for finding in edited.findings):
            notes |= dict.fromkeys(self._memory_notes())
        return Change(
            old=old,
            new=old if config is None else config.xml,
            binder=self.binder,
            live=None if live is None else _plugging(guest, live.xml, request.devices),
            verdicts=edits[-1].simulation.verdicts,
            notes=(*notes, *_notes(guest, request.scope)),
            events=tuple(
                Event(
                    Action.ATTACH_DEVICE,
                    old.name,
                    edits[0].choices[device].strategy,
                    device,
                    {"binder": self._binder_of(edits[0].choices[device]).value},
                )
                for device in request.devices
            ),
        )

    def _edited(self, edit: Callable[..., DomainXml], old: DomainXml) -> _Edited:
        """Put the devices into the XML of a guest with ``edit``, and examine the result."""
        try:
            edited = self._planned(edit, old)
        except VetoError:
            raise
        except (RefusedError, TopologyError) as failure:
            self.examiner.explain(old, failure)
            raise
        findings = self.examiner.findings(edited.xml, edited.simulation, record_in(old))
        notes = (*edited.notes, *refusal.notes(findings))
        return replace(edited, notes=notes, findings=tuple(findings))

    def _planned(self, edit: Callable[..., DomainXml], old: DomainXml) -> _Edited:
        """Bring a guest up in the simulator, and put the devices into its XML with ``edit``."""
        facts, request = self.facts, self.request
        record = record_in(old)
        choices = recorded_choices(record)
        for device in request.devices:
            choices[device] = self.settings.choice(old.name, device, request.strategy)
        host = with_reported_devices(self.host, choices, facts.nodes)
        guest = guest_with(old, choices)
        selector = self.settings.its_selector(old.name)
        session = simulated_session(self.plugins, host, guest, choices, selector, dry_run=True)
        plan = _merged(session.plan())
        checks.check_support(facts.support, plan, self.binder, request)
        session.attach_all()
        verdicts = tuple(session.deliver(device.host) for device in guest.devices)
        kernel = session.backend.info.profile
        notes = [] if facts.driver is None else list(_unknown_devices(choices, facts.nodes))
        if self.binder is BinderKind.SIM:
            notes.append(
                f"the XML is real, the doorbell binding is simulated ({kernel}): nothing applies "
                "it when the guest runs"
            )
        binders = {device: self._binder_of(choices[device]) for device in request.devices}
        recorded = {device.host: BinderKind(device.backend) for device in record.devices}
        checks.check_stage2(plan, guest, verdicts, {**recorded, **binders})
        notes += _kernel_notes(old.name, binders)
        if any(vsmmu.own_iommufd for vsmmu in plan.vsmmus) and not self._writes_iommufd_objects:
            notes.append(
                "the XML has one iommufd object for all vSMMUs: further ones need "
                "<qemu:commandline> and <qemu:override>, which this libvirt lacks"
            )
        cells, cell_notes = self._cells(old, plan)
        assignments = {
            device: _assignment(choices[device], binder, guest, device, verdicts, cells.get(device))
            for device, binder in binders.items()
        }
        new = edit(old, plan, self._layout(old), assignments)
        before = {device.host: device.binding for device in record.devices}
        bindings = {device: _binding(guest, device, verdicts) for device in before}
        if bindings != before:
            new = editor.record_bindings(new, bindings)
        if self.finish is not None:
            new = self.finish(new)
        simulation = Simulation(Scenario(host, guest), kernel, verdicts)
        return _Edited(new, simulation, (*notes, *cell_notes), choices)

    def _layout(self, old: DomainXml) -> XmlLayout:
        return replace(
            self.facts.support.layout(),
            driver=dict(self.request.driver),
            managed=self.request.managed,
            spare_ports=self.request.spare_ports,
            fdgroup=self.request.fdgroup,
            reserve=self._reserve(old),
            iommufd_objects=self._writes_iommufd_objects,
        )

    @property
    def _writes_iommufd_objects(self) -> bool:
        """Whether this libvirt has elements for QEMU's command line, which others drop."""
        return self.facts.driver in {None, "QEMU"} and self.facts.support.has(Feature.OVERRIDE)

    def _reserve(self, old: DomainXml) -> int:
        """Return the bytes to reserve for each port; 0 if the guest keeps BARs without."""
        can_reserve = self.binder is BinderKind.QEMU and self.facts.support.has(Feature.OVERRIDE)
        needed = self.request.spare_ports and not keeps_bars(old, for_each_port=False)
        return self.request.spare_memory << 20 if can_reserve and needed else 0

    def _memory_notes(self) -> list[str]:
        """Return a note if plugging in a device takes memory that nothing reserves."""
        running = self.facts.guest.running if self.request.scope.live else None
        if self.binder is not BinderKind.QEMU or running is None or keeps_bars(running):
            return []
        note = (
            "when a device is plugged in, a Linux guest takes the BARs of the devices behind the "
            "same bus away, unless QEMU reserves memory for the ports from the start "
            "(--spare-ports with --spare-memory) or its kernel has pci=hpiosize=0,hpmmioprefsize=0"
        )
        return [note]

    def _cells(self, guest: DomainXml, plan: GuestPlan) -> tuple[dict[PciAddress, int], list[str]]:
        """Return the guest NUMA cell for the bus of each device, and notes about missing ones.

        A bus has one cell: the one on the host node of all its devices.
        """
        cells: dict[PciAddress, int] = {}
        notes = []
        for vsmmu in plan.vsmmus:
            known = [self.facts.nodes.get(device) for device in vsmmu.devices]
            numa_nodes = {None if node is None else node.numa_node for node in known}
            numa_node = numa_nodes.pop() if len(numa_nodes) == 1 else None
            if numa_node is None:
                continue
            cell = numa.cell_on(guest, numa_node)
            if cell is not None:
                cells |= dict.fromkeys(vsmmu.devices, cell)
            elif numa.cells(guest):
                notes.append(
                    f"{', '.join(map(str, vsmmu.devices))}: on NUMA node {numa_node} of the host, "
                    "and no cell of the guest has its memory there alone: the bus gets no <node>"
                )
        return cells, notes


def _kernel_notes(guest: str, binders: Mapping[PciAddress, BinderKind]) -> Iterator[str]:
    """Yield a note if the kernel binds doorbells: a program has to tell it the gIOVAs."""
    devices = [device for device, binder in binders.items() if binder is BinderKind.KERNEL]
    if devices:
        yield (
            f"{', '.join(map(str, devices))}: vmm-msi watch binds the doorbell in the kernel when "
            f"the guest starts; without the service, run vmm-msi bind {guest} then"
        )


def _unknown_devices(
    devices: Iterable[PciAddress], nodes: Mapping[PciAddress, PciFunction]
) -> Iterator[str]:
    """Yield a note for each device that libvirt does not know."""
    for device in devices:
        if device not in nodes:
            yield f"libvirt knows no host device {device}; the host description is used"


def _plugging(guest: GuestState, new: DomainXml, devices: Iterable[PciAddress]) -> LiveChange:
    if guest.running is None:
        raise UsageError(f"changing the running guest {new.name}: the guest is not running")
    parts = {hostdev.host: fragment(hostdev.element) for hostdev in new.hostdevs()}
    return LiveChange(
        guest.running, new, tuple((device, parts[device]) for device in devices), plugging=True
    )


def plan_detach(guest: GuestState, request: DetachRequest) -> Change:
    """Plan to remove devices that vmm-msi attached; all of them if the request names none.

    :raise DomainXmlError: if vmm-msi did not attach one of them.
    :raise RefusedError: if the guest has no definition or run that the request is to change.
    :raise UsageError: if nothing is attached.
    """
    checks.check_once(request.devices)
    checks.check_release(request.release_s)
    checks.check_state(guest, request.scope)
    new = guest.definition
    notes: list[str] = []
    detached: list[DeviceRecord] = []
    if request.scope.config:
        new, notes, detached = _detached_definition(guest.definition, request)
    live = None
    if request.scope.live and guest.running is not None:
        live, unplugged = _unplugging(guest.running, request)
        detached += unplugged
    events = {device.host: device for device in detached}
    qemu = any(device.backend != BinderKind.SIM.value for device in detached)
    return Change(
        old=guest.definition,
        new=new,
        binder=BinderKind.QEMU if qemu else BinderKind.SIM,
        live=live,
        notes=(*notes, *_notes(guest, request.scope)),
        events=tuple(
            Event(Action.DETACH_DEVICE, guest.definition.name, device.strategy, device.host)
            for device in events.values()
        ),
    )


def _detached_definition(
    old: DomainXml, request: DetachRequest
) -> tuple[DomainXml, list[str], list[DeviceRecord]]:
    """Return the definition without the devices, notes, and the records of these devices."""
    record = record_in(old)
    devices = _to_detach(old, record, request)
    new = close_gaps(editor.remove(old, *(device.host for device in devices), record=record))
    remaining = record_in(new).devices
    if not remaining:
        return new, [], devices
    bindings = {
        device.host: device.binding and replace(device.binding, programmed=(), outcome=None)
        for device in remaining
    }
    note = (
        "addresses may change at the guest's next start: the recorded addresses of the remaining "
        "devices were cleared"
    )
    return editor.record_bindings(new, bindings), [note], devices


def _unplugging(
    running: DomainXml, request: DetachRequest
) -> tuple[LiveChange, list[DeviceRecord]]:
    """Return the change of the running guest, and the records of the devices it removes."""
    devices = _to_detach(running, record_in(running), request)
    parts = {hostdev.host: fragment(hostdev.element) for hostdev in running.hostdevs()}
    remaining = running
    for device in devices:
        remaining = editor.unplug(remaining, device.host)
    present = tuple((d.host, parts[d.host]) for d in devices if d.host in parts)
    change = LiveChange(running, remaining, present, plugging=False, release_s=request.release_s)
    return change, devices


def _to_detach(xml: DomainXml, record: DomainRecord, request: DetachRequest) -> list[DeviceRecord]:
    if not record.devices and not request.devices:
        raise UsageError(f"detaching from {xml.name}: vmm-msi has attached no device to it")
    return [editor.recorded(xml, record, device) for device in request.devices] or [*record.devices]


def _notes(guest: GuestState, scope: Scope) -> list[str]:
    """Return notes on the state of the guest, for a change of any kind."""
    notes = []
    if guest.running is not None and not scope.live:
        notes.append("the guest is running: the change takes effect at its next start")
    if not scope.config:
        notes.append("only the running guest changes: its next start is without the change")
    if guest.snapshots and scope.config:
        notes.append(
            f"the guest has {quantity(guest.snapshots, 'snapshot')}: reverting to one restores the "
            "definition of that time"
        )
    return notes


def _merged(plan: GuestPlan) -> GuestPlan:
    """Merge vSMMUs of several strategies that serve the same physical SMMU and ITS."""
    merged: dict[tuple[int, int | None], VsmmuPlan] = {}
    for vsmmu in plan.vsmmus:
        first = merged.setdefault((vsmmu.smmu, vsmmu.its), vsmmu)
        if first is not vsmmu:
            merged[vsmmu.smmu, vsmmu.its] = replace(
                first,
                devices=(*first.devices, *vsmmu.devices),
                accelerated=first.accelerated and vsmmu.accelerated,
                own_iommufd=first.own_iommufd or vsmmu.own_iommufd,
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
    """Return the ITS that the device's MSIs reach; if not delivered, the one intended."""
    verdict = _verdict(verdicts, device)
    return verdict.expected_its if verdict.its is None else verdict.its


def _binding(guest: GuestDomain, device: PciAddress, verdicts: Iterable[Verdict]) -> BindingRecord:
    guest_device = guest.device_by_address[device]
    verdict = _verdict(verdicts, device)
    return BindingRecord(
        giova=guest_device.giova,
        gdb=guest.gdb(guest_device),
        programmed=verdict.possible,
        outcome=verdict.outcome,
    )
