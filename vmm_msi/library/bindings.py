"""Bind guest MSIs in the kernel by hand, as ``vmm-msi bind`` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi import arguments
from vmm_msi.domxml.metadata import record_in
from vmm_msi.engine.binders import kernel_allocator
from vmm_msi.engine.setup import needs_of, recorded_choices
from vmm_msi.errors import RefusedError, UsageError, VmmMsiError
from vmm_msi.library.settings import configuration, plugin_manager
from vmm_msi.report import bindings as report
from vmm_msi.types import BinderKind, BindOrder
from vmm_msi.watch.kernel_binder import BindingResult, KernelBinder, in_order, withdrawal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.arguments import Devices
    from vmm_msi.config import Choice
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.host.msi_bindings import BindingAllocator, MsiBindingsFile
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.report.system_documents import BindDocument
    from vmm_msi.types import PciAddress


@dataclass(frozen=True)
class GuestBindings(report.GuestBindings):
    """What was, or would be, bound in the kernel for a guest."""

    def to_json(self) -> BindDocument:
        """Return the document that the command prints with ``--format json``."""
        return report.to_json(self)


def bind(
    connection: Connection,
    domain: str,
    devices: Devices = (),
    strategy: Choice | str | None = None,
    *,
    batched: bool = False,
    dry_run: bool = False,
    plugins: PluginManager | None = None,
    file: MsiBindingsFile | None = None,
) -> GuestBindings:
    """Bind devices of a running guest of this machine in the kernel.

    :param connection: a writable one, through which the guest's MSIs are read.
    :param devices: one or several, as addresses or text; empty for those whose record names the
        kernel as their binder.
    :param strategy: bind with this strategy; None for that of each device's record.
    :param batched: bind all devices before the addresses of any are written.
    :param dry_run: change nothing.
    :param plugins: None for the installed ones.
    :param file: the kernel's file; None for this machine's.
    :raise RefusedError: if the guest is off, or the kernel cannot bind with a strategy.
    :raise UsageError: for a device that the guest does not have, or without any to bind.
    :raise UnreadableError: if the kernel's file cannot be read.
    :raise HypervisorError: if libvirt cannot be queried or has no such domain.
    """
    xml = _running(connection, domain)
    choice = None if strategy is None else arguments.strategy_choice(strategy)
    choices = _choices(xml, _selected(xml, devices, choice), choice)
    allocators = _allocators(choices, plugin_manager(plugins, configuration(None)))
    binder = KernelBinder(file)
    results = list(binder.plans(connection, xml.uuid or "", xml, allocators))
    plans = [result.plan for result in results if result.plan is not None]
    order = BindOrder.BATCHED if batched else BindOrder.INTERLEAVED
    commands = tuple(in_order(plans, order))
    if not dry_run:
        errors: dict[PciAddress, VmmMsiError] = {}
        for command in commands:
            # The rest of a refused device's commands would act on a state that is not there.
            if command.device not in errors:
                try:
                    binder.file.run(command)
                except RefusedError as error:
                    errors[command.device] = error
        results = [
            BindingResult(r.device, r.plan, r.error or errors.get(r.device), r.unread)
            for r in results
        ]
    content = binder.file.read()
    return GuestBindings(
        xml.name,
        dry_run,
        tuple(
            report.DeviceBindings(
                result.device,
                str(choices[result.device]),
                None if result.plan is None else result.plan.source,
                content.of(result.device),
                None if result.error is None else str(result.error),
            )
            for result in results
        ),
        tuple(map(str, commands)),
        tuple(str(result.unread) for result in results if result.unread is not None),
    )


def unbind(
    connection: Connection,
    domain: str,
    devices: Devices = (),
    *,
    dry_run: bool = False,
    file: MsiBindingsFile | None = None,
) -> GuestBindings:
    """Withdraw every binding of devices of a running guest of this machine.

    Parameters and errors are those of :func:`bind`; without devices, those that have a binding.
    """
    xml = _running(connection, domain)
    binder = KernelBinder(file)
    content = binder.file.read()
    named = arguments.device_addresses(devices)
    present = [hostdev.host for hostdev in xml.assigned()]
    _check_present(xml, named, present)
    selected = named or tuple(device for device in present if content.of(device))
    commands = [command for device in selected for command in withdrawal(content, device)]
    errors: dict[PciAddress, str] = {}
    for command in () if dry_run else commands:
        try:
            binder.file.run(command)
        except RefusedError as error:
            errors.setdefault(command.device, str(error))
    content = binder.file.read()
    return GuestBindings(
        xml.name,
        dry_run,
        tuple(
            report.DeviceBindings(device, None, None, content.of(device), errors.get(device))
            for device in selected
        ),
        tuple(map(str, commands)),
    )


def _running(connection: Connection, domain: str) -> DomainXml:
    uri = connection.uri
    if uri.partition(":")[0].partition("+")[0] != "qemu" or arguments.is_other_machine(uri):
        raise UsageError(
            f"binding in the kernel of this machine: the guests at {uri} do not run on it; use the "
            "machine's own QEMU connection"
        )
    xml = connection.state(arguments.text_value("guest", domain)).running
    if xml is None:
        raise RefusedError(
            f"binding devices of {domain}: the guest is off, and a binding lasts as long as it "
            "runs; start it first"
        )
    return xml


def _selected(xml: DomainXml, devices: Devices, choice: Choice | None) -> tuple[PciAddress, ...]:
    """Return the named devices, else those to bind."""
    present = [hostdev.host for hostdev in xml.assigned()]
    named = arguments.device_addresses(devices)
    _check_present(xml, named, present)
    if named:
        return named
    selected = tuple(
        device.host
        for device in record_in(xml).devices
        if device.host in present and (choice or device.backend == BinderKind.KERNEL)
    )
    if not selected:
        raise UsageError(
            f"binding devices of {xml.name}: its record names the kernel as the binder of no "
            "device; attach one with direct, coerced or multi-its:mode=s2, or use --strategy"
        )
    return selected


def _check_present(
    xml: DomainXml, named: Sequence[PciAddress], present: Sequence[PciAddress]
) -> None:
    for device in named:
        if device not in present:
            raise UsageError(
                f"{device}: guest {xml.name} does not have it; valid: "
                f"{', '.join(map(str, present)) or 'none, it has no PCI device of the host'}"
            )


def _choices(
    xml: DomainXml, devices: Sequence[PciAddress], choice: Choice | None
) -> dict[PciAddress, Choice]:
    recorded = {} if choice is not None else recorded_choices(record_in(xml))
    choices = {}
    for device in devices:
        own = choice or recorded.get(device)
        if own is None:
            raise UsageError(f"{device}: vmm-msi did not attach it; name a strategy for it")
        choices[device] = own
    return choices


def _allocators(
    choices: Mapping[PciAddress, Choice], plugins: PluginManager
) -> dict[PciAddress, BindingAllocator]:
    """Return the allocator for each device.

    :raise RefusedError: for a strategy that the kernel does not bind with.
    """
    allocators = {}
    for device, choice in choices.items():
        allocator = kernel_allocator(choice, needs_of(plugins, choice))
        if allocator is None:
            raise RefusedError(
                f"{device}: strategy {choice} has no binding in the kernel; use direct, coerced or "
                "multi-its:mode=s2"
            )
        allocators[device] = allocator
    return allocators
