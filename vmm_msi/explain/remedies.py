"""Strategies as remedies: which of them deliver in the simulator, and how to switch to each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from vmm_msi.engine.survey import delivering, on_qemu
from vmm_msi.errors import TopologyError
from vmm_msi.explain.explanation import Remedy
from vmm_msi.host.resolve import with_devices
from vmm_msi.plugins.hookspecs import PluginKind
from vmm_msi.types import Scenario

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.config import Choice
    from vmm_msi.engine.survey import Delivery
    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import GuestDomain, HostTopology, PciAddress


class StrategyRemedies:
    """The loaded strategies as remedies for a fault or an error.

    :param selector: name of the ITS selector.
    """

    def __init__(self, plugins: PluginManager, context: LogContext, selector: str) -> None:
        self._plugins = plugins
        self._context = context
        self._selector = selector
        self._deliveries: tuple[Delivery, ...] | None = None
        #: Why no strategy was tried in the simulator; empty if they were.
        self.note = ""

    def remedies(self, device: PciAddress | None, *, ignores_rmr: bool) -> tuple[Remedy, ...]:
        """Return the strategies that deliver every MSI of the guest.

        Without a host and a guest to try them on: those that QEMU and the kernel apply.

        :param device: the device with the fault; None if unknown.
        :param ignores_rmr: the log shows that the guest does not map the MSI window, whatever its
            definition promises.
        """
        host, guest = self._context.host, self._context.guest
        if host is None or guest is None or not guest.devices:
            return tuple(self._untried())
        if self._deliveries is None:
            try:
                self._deliveries = self._survey(host, guest)
            except TopologyError as error:
                self._deliveries = ()
                self.note = f"no strategy was tried in the simulator: {error}"
        honours_rmr = guest.honours_rmr and not ignores_rmr
        return tuple(
            self._remedy(delivery, device, guest.name, honours_rmr=honours_rmr)
            for delivery in self._deliveries
            # In the guest, only its definition can be changed.
            if delivery.by_qemu or not self._context.in_guest
        )

    def _survey(self, host: HostTopology, guest: GuestDomain) -> tuple[Delivery, ...]:
        """Return what delivers if the guest honours RMR nodes, each strategy in one form.

        The form is the default one if it delivers, else the first. A strategy has two forms here if
        QEMU applies only one of them.

        :raise TopologyError: if the host lacks a device of the guest.
        """
        full = with_devices(host, [device.host for device in guest.devices])
        scenario = Scenario(full, replace(guest, honours_rmr=True))
        forms: dict[tuple[str, bool], Delivery] = {}
        for delivery in delivering(self._plugins, scenario, self._selector):
            choice = delivery.choice
            key = (choice.strategy, delivery.by_qemu)
            default = self._plugins.options(choice.strategy, ())
            if (
                key not in forms
                or self._plugins.options(choice.strategy, choice.options) == default
            ):
                forms[key] = delivery
        return tuple(forms.values())

    def _remedy(
        self, delivery: Delivery, device: PciAddress | None, guest: str, *, honours_rmr: bool
    ) -> Remedy:
        choice = delivery.choice
        change = self._rmr_change() if delivery.needs.rmr and not honours_rmr else ""
        if delivery.by_qemu:
            return Remedy(self._switch(choice, device, guest), str(choice), change)
        summary = self._plugins.info(choice.strategy, PluginKind.STRATEGY).summary
        standing = f"{delivery.standing}; " if delivery.standing else ""
        what = (
            f"{summary}; requires a VMM that owns the iommufd itself, instead of QEMU, and a "
            f"kernel such as {delivery.kernel} ({standing}docs/kernels.md)"
        )
        return Remedy(what, str(choice), change)

    def _switch(self, choice: Choice, device: PciAddress | None, guest: str) -> str:
        """Return how the guest gets a strategy that QEMU applies."""
        attach = f"vmm-msi attach {guest} {device or 'DEVICE'} --strategy {choice}"
        if device is None:
            return attach
        if self._context.record.device(device) is not None:
            if self._is_recorded(choice, device):
                return "the guest has it already, and it delivers in the simulator"
            return f"vmm-msi detach {guest} {device}, then {attach}"
        if self._context.is_accelerated(device):
            return "the definition has an accelerated vSMMU for the device already"
        if self._context.xml is not None:
            return f"remove its <hostdev> from the definition, then {attach}"
        return attach

    def _is_recorded(self, choice: Choice, device: PciAddress) -> bool:
        """Return whether the device was attached with this strategy and the same options."""
        recorded = self._context.record.device(device)
        if recorded is None or recorded.strategy != choice.strategy:
            return False
        offered = self._plugins.options(choice.strategy, choice.options)
        attached = self._plugins.options(choice.strategy, recorded.options.items())
        return msgspec.structs.asdict(offered) == msgspec.structs.asdict(attached)

    def _rmr_change(self) -> str:
        """Return what to change so that the guest honours the RMR that QEMU gives it."""
        xml = self._context.xml
        if xml is None:
            return "the guest has to honour RMR nodes: ACPI, and Linux 6.0 or newer in it"
        changes = []
        if not xml.acpi:
            changes.append("<features><acpi/></features>")
        if not xml.firmware:
            changes.append("<os firmware='efi'>")
        if changes:
            return f"the guest has to get the RMR: {' and '.join(changes)}"
        if not any(iommu.driver.get("accel") == "on" for iommu in xml.iommus()):
            # QEMU has an RMR only for accelerated vSMMUs, and attach adds the first one.
            return ""
        return (
            "the definition has ACPI and UEFI, so the guest's kernel has to honour RMR nodes: "
            "Linux 6.0 or newer, without acpi=off"
        )

    def _untried(self) -> Iterator[Remedy]:
        """Yield the strategies that QEMU and the kernel apply."""
        missing = [
            option
            for option, known in (
                ("a host with --host", self._context.host),
                ("a guest with --domain", self._context.guest),
            )
            if known is None
        ] or ["a guest that has devices"]
        self.note = f"no strategy was tried in the simulator; name {' and '.join(missing)}"
        for choice in on_qemu(self._plugins):
            info = self._plugins.info(choice.strategy, PluginKind.STRATEGY)
            yield Remedy(f"{info.summary}; requires of the guest: {info.guest}", str(choice))
