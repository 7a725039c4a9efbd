"""Examine a host and a guest, as ``vmm-msi doctor`` does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi import arguments
from vmm_msi.arguments import device_addresses, strategy_choice, text_value
from vmm_msi.doctor.case_reader import Selection, read_case
from vmm_msi.doctor.finding import Severity
from vmm_msi.doctor.rules import examine as run_rules
from vmm_msi.errors import UsageError
from vmm_msi.library.guests import guest_name
from vmm_msi.library.hosts import any_host
from vmm_msi.library.installed import others_installed
from vmm_msi.quantity import quantity
from vmm_msi.report import doctor as report
from vmm_msi.terminal import WIDTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_msi.arguments import Devices
    from vmm_msi.config import Choice, Config
    from vmm_msi.doctor.case import Case
    from vmm_msi.doctor.finding import Finding
    from vmm_msi.doctor.ignored import Ignored
    from vmm_msi.host.sources import HostSources
    from vmm_msi.library.guests import GuestName
    from vmm_msi.library.hosts import AnyHost
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.report.documents import DoctorDocument
    from vmm_msi.types import Granule


@dataclass(frozen=True)
class Examination:
    """The findings about a host, a guest and devices.

    :param case: what was examined.
    :param domain: the guest as the caller named it.
    :param ignored: findings that the caller ignores.
    """

    case: Case
    domain: str | None
    findings: tuple[Finding, ...]
    ignored: tuple[Finding, ...] = ()

    def without(self, ignored: Sequence[Ignored]) -> Examination:
        """Return the same without findings that are ignored; they are counted."""
        shown: list[Finding] = []
        hidden = list(self.ignored)
        for finding in self.findings:
            is_hidden = any(entry.matches(finding) for entry in ignored)
            (hidden if is_hidden else shown).append(finding)
        return replace(self, findings=tuple(shown), ignored=tuple(hidden))

    @property
    def has_errors(self) -> bool:
        """Whether one of the findings is an error."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def has_doubts(self) -> bool:
        """Whether one of the findings is a warning, or a check that could not run."""
        doubts = {Severity.WARNING, Severity.UNKNOWN}
        return any(finding.severity in doubts for finding in self.findings)

    def to_json(self) -> DoctorDocument:
        """Return the document that ``vmm-msi doctor --format json`` prints."""
        return report.to_json(self.case, self.domain, self.findings, self.ignored)

    def to_lines(self, width: int = WIDTH) -> Iterator[str]:
        """Yield the findings and a summary as lines for people."""
        about = _about(self.case, self.domain)
        return report.to_lines(about, self.findings, width, self.ignored)


def examine(
    host: AnyHost,
    devices: Devices = (),
    domain: GuestName | None = None,
    strategy: Choice | str | None = None,
    *,
    granule: Granule | str | int | None = None,
    uri: str | None = None,
    libvirt: str | None = None,
    qemu: str | None = None,
    plugins: PluginManager | None = None,
    settings: Config | None = None,
) -> Examination:
    """Run the doctor's rules and return the findings.

    :param host: a host, or its names; its kernel and software are checked if it has files.
    :param devices: devices to assign; none for those of ``domain``, without it all that the host
        lists.
    :param domain: a guest to check: its name in libvirt, or a file with its XML.
    :param strategy: the strategy to check; None for that of the configuration.
    :param granule: see :func:`~vmm_msi.library.hosts.load_host`.
    :param uri: the libvirt to query, read-only, for its release, guests and devices.
    :param libvirt: its release, such as ``"12.8"``, instead of the queried one.
    :param qemu: the release of QEMU, likewise.
    :param plugins: None for the installed ones.
    :param settings: None for the defaults.
    :raise UsageError: for a value of another type or form, an unknown strategy, or the name of a
        guest without ``uri``.
    :raise InputError: if host or guest cannot be read.
    :raise HypervisorError: if libvirt cannot be queried or has no such domain.
    """
    from vmm_msi.library.settings import configuration, plugin_manager

    selected = device_addresses(devices)
    name = guest_name(domain)
    choice = None if strategy is None else strategy_choice(strategy)
    connect_to = None if uri is None else text_value("libvirt URI", uri)
    releases = arguments.release("libvirt", libvirt), arguments.release("qemu", qemu)
    config = configuration(settings)
    named = (name, choice, connect_to, settings, plugins, *releases)
    if not selected and named.count(None) == len(named):
        return examine_selection(any_host(host, granule), rules_alone())
    loaded = plugin_manager(plugins, config, [] if choice is None else [choice])
    selection = Selection(selected, name, connect_to, choice, loaded, config, *releases)
    return examine_selection(any_host(host, granule), selection)


def rules_alone(load: Callable[[], PluginManager] | None = None) -> Selection | None:
    """Return what is examined of a host alone: the doctor's rules and those of plugins.

    :param load: loads the plugins; None for all that are installed.
    :return: None if only the plugins that ship are installed, which have no rules.
    """
    if not others_installed():
        return None
    from vmm_msi.plugins.manager import PluginManager

    return Selection(rules=PluginManager.load() if load is None else load())


def examine_selection(host: HostSources, selection: Selection | None) -> Examination:
    """Run the doctor's rules on what is selected.

    :param selection: None for the host and all its devices, without rules about strategies.
    :raise VmmMsiError: as :func:`vmm_msi.doctor.case_reader.read_case`; UsageError also for files
        of two hosts and for an unknown strategy.
    """
    if len(host.trees) > 1:
        first, second, *_more = host.trees
        raise UsageError(
            f"reading {second.source}: {first.source} already has the host's files; use one of them"
        )
    if selection is not None and selection.choice is not None and selection.plugins is not None:
        from vmm_msi.plugins.hookspecs import PluginKind

        selection.plugins.info(selection.choice.strategy, PluginKind.STRATEGY)
    case = read_case(host, selection)
    domain = None if selection is None else selection.domain
    return Examination(case, domain, tuple(run_rules(case)))


def _about(case: Case, domain: str | None) -> str:
    from vmm_msi.doctor.devices import representatives

    count = len(case.devices)
    devices = quantity(count, "device")
    if count and not case.host.functions and case.devices == representatives(case.host):
        devices = f"no devices listed, {quantity(count, 'address range')}"
    guest = "" if domain is None else f", guest {domain}"
    files = "" if case.tree is not None else ", kernel not checked"
    return f"{case.host.source}{guest}, {devices}{files}"
