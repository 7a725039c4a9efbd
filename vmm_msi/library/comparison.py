"""Compare strategies on a host and a guest, as ``vmm-msi compare`` does."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi import arguments
from vmm_msi.arguments import (
    device_addresses,
    strategy_choice,
    switch,
    text_value,
)
from vmm_msi.engine import compare as engine
from vmm_msi.engine.setup import profile_for
from vmm_msi.errors import TopologyError, UsageError
from vmm_msi.host.scenario_keys import Setting
from vmm_msi.library.guests import guest_name, read_guest
from vmm_msi.library.hosts import any_host
from vmm_msi.library.settings import configuration, plugin_manager
from vmm_msi.library.what_if import changed
from vmm_msi.plugins.hookspecs import PluginKind
from vmm_msi.report import compare_json
from vmm_msi.report.compare import compare_table
from vmm_msi.terminal import WIDTH
from vmm_msi.types import Scenario

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_msi.arguments import Devices
    from vmm_msi.config import Choice, Config
    from vmm_msi.doctor.case import Guest
    from vmm_msi.engine.compare import OpenBackend, Result
    from vmm_msi.host.sources import HostSources
    from vmm_msi.library.guests import GuestName
    from vmm_msi.library.hosts import AnyHost
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.report.compare_documents import CompareDocument
    from vmm_msi.types import Granule, HostTopology, PciAddress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What each strategy did for the devices of a guest.

    :param results: a result for each strategy, in order.
    :param notes: errors of the doctor that were allowed, a sentence each.
    """

    scenario: Scenario
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> CompareDocument:
        """Return the document that ``vmm-msi compare --format json`` prints."""
        return compare_json.document(self.results)

    def to_lines(self, width: int = WIDTH) -> Iterator[str]:
        """Yield the table, then the reasons of lost MSIs, for people."""
        return compare_table(self.scenario, self.results, width)


def compare(
    host: AnyHost | None = None,
    devices: Devices = (),
    domain: GuestName | None = None,
    strategies: Choice | str | Iterable[Choice | str] = (),
    *,
    scenario: str | os.PathLike[str] | None = None,
    changes: Iterable[str] = (),
    granule: Granule | str | int | None = None,
    uri: str | None = None,
    allow_faults: bool = False,
    plugins: PluginManager | None = None,
    settings: Config | None = None,
) -> Comparison:
    """Run strategies in the simulator and return where each MSI arrives.

    :param devices: devices in addition to those of ``domain``; with neither, every assignable
        device that the host lists.
    :param domain: the guest with the devices: its name in libvirt, or a file with its XML.
    :param strategies: one or several, such as ``"multi-its:mode=s2"``; none for all, in every form.
    :param scenario: a TOML file with a host and a guest, instead of all the others.
    :param changes: values of the host and the guest to change, such as
        ``"guest.device[B].stage1=s1b"``, as ``vmm-msi compare --set`` does.
    :param granule: see :func:`~vmm_msi.library.hosts.load_host`.
    :param uri: the libvirt that knows ``domain``.
    :param allow_faults: compare even if the doctor reports errors, which become notes.
    :param plugins: None for the installed ones.
    :param settings: None for the defaults.
    :raise UsageError: for a value of another type or form, or an unknown strategy.
    :raise FindingsError: if the doctor reports errors for the host, the guest or a device.
    :raise InputError: if host, guest or scenario cannot be read, or lack a device.
    :raise HypervisorError: if libvirt cannot be queried or has no such domain.
    :raise PluginError: if a named strategy breaks.
    """
    config = configuration(settings)
    named = _choices(strategies)
    loaded = plugin_manager(plugins, config, named)
    selected = device_addresses(devices)
    name = guest_name(domain)
    connect_to = None if uri is None else text_value("libvirt URI", uri)
    allowed = switch("allow_faults", allow_faults)
    settings_of_world = _settings(changes)
    notes: tuple[str, ...] = ()
    if scenario is not None:
        if host is not None or selected or name is not None or granule is not None:
            raise UsageError(
                "comparing strategies: a scenario has its own host, guest, devices and granule; "
                "use it alone"
            )
        from vmm_msi.host.scenario import load_scenario

        subject = load_scenario(arguments.file_path("scenario", scenario))
    elif host is None:
        raise UsageError("comparing strategies: no host; use a host or a scenario")
    else:
        sources = any_host(host, granule)
        guest = None if name is None else guest_to_compare(name, connect_to, selected)
        notes = examine_all(sources, selected, guest, loaded, config, allow_faults=allowed)
        subject = scenario_of(sources.topology, selected, guest)
    subject, _changes = changed(subject, settings_of_world, "changes")
    runs = Runs.of(subject, named, loaded, config)
    results = tuple(result for choice in runs.choices for result in runs.results(choice))
    return Comparison(subject, results, notes)


