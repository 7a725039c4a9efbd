"""Set a guest up in the simulator: its devices on the host, its kernel, its strategies.

Planning an attach, the doctor, explain, replay and the simulator's binder of ``watch`` all come
here, so that one guest is the same guest for each of them.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.config import Choice
from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.engine.session import GuestSession
from vmm_msi.errors import RefusedError
from vmm_msi.host.join import host_of_functions, join
from vmm_msi.host.resolve import with_devices
from vmm_msi.iommu.profiles import default_profile, profile_named
from vmm_msi.iommu.sim import SimBackend

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.plugins.hookspecs import Needs
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import (
        GuestDomain,
        HostTopology,
        PciAddress,
        PciFunction,
        Scenario,
        Verdict,
    )


@dataclass(frozen=True)
class Simulation:
    """A guest that was brought up in the simulator and taken down again.

    :param kernel: name of the simulated kernel.
    """

    scenario: Scenario
    kernel: str
    verdicts: tuple[Verdict, ...]


def simulate(
    plugins: PluginManager,
    scenario: Scenario,
    choices: Mapping[PciAddress, Choice],
    selector: str,
    *,
    plan: bool = True,
) -> Simulation:
    """Bring up as much of a guest as the simulator lets, record the verdicts and take it down.

    Observers may veto; they are not notified.

    :param choices: the strategy of each device.
    :param selector: name of the ITS selector.
    :param plan: let the strategies plan the domain XML first, as for a guest that does not run yet.
    :raise RefusedError: if no simulated kernel has what the strategies need, or if a strategy
        cannot arrange its devices.
    :raise UsageError: for an unknown strategy, option, profile or selector.
    """
    session = simulated_session(
        plugins, scenario.host, scenario.guest, choices, selector, dry_run=True
    )
    with closing(session.backend), session:
        if plan:
            session.plan()
        verdicts = tuple(session.attach_and_deliver())
    return Simulation(scenario, session.backend.info.profile, verdicts)


def simulated_session(
    plugins: PluginManager,
    host: HostTopology,
    guest: GuestDomain,
    choices: Mapping[PciAddress, Choice],
    selector: str,
    *,
    dry_run: bool = False,
    attached_before: Collection[PciAddress] = (),
) -> GuestSession:
    """Open a session of a guest in the simulator, on the kernel that its strategies need.

    Parameters are those of :class:`~vmm_msi.engine.session.GuestSession`.

    :raise RefusedError: if no simulated kernel has what the strategies need.
    :raise UsageError: for an unknown strategy, option, profile or selector.
    """
    backend = SimBackend(host, guest, profile_for(plugins, choices.values()))
    return GuestSession(
        plugins,
        host,
        guest,
        backend,
        choices,
        selector,
        dry_run=dry_run,
        attached_before=attached_before,
    )


def profile_for(plugins: PluginManager, choices: Iterable[Choice]) -> Profile:
    """Return the kernel profile that strategies run on together.

    It is the one that the choices name, else the newest with all that they need.

    :raise UsageError: if a choice names an unknown profile.
    :raise RefusedError: if the choices name two profiles, or no profile has all that they need.
    """
    distinct = list(dict.fromkeys(choices))
    named = {choice.profile: choice for choice in distinct if choice.profile is not None}
    if len(named) > 1:
        raise RefusedError(f"strategies {', '.join(map(str, named.values()))}: name two kernels")
    if named:
        return profile_named(str(next(iter(named))))
    capabilities = {
        capability
        for needs in (needs_of(plugins, choice) for choice in distinct)
        for capability in (needs.interface, *needs.capabilities)
    }
    profile = default_profile(capabilities)
    if profile is not None:
        return profile
    if len(distinct) == 1:
        raise RefusedError(
            f"strategy {distinct[0]}: no simulated kernel has {', '.join(sorted(capabilities))}"
        )
    raise RefusedError(
        f"strategies {', '.join(sorted(map(str, distinct)))}: no simulated kernel can apply all of "
        "them at once; use one strategy for the whole guest"
    )


def needs_of(plugins: PluginManager, choice: Choice) -> Needs:
    """Return what a strategy needs with the options of ``choice``."""
    return plugins.needs(choice.strategy, plugins.options(choice.strategy, choice.options))


def recorded_choices(record: DomainRecord) -> dict[PciAddress, Choice]:
    """Return the strategy that each recorded device was attached with."""
    return {
        device.host: Choice.of(device.strategy, dict(device.options)) for device in record.devices
    }


def with_reported_devices(
    host: HostTopology,
    devices: Iterable[PciAddress],
    functions: Mapping[PciAddress, PciFunction] | None = None,
) -> HostTopology:
    """Return ``host`` with ``devices`` listed, completed with what ``functions`` report.

    The IOMMU group of a function is used if ``host`` has none; a device without a group in either
    gets a group of its own. Reserved regions of a function replace those of the device.

    :param functions: the devices as libvirt reports them, where it does; None for those that
        ``host`` has.
    :raise TopologyError: if the host has no route for a device.
    """
    if functions is None:
        functions = host.function_by_address
    else:
        reported = host_of_functions("libvirt", functions.values())
        host = join((host, reported), host.source)
    host = with_devices(host, devices)
    reserved = {
        function.address: function.reserved
        for function in functions.values()
        if function.reserved is not None
    }
    if not reserved:
        return host
    return replace(
        host,
        devices=tuple(
            replace(device, reserved=reserved.get(device.address, device.reserved))
            for device in host.devices
        ),
    )


def guest_with(xml: DomainXml, devices: Collection[PciAddress]) -> GuestDomain:
    """Return the guest that ``xml`` describes with ``devices`` alone, present or about to be added.

    :raise DomainXmlError: if the memory size or an address cannot be read.
    """
    guest = guest_from_xml(xml, also=devices)
    selected = set(devices)
    return replace(
        guest, devices=tuple(device for device in guest.devices if device.host in selected)
    )
