"""Which strategies would deliver, by the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from vmm_msi.engine.compare import compare, profile_for
from vmm_msi.errors import TopologyError
from vmm_msi.explain.explanation import Remedy
from vmm_msi.host.resolve import with_devices
from vmm_msi.plugins.hookspecs import PluginKind
from vmm_msi.types import Outcome, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.config import Choice
    from vmm_msi.explain.situation import Situation
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import GuestDomain, HostTopology, PciAddress


@dataclass(frozen=True, slots=True)
class Working:
    """A strategy that delivers every MSI of a guest.

    :param qemu: QEMU and the kernel carry it out on a libvirt host.
    :param rmr: it does where the guest honours RMR nodes.
    :param kernel: the kernel it was modelled on.
    """

    choice: Choice
    qemu: bool
    rmr: bool
    kernel: str


def working(
    plugins: PluginManager, host: HostTopology, guest: GuestDomain, selector: str
) -> tuple[Working, ...]:
    """Return what delivers every MSI of the guest on the model, if the guest honours RMR nodes.

    Of several forms of one strategy that the same carries out, the default one is taken, else the
    first; those that QEMU carries out come first.

    :raise TopologyError: when the host does not have a device of the guest.
    """
    whole = with_devices(host, [device.host for device in guest.devices])
    scenario = Scenario(whole, replace(guest, honours_rmr=True))
    choices = plugins.choices()
    found = []
    results = compare(plugins, scenario, choices, selector)
    for choice, result in zip(choices, results, strict=True):
        if {verdict.outcome for verdict in result.verdicts} == {Outcome.DELIVERED}:
            options = plugins.options(choice.strategy, choice.options)
            needs = plugins.needs(choice.strategy, options)
            kernel = str(result.options["profile"])
            found.append(Working(choice, needs.qemu, needs.rmr, kernel))
    return tuple(_one_form_each(plugins, found))


def _one_form_each(plugins: PluginManager, found: Iterable[Working]) -> Iterator[Working]:
    kept: dict[tuple[str, bool], Working] = {}
    for each in found:
        default = plugins.options(each.choice.strategy, ())
        is_default = plugins.options(each.choice.strategy, each.choice.options) == default
        key = (each.choice.strategy, each.qemu)
        if is_default or key not in kept:
            kept[key] = each
    yield from sorted(kept.values(), key=lambda each: not each.qemu)


class Strategies:
    """What can be said of the strategies that are loaded, for one situation.

    :param selector: name of the ITS selector.
    """

    def __init__(self, plugins: PluginManager, situation: Situation, selector: str) -> None:
        self._plugins = plugins
        self._situation = situation
        self._selector = selector
        self._working: tuple[Working, ...] | None = None
        self.note = ""

    def remedies(self, device: PciAddress | None, *, ignores_rmr: bool) -> tuple[Remedy, ...]:
        """Return the strategies that would deliver, for the device that is meant.

        :param ignores_rmr: the text shows that the guest does not map the window, whatever its
            definition promises.
        """
        host, guest = self._situation.host, self._situation.guest
        if host is None or guest is None or not guest.devices:
            return tuple(self._unproven())
        if self._working is None:
            try:
                self._working = working(self._plugins, host, guest, self._selector)
            except TopologyError as error:
                self._working = ()
                self.note = f"no strategy was tried on the model: {error}"
        heeds = guest.honours_rmr and not ignores_rmr
        return tuple(self._remedy(each, device, guest.name, heeds=heeds) for each in self._working)

    def _remedy(
        self, found: Working, device: PciAddress | None, guest: str, *, heeds: bool
    ) -> Remedy:
        name = str(found.choice)
        change = self._rmr_change() if found.rmr and not heeds else ""
        recorded = self._situation.record.device(device) if device is not None else None
        is_there = recorded is not None and self._is_recorded(found.choice, device)
        if found.qemu:
            what = f"vmm-msi attach {guest} {device or 'DEVICE'} --strategy {name}"
            if is_there:
                what = "it is what the guest has, and delivers on the model"
            elif recorded is not None:
                what = f"vmm-msi detach {guest} {device}, then {what}"
            elif device is not None and self._situation.is_accelerated(device):
                what = "the definition has an accelerated vSMMU for it already"
            elif self._situation.xml is not None and device is not None:
                what = f"take its <hostdev> out of the definition, then {what}"
        else:
            what = (
                f"{self._plugins.info(found.choice.strategy, PluginKind.STRATEGY).summary}; not by "
                "QEMU, but by a VMM that holds the iommufd itself, on a kernel like "
                f"{found.kernel} (docs/kernels.md)"
            )
        return Remedy(what, name, change)

    def _is_recorded(self, choice: Choice, device: PciAddress | None) -> bool:
        recorded = self._situation.record.device(device) if device is not None else None
        if recorded is None or recorded.strategy != choice.strategy:
            return False
        kind = self._plugins.options(choice.strategy, choice.options)
        given = self._plugins.options(choice.strategy, recorded.options.items())
        return msgspec.structs.asdict(kind) == msgspec.structs.asdict(given)

    def _rmr_change(self) -> str:
        """Say what makes the guest honour the RMR that QEMU gives it."""
        xml = self._situation.xml
        if xml is None:
            return "the guest has to honour RMR nodes: ACPI, and Linux 6.0 or newer in it"
        changes = []
        if not xml.acpi:
            changes.append("<features><acpi/></features>")
        if not xml.firmware:
            changes.append("<os firmware='efi'>")
        if not changes and not any(each.driver.get("accel") == "on" for each in xml.iommus()):
            # QEMU has an RMR for accelerated vSMMUs alone, and attach adds the first one.
            return ""
        if changes:
            return f"the guest has to get the RMR: {' and '.join(changes)}"
        return (
            "the definition has ACPI and UEFI, so the guest's kernel has to honour RMR nodes: "
            "Linux 6.0 or newer, without acpi=off"
        )

    def _unproven(self) -> Iterator[Remedy]:
        """Yield what QEMU carries out, where there is no host and guest to try it on."""
        self.note = (
            "no strategy was tried on the model: with --host and --domain or --guest those are "
            "named that deliver there"
        )
        for choice in self._plugins.choices():
            options = self._plugins.options(choice.strategy, choice.options)
            if self._plugins.needs(choice.strategy, options).qemu:
                profile_for(self._plugins, choice)
                info = self._plugins.info(choice.strategy, PluginKind.STRATEGY)
                yield Remedy(f"{info.summary}; asks of the guest: {info.guest}", str(choice))