@dataclass(frozen=True)
class Runs:
    """Strategies to run on one scenario.

    :param is_named: the user named them; else one that breaks is skipped with a warning.
    """

    scenario: Scenario
    choices: tuple[Choice, ...]
    selector: str
    plugins: PluginManager
    is_named: bool

    @classmethod
    def of(
        cls, scenario: Scenario, named: Sequence[Choice], plugins: PluginManager, settings: Config
    ) -> Runs:
        """Return the runs of the named strategies; without any, of all in every form.

        :raise UsageError: for an unknown strategy, option, profile or selector.
        """
        name = scenario.guest.name
        device = scenario.guest.devices[0].host
        choices = [settings.choice(name, device, choice) for choice in named]
        for choice in choices:
            profile_for(plugins, [choice])
        selector = settings.its_selector(name)
        plugins.info(selector, PluginKind.ITS_SELECTOR)
        return cls(scenario, tuple(choices or plugins.choices()), selector, plugins, bool(choices))

    def results(
        self, choice: Choice, open_backend: OpenBackend = engine.open_simulator
    ) -> Iterator[Result]:
        """Yield the result of one of the choices; none if it is skipped."""
        return engine.compare(
            self.plugins,
            self.scenario,
            [choice],
            self.selector,
            open_backend,
            skip_broken=not self.is_named,
        )


def guest_to_compare(domain: str, uri: str | None, selected: Sequence[PciAddress]) -> Guest:
    """Read the guest that DOMAIN names.

    :param uri: the libvirt to query if it is a name.
    :raise VmmMsiError: as :func:`vmm_msi.library.guests.read_guest`; UsageError also for a guest
        without a device if none is selected either.
    """
    from vmm_msi.doctor.case import Guest

    guest = Guest.of_author(read_guest(domain, uri))
    if not selected and not guest.xml.assigned():
        raise UsageError(
            f"{domain}: has no PCI device to compare strategies on; name devices with --device"
        )
    return guest


def examine_all(
    sources: HostSources,
    selected: Sequence[PciAddress],
    guest: Guest | None,
    plugins: PluginManager,
    settings: Config,
    *,
    allow_faults: bool,
) -> tuple[str, ...]:
    """Refuse a host, a guest or devices for which the doctor reports errors with any strategy.

    :param allow_faults: do not refuse.
    :return: the errors that were allowed, a sentence each.
    :raise FindingsError: for errors that are not allowed.
    """
    from vmm_msi.doctor.case_reader import host_case
    from vmm_msi.doctor.devices import assignable, with_routed
    from vmm_msi.doctor.refusal import errors, notes, refusal
    from vmm_msi.doctor.rules import examine_without_strategy

    base = host_case(sources)
    assigned = () if guest is None else [hostdev.host for hostdev in guest.xml.assigned()]
    devices = tuple(dict.fromkeys((*assigned, *selected)))
    is_selection = bool(devices)
    devices = devices or assignable(base.host)
    case = replace(
        base,
        host=with_routed(base.host, devices),
        guest=guest,
        devices=devices,
        devices_selected=is_selection,
        plugins=plugins,
        config=settings,
    )
    causes = errors(examine_without_strategy(case))
    if causes and not allow_faults:
        raise refusal("comparing strategies", causes, can_override=True)
    return tuple(notes(causes))


def scenario_of(
    host: HostTopology, selected: Sequence[PciAddress], guest: Guest | None
) -> Scenario:
    """Return the scenario of a host and the devices of a guest.

    :raise UsageError: when no device is selected, by a guest or by name, and the host lists none.
    :raise TopologyError: when a device, or every device of the host, cannot be resolved.
    """
    from vmm_msi.host.resolve import with_devices

    if guest is None:
        return _scenario_of_host(host, selected)
    from vmm_msi.domxml.guest_domain import guest_from_xml

    domain = guest_from_xml(guest.xml, selected)
    return Scenario(with_devices(host, [device.host for device in domain.devices]), domain)


def _scenario_of_host(host: HostTopology, selected: Sequence[PciAddress]) -> Scenario:
    """Return a guest with the selected devices, or with every assignable device of the host.

    Without a selection, a device that cannot be resolved is skipped with a warning.
    """
    from vmm_msi.doctor.devices import assignable
    from vmm_msi.domxml.guest_domain import virt_guest
    from vmm_msi.host.resolve import resolve, with_devices

    addresses = list(selected)
    if not selected:
        listed = assignable(host)
        if not listed:
            raise UsageError(
                f"{host.source}: lists ranges of addresses, not devices; name the guest's devices "
                "with --device ADDRESS or --domain DOMAIN"
            )
        failure: TopologyError | None = None
        for address in listed:
            try:
                resolve(host, address)
            except TopologyError as error:
                failure = error
                log.warning("%s; it is skipped", error)
            else:
                addresses.append(address)
        if failure is not None and not addresses:
            raise failure
    return Scenario(with_devices(host, addresses), virt_guest("guest", addresses))


def _settings(changes: object) -> tuple[Setting, ...]:
    from collections.abc import Iterable

    if isinstance(changes, str) or not isinstance(changes, Iterable):
        changes = (changes,)
    return tuple(Setting.parse(text_value("changes", text), "changes") for text in changes)


def _choices(strategies: object) -> tuple[Choice, ...]:
    from collections.abc import Iterable

    from vmm_msi.config import Choice

    if isinstance(strategies, Choice | str) or not isinstance(strategies, Iterable):
        return (strategy_choice(strategies),)
    return tuple(map(strategy_choice, strategies))
