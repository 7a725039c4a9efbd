"""Print the truth table that real guests showed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm_msi.errors import errno_name
from vmm_msi.lab.guest.truth_table import COLUMNS, Sharing, agreement
from vmm_msi.quantity import quantity
from vmm_msi.report.columns import columns
from vmm_msi.terminal import WIDTH
from vmm_msi.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.lab.guest.cells import TableResult
    from vmm_msi.lab.guest.truth_table import Cell, DeviceCell, Row
    from vmm_msi.report.system_documents import (
        CompareGuestsDocument,
        TableCellJson,
        TableDeviceJson,
        TableFaultJson,
    )
    from vmm_msi.types import Verdict

#: Version of the JSON form; it goes up when a key changes its meaning or goes away.
SCHEMA: Final = 1

#: Cells: delivered, a fault at a stage, refused.
_WORDS = {
    Outcome.DELIVERED: "d",
    Outcome.S1_FAULT: "s1",
    Outcome.S2_FAULT: "s2",
    Outcome.MISROUTED: "mis",
    Outcome.REFUSED: "no",
    None: "?",
}


def to_json(result: TableResult) -> CompareGuestsDocument:
    """Return the table as JSON of schema 1."""
    return {
        "schema": SCHEMA,
        "releases": dict(result.releases),
        "itses": result.itses,
        "cells": [_cell_json(cell) for cell in result.cells],
        "disagreements": sum(not cell.agrees for cell in result.cells),
        "seconds": round(result.seconds, 1),
    }


def _cell_json(cell: Cell) -> TableCellJson:
    pairs = zip(cell.devices, cell.predicted, strict=True)
    return {
        "stage1": cell.row.guest.sharing.value,
        "order": cell.row.order.value,
        "rmr": cell.row.guest.rmr,
        "vsmmus": cell.row.guest.vsmmus,
        "strategy": cell.column.strategy,
        "devices": [_device_json(cell, device, verdict) for device, verdict in pairs],
        "agrees": cell.agrees,
        "seconds": round(cell.seconds, 2),
    }


def _device_json(cell: Cell, device: DeviceCell, verdict: Verdict) -> TableDeviceJson:
    number = verdict.errno_inside or verdict.errno
    faults: list[TableFaultJson] = [
        {"log": "host" if whose == "host" else "guest", "line": line}
        for whose, line in device.faults
    ]
    return {
        "device": str(device.device),
        "giova": str(cell.guest.device_by_address[device.device].giova),
        "outcome": None if device.outcome is None else device.outcome.value,
        "errno": device.errno or None,
        "programmed_iovas": [str(iova) for iova in device.address],
        "done": device.done,
        "landed": device.landed,
        "misrouted": device.misrouted,
        "arrived": device.arrived,
        "faults": faults,
        "predicted": {
            "outcome": verdict.outcome.value,
            "errno": None if number is None else errno_name(number),
            "programmed_iova": None if verdict.programmed is None else str(verdict.programmed),
        },
        "agrees": agreement(device, verdict, rmr=cell.guest.honours_rmr),
    }


def to_lines(result: TableResult, width: int = WIDTH) -> Iterator[str]:
    """Yield the table, then what is not as predicted."""
    words = [f"{name} {release}" for name, release in result.releases.items()]
    if result.itses > 1:
        words.append(f"{quantity(result.itses, 'physical ITS')}: A uses the first, B the second")
    yield ", ".join(words)
    run = {cell.column for cell in result.cells}
    labels = [column.label for column in COLUMNS if column in run]
    for rmr in (True, False):
        rows = [cell.row for cell in result.cells if cell.row.guest.rmr is rmr]
        if rows:
            yield ""
            yield f"guests {'with' if rmr else 'without'} QEMU's RMR:"
            table = [_row(result, row, labels) for row in dict.fromkeys(rows)]
            yield from columns([["stage 1", "vSMMUs", *labels], *table], width)
    yield ""
    yield "each cell: drive A, drive B; v2 to v15: revisions of coerced"
    shown = {device.outcome for cell in result.cells for device in cell.devices}
    yield "  d   every interrupt reached the ITS and the guest"
    if Outcome.S1_FAULT in shown:
        yield "  s1  none did; the guest's kernel logged a fault at that address"
    if Outcome.S2_FAULT in shown:
        yield "  s2  none did; the host's kernel logged a fault at that address"
    if Outcome.MISROUTED in shown:
        yield "  mis none did; MSIs reached another ITS, or none that knows the device"
    if Outcome.REFUSED in shown:
        yield "  no  the kernel refused the device; no+: its slot still delivers everything"
    if len(result.cells) < len({cell.row for cell in result.cells}) * len(labels):
        yield "  -   not run: it needs a stage 2 for each ITS, QEMU has one for each physical SMMU"
    wrong = [cell for cell in result.cells if not cell.agrees]
    yield ""
    yield (
        f"{quantity(len(result.cells), 'cell')}, {quantity(len(wrong), 'disagreement')} with the "
        f"simulator, {result.seconds:.0f} s"
    )
    for cell in wrong:
        yield from _disagreement(cell)


def _row(result: TableResult, row: Row, labels: Sequence[str]) -> list[str]:
    cells = {cell.column.label: cell for cell in result.cells if cell.row == row}
    order = f", {row.order}" if row.guest.sharing is Sharing.OWN else ""
    shown = (_words(cells[label]) if label in cells else "-" for label in labels)
    return [f"{row.guest.sharing}{order}", str(row.guest.vsmmus), *shown]


def _words(cell: Cell) -> str:
    return " ".join(map(_word, cell.devices)) + ("" if cell.agrees else " !")


def _word(device: DeviceCell) -> str:
    kept = device.outcome is Outcome.REFUSED and device.arrives
    return _WORDS[device.outcome] + ("+" if kept else "")


def _disagreement(cell: Cell) -> Iterator[str]:
    yield f"{cell.row}, {cell.column.strategy}:"
    for device, verdict in zip(cell.devices, cell.predicted, strict=True):
        number = verdict.errno_inside or verdict.errno
        errno = "" if number is None else f" {errno_name(number)}"
        addresses = ", ".join(map(str, device.address)) or "no address"
        yield (
            f"  {device.device} predicted {verdict.outcome}{errno} at {verdict.programmed}: "
            f"{device.outcome or 'unknown'} {device.errno}".rstrip()
            + f" at {addresses}, {quantity(device.done, 'read')}, {device.landed} at the ITS, "
            f"{device.arrived} in the guest"
        )
        for whose, line in device.faults[:2]:
            yield f"    {whose}: {line}"
