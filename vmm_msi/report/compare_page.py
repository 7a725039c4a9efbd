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
    Terms,
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

#: Devices that a column may stand for without folding their list.
_MAX_SHOWN: Final = 40
#: Abbreviations of pictures and reasons.
_ABBREVIATIONS: Final = (
    ("S1, S2", "stage 1, the guest's translation tables, and stage 2, the host's"),
    ("IOVA", "the address that the device writes its MSI to, before both stages"),
    ("IPA, PA", "the address between the stages, and the host's physical address"),
    (
        "gDB, hDB",
        "the doorbell of the guest's virtual ITS (an IPA), and that of a host's ITS (a PA)",
    ),
    ("gIOVA", "the IOVA that the guest gives a device for its gDB"),
    ("ITS, pITS, vITS", "what turns an MSI into an interrupt: a physical and a virtual one"),
    ("LPI", "the interrupt that the ITS raises for a DeviceID and an EventID"),
    ("RMR", "a node of the guest's IORT: memory that the guest maps 1:1 at stage 1"),
    ("slot", "a page of the host kernel's own window of MSI addresses, for one doorbell page"),
)

_HINT: Final = (
    "It shows the first MSI that does not arrive; choose another outcome in the table above. "
    "Buttons step through it, and so do the arrow keys when it has the focus."
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
    groups = compare_rows.device_groups(scenario, results)
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
        Heading("Strategies"),
        _strategies(results),
        Heading("Legend"),
        compare_rows.legend(results),
        Terms(_ABBREVIATIONS),
        Heading("Kernels"),
        replace(compare_rows.kernels(results), caption=""),
    )
    made_from = {
        "host": scenario.host.source,
        "guest": _guest(scenario, results[0].verdicts if results else ()),
        **provenance,
    }
    return Page(title, blocks, made_from, compare_rows.verdict_rows(scenario, results))


def _guest(scenario: Scenario, verdicts: Sequence[Verdict]) -> str:
    guest = scenario.guest
    msis = quantity(sum(verdict.count for verdict in verdicts), "MSI")
    parts = (
        f"{quantity(len(guest.devices), 'device')} with {msis}",
        quantity(len(guest.vits), "virtual ITS"),
        quantity(len(guest.stage1), "stage 1 table"),
    )
    return f"{guest.name}: {', '.join(parts)}; MSIs enabled {guest.order}"


def _summary(results: Sequence[Result]) -> str:
    """Return in sentences which strategies deliver every MSI, and what applies them."""
    complete = [
        result
        for result in results
        if all(verdict.outcome is Outcome.DELIVERED for verdict in result.verdicts)
    ]
    if not complete:
        return "No strategy delivers every MSI."
    parts = []
    for binder, (word, _meaning) in compare_rows.APPLIED_BY.items():
        names = ", ".join(name_of(result) for result in complete if result.applied_by is binder)
        if names:
            parts.append(f"{word}: {names}")
    return f"{len(complete)} of {len(results)} deliver every MSI. {'; '.join(parts)}."


def _matrix(results: Sequence[Result], groups: Sequence[DeviceGroup]) -> Table:
    """Return the outcomes of each strategy, which lead to their paths, and its costs."""
    outcomes = compare_rows.outcomes_by_strategy(results, groups)
    strategies = compare_rows.strategies(results)
    known = len(strategies.head) - len(compare_rows.COSTS)
    rows = []
    for number, (row, (_name, *outcome_cells)) in enumerate(
        zip(strategies.rows, outcomes.rows, strict=True)
    ):
        linked = (_linked(cell, number, column) for column, cell in enumerate(outcome_cells))
        rows.append((*row[:known], *linked, *row[known:]))
    head = (*strategies.head[:known], *outcomes.head[1:], *strategies.head[known:])
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
        table = Table("Devices that share a column", ("column", "devices"), rows)
        many = sum(len(group.devices) for group in folded) > _MAX_SHOWN
        yield Section(table.caption, (table,), folded=True) if many else table


def _strategies(results: Sequence[Result]) -> Table:
    """Return what each strategy does and requires, once for its forms."""
    rows = {
        result.strategy: cells(result.strategy, result.summary, result.requires, result.price)
        for result in results
    }
    head = ("strategy", "what it does", "what the guest needs", "what it costs")
    return Table("", head, tuple(rows.values()))


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
    if compare_rows.depend_on_order(results):
        yield Text(f"Where an MSI has several addresses: {ADDRESS_ORDER}.")
