"""The conformance suite as values: which strategies on which scenarios and backends."""

from __future__ import annotations

from contextlib import closing, contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from vmm_msi.config import DEFAULT_SELECTOR, Choice
from vmm_msi.engine.binders import kernel_allocator
from vmm_msi.engine.compare import open_simulator
from vmm_msi.engine.session import GuestSession
from vmm_msi.engine.setup import needs_of, profile_for
from vmm_msi.errors import UsageError, did_you_mean
from vmm_msi.iommu.backend import Capability
from vmm_msi.plugins.hookspecs import PROJECT
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.testing.scenarios import on_any_backend, sample_scenarios

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_msi.engine.compare import OpenBackend
    from vmm_msi.types import Scenario

#: What no kernel of the lab has.
_NOT_IN_LAB = frozenset(
    {
        Capability.SW_MSI_MOVE,
        Capability.MSI_PRESET,
        Capability.MSI_PAGE_MAP,
        Capability.IOMMUFD_FILES,
    }
)


def choices(texts: Sequence[str]) -> list[Choice]:
    """Return the strategies that are named; all in every form if none is.

    :raise UsageError: for text of another form.
    """
    if texts:
        return [Choice.parse(text) for text in texts]
    return PluginManager.load().choices()


def plugins_for(strategy: str) -> PluginManager:
    """Load an installed strategy and the ITS selector, without the other plugins.

    An observer could veto what the suite tries, and other strategies do not matter.

    :raise PluginError: when one of them cannot be loaded.
    :raise UsageError: when no plugin has the name.
    """
    kept = {strategy, DEFAULT_SELECTOR}
    installed = {point.name for point in entry_points(group=PROJECT)}
    if strategy not in installed:
        raise UsageError(
            f"strategy {strategy!r}: no such plugin; {did_you_mean(strategy, installed)}installed: "
            f"{', '.join(sorted(installed))}"
        )
    return PluginManager.load(disabled=installed - kept, wanted=kept)


def check(selected: Sequence[Choice], backend: str) -> None:
    """Check that a backend can run the strategies.

    :raise PluginError: when one of them cannot be loaded.
    :raise UsageError: when one is unknown, has a wrong option, or needs what the lab does not have.
    :raise RefusedError: when no simulated kernel has what one needs.
    """
    for choice in selected:
        plugins = plugins_for(choice.strategy)
        profile_for(plugins, [choice])
        needs = needs_of(plugins, choice)
        missing = sorted((needs.capabilities | {needs.interface}) & _NOT_IN_LAB)
        if backend == "lab" and missing:
            raise UsageError(
                f"strategy {choice}: needs {', '.join(missing)}, which no kernel of the lab has; "
                "use --vmm-msi-backend sim"
            )


def scenarios(backend: str) -> Mapping[str, Scenario]:
    """Return the scenarios that a backend runs."""
    return on_any_backend() if backend == "lab" else sample_scenarios()


@contextmanager
def backends(selected: Sequence[Choice], backend: str) -> Iterator[OpenBackend]:
    """Yield the function that opens a backend, ``sim`` or ``lab``.

    In the lab, strategies that register bindings run on the kernel with bindings, with the host's
    own ITSes; the others on the stock kernel, with a page of memory in the place of each ITS.

    :raise LabError: when the emulated host cannot be started.
    """
    if backend == "sim":
        yield open_simulator
        return
    from vmm_msi.iommu.linux.abilities import Doorbells
    from vmm_msi.lab.backend.remote import lab_backends
    from vmm_msi.lab.build.kernel_flavour import BIND

    binds = any(
        kernel_allocator(choice, needs_of(plugins_for(choice.strategy), choice)) is not None
        for choice in selected
    )
    doorbells, kernel = (Doorbells.ITS, BIND) if binds else (Doorbells.WITNESS, None)
    with lab_backends(list(scenarios(backend).values()), doorbells, kernel) as open_backend:
        yield open_backend


@contextmanager
def open_session(
    plugins: PluginManager, strategy: str, scenario: Scenario, profile: str | None
) -> Iterator[GuestSession]:
    """Yield a session of a scenario's guest in the simulator; detach everything at the end.

    :param strategy: the strategy of every device, with its options.
    :param profile: the simulated kernel; None for the newest that suits.
    :raise RefusedError: when no simulated kernel has what the strategy needs.
    :raise UsageError: for an unknown strategy, option or profile.
    :raise PluginError: at the end, when a stage 2 is left.
    """
    text = strategy
    if profile is not None:
        text += f"{',' if ':' in strategy else ':'}profile={profile}"
    choice = Choice.parse(text)
    with closing(open_simulator(scenario, profile_for(plugins, [choice]))) as backend:
        selected = {device.host: choice for device in scenario.guest.devices}
        with GuestSession(
            plugins, scenario.host, scenario.guest, backend, selected, DEFAULT_SELECTOR
        ) as session:
            yield session
