"""Run strategies on one scenario, each on a backend of its own, and report where MSIs arrive."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vmm_msi.engine.binders import applied_by
from vmm_msi.engine.session import GuestSession, refusal
from vmm_msi.engine.setup import profile_for
from vmm_msi.errors import PluginError, RefusedError
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.plugins.hookspecs import PluginKind
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vmm_msi.config import Choice
    from vmm_msi.iommu.backend import Backend
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import Costs, Scenario, Verdict

    #: Opens a backend for a scenario, as the kernel of a profile where it can be several.
    OpenBackend = Callable[[Scenario, Profile], Backend]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What one strategy did.

    :param options: its options, the defaults included, and the kernel it ran on.
    :param costs: what was in use when all devices were attached.
    :param applied_by: what can apply the strategy to a guest that runs.
    :param summary: what the strategy does, in a line.
    :param requires: what it requires of the guest, in a sentence; empty if nothing.
    :param price: what it costs on any host, in a sentence.
    """

    strategy: str
    options: Mapping[str, object]
    verdicts: tuple[Verdict, ...]
    costs: Costs
    applied_by: BinderKind = BinderKind.SIM
    summary: str = ""
    requires: str = ""
    price: str = ""


def open_simulator(scenario: Scenario, profile: Profile) -> Backend:
    """Open the simulator of a kernel."""
    return SimBackend(scenario.host, scenario.guest, profile)


def compare(
    plugins: PluginManager,
    scenario: Scenario,
    choices: Iterable[Choice],
    selector: str,
    open_backend: OpenBackend = open_simulator,
    *,
    skip_broken: bool = False,
) -> Iterator[Result]:
    """Yield a result for each choice, in order.

    :param open_backend: opens the backend for each; it is closed after.
    :param skip_broken: skip a strategy that breaks or that no simulated kernel suits, with a
        warning.
    :raise UsageError: for an unknown strategy, option, profile or selector.
    :raise PluginError: for a strategy that breaks.
    :raise VmmMsiError: when a backend cannot be opened.
    """
    for choice in choices:
        try:
            profile = profile_for(plugins, [choice])
        except RefusedError as error:
            if not skip_broken:
                raise
            log.warning("%s; it is skipped", error)
            continue
        with closing(open_backend(scenario, profile)) as backend:
            try:
                result = _run(plugins, scenario, choice, selector, backend)
            except PluginError as error:
                if not skip_broken:
                    raise
                log.warning("%s; it is skipped", error)
                continue
        yield result


def _run(
    plugins: PluginManager, scenario: Scenario, choice: Choice, selector: str, backend: Backend
) -> Result:
    options = plugins.options(choice.strategy, choice.options)
    binder = applied_by(choice, plugins.needs(choice.strategy, options))
    info = plugins.info(choice.strategy, PluginKind.STRATEGY)
    about = (binder, info.summary, info.guest, info.costs)
    shown = {**msgspec.structs.asdict(options), "profile": backend.info.profile}
    host, guest = scenario.host, scenario.guest
    addresses = [device.host for device in guest.devices]
    choice_of = dict.fromkeys(addresses, choice)
    try:
        session = GuestSession(plugins, host, guest, backend, choice_of, selector)
    except RefusedError as error:
        verdicts = tuple(
            refusal(host.device_by_address[address], error, choice.strategy)
            for address in addresses
        )
        return Result(choice.strategy, shown, verdicts, backend.costs(), *about)
    with session:
        verdicts = tuple(session.attach_and_deliver())
        costs = backend.costs()
    return Result(choice.strategy, shown, verdicts, costs, *about)
