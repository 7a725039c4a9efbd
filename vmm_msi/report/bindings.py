"""The kernel's bindings of guest MSIs, as text for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.quantity import quantity
from vmm_msi.report.columns import columns
from vmm_msi.terminal import WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_msi.host.msi_bindings import GiovaSource, KernelBinding
    from vmm_msi.report.documents import KernelBindingJson
    from vmm_msi.report.system_documents import BindDocument
    from vmm_msi.types import PciAddress


@dataclass(frozen=True)
class DeviceBindings:
    """The bindings that the kernel has of one device.

    :param strategy: the strategy to bind with; None if bindings were withdrawn.
    :param source: where the gIOVA is from; None without a plan.
    :param error: why the kernel refused; None if it did not.
    """

    device: PciAddress
    strategy: str | None
    source: GiovaSource | None
    bindings: Sequence[KernelBinding]
    error: str | None


@dataclass(frozen=True)
class GuestBindings:
    """What was, or would be, bound in the kernel for a guest.

    :param devices: the selected devices, as the kernel has them now.
    :param commands: the commands for the kernel's file, in order.
    """

    domain: str
    dry_run: bool
    devices: Sequence[DeviceBindings]
    commands: Sequence[str]
    notes: Sequence[str] = ()

    @property
    def is_refused(self) -> bool:
        """Whether the kernel refused a device."""
        return any(device.error is not None for device in self.devices)


def rows_of(bindings: Iterable[KernelBinding]) -> Iterator[list[str]]:
    """Yield the cells of each binding: gIOVA, gDB, hDB and state."""
    for binding in bindings:
        hdb = "-" if binding.hpa is None else str(binding.hpa)
        yield [str(binding.giova), str(binding.gdb), hdb, binding.state]


def lines_of(guest: GuestBindings, width: int = WIDTH) -> Iterator[str]:
    """Yield the bindings of a guest as lines for people."""
    if not guest.commands:
        yield f"{guest.domain}: nothing to do"
    elif guest.dry_run:
        yield f"{guest.domain}: nothing was changed; the commands would be"
        yield from (f"  {command}" for command in guest.commands)
    else:
        yield f"{guest.domain}: {quantity(len(guest.commands), 'command')} to the kernel"
    yield "the kernel has:"
    rows = [["device", "strategy", "gIOVA", "gDB", "hDB page", "state", "gIOVA from"]]
    for device in guest.devices:
        head = [str(device.device), device.strategy or "-"]
        bindings = list(rows_of(device.bindings)) or [["-", "-", "-", "not bound"]]
        rows += [[*head, *cells, device.source or "-"] for cells in bindings]
    yield from columns(rows, width)
    for device in guest.devices:
        if device.error is not None:
            yield f"refused: {device.device}: {device.error}"
    yield from (f"note: {note}" for note in guest.notes)


def binding_json(binding: KernelBinding) -> KernelBindingJson:
    """Return a binding as JSON."""
    return {
        "giova": str(binding.giova),
        "gdb": str(binding.gdb),
        "page_shift": binding.page_shift,
        "hdb_page": None if binding.hpa is None else str(binding.hpa),
        "state": binding.state,
    }


def to_json(guest: GuestBindings) -> BindDocument:
    """Return the bindings of a guest as JSON."""
    return {
        "schema": 1,
        "domain": guest.domain,
        "dry_run": guest.dry_run,
        "commands": list(guest.commands),
        "devices": [
            {
                "device": str(device.device),
                "strategy": device.strategy,
                "giova_from": None if device.source is None else device.source.value,
                "bindings": [binding_json(binding) for binding in device.bindings],
                "error": device.error,
            }
            for device in guest.devices
        ],
        "notes": list(guest.notes),
    }
