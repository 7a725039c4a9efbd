"""The report of ``compare`` as a page: the host, a matrix of outcomes, and the path of each MSI."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vmm_msi.pages.blocks import (
    Heading,
    Page,
    Section,
    Step,
    Table,
    Text,
    Tone,
    Walk,
    Walks,
    cells,
)
from vmm_msi.pages.drawing import to_svg
from vmm_msi.quantity import quantity
from vmm_msi.report import compare_rows
from vmm_msi.report.chain import Passage, path_title, stations
from vmm_msi.report.chain_svg import chain_drawing
from vmm_msi.report.compare_rows import name_of
from vmm_msi.report.host_map import host_picture
from vmm_msi.types import Outcome
from vmm_msi.types.verdict import ADDRESS_ORDER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_msi.engine.compare import Result
    from vmm_msi.pages.blocks import Block, Cell
    from vmm_msi.report.compare_rows import DeviceGroup
    from vmm_msi.types import PciAddress, Scenario, Verdict

#: Devices that have a column each; of more, those with the same outcomes share one.
_MAX_COLUMNS: Final = 12

_HINT: Final = (
    "Choose an outcome above for the path of the first MSI with that strategy; buttons and arrow "
    "keys step through it."
)
_TONES: Final = {
    Passage.PASSED: None,
    Passage.BROKEN: Tone.BAD,
    Passage.NOT_REACHED: Tone.QUIET,
}


def to_page(scenario: Scenario, results: Sequence[Result], provenance: Mapping[str, str]) -> Page:
    """Return the report.

    :param provenance: what it is made from, besides the host and the guest.
    """
    devices = [device.host for device in scenario.guest.devices]
    groups = compare_rows.device_groups(scenario, results, _MAX_COLUMNS)
    title = f"Where the MSIs of {quantity(len(devices), 'device')} land"
    blocks = (
        Text(_summary(results)),
        Heading("Host"),
        host_picture(scenario.host, devices),
        Heading("Strategies and devices"),
        _matrix(results, groups),
        *_members(groups),
        Walks("Path of an MSI", _HINT, tuple(_walks(scenario, results, groups))),
        Heading("Where MSIs arrive, and why others do not"),
        replace(compare_rows.details(results), caption="", filterable=True),
        *_order(results),
        Heading("Kernels"),
        replace(compare_rows.kernels(results), caption=""),
        Heading("Legend"),
        compare_rows.legend(results),
    )
    made_from = {"host": scenario.host.source, "guest": _guest(scenario), **provenance}
    return Page(title, blocks, made_from, compare_rows.verdict_rows(scenario, results))


def _guest(scenario: Scenario) -> str:
    guest = scenario.guest
    parts = (
        quantity(len(guest.devices), "device"),
        quantity(len(guest.vits), "virtual ITS"),
        quantity(len(guest.stage1), "stage 1 table"),
    )
    return f"{guest.name}: {', '.join(parts)}; MSIs enabled {guest.order}"


def _summary(results: Sequence[Result]) -> str:
    """Return in a sentence which strategies deliver every MSI."""
    names = [
        name_of(result)
        for result in results
        if all(verdict.outcome is Outcome.DELIVERED for verdict in result.verdicts)
    ]
    if not names:
        return "No strategy delivers every MSI."
    total = len(results)
    return f"{len(names)} of {total} strategies and forms deliver every MSI: {', '.join(names)}."


def _matrix(results: Sequence[Result], groups: Sequence[DeviceGroup]) -> Table:
    """Return the outcomes of each strategy, which lead to their paths, and its costs."""
    outcomes = compare_rows.outcomes_by_strategy(results, groups)
    linked = replace(
        outcomes,
        rows=tuple(
            (name, *(_linked(cell, row, column) for column, cell in enumerate(row_cells)))
            for row, (name, *row_cells) in enumerate(outcomes.rows)
        ),
    )
    strategies = compare_rows.strategies(results)
    known = len(strategies.head) - len(compare_rows.COSTS)
    rows = (
        (*row[:known], *outcome_cells[1:], *row[known:])
        for row, outcome_cells in zip(strategies.rows, linked.rows, strict=True)
    )
    head = (*strategies.head[:known], *linked.head[1:], *strategies.head[known:])
    return Table("Outcomes, and costs of each strategy", head, tuple(rows), filterable=True)


def _linked(cell: Cell, row: int, column: int) -> Cell:
    return replace(cell, link=_walk_id(row, column)) if cell.text else cell


def _walk_id(row: int, column: int) -> str:
    return f"path-{row}-{column}"


def _members(groups: Sequence[DeviceGroup]) -> Iterator[Block]:
    """Yield the devices of each column that stands for several."""
    folded = [group for group in groups if len(group.devices) > 1]
    if folded:
        rows = tuple(cells(group.name, " ".join(map(str, group.devices))) for group in folded)
        table = Table("", ("column", "devices"), rows)
        yield Section("Devices that share a column", (table,), folded=True)


def _walks(
    scenario: Scenario, results: Sequence[Result], groups: Sequence[DeviceGroup]
) -> Iterator[Walk]:
    """Yield the path of the first MSI of each cell."""
    for row, result in enumerate(results):
        first: dict[PciAddress, Verdict] = {}
        for verdict in result.verdicts:
            first.setdefault(verdict.device, verdict)
        for column, group in enumerate(groups):
            if verdict_of_group := first.get(group.devices[0]):
                yield _walk(scenario, result, verdict_of_group, _walk_id(row, column), group)


def _walk(
    scenario: Scenario, result: Result, verdict: Verdict, id_: str, group: DeviceGroup
) -> Walk:
    path = stations(result, verdict, scenario.guest, verdict.first)
    title = path_title(result, verdict, verdict.first)
    steps = tuple(
        Step(
            station.place,
            station.text or str(station.passage),
            station.notes,
            _TONES[station.passage],
        )
        for station in path
    )
    svg = to_svg(chain_drawing(title, path, notes=False), alone=False)
    return Walk(id_, title, svg, steps, name_of(result), group.name)


def _order(results: Sequence[Result]) -> Iterator[Text]:
    """Yield what decides between addresses, if a device may have several."""
    if any(len(verdict.possible) > 1 for result in results for verdict in result.verdicts):
        yield Text(f"Where an MSI has several addresses: {ADDRESS_ORDER}.")
