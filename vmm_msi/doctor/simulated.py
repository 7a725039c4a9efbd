"""The guest of a case in the simulator: its strategies, its host, the verdicts on its MSIs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.config import Choice
from vmm_msi.domxml.guest_domain import guest_of, virt_guest
from vmm_msi.domxml.metadata import DomainRecord
from vmm_msi.engine import setup
from vmm_msi.engine.binders import binder_of_device
from vmm_msi.engine.setup import needs_of, recorded_choices, with_reported_devices
from vmm_msi.errors import TopologyError
from vmm_msi.host.resolve import resolve
from vmm_msi.types import BinderKind, Scenario

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.engine.setup import Simulation
    from vmm_msi.plugins.hookspecs import Needs
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import HostDevice, HostTopology, PciAddress


#: Devices that are simulated; a guest with more of them takes more time than a check may take.
MAX_SIMULATED = 1024


def guest_name(case: Case) -> str:
    """Return the guest's name in the configuration; empty without a guest."""
    return "" if case.guest is None else case.guest.xml.name


def selector(case: Case) -> str:
    """Return the name of the ITS selector that the configuration has for the guest."""
    return case.settings.its_selector(guest_name(case))


def binder_of(case: Case) -> BinderKind:
    """Return the binder of the guest's doorbells; the simulator only if selected or recorded."""
    if case.binder is not None:
        return case.binder
    devices = _record(case).devices
    if case.guest is not None and case.guest.xml.type == "test":
        return BinderKind.SIM
    if devices and all(device.backend == BinderKind.SIM.value for device in devices):
        return BinderKind.SIM
    return BinderKind.QEMU


def device_binder(case: Case, choice: Choice, needs: Needs) -> BinderKind:
    """Return the binder of the doorbells of the devices with a strategy."""
    return binder_of_device(binder_of(case), choice, needs, case.host)


def choices_of(case: Case) -> dict[PciAddress, Choice]:
    """Return the strategy for each nested device.

    :raise DomainXmlError: if the record in the guest cannot be read.
    """
    recorded = recorded_choices(_record(case)) if case.choice is None else {}
    return {
        device: recorded.get(device) or case.settings.choice(guest_name(case), device, case.choice)
        for device in case.nested
    }


def needs(case: Case, plugins: PluginManager) -> dict[Choice, Needs]:
    """Return what the strategies of the devices need; without devices, the default strategy.

    A guest without a nested device or vSMMU uses no strategy, unless the caller selects one.
    """
    named = set(case.choices.values())
    if not named and (case.needs_nesting or case.choice is not None):
        named = {_default(case)}
    return {choice: needs_of(plugins, choice) for choice in sorted(named, key=str)}


def choice_source(case: Case) -> str:
    """Return where the strategies are selected."""
    if case.choice is not None:
        return "--strategy"
    recorded = {device.host for device in _record(case).devices}
    if case.guest is not None and not recorded.isdisjoint(case.nested):
        return f"{case.guest.xml.source}: the record in /domain/metadata"
    return "the default strategy" if case.settings.path is None else str(case.settings.path)


def _default(case: Case) -> Choice:
    if case.choice is not None:
        return case.choice
    table = case.settings.table
    return Choice.of(table.strategy, dict(table.strategies.get(table.strategy, {})))


def _record(case: Case) -> DomainRecord:
    return DomainRecord() if case.guest is None else case.guest.record


def resolve_host(case: Case) -> HostTopology:
    """Return the host with those of the devices that have a route to an SMMU and an ITS.

    They have the groups and the reserved regions that the host's kernel or libvirt reports. Other
    rules report the devices that are left out.
    """
    routed: dict[PciAddress, None] = {}
    for device in case.present:
        with suppress(TopologyError):
            resolve(case.host, device)
            routed[device] = None
    host = replace(case.host, devices=_with_own_groups(case, routed))
    return with_reported_devices(host, routed)


def _with_own_groups(case: Case, routed: Collection[PciAddress]) -> tuple[HostDevice, ...]:
    """Return the listed devices of ``routed``; each without a known group gets one of its own."""
    listed = [device for device in case.host.devices if device.address in routed]
    groups = [device.iommu_group for device in case.host.devices]
    groups += [function.iommu_group or 0 for function in case.host.functions]
    last = max(groups, default=0)
    return tuple(
        device if device.iommu_group >= 0 else replace(device, iommu_group=last + number)
        for number, device in enumerate(listed, 1)
    )


def simulate(
    case: Case, plugins: PluginManager, *, ignores_rmr: bool = False
) -> Iterator[Simulation]:
    """Bring the guest up in the simulator with the strategies of its nested devices.

    Without a guest, each device is tried in a guest of its own. Devices beyond
    :data:`MAX_SIMULATED` are left out.

    :param ignores_rmr: the guest's kernel does not map RMRs.
    :raise RefusedError: if no simulated kernel, or not this host, can run the strategies.
    :raise UsageError: for an unknown strategy, option or selector.
    """
    if case.rehearsal is not None and not ignores_rmr:
        yield case.rehearsal
        return
    host = case.resolved_host
    choice_of = case.choices
    for scenario in _scenarios(case, host):
        if ignores_rmr:
            scenario = replace(scenario, guest=replace(scenario.guest, honours_rmr=False))
        selected = {device.host: choice_of[device.host] for device in scenario.guest.devices}
        yield setup.simulate(plugins, scenario, selected, selector(case))


def _scenarios(case: Case, host: HostTopology) -> Iterator[Scenario]:
    devices = [device for device in _in_order(case) if device in host.device_by_address]
    if len(devices) > MAX_SIMULATED:
        devices = devices[:MAX_SIMULATED]
        host = replace(host, devices=tuple(host.device_by_address[device] for device in devices))
    if case.guest is None:
        for address in devices:
            alone = replace(host, devices=(host.device_by_address[address],))
            yield Scenario(alone, virt_guest("a guest", [address]))
    elif devices:
        yield Scenario(host, guest_of(devices, case.guest.xml))


def _in_order(case: Case) -> Iterator[PciAddress]:
    """Yield the nested devices: those of the definition in its order, then those to be added."""
    present = () if case.guest is None else case.guest.placement.hostdevs
    own = dict.fromkeys(hostdev.host for hostdev in present)
    yield from (device for device in own if device in case.nested)
    yield from (device for device in case.nested if device not in own)
