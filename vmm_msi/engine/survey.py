"""Survey the loaded strategies: which deliver every MSI of a guest, and which QEMU applies."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.engine.binders import applied_by
from vmm_msi.engine.setup import needs_of, simulate
from vmm_msi.errors import PluginError, RefusedError
from vmm_msi.iommu.profiles import PROFILES, profile_named
from vmm_msi.types import BinderKind, Outcome

if TYPE_CHECKING:
    from vmm_msi.config import Choice
    from vmm_msi.plugins.hookspecs import Needs
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import Scenario


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A strategy that delivers every MSI of a guest.

    :param kernel: name of the simulated kernel on which it does.
    :param standing: what keeps that kernel's interfaces out of a released one; empty if nothing
        does.
    """

    choice: Choice
    needs: Needs
    kernel: str
    standing: str

    @property
    def by_qemu(self) -> bool:
        """Whether QEMU and a released kernel apply it."""
        return applied_by(self.choice, self.needs) is BinderKind.QEMU


def delivering(plugins: PluginManager, scenario: Scenario, selector: str) -> list[Delivery]:
    """Return the strategies that deliver every MSI of a guest when all its devices use them.

    Each strategy is tried in every form that its options give it. Those that QEMU and the kernel
    apply come first; then those on the last kernel of :data:`PROFILES`. A strategy that breaks is
    skipped with a warning: no user selected it.

    :param selector: name of the ITS selector.
    """
    devices = [device.host for device in scenario.guest.devices]
    deliveries = []
    for choice in plugins.choices():
        try:
            result = simulate(plugins, scenario, dict.fromkeys(devices, choice), selector)
        except RefusedError:
            continue
        except PluginError as error:
            log.warning("%s; it is skipped", error)
            continue
        if all(verdict.outcome is Outcome.DELIVERED for verdict in result.verdicts):
            needs, standing = needs_of(plugins, choice), profile_named(result.kernel).standing
            deliveries.append(Delivery(choice, needs, result.kernel, standing))
    nearest = [profile.name for profile in reversed(PROFILES)]
    return sorted(deliveries, key=lambda d: (not d.by_qemu, nearest.index(d.kernel)))


def on_qemu(plugins: PluginManager) -> list[Choice]:
    """Return the strategies, in every form, that QEMU and the kernel apply.

    A strategy that breaks is left out.
    """
    choices = []
    for choice in plugins.choices():
        with suppress(PluginError):
            if applied_by(choice, needs_of(plugins, choice)) is BinderKind.QEMU:
                choices.append(choice)
    return choices
