"""The subject of a check, and what a check reports."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from vmm_msi.config import DEFAULT_SELECTOR
from vmm_msi.engine.compare import open_simulator
from vmm_msi.engine.session import GuestSession
from vmm_msi.engine.setup import profile_for
from vmm_msi.testing.observed_backend import ObservedBackend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.config import Choice
    from vmm_msi.engine.compare import OpenBackend
    from vmm_msi.iommu.backend import Backend, Capability
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import PciAddress, Scenario


@dataclass(frozen=True, slots=True)
class Problem:
    """A way in which a strategy breaks the contract.

    :param what: what is wrong.
    :param remedy: what to write instead.
    :param hook: the attribute of the strategy to change.
    :param cause: the exception that a hook raised.
    """

    what: str
    remedy: str
    hook: str
    cause: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


@dataclass(frozen=True)
class Subject:
    """A strategy on one scenario.

    :param plugins: the strategy, an ITS selector, and no observer.
    :param open_backend: opens the backend of a run.
    :param several: several backends can be open at once.
    """

    plugins: PluginManager
    choice: Choice
    scenario: Scenario
    open_backend: OpenBackend = open_simulator
    several: bool = True

    @contextmanager
    def observed(
        self,
        scenario: Scenario | None = None,
        *,
        fail_at: int = 0,
        capabilities: frozenset[Capability] | None = None,
    ) -> Iterator[tuple[ObservedBackend, GuestSession]]:
        """Yield a new backend with a session on it.

        :param scenario: another scenario than the subject's.
        :param fail_at: see :class:`ObservedBackend`, as ``capabilities``.
        :raise RefusedError: when the backend lacks what the strategy needs.
        """
        scenario = scenario or self.scenario
        profile = profile_for(self.plugins, [self.choice])
        with closing(self.open_backend(scenario, profile)) as opened:
            backend = ObservedBackend(opened, fail_at=fail_at, capabilities=capabilities)
            session = GuestSession(
                self.plugins,
                scenario.host,
                scenario.guest,
                # It has the methods of Backend, by ObservedBackend.__getattr__.
                cast("Backend", backend),
                {device.host: self.choice for device in scenario.guest.devices},
                DEFAULT_SELECTOR,
            )
            yield backend, session

    @property
    def devices(self) -> list[PciAddress]:
        """The guest's devices, in order."""
        return [device.host for device in self.scenario.guest.devices]
