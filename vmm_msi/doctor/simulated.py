"""The guest of a case on the model: which strategies, which host, what becomes of its MSIs."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.config import Choice
from vmm_msi.domxml.guest_domain import guest_from_xml, virt_guest
from vmm_msi.domxml.metadata import DomainRecord, read_record
from vmm_msi.engine.session import GuestSession
from vmm_msi.engine.setup import profile_for, with_groups
from vmm_msi.errors import RefusedError, TopologyError
from vmm_msi.host.resolve import resolve
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.provision.checks import needs_of
from vmm_msi.provision.request import BinderKind
from vmm_msi.types import Outcome, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_msi.doctor.case import Case
    from vmm_msi.plugins.hookspecs import Needs
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import HostDevice, HostTopology, PciAddress, Verdict


@dataclass(frozen=True)
class SimulatedGuest:
    """What the model says of one guest.

    :param kernel: name of the kernel profile.
    """

    scenario: Scenario
    kernel: str
    verdicts: tuple[Verdict, ...]


def guest_name(case: Case) -> str:
    """Return the name by which the configuration has the guest; empty without one."""
    return "" if case.guest is None else case.guest.xml.name


def binder_of(case: Case) -> BinderKind:
    """Return who is to bind the guest's doorbells: the model only where it is recorded so."""
    devices = _record(case).devices
    if case.guest is not None and case.guest.xml.type == "test":
        return BinderKind.SIM
    if devices and all(device.backend == BinderKind.SIM.value for device in devices):
        return BinderKind.SIM
    return BinderKind.QEMU


def choices(case: Case) -> dict[PciAddress, Choice]:
    """Return the strategy for each device.

    :raise DomainXmlError: when the record in the guest cannot be read.
    """
    found = {}
    recorded = {device.host: device for device in _record(case).devices}
    for device in case.devices:
        known = recorded.get(device)
        if known is not None and case.choice is None:
            found[device] = Choice.of(known.strategy, dict(known.options))
        else:
            found[device] = case.config.choice(guest_name(case), device, case.choice)
    return found


def needs(case: Case, plugins: PluginManager) -> dict[Choice, Needs]:
    """Return what the strategies of the devices need; of the configuration where there is none."""
    named = set(choices(case).values()) or {_default(case)}
    return {choice: needs_of(plugins, choice) for choice in sorted(named, key=str)}


def choice_source(case: Case) -> str:
    """Return where the strategies are chosen."""
    if case.choice is not None:
        return "--strategy"
    recorded = {device.host for device in _record(case).devices}
    if case.guest is not None and recorded & set(case.devices):
        return f"{case.guest.xml.source}: the record in /domain/metadata"
    return "the default strategy" if case.config.path is None else str(case.config.path)


def _default(case: Case) -> Choice:
    if case.choice is not None:
        return case.choice
    table = case.config.table
    return Choice.of(table.strategy, dict(table.strategies.get(table.strategy, {})))


def _record(case: Case) -> DomainRecord:
    found = None if case.guest is None else read_record(case.guest.xml)
    return found or DomainRecord()


def resolved_host(case: Case) -> HostTopology:
    """Return the host with those of the devices that have a way to an SMMU and an ITS.

    With the groups and the reserved regions that its kernel or its libvirt tells. Of the others
    other rules tell.
    """
    found = []
    for device in case.devices:
        with suppress(TopologyError):
            resolve(case.host, device)
            found.append(device)
    functions = case.host.function_by_address
    host = with_groups(replace(case.host, devices=_kept(case, found)), found, functions)
    devices = []
    for each in host.devices:
        function = functions.get(each.address)
        known = None if function is None else function.reserved
        devices.append(each if known is None else replace(each, reserved=known))
    return replace(host, devices=tuple(devices))


def _kept(case: Case, found: list[PciAddress]) -> tuple[HostDevice, ...]:
    """Return what the host lists of the devices; a group that nothing tells is one of its own."""
    wanted = set(found)
    listed = [device for device in case.host.devices if device.address in wanted]
    groups = [device.iommu_group for device in case.host.devices]
    groups += [function.iommu_group or 0 for function in case.host.functions]
    own = max(groups, default=0)
    return tuple(
        device if device.iommu_group >= 0 else replace(device, iommu_group=own + number)
        for number, device in enumerate(listed, 1)
    )


def simulate(
    case: Case, plugins: PluginManager, *, ignores_rmr: bool = False
) -> Iterator[SimulatedGuest]:
    """Bring the guest up on the model with the strategies of its devices.

    Without a guest each device is tried in one of its own.

    :param ignores_rmr: its kernel maps no RMR.
    :raise RefusedError: when no modelled kernel, or not this host, can carry the strategies out.
    :raise UsageError: for a strategy, an option or a selector that does not exist.
    """
    host = resolved_host(case)
    chosen = choices(case)
    for scenario in _scenarios(case, host):
        if ignores_rmr:
            scenario = replace(scenario, guest=replace(scenario.guest, honours_rmr=False))
        mine = {device.host: chosen[device.host] for device in scenario.guest.devices}
        yield _try(case, plugins, scenario, mine)


def _try(
    case: Case, plugins: PluginManager, scenario: Scenario, chosen: Mapping[PciAddress, Choice]
) -> SimulatedGuest:
    host, guest = scenario.host, scenario.guest
    profile = profile_for({choice: needs_of(plugins, choice) for choice in chosen.values()})
    selector = case.config.its_selector(guest_name(case))
    with closing(SimBackend(host, guest, profile)) as backend:
        run = GuestSession(plugins, host, guest, backend, chosen, selector, dry_run=True)
        try:
            verdicts = tuple(run.attach_and_deliver())
        finally:
            run.detach_all()
    return SimulatedGuest(scenario, profile.name, verdicts)


def _scenarios(case: Case, host: HostTopology) -> Iterator[Scenario]:
    devices = [device for device in case.devices if device in host.device_by_address]
    if case.guest is None:
        for address in devices:
            alone = replace(host, devices=(host.device_by_address[address],))
            yield Scenario(alone, virt_guest("a guest", [address]))
    elif devices:
        guest = guest_from_xml(case.guest.xml, also=devices)
        meant = set(devices)
        mine = tuple(device for device in guest.devices if device.host in meant)
        yield Scenario(host, replace(guest, devices=mine))


def delivering(case: Case, plugins: PluginManager, lost: SimulatedGuest) -> list[Choice]:
    """Return the strategies that deliver every MSI of a guest, what QEMU carries out first."""
    devices = [device.host for device in lost.scenario.guest.devices]
    found = []
    for choice in plugins.choices():
        with suppress(RefusedError):
            verdicts = _try(case, plugins, lost.scenario, dict.fromkeys(devices, choice)).verdicts
            if all(verdict.outcome is Outcome.DELIVERED for verdict in verdicts):
                found.append(choice)
    return sorted(found, key=lambda choice: not needs_of(plugins, choice).qemu)
