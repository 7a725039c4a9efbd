"""Plan attaching and detaching: the new XML, what the model says of it, what is refused.

Nothing is asked of libvirt here and nothing is changed: a plan is made from
:class:`~vmm_msi.provision.surroundings.Surroundings`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.config import Choice
from vmm_msi.domxml import editor
from vmm_msi.domxml.gaps import close_gaps
from vmm_msi.domxml.metadata import BindingRecord, DomainRecord, read_record
from vmm_msi.domxml.support import IommufdForm
from vmm_msi.errors import UsageError
from vmm_msi.hookspecs import Action, Event
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.provision import checks
from vmm_msi.provision.modelled import guest_of, profile_for, with_groups
from vmm_msi.provision.request import AttachRequest, Carrier, Change
from vmm_msi.run import GuestRun

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_msi.config import Config
    from vmm_msi.domxml.domain import DomainXml
    from vmm_msi.domxml.support import Support, XmlLayout
    from vmm_msi.host import PluginHost
    from vmm_msi.model import GuestDomain, GuestPlan, HostTopology, PciAddress, Verdict, VsmmuPlan
    from vmm_msi.provision.surroundings import Surroundings


def attaching(
    around: Surroundings,
    plugins: PluginHost,
    settings: Config,
    host: HostTopology,
    request: AttachRequest,
) -> Change:
    """Plan to attach devices.

    :raise RefusedError: when the strategy, the model, the libvirt or the guest cannot do it.
    :raise TopologyError: when the host description lacks a device.
    """
    old = around.definition
    record = read_record(old) or DomainRecord()
    checks.check_free(around, record, request.devices)
    carrier = _carrier(around, request)
    choices = {
        device.host: Choice.of(device.strategy, dict(device.options)) for device in record.devices
    }
    for device in request.devices:
        choices[device] = settings.choice(old.name, device, request.named)
    selector = settings.its_selector(old.name)
    needs = {choice: checks.needs_of(plugins, choice) for choice in choices.values()}
    checks.check_carrier(plugins, carrier, around.driver, needs)
    checks.check_guest(old, carrier, needs.values())
    checks.check_known(around, carrier, request.devices)
    host, notes = with_groups(host, list(choices), around)
    guest = guest_of(old, choices)
    profile = profile_for(needs)
    backend = SimBackend(host, guest, profile)
    run = GuestRun(plugins, host, guest, backend, choices, selector, rehearsal=True)
    plan = _merged(run.plan())
    layout = _layout(around.support, old, carrier)
    checks.check_support(around.support, plan, carrier, old)
    run.attach_all()
    verdicts = tuple(run.deliver(device.host) for device in guest.devices)
    if not request.allow_faults:
        checks.check_verdicts(verdicts, record)
    if carrier is Carrier.SIM:
        notes.append(
            f"the XML is real, the doorbell binding is modelled ({profile.name}): nothing carries "
            "it out when the guest runs"
        )
    notes += _notes(active=around.active)
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


def detaching(
    old: DomainXml, devices: Sequence[PciAddress] = (), *, active: bool = False
) -> Change:
    """Plan to take devices out that were attached by vmm-msi; all of them when none is named.

    :param old: the persistent definition of the guest.
    :param active: whether the guest runs.
    :raise DomainXmlError: when one was not attached by vmm-msi.
    :raise UsageError: when there is nothing to take out.
    """
    record = read_record(old) or DomainRecord()
    if not record.devices and not devices:
        raise UsageError(f"detaching from {old.name}: vmm-msi has attached nothing to it")
    checks.check_once(devices)
    new = old
    events = []
    for device in devices or [each.host for each in record.devices]:
        new = editor.remove(new, device)
        strategy = next(each.strategy for each in record.devices if each.host == device)
        events.append(Event(Action.DETACH_DEVICE, old.name, strategy, device))
    new = close_gaps(new)
    carriers = {each.backend for each in record.devices}
    notes = _notes(active=active)
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


def _notes(*, active: bool) -> list[str]:
    """Return what is to be known of a change of any kind."""
    if active:
        return ["the guest is running: the change takes effect at its next start"]
    return []


def _carrier(around: Surroundings, request: AttachRequest) -> Carrier:
    if request.carrier is not None:
        return request.carrier
    return Carrier.SIM if around.driver not in {None, "QEMU"} else Carrier.QEMU


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
