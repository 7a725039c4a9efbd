"""The text of ``compare``: its tables, where MSIs arrive, why others do not, and a legend."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from vmm_msi.pages.blocks import Table
from vmm_msi.report import compare_rows
from vmm_msi.report.columns import MAX_PROSE, fits, prose, table, terms, wrapped
from vmm_msi.report.compare_rows import MAX_DEVICE_COLUMNS
from vmm_msi.terminal import WIDTH, Line
from vmm_msi.types import Outcome
from vmm_msi.types.verdict import ADDRESS_ORDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.engine.compare import Result
    from vmm_msi.pages.blocks import Cell
    from vmm_msi.types import Scenario


def compare_table(
    scenario: Scenario, results: Iterable[Result], width: int = WIDTH
) -> Iterator[str]:
    """Yield a row per strategy, where MSIs arrive or why not, the kernels, and a legend.

    :param width: of the terminal.
    """
    present = list(results)
    groups = compare_rows.device_groups(scenario, present)
    strategies = compare_rows.strategies(present)
    by_strategy = len(groups) <= MAX_DEVICE_COLUMNS
    outcomes_of = (
        compare_rows.outcomes_by_strategy if by_strategy else compare_rows.outcomes_by_device
    )
    outcomes = outcomes_of(present, groups)
    if by_strategy and fits(combined := _side_by_side(strategies, outcomes), width):
        yield from table(combined, width)
    else:
        yield from table(strategies, width)
        yield ""
        yield from table(outcomes, width)
    details = compare_rows.details(present)
    if details.rows:
        yield ""
        yield f"{details.caption}, and why others do not:"
        yield from _details(details, min(width, MAX_PROSE))
    if compare_rows.depend_on_order(present):
        yield ""
        yield from prose(ADDRESS_ORDER, width, "note: ")
    yield ""
    yield from table(compare_rows.kernels(present), width)
    yield ""
    yield "Legend:"
    yield from terms(compare_rows.legend(present), width)


def _side_by_side(left: Table, right: Table) -> Table:
    """Return two tables about the same rows as one."""
    rows = (row + other[1:] for row, other in zip(left.rows, right.rows, strict=True))
    return Table(left.caption, left.head + right.head[1:], tuple(rows))


def _details(details: Table, width: int) -> Iterator[str]:
    """Yield the rows of details below the strategies that share them."""
    for strategies, rows in groupby(details.rows, key=lambda row: row[0].text):
        yield from wrapped(strategies, width, "  ")
        for _strategies, device, outcome, where in rows:
            yield from _detail(device, outcome, where, width)


def _detail(device: Cell, outcome: Cell, where: Cell, width: int) -> Iterator[str]:
    head = f"    {device.text}  "
    separator = " " if outcome.text == Outcome.DELIVERED else ": "
    first, *others = wrapped(f"{outcome.text}{separator}{where.text}", width, head)
    rest = first.removeprefix(head + outcome.text)
    yield Line([(head, None), (outcome.text, outcome.tone), (rest, None)])
    yield from others
