"""Run strategies on one scenario, each on a backend of its own, and see where every MSI lands."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vmm_msi.engine.session import GuestSession, refusal
from vmm_msi.errors import RefusedError
from vmm_msi.iommu.profiles import newest_profile, profile_named
from vmm_msi.iommu.sim import SimBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vmm_msi.config import Choice
    from vmm_msi.iommu.backend import Backend
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import Costs, Scenario, Verdict

    #: Opens a backend for a scenario, as the kernel of a profile where it can be several.
    OpenBackend = Callable[[Scenario, Profile], Backend]


@dataclass(frozen=True)
class Result:
    """What one strategy did.

    :param options: its options, the defaults included, and the kernel it ran on.
    :param costs: what was in use when all devices were up.
    """

    strategy: str
    options: Mapping[str, object]
    verdicts: tuple[Verdict, ...]
    costs: Costs


def open_model(scenario: Scenario, profile: Profile) -> Backend:
    """Open the model of a kernel."""
    return SimBackend(scenario.host, scenario.guest, profile)


def compare(
    plugins: PluginManager,
    scenario: Scenario,
    choices: Iterable[Choice],
    selector: str,
    open_backend: OpenBackend = open_model,
) -> Iterator[Result]:
    """Yield a result for each choice, in order.

    :param open_backend: opens the backend for each; it is closed after.
    :raise UsageError: for an unknown strategy, option, profile or selector.
    :raise VmmMsiError: when a backend cannot be opened.
    """
    for choice in choices:
        with closing(open_backend(scenario, profile_for(plugins, choice))) as backend:
            yield _run(plugins, scenario, choice, selector, backend)


def profile_for(plugins: PluginManager, choice: Choice) -> Profile:
    """Return the kernel profile a choice runs on: the one it names, else the newest that will do.

    :raise UsageError: when it names one that does not exist.
    :raise RefusedError: when no profile has the strategy's interface.
    """
    needs = plugins.needs(choice.strategy, plugins.options(choice.strategy, choice.options))
    if choice.profile is not None:
        return profile_named(choice.profile)
    profile = newest_profile({needs.interface, *needs.capabilities})
    if profile is None:
        raise RefusedError(
            f"strategy {choice.strategy}: no modelled kernel has "
            f"{', '.join(sorted({needs.interface, *needs.capabilities}))}"
        )
    return profile


def _run(
    plugins: PluginManager, scenario: Scenario, choice: Choice, selector: str, backend: Backend
) -> Result:
    options = plugins.options(choice.strategy, choice.options)
    shown = {**msgspec.structs.asdict(options), "profile": backend.info.profile}
    addresses = [device.host for device in scenario.guest.devices]
    try:
        run = GuestSession(
            plugins,
            scenario.host,
            scenario.guest,
            backend,
            dict.fromkeys(addresses, choice),
            selector,
        )
    except RefusedError as error:
        devices = [scenario.host.device_by_address[address] for address in addresses]
        verdicts = tuple(refusal(device, error) for device in devices)
        return Result(choice.strategy, shown, verdicts, backend.costs())
    try:
        verdicts = tuple(run.try_all())
        costs = backend.costs()
    finally:
        run.stop()
    return Result(choice.strategy, shown, verdicts, costs)
