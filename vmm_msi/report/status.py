"""The devices of libvirt domains, as text for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmm_msi.quantity import quantity
from vmm_msi.report.bindings import binding_json, rows_of
from vmm_msi.report.columns import columns
from vmm_msi.terminal import WIDTH
from vmm_msi.types.verdict import ADDRESS_ORDER, addresses_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vmm_msi.domxml.metadata import BindingRecord, DeviceRecord, DomainRecord
    from vmm_msi.host.msi_bindings import KernelBinding
    from vmm_msi.recording.measure import Measured
    from vmm_msi.report.documents import (
        ChangeDocument,
        DeviceJson,
        GuestJson,
        MeasuredJson,
        PredictedJson,
        VsmmuJson,
    )
    from vmm_msi.types import PciAddress

_BINDERS = {"qemu": "QEMU and kernel", "kernel": "kernel", "sim": "simulator"}


@dataclass(frozen=True)
class GuestStatus:
    """The status of one guest.

    :param running: None for XML from a file.
    :param record: what vmm-msi added to it.
    :param others: its PCI devices that vmm-msi did not attach.
    :param measured: what was measured of the devices of a running guest.
    :param bindings: what the kernel has bound of them; None if it was not read.
    """

    name: str
    running: bool | None
    record: DomainRecord
    others: Sequence[PciAddress] = ()
    measured: Mapping[PciAddress, Measured] | None = None
    notes: Sequence[str] = ()
    bindings: Mapping[PciAddress, Sequence[KernelBinding]] | None = None

    @property
    def state(self) -> Literal["running", "off"] | None:
        """``running`` or ``off``; None for XML from a file."""
        return None if self.running is None else "running" if self.running else "off"

    @property
    def free_ports(self) -> int:
        """The number of root ports that are free for hotplug."""
        return sum(len(vsmmu.spare_ports) for vsmmu in self.record.vsmmus)


def device_rows(devices: Iterable[DeviceRecord], *, predicted: bool) -> Iterator[list[str]]:
    """Yield a head and a row for each device.

    :param predicted: with a column for what the simulator predicted.
    """
    last = ["predicted"] if predicted else []
    yield ["device", "strategy", "bound by", "vSMMU", "pSMMU", "pITS", *last]
    for device in devices:
        yield [
            str(device.host),
            strategy_of(device),
            _BINDERS.get(device.backend, device.backend),
            f"pxb {device.pxb}, port {device.root_port}",
            str(device.smmu),
            "-" if device.its is None else str(device.its),
            *([prediction_of(device.binding)] if predicted else []),
        ]


def strategy_of(device: DeviceRecord) -> str:
    """Return the strategy of a device with its options."""
    options = ",".join(f"{key}={value}" for key, value in device.options.items())
    return f"{device.strategy}:{options}" if options else device.strategy


def prediction_of(binding: BindingRecord | None) -> str:
    """Return the verdict of the simulator, and the addresses that the device may have."""
    if binding is None or binding.outcome is None:
        return "-"
    at = f" at {addresses_text(binding.programmed)}" if binding.programmed else ""
    return f"{binding.outcome}{at}"


def address_notes(devices: Iterable[DeviceRecord]) -> list[str]:
    """Return a note if the address that a device gets is not certain."""
    bindings = (device.binding for device in devices)
    several = any(binding is not None and len(binding.programmed) > 1 for binding in bindings)
    return [ADDRESS_ORDER] if several else []


def lines_of(guest: GuestStatus, width: int = WIDTH) -> Iterator[str]:
    """Yield the status of one guest as lines for people."""
    devices = guest.record.devices
    facts: list[str] = [] if guest.state is None else [guest.state]
    if devices:
        facts += [quantity(len(devices), "device"), quantity(guest.free_ports, "free port")]
    else:
        facts.append("no devices attached by vmm-msi")
    yield f"{guest.name}: {', '.join(facts)}"
    if guest.others:
        yield f"not attached by vmm-msi: {', '.join(map(str, guest.others))}"
    if devices:
        yield from columns(list(device_rows(devices, predicted=False)), width)
    rows = list(_msi_rows(guest))
    if len(rows) > 1:
        yield ""
        yield from columns(rows, width)
    if guest.bindings is not None and any(guest.bindings.values()):
        yield ""
        yield from columns(list(_binding_rows(guest.bindings)), width)
    notes = [*guest.notes, *(address_notes(devices) if guest.measured is None else ())]
    yield from (f"note: {note}" for note in notes)


def _binding_rows(
    bindings: Mapping[PciAddress, Sequence[KernelBinding]],
) -> Iterator[list[str]]:
    """Yield a head and a row for each binding that the kernel has."""
    yield ["device", "gIOVA", "gDB", "hDB page", "in the kernel"]
    for device, of_device in bindings.items():
        yield from ([str(device), *cells] for cells in rows_of(of_device))


def _msi_rows(guest: GuestStatus) -> Iterator[list[str]]:
    """Yield a row for the MSIs of each device: as predicted, and as measured if they were."""
    measured = guest.measured
    head = ["device", "MSIs, as predicted"]
    yield head if measured is None else [*head, "MSI address", "interrupts", "faults"]
    for device in guest.record.devices:
        if measured is None:
            yield [str(device.host), prediction_of(device.binding)]
        else:
            cells = _measured_cells(measured.get(device.host))
            yield [str(device.host), _prediction_beside(device.binding), *cells]
    for address in guest.others:
        if measured is not None and address in measured:
            yield [str(address), "-", *_measured_cells(measured[address])]


def _prediction_beside(binding: BindingRecord | None) -> str:
    """Return the verdict of the simulator beside a measured address, without uncertain ones."""
    if binding is not None and binding.outcome is not None and len(binding.programmed) > 1:
        return str(binding.outcome)
    return prediction_of(binding)


def _measured_cells(measured: Measured | None) -> list[str]:
    if measured is None:
        return ["not running", "-", "-"]
    addresses = measured.addresses
    if addresses is None:
        shown = "?"
    else:
        more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
        shown = f"{addresses[0]}{more}" if addresses else "no MSI enabled"
    interrupts = "?" if measured.interrupts is None else str(measured.interrupts)
    return [shown, interrupts, "?" if measured.faults is None else str(measured.faults)]


def list_lines(
    guests: Sequence[GuestStatus], notes: Iterable[str], width: int = WIDTH
) -> Iterator[str]:
    """Yield all guests as lines for people."""
    rows = [["guest", "state", "device", "strategy", "free ports"]]
    for guest in guests:
        cells = [[str(device.host), strategy_of(device)] for device in guest.record.devices]
        cells += [[str(address), "not by vmm-msi"] for address in guest.others]
        first, *more = cells or [["-", "-"]]
        rows.append([guest.name, guest.state or "-", *first, str(guest.free_ports)])
        rows += [["", "", *row, ""] for row in more]
    if guests:
        yield from columns(rows, width)
    else:
        yield "no guests"
    yield from (f"note: {note}" for note in notes)


def device_json(device: DeviceRecord) -> DeviceJson:
    """Return a device of a record as JSON."""
    binding = device.binding
    predicted: PredictedJson | None = None
    if binding is not None and binding.outcome is not None:
        certain = binding.programmed[0] if len(binding.programmed) == 1 else None
        predicted = {
            "outcome": binding.outcome,
            "programmed_iova": _hex(certain),
            "possible_iovas": [str(address) for address in binding.programmed],
        }
    return {
        "device": str(device.host),
        "strategy": device.strategy,
        "options": dict(device.options),
        "backend": device.backend,
        "smmu": device.smmu,
        "its": device.its,
        "pxb": device.pxb,
        "root_port": device.root_port,
        "giova": _hex(binding.giova if binding is not None else None),
        "gdb": _hex(binding.gdb if binding is not None else None),
        "predicted": predicted,
    }


def vsmmus_json(record: DomainRecord) -> list[VsmmuJson]:
    """Return the vSMMUs of a record as JSON."""
    return [
        {
            "pxb": vsmmu.pxb,
            "bus_nr": vsmmu.bus_nr,
            "smmu": vsmmu.smmu,
            "its": vsmmu.its,
            "accelerated": vsmmu.accelerated,
            "spare_ports": list(vsmmu.spare_ports),
        }
        for vsmmu in record.vsmmus
    ]


def change_to_json(
    name: str, record: DomainRecord, notes: Iterable[str], done: str
) -> ChangeDocument:
    """Return the devices of a guest after a change as JSON.

    :param done: what was done, in words; empty for nothing.
    """
    return {
        "schema": 1,
        "domain": name,
        "done": done or None,
        "vsmmus": vsmmus_json(record),
        "devices": [device_json(device) for device in record.devices],
        "notes": list(notes),
    }


def to_json(guest: GuestStatus) -> GuestJson:
    """Return the status of one guest as JSON."""
    return {
        "domain": guest.name,
        "state": guest.state,
        "free_ports": guest.free_ports,
        "vsmmus": vsmmus_json(guest.record),
        "devices": [
            {
                **device_json(device),
                "measured": _measured_json(guest.measured, device.host),
                "kernel_bindings": None
                if guest.bindings is None
                else [binding_json(binding) for binding in guest.bindings.get(device.host, ())],
            }
            for device in guest.record.devices
        ],
        "other_devices": [str(address) for address in guest.others],
        "other_measured": {
            str(address): measured
            for address in guest.others
            if (measured := _measured_json(guest.measured, address)) is not None
        },
        "notes": list(guest.notes),
    }


def _measured_json(
    measured: Mapping[PciAddress, Measured] | None, address: PciAddress
) -> MeasuredJson | None:
    of_device = None if measured is None else measured.get(address)
    if of_device is None:
        return None
    addresses = of_device.addresses
    return {
        "programmed_iovas": None if addresses is None else [str(iova) for iova in addresses],
        "interrupts": of_device.interrupts,
        "vectors": of_device.vectors,
        "faults": of_device.faults,
    }


def _hex(value: object) -> str | None:
    return None if value is None else str(value)
