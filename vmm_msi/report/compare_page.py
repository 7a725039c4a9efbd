"""The report of ``compare`` as a page: the host, a matrix of outcomes, and the path of each MSI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.engine.session import outcomes
from vmm_msi.errors import errno_name
from vmm_msi.iommu.profiles import PROFILES
from vmm_msi.pages.blocks import (
    Cell,
    Heading,
    Page,
    Step,
    Table,
    Terms,
    Text,
    Tone,
    Walk,
    Walks,
    cells,
)
from vmm_msi.pages.drawing import to_svg
from vmm_msi.quantity import quantity
from vmm_msi.report.chain import Passage, path_title, stations
from vmm_msi.report.chain_svg import chain_drawing
from vmm_msi.report.compare_rows import OUTCOME_TONES, legend, strategy_name
from vmm_msi.report.host_map import host_picture
from vmm_msi.types import Outcome
from vmm_msi.types.verdict import addresses_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_msi.engine.compare import Result
    from vmm_msi.types import PciAddress, Scenario, Verdict

#: Columns of the matrix; devices that fare alike share one.
_MAX_COLUMNS = 24

_PASSAGE_TONES = {
    Passage.PASSED: None,
    Passage.BROKEN: Tone.BAD,
    Passage.NOT_REACHED: Tone.QUIET,
}


@dataclass(frozen=True)
class _Column:
    """Devices that fare alike with every strategy.

    :param verdicts: the verdict of its first device for each result; None where it has none.
    """

    devices: tuple[PciAddress, ...]
    its: int | None
    verdicts: tuple[Verdict | None, ...]

    @property
    def name(self) -> str:
        more = f" and {len(self.devices) - 1:,} like it" if len(self.devices) > 1 else ""
        its = "no ITS" if self.its is None else f"ITS {self.its}"
        return f"{self.devices[0]}{more} ({its})"


def to_page(scenario: Scenario, results: Sequence[Result], provenance: Mapping[str, str]) -> Page:
    """Return the report.

    :param provenance: what it is made from, besides the host and the guest.
    """
    columns = _columns(scenario, results)
    devices = [device.host for device in scenario.guest.devices]
    title = f"Where the MSIs of {quantity(len(devices), 'device')} land"
    blocks = (
        Text(_verdict_of(results)),
        Heading("Host"),
        host_picture(scenario.host, devices),
        Heading("Strategies and devices"),
        _matrix(results, columns),
        Heading("Path of an MSI"),
        Text(
            "Choose a cell above. Arrow keys, or the buttons, go from place to place.", Tone.QUIET
        ),
        Walks("Step through the path", tuple(_walks(scenario, results, columns))),
        *_losses(results),
        *_folded_devices(columns),
        Heading("What the words mean"),
        legend(results),
        *_kernels(results),
    )
    made_from = {"host": scenario.host.source, "guest": _guest(scenario), **provenance}
    return Page(title, blocks, made_from, _data(results))


def _guest(scenario: Scenario) -> str:
    guest = scenario.guest
    return (
        f"{quantity(len(guest.devices), 'device')}, {quantity(len(guest.vits), 'virtual ITS')}, "
        f"{quantity(len(guest.stage1), 'stage 1 table')}; MSIs enabled {guest.order}"
    )


def _verdict_of(results: Sequence[Result]) -> str:
    """Return in a sentence which strategies deliver every MSI."""
    names = [
        strategy_name(result.strategy, result.options)
        for result in results
        if all(verdict.outcome is Outcome.DELIVERED for verdict in result.verdicts)
    ]
    if not names:
        return "No strategy delivers every MSI."
    total = len(results)
    return f"{len(names)} of {total} strategies and forms deliver every MSI: {', '.join(names)}."


def _columns(scenario: Scenario, results: Sequence[Result]) -> list[_Column]:
    """Return devices that fare alike, in order of their first one.

    Reasons are compared too, unless that gives more columns than a page can show.
    """
    verdicts: dict[PciAddress, list[Verdict | None]] = {
        device.host: [None] * len(results) for device in scenario.guest.devices
    }
    for number, result in enumerate(results):
        for verdict in result.verdicts:
            row = verdicts[verdict.device]
            row[number] = row[number] or verdict
    for detailed in (True, False):
        groups: dict[tuple[object, ...], list[PciAddress]] = {}
        for address, row in verdicts.items():
            device = scenario.host.device_by_address[address]
            key = (device.its_group[:1], *(_alike(verdict, detailed=detailed) for verdict in row))
            groups.setdefault(key, []).append(address)
        if len(groups) <= _MAX_COLUMNS or len(verdicts) <= _MAX_COLUMNS:
            break
    if len(verdicts) <= _MAX_COLUMNS // 3:
        groups = {(address,): [address] for address in verdicts}
    return [
        _Column(
            tuple(addresses),
            next(iter(scenario.host.device_by_address[addresses[0]].its_group), None),
            tuple(verdicts[addresses[0]]),
        )
        for addresses in groups.values()
    ]


def _alike(verdict: Verdict | None, *, detailed: bool) -> object:
    if verdict is None or not detailed:
        return verdict and verdict.outcome
    return verdict.outcome, verdict.errno, verdict.reason.replace(str(verdict.device), "")


def _matrix(results: Sequence[Result], columns: Sequence[_Column]) -> Table:
    """Return the outcomes: a row per strategy, a column per device, and the costs."""
    head = (
        "strategy",
        "kernel",
        *(column.name for column in columns),
        "delivered",
        "S2",
        "maps",
        "slots",
        "bindings",
    )
    rows = []
    for number, result in enumerate(results):
        counts = outcomes(result.verdicts)
        total = sum(counts.values())
        delivered = counts[Outcome.DELIVERED]
        costs = result.costs
        rows.append(
            cells(
                strategy_name(result.strategy, result.options),
                result.options.get("profile", ""),
                *(
                    _cell(column.verdicts[number], _walk_id(number, place))
                    for place, column in enumerate(columns)
                ),
                Cell(f"{delivered}/{total}", Tone.GOOD if delivered == total else None),
                costs.s2_domains,
                costs.s2_mappings,
                costs.sw_msi_slots,
                costs.bindings,
            )
        )
    return Table("Outcome of each MSI, and costs of the strategy", head, tuple(rows), True)


def _walk_id(row: int, column: int) -> str:
    return f"path-{row}-{column}"


def _cell(verdict: Verdict | None, link: str) -> Cell:
    if verdict is None:
        return Cell("")
    return Cell(_outcome(verdict), OUTCOME_TONES[verdict.outcome], link)


def _outcome(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.DELIVERED:
        return f"delivered at {addresses_text(verdict.possible)}"
    errno = "" if verdict.errno is None else f" {errno_name(verdict.errno)}"
    return f"{verdict.outcome}{errno}"


def _walks(
    scenario: Scenario, results: Sequence[Result], columns: Sequence[_Column]
) -> Iterator[Walk]:
    """Yield the path of the first MSI of each cell."""
    for number, result in enumerate(results):
        name = strategy_name(result.strategy, result.options)
        for place, column in enumerate(columns):
            verdict = column.verdicts[number]
            if verdict is None:
                continue
            path = stations(result, verdict, scenario.guest, verdict.first)
            title = path_title(result, verdict, verdict.first)
            steps = tuple(
                Step(
                    station.place,
                    station.text or str(station.passage),
                    station.notes,
                    _PASSAGE_TONES[station.passage],
                )
                for station in path
            )
            svg = to_svg(chain_drawing(title, path, notes=False), alone=False)
            yield Walk(_walk_id(number, place), title, svg, steps, name, column.name)


def _losses(results: Sequence[Result]) -> Iterator[Heading | Table]:
    """Yield why MSIs are not delivered, a row per cause."""
    groups: dict[tuple[Outcome, str], tuple[Verdict, dict[str, None], dict[PciAddress, None]]] = {}
    for result in results:
        name = strategy_name(result.strategy, result.options)
        for verdict in result.verdicts:
            if verdict.outcome is Outcome.DELIVERED:
                continue
            key = (verdict.outcome, verdict.reason.replace(str(verdict.device), ""))
            _first, names, devices = groups.setdefault(key, (verdict, {}, {}))
            names[name] = None
            devices[verdict.device] = None
    if groups:
        rows = tuple(
            cells(
                Cell(_outcome(first), OUTCOME_TONES[first.outcome]),
                first.reason,
                ", ".join(names),
                f"{first.device}{f' and {len(devices) - 1:,} more' if len(devices) > 1 else ''}",
            )
            for first, names, devices in groups.values()
        )
        yield Heading("Why MSIs are lost")
        yield Table("", ("outcome", "reason", "strategies", "devices"), rows, filterable=True)


def _folded_devices(columns: Sequence[_Column]) -> Iterator[Heading | Table]:
    """Yield the devices of each column that has several."""
    folded = [column for column in columns if len(column.devices) > 1]
    if folded:
        rows = tuple(cells(c.name, " ".join(map(str, c.devices))) for c in folded)
        yield Heading("Devices that fare alike")
        yield Table("", ("column", "devices"), rows, filterable=True)


def _kernels(results: Sequence[Result]) -> Iterator[Heading | Terms]:
    used = {result.options.get("profile") for result in results}
    rows = tuple((p.name, p.standing or "released") for p in PROFILES if p.name in used)
    if rows:
        yield Heading("Kernels")
        yield Terms(rows)


def _data(results: Sequence[Result]) -> Table:
    """Return a row per run of vectors, for CSV."""
    head = (
        "strategy", "kernel", "device", "first_vector", "vectors", "outcome", "errno",
        "programmed_iova", "its", "expected_its", "first_lpi", "reason",
    )  # fmt: skip
    rows = tuple(
        cells(
            strategy_name(result.strategy, result.options),
            result.options.get("profile", ""),
            verdict.device,
            verdict.first,
            verdict.count,
            verdict.outcome,
            "" if verdict.errno is None else errno_name(verdict.errno),
            _or_empty(verdict.programmed),
            _or_empty(verdict.its),
            verdict.expected_its,
            _or_empty(verdict.lpi),
            verdict.reason,
        )
        for result in results
        for verdict in result.verdicts
    )
    return Table("", head, rows)


def _or_empty(value: object) -> object:
    return "" if value is None else value
