"""Run strategies on one scenario, each on a backend of its own, and see where every MSI lands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vmm_msi.errors import RefusedError
from vmm_msi.iommu.profiles import newest_profile, profile_named
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.run import GuestRun, refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmm_msi.config import Choice
    from vmm_msi.host import PluginHost
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.model import Costs, Scenario, Verdict


@dataclass(frozen=True)
class Result:
    """What one strategy did.

    :param options: its options, the defaults included, and the kernel profile it ran on.
    :param costs: what was in use when all devices were up.
    """

    strategy: str
    options: Mapping[str, object]
    verdicts: tuple[Verdict, ...]
    costs: Costs


def compare(
    plugins: PluginHost, scenario: Scenario, choices: Iterable[Choice], selector: str
) -> Iterator[Result]:
    """Yield a result for each choice, in order.

    :raise UsageError: for an unknown strategy, option, profile or selector.
    """
    for choice in choices:
        yield _run(plugins, scenario, choice, selector)


def profile_for(plugins: PluginHost, choice: Choice) -> Profile:
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


def _run(plugins: PluginHost, scenario: Scenario, choice: Choice, selector: str) -> Result:
    profile = profile_for(plugins, choice)
    options = plugins.options(choice.strategy, choice.options)
    backend = SimBackend(scenario.host, scenario.guest, profile)
    shown = {**msgspec.structs.asdict(options), "profile": profile.name}
    addresses = [device.host for device in scenario.guest.devices]
    try:
        run = GuestRun(
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
    verdicts = tuple(run.try_all())
    costs = backend.costs()
    run.stop()
    backend.close()
    return Result(choice.strategy, shown, verdicts, costs)
