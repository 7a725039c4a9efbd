"""Attach devices to a libvirt domain and detach them: plan first, change once, undo on failure.

A change is planned without touching anything (:func:`plan_attach`, :func:`plan_detach`) and
carried out in one redefinition (:func:`carry_out`), which puts the old definition back when a step
fails. Who carries the doorbell binding out is said by :class:`Carrier`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from vmm_msi import topology
from vmm_msi.config import Choice
from vmm_msi.domxml import checks, editor
from vmm_msi.domxml.checks import Check
from vmm_msi.domxml.gaps import close_gaps
from vmm_msi.domxml.guest import guest_from_xml
from vmm_msi.domxml.metadata import BindingRecord, DomainRecord, read_record
from vmm_msi.domxml.support import Feature, IommufdForm
from vmm_msi.errors import NoHostDeviceError, RefusedError, UsageError
from vmm_msi.hookspecs import Action, Event
from vmm_msi.iommu.profiles import newest_profile, profile_named
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.libvirt_driver import redefine
from vmm_msi.model import GuestDomain, Outcome
from vmm_msi.run import GuestRun

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmm_msi.config import Config
    from vmm_msi.domxml.domain import DomainXml
    from vmm_msi.domxml.support import Support, Versions, XmlLayout
    from vmm_msi.hookspecs import Needs
    from vmm_msi.host import PluginHost
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.model import GuestPlan, HostTopology, PciAddress, Verdict, VsmmuPlan


class Carrier(StrEnum):
    """Who binds the doorbells of a guest that runs."""

    #: QEMU and the kernel, by identity.
    QEMU = "qemu"
    #: The model: the XML is real, the binding is not.
    SIM = "sim"


@dataclass(frozen=True)
class AttachRequest:
    """What the user asks for.

    :param named: strategy the user names for the new devices; else the configuration's.
    :param carrier: None for what the hypervisor can do by itself.
    :param allow_faults: attach also where the model says that MSIs will not arrive.
    """

    domain: str
    devices: tuple[PciAddress, ...]
    named: Choice | None = None
    carrier: Carrier | None = None
    allow_faults: bool = False


@dataclass(frozen=True)
class Change:
    """A change of one domain's definition that was planned.

    :param verdicts: what the model says of each device's MSIs after the change.
    :param notes: what the user should know, a sentence each.
    :param events: what observers are told when it was carried out.
    """

    old: DomainXml
    new: DomainXml
    carrier: Carrier
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def record(self) -> DomainRecord:
        """What vmm-msi records of the domain after the change."""
        return read_record(self.new) or DomainRecord()


def plan_attach(
    connection: Connection,
    plugins: PluginHost,
    settings: Config,
    host: HostTopology,
    request: AttachRequest,
) -> Change:
    """Plan to attach devices; nothing is changed.

    :raise RefusedError: when the strategy, the model, the libvirt or the guest cannot do it.
    :raise TopologyError: when the host description lacks a device.
    :raise HypervisorError: when libvirt cannot be asked or has no such domain.
    """
    versions = connection.versions()
    old = connection.domain_xml(request.domain)
    record = read_record(old) or DomainRecord()
    _check_free(connection, old, record, request.devices)
    carrier = _carrier(versions, request)
    choices = {
        device.host: Choice.of(device.strategy, dict(device.options)) for device in record.devices
    }
    for device in request.devices:
        choices[device] = settings.choice(old.name, device, request.named)
    selector = settings.its_selector(old.name)
    needs = {choice: _needs(plugins, choice) for choice in choices.values()}
    _check_carrier(plugins, carrier, versions, needs)
    _check_guest(old, carrier, needs.values())
    host, notes = _with_groups(connection, host, list(choices), carrier)
    guest = _guest_of(old, choices)
    profile = _profile(needs)
    backend = SimBackend(host, guest, profile)
    run = GuestRun(plugins, host, guest, backend, choices, selector, rehearsal=True)
    plan = _merged(run.plan())
    layout = _layout(versions.support, old, carrier)
    _check_support(versions.support, plan, carrier, old)
    run.attach_all()
    verdicts = tuple(run.deliver(device.host) for device in guest.devices)
    if not request.allow_faults:
        _check_verdicts(verdicts, record)
    if carrier is Carrier.SIM:
        notes.append(
            f"the XML is real, the doorbell binding is modelled ({profile.name}): nothing carries "
            "it out when the guest runs"
        )
    notes += _notes(connection, old)
    assignments = {
        device: _assignment(choices[device], carrier, guest, device, verdicts)
        for device in request.devices
    }
    new = editor.apply(old, plan, layout, assignments)
    stay = {device.host: device.binding for device in record.devices}
    now = {device: _binding(guest, device, verdicts) for device in stay}
    if now != stay:
        new = editor.record_bindings(new, now)
    events = tuple(
        Event(
            Action.ATTACH_DEVICE,
            old.name,
            choices[device].strategy,
            device,
            {"carrier": carrier.value},
        )
        for device in request.devices
    )
    return Change(old, new, carrier, verdicts, tuple(notes), events)


def plan_detach(connection: Connection, domain: str, devices: Sequence[PciAddress]) -> Change:
    """Plan to take devices out that were attached by vmm-msi; all of them when none is named.

    :raise DomainXmlError: when one was not attached by vmm-msi.
    :raise UsageError: when there is nothing to take out.
    """
    old = connection.domain_xml(domain)
    record = read_record(old) or DomainRecord()
    if not record.devices and not devices:
        raise UsageError(f"detaching from {old.name}: vmm-msi has attached nothing to it")
    _check_once(devices)
    new = old
    events = []
    for device in devices or [each.host for each in record.devices]:
        new = editor.remove(new, device)
        strategy = next(each.strategy for each in record.devices if each.host == device)
        events.append(Event(Action.DETACH_DEVICE, old.name, strategy, device))
    new = close_gaps(new)
    carriers = {each.backend for each in record.devices}
    notes = _notes(connection, old)
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
    carrier = Carrier.QEMU if Carrier.QEMU in carriers else Carrier.SIM
    return Change(old, new, carrier, notes=tuple(notes), events=tuple(events))


def carry_out(
    connection: Connection, change: Change, plugins: PluginHost | None = None
) -> DomainXml:
    """Define the new XML, read it back and check that libvirt kept it; undo on any failure.

    :param plugins: whose observers learn of it, None for nobody.
    :return: what libvirt made of it.
    :raise HypervisorError: when libvirt refuses or drops a part; the old definition is back.
    """
    error = ""
    try:
        return redefine(connection, change.old.name, change.old, change.new)
    except BaseException as failure:
        error = str(failure) or type(failure).__name__
        raise
    finally:
        if plugins is not None and plugins.has_observers:
            for event in change.events:
                plugins.tell(replace(event, error=error))


def _notes(connection: Connection, old: DomainXml) -> list[str]:
    """Return what is to be known of a change of any kind."""
    notes = []
    if connection.is_active(old.name):
        notes.append("the guest is running: the change takes effect at its next start")
    return notes


def _check_once(devices: Iterable[PciAddress]) -> None:
    seen: set[PciAddress] = set()
    for device in devices:
        if device in seen:
            raise UsageError(f"{device}: is named twice")
        seen.add(device)


def _check_free(
    connection: Connection, old: DomainXml, record: DomainRecord, devices: Sequence[PciAddress]
) -> None:
    """Check that no domain of this libvirt holds one of the devices."""
    _check_once(devices)
    for device in devices:
        if record.device(device) is not None:
            raise RefusedError(
                f"attaching {device} to {old.name}: it is attached already; detach it first"
            )
    for device, holder in connection.assigned():
        if device in devices:
            whose = "it has" if holder == old.name else f"domain {holder} holds"
            raise RefusedError(
                f"attaching {device} to {old.name}: {whose} a <hostdev> for it already; take it "
                "out there first"
            )


def _carrier(versions: Versions, request: AttachRequest) -> Carrier:
    if request.carrier is not None:
        return request.carrier
    return Carrier.QEMU if versions.driver == "QEMU" else Carrier.SIM


def _needs(plugins: PluginHost, choice: Choice) -> Needs:
    return plugins.needs(choice.strategy, plugins.options(choice.strategy, choice.options))


def _check_carrier(
    plugins: PluginHost, carrier: Carrier, versions: Versions, needs: Mapping[Choice, Needs]
) -> None:
    if carrier is Carrier.SIM:
        return
    if versions.driver != "QEMU":
        raise RefusedError(
            f"--backend qemu: this libvirt connection is {versions.driver}; --backend sim works"
        )
    for choice, need in needs.items():
        if not need.qemu:
            able = [str(c) for c in plugins.choices() if _needs(plugins, c).qemu]
            raise RefusedError(
                f"strategy {choice}: QEMU and the kernel bind doorbells by identity and cannot "
                f"carry it out; {' or '.join(able)} would work here, or --backend sim, which "
                "writes the XML and only models the binding"
            )


def _check_guest(old: DomainXml, carrier: Carrier, needs: Iterable[Needs]) -> None:
    """Refuse a guest that cannot have nested vSMMUs, or not with these strategies."""
    fatal = {Check.ARCH, Check.MACHINE, Check.GIC}
    if any(need.rmr for need in needs):
        fatal |= {Check.ACPI, Check.FIRMWARE}
    if carrier is Carrier.QEMU:
        fatal.add(Check.KVM)
    found = [problem for problem in checks.problems(old) if problem.check in fatal]
    if found:
        raise RefusedError(f"guest {old.name}: {'; '.join(map(str, found))}")


def _with_groups(
    connection: Connection, host: HostTopology, devices: Sequence[PciAddress], carrier: Carrier
) -> tuple[HostTopology, list[str]]:
    """List the devices in the topology, with libvirt's IOMMU groups where it knows them.

    What neither the description nor libvirt has a group for gets one of its own.
    """
    notes = []
    groups = {device.address: device.iommu_group for device in host.devices}
    unknown = []
    host = topology.with_devices(host, devices)
    for device in devices:
        try:
            node = connection.node_device(device)
        except NoHostDeviceError:
            if carrier is Carrier.QEMU:
                raise
            notes.append(f"libvirt knows no host device {device}; the host description is believed")
            unknown.append(device)
            continue
        if node.iommu_group is None:
            unknown.append(device)
            continue
        groups.setdefault(device, node.iommu_group)
        others = [str(member) for member in node.members if member not in devices]
        if others:
            notes.append(
                f"IOMMU group {node.iommu_group} of {device} has {', '.join(others)} too: no "
                "driver of the host may use what shares a group with an assigned device"
            )
    own = max(groups.values(), default=0)
    for number, device in enumerate(unknown, 1):
        groups.setdefault(device, own + number)
    placed = tuple(replace(device, iommu_group=groups[device.address]) for device in host.devices)
    return replace(host, devices=placed), notes


def _guest_of(old: DomainXml, choices: Mapping[PciAddress, Choice]) -> GuestDomain:
    """Return the guest with the devices that vmm-msi is responsible for."""
    guest = guest_from_xml(old, also=choices)
    devices = tuple(device for device in guest.devices if device.host in choices)
    return replace(guest, devices=devices)


def _profile(needs: Mapping[Choice, Needs]) -> Profile:
    """Return one kernel profile on which all the strategies can run together.

    :raise RefusedError: when there is none.
    """
    named = {choice.profile: choice for choice in needs if choice.profile is not None}
    if len(named) > 1:
        raise RefusedError(f"strategies {', '.join(map(str, named.values()))}: name two kernels")
    if named:
        return profile_named(str(next(iter(named))))
    wanted = {need.interface for need in needs.values()}
    wanted.update(*(need.capabilities for need in needs.values()))
    profile = newest_profile(wanted)
    if profile is None:
        names = ", ".join(sorted({str(choice) for choice in needs}))
        raise RefusedError(
            f"strategies {names}: no modelled kernel can carry all of them out at once; use one "
            "strategy for the whole guest"
        )
    return profile


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


def _layout(support: Support, old: DomainXml, carrier: Carrier) -> XmlLayout:
    """Return the fullest XML for this guest: what needs KVM is left out where there is none."""
    layout = support.layout()
    if carrier is Carrier.SIM and old.type == "qemu":
        return replace(layout, accel=False, iommufd=IommufdForm.NONE)
    return layout


def _check_support(support: Support, plan: GuestPlan, carrier: Carrier, old: DomainXml) -> None:
    """Check that libvirt and QEMU can express the plan, and say what would work if not."""
    gaps = support.missing(_features(plan, carrier))
    if gaps:
        raise RefusedError(
            f"guest {old.name} would need {len(plan.vsmmus)} vSMMUs: "
            f"{'; '.join(map(str, gaps))}. {_what_works(support, plan, carrier)}"
        )


def _features(plan: GuestPlan, carrier: Carrier) -> list[Feature]:
    features = [Feature.SMMUV3]
    if len(plan.vsmmus) > 1 or carrier is Carrier.QEMU:
        features.append(Feature.PCI_BUS)
    if carrier is Carrier.QEMU:
        features += [Feature.ACCEL, Feature.HOSTDEV_IOMMUFD]
    return features


def _what_works(support: Support, plan: GuestPlan, carrier: Carrier) -> str:
    """Say what this libvirt could do instead of ``plan``."""
    if not support.has(Feature.SMMUV3):
        return "Nothing works with this libvirt"
    if carrier is Carrier.QEMU:
        return "Would work here: --backend sim, which writes the XML and models the binding"
    if len({vsmmu.smmu for vsmmu in plan.vsmmus}) == 1:
        return "Would work here: multi-its:mode=s2, which needs one vSMMU for these devices"
    return (
        "Would work here: devices that are behind one physical SMMU, with any strategy but "
        "multi-its:mode=vsmmu"
    )


def _check_verdicts(verdicts: Iterable[Verdict], record: DomainRecord) -> None:
    """Refuse MSIs that would not arrive, but for devices that were attached knowing that."""
    known = {
        device.host
        for device in record.devices
        if device.binding is not None and device.binding.outcome not in {None, Outcome.DELIVERED}
    }
    for verdict in verdicts:
        if verdict.outcome is not Outcome.DELIVERED and verdict.device not in known:
            raise RefusedError(
                f"{verdict.device}: its MSIs would not arrive: {verdict.outcome}: "
                f"{verdict.reason}; use another strategy, or --allow-faults to attach it all the "
                "same"
            )


def _assignment(
    choice: Choice,
    carrier: Carrier,
    guest: GuestDomain,
    device: PciAddress,
    verdicts: Iterable[Verdict],
) -> editor.Assignment:
    options = {key: str(value) for key, value in choice.options}
    if choice.profile is not None:
        options["profile"] = choice.profile
    return editor.Assignment(
        strategy=choice.strategy,
        backend=carrier.value,
        its=_its_reached(verdicts, device),
        options=options,
        binding=_binding(guest, device, verdicts),
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
