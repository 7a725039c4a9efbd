"""Run cells of the truth table on a guest that runs: bind, read from its drives, unbind."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from vmm_msi.errors import LabError
from vmm_msi.lab.guest.host_counter import faults
from vmm_msi.lab.guest.table_guests import GDB
from vmm_msi.lab.guest.truth_table import Cell, DeviceCell
from vmm_msi.types import BindOrder, Outcome, PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.guest.host_counter import HostCounter
    from vmm_msi.lab.guest.runner import Runner
    from vmm_msi.lab.guest.table_guests import RunningGuest, TableGuests
    from vmm_msi.lab.guest.truth_table import Column, Row, TableGuest
    from vmm_msi.lab.rpc.link import AgentLink
    from vmm_msi.types import GuestDevice, GuestDomain, Verdict

#: Returns the simulator's verdicts of a guest's devices with a strategy.
Predict: TypeAlias = "Callable[[GuestDomain, str], Sequence[Verdict]]"

_PAGE_SHIFT = 12
#: Reads of a drive whose first interrupt arrives; of another one the first read is enough.
READS = 50


@dataclass(frozen=True)
class TableResult:
    """The cells of a table.

    :param releases: the releases of kernel, libvirt and QEMU.
    :param seconds: how long it took, starts included.
    :param itses: number of ITSes of the host.
    """

    releases: Mapping[str, str]
    cells: Sequence[Cell]
    seconds: float
    itses: int = 1


class TruthTable:
    """Run rows of the truth table on guests.

    :param itses: number of ITSes of the host.
    """

    def __init__(
        self,
        guests: TableGuests,
        runner: CellRunner,
        predict: Predict,
        progress: Progress,
        itses: int = 1,
    ) -> None:
        self._itses = itses
        self._guests = guests
        self._runner = runner
        self._predict = predict
        self._progress = progress

    def run(self, rows: Iterable[Row], columns: Sequence[Column]) -> Iterator[Cell]:
        """Yield a cell for each row and column; the rows of one guest follow each other.

        A column that cannot run on a row's guest has no cell there.
        """
        running: tuple[TableGuest, RunningGuest] | None = None
        for row in rows:
            if running is None or running[0] != row.guest:
                self._progress.stage(f"starting a guest: {row.guest}")
                running = row.guest, self._guests.start(row.guest)
            guest = running[1]
            usable = [column for column in columns if column.runs_on(row.guest, self._itses)]
            labels = ", ".join(column.label for column in usable)
            self._progress.stage(f"{row}: {labels}")
            for column in usable:
                self._progress.step(f"{row}: {column.strategy}")
                domain = row.domain(guest.domain)
                devices, seconds = self._runner.run(guest, domain, column)
                verdicts = self._predict(domain, column.strategy)
                cell = Cell(row, column, domain, devices, verdicts, seconds)
                if not cell.agrees:
                    self._progress.stage(f"{row}: {column.strategy}: not as predicted")
                yield cell
        self._guests.stop()


class CellRunner:
    """Run cells.

    :param counter: reads the real MSI-X tables.
    """

    def __init__(self, runner: Runner, link: AgentLink, counter: HostCounter) -> None:
        self._runner = runner
        self._link = link
        self._counter = counter

    def run(
        self, guest: RunningGuest, domain: GuestDomain, column: Column
    ) -> tuple[list[DeviceCell], float]:
        """Bind the devices of a guest as a strategy does, count, unbind.

        :param domain: the guest, with the devices in the order of the row.
        :return: what each did, and the duration in seconds.
        :raise LabError: when the devices are not on their slots afterwards.
        """
        begun = time.monotonic()
        devices = domain.devices
        slots = {d.host: self._counter.addresses(d.host) for d in devices}
        refused = self._bind(devices, column, domain.order)
        cells = [self._measure(guest, d, refused.get(d.host, "")) for d in devices]
        if column.allocator is not None:
            self._unbind(devices)
            left = {d.host: self._counter.addresses(d.host) for d in devices}
            if left != slots:
                raise LabError(f"lab compare-guests: after unbinding: {left}, before {slots}")
        return cells, time.monotonic() - begun

    def _bind(
        self, devices: Sequence[GuestDevice], column: Column, order: BindOrder
    ) -> dict[PciAddress, str]:
        """Bind and prepare; return the errno's name of each device that was refused."""
        if column.allocator is None:
            return {}
        refused = self._write(
            (device.host, f"allocator {device.host} {column.allocator}") for device in devices
        )
        if refused:
            raise LabError(f"lab compare-guests: allocator {column.allocator}: {refused}")
        steps = []
        for device in devices:
            bind = f"bind {device.host} {device.giova} {GDB} {_PAGE_SHIFT}"
            steps.append((device.host, [bind]))
            if column.prepares:
                steps.append((device.host, [f"prepare {device.host}"]))
        if order is BindOrder.BATCHED:
            steps.sort(key=lambda step: step[1][0].startswith("prepare"))
        for host, commands in steps:
            if host not in refused:
                refused |= self._write((host, command) for command in commands)
        return refused

    def _unbind(self, devices: Sequence[GuestDevice]) -> None:
        """Withdraw every binding; a device may still have another one's address until prepared."""
        # A refused BIND left nothing to withdraw (ENOENT).
        self._write((d.host, f"unbind {d.host} {d.giova}") for d in devices)
        refused = self._write((d.host, f"prepare {d.host}") for d in devices)
        refused |= self._write((d.host, f"allocator {d.host} direct") for d in devices)
        if refused:
            raise LabError(f"lab compare-guests: unbinding: {refused}")

    def _write(self, commands: Iterable[tuple[PciAddress, str]]) -> dict[PciAddress, str]:
        """Write commands; return the errno's name for each device that was refused."""
        pairs = list(commands)
        answer = self._link.call("msi-bindings", commands=[command for _, command in pairs])
        errors = zip(pairs, answer["answers"], strict=True)
        return {device: errno for (device, _command), errno in errors if errno}

    def _measure(self, guest: RunningGuest, device: GuestDevice, errno: str) -> DeviceCell:
        host, view = device.host, str(guest.views[device.host])
        before = self._logs()
        self._runner.new_msis(host)
        done, arrived = self._read(view, 1)
        if arrived:
            more = self._read(view, READS - 1)
            done, arrived = done + more[0], arrived + more[1]
        counts = self._runner.new_msis(host)
        address = self._counter.addresses(host)
        after = self._logs()
        names = {"host": f" sid: {host.rid:#x} ", "guest": f" client: {view} "}
        lines = [
            (whose, line)
            for whose, log in after.items()
            for line in log[len(before[whose]) :]
            if names[whose] in line and any(f" iova: {iova} " in line for iova in address)
        ]
        landed, misrouted = (sum(numbers.values()) for numbers in counts)
        cell = DeviceCell(host, None, errno, address, done, landed, arrived, lines, misrouted)
        return replace(cell, outcome=_outcome(cell))

    def _read(self, view: str, count: int) -> tuple[int, int]:
        """Read from a drive; return the number of reads and of interrupts."""
        work = self._runner.guest("exercise", address=view, count=count)
        return work["done"], sum(vector["after"] - vector["before"] for vector in work["vectors"])

    def _logs(self) -> Mapping[str, Sequence[str]]:
        """Return the SMMU faults that both kernels have logged."""
        return {
            "host": faults(self._link.call("kernel-log")),
            "guest": faults(self._runner.guest("kernel-log")),
        }


def _outcome(cell: DeviceCell) -> Outcome | None:
    """Return the outcome of a device; None if interrupts were lost without a fault."""
    if cell.errno:
        return Outcome.REFUSED
    if cell.arrives:
        return Outcome.DELIVERED
    if cell.misrouted or (cell.landed and not cell.arrived):
        return Outcome.MISROUTED
    kinds = {whose for whose, _line in cell.faults}
    if cell.arrived or len(kinds) != 1:
        return None
    return Outcome.S1_FAULT if kinds == {"guest"} else Outcome.S2_FAULT
