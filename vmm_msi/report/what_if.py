"""Worlds that were compared, as blocks: what changes the outcome, or what differs between two."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from vmm_msi.pages.blocks import Cell, Items, Page, Section, Table, Terms, Text, cells
from vmm_msi.quantity import quantity
from vmm_msi.report.columns import indented, prose, table, terms
from vmm_msi.report.compare_rows import OUTCOME_TONES, name_of
from vmm_msi.report.worlds import Subject, by_value, deciding_axes, table_of_outcomes
from vmm_msi.terminal import WIDTH
from vmm_msi.types import Outcome
from vmm_msi.types.verdict import addresses_text

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    from vmm_msi.pages.blocks import Block
    from vmm_msi.report.worlds import Axis, Ran

#: Devices that a title names; if there are more, they are counted.
_MAX_NAMED = 3


def variation(runs: Sequence[Ran], axes: Sequence[Axis]) -> tuple[Block, ...]:
    """Return what changes the outcome among the worlds of all combinations of values."""
    worlds = [ran.world for ran in runs]
    outcomes = table_of_outcomes(runs)
    deciding = {
        subject: deciding_axes(worlds, axes, values) for subject, values in outcomes.items()
    }
    changing = [subject for subject, numbers in deciding.items() if numbers]
    rows = tuple(
        (axis.key, _effect(sum(number in deciding[s] for s in changing), len(outcomes)))
        for number, axis in enumerate(axes)
    )
    blocks: list[Block] = [
        Text(f"{quantity(len(worlds), 'world')}, {quantity(len(outcomes), 'outcome')} in each"),
        Terms(rows),
    ]
    groups: dict[Hashable, list[Subject]] = {}
    tables: dict[Hashable, Table] = {}
    for subject in changing:
        numbers = deciding[subject]
        values = by_value(worlds, numbers, outcomes[subject])
        key = (numbers, tuple(values.items()))
        groups.setdefault(key, []).append(subject)
        head = (*(axes[number].key for number in numbers), "outcome")
        tables[key] = Table(
            "Outcomes",
            head,
            tuple(cells(*names, _outcome(outcome)) for names, outcome in values.items()),
        )
    blocks += [Section(_title(subjects), (tables[key],)) for key, subjects in groups.items()]
    impossible = [ran.world for ran in runs if ran.world.scenario is None]
    if impossible:
        texts = tuple(f"{world.name}: {world.error}" for world in impossible)
        blocks.append(Section(f"Impossible ({len(impossible)})", (Items(texts),)))
    return tuple(blocks)


def _effect(count: int, total: int) -> str:
    return f"changes {count} of {quantity(total, 'outcome')}" if count else "changes nothing"


def _title(subjects: Sequence[Subject]) -> str:
    """Return the strategies and devices of subjects."""
    by_devices: dict[tuple[str, ...], list[str]] = {}
    for (strategy, _kernel), group in groupby(subjects, key=lambda s: (s.strategy, s.kernel)):
        by_devices.setdefault(tuple(s.device for s in group), []).append(strategy)
    return "; ".join(
        f"{', '.join(dict.fromkeys(strategies))}: {_devices(devices)}"
        for devices, strategies in by_devices.items()
    )


def _devices(devices: Sequence[str]) -> str:
    if len(devices) <= _MAX_NAMED:
        return ", ".join(devices)
    return f"{devices[0]} and {quantity(len(devices) - 1, 'other device')}"


def two_worlds(first: Ran, second: Ran) -> tuple[Block, ...]:
    """Return what differs between two worlds, then what does not."""
    outcomes = table_of_outcomes((first, second))
    differing = {s: o for s, o in outcomes.items() if o[0] != o[1]}
    same = {s: o for s, o in outcomes.items() if o[0] == o[1]}
    blocks: list[Block] = [Terms((("A", first.world.name), ("B", second.world.name)))]
    changes = tuple(
        f"{letter}: {change}"
        for letter, ran in (("A", first), ("B", second))
        for change in ran.world.changes
    )
    if changes:
        blocks.append(Section("Changed", (Items(changes),)))
    title = f"Outcomes that differ ({len(differing)} of {len(outcomes)})"
    blocks.append(Section(title, _differences(differing)))
    reasons = tuple(
        text
        for letter, ran in (("A", first), ("B", second))
        for text in _reasons(letter, ran, differing)
    )
    if reasons:
        blocks.append(Section("Why not delivered", (Items(reasons),)))
    for what, found in (
        ("Addresses", _addresses(first, second, same)),
        ("Costs", _costs(first, second)),
    ):
        if found:
            table_of = Table(what, ("strategy", "device", "A", "B"), _merged(found))
            if what == "Costs":
                table_of = _without_device(table_of)
            blocks.append(Section(f"{what} that differ", (table_of,)))
    if same:
        rows = _merged({subject: (outcome[0],) for subject, outcome in same.items()})
        block = Table("Same", ("strategy", "device", "A and B"), rows)
        blocks.append(Section(f"Outcomes in both ({len(same)})", (block,)))
    return tuple(blocks)


def _differences(differing: Mapping[Subject, tuple[str, ...]]) -> tuple[Block, ...]:
    if not differing:
        return (Text("none"),)
    return (Table("Differences", ("strategy", "device", "A", "B"), _merged(differing)),)


def _merged(values: Mapping[Subject, tuple[str, ...]]) -> tuple[tuple[Cell, ...], ...]:
    """Return a row for the strategies and devices that have the same values."""
    by_strategy: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for subject, texts in values.items():
        by_strategy.setdefault((subject.strategy, subject.kernel, texts), []).append(subject.device)
    rows: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, None]] = {}
    for (strategy, _kernel, texts), devices in by_strategy.items():
        rows.setdefault((tuple(devices), texts), {})[strategy] = None
    return tuple(
        cells(", ".join(strategies), _devices(devices), *map(_outcome, texts))
        for (devices, texts), strategies in rows.items()
    )


def _outcome(text: str) -> Cell:
    """Return an outcome with its tone; another text, such as that of costs, has none."""
    word = text.partition(" (")[0]
    tone = next((tone for outcome, tone in OUTCOME_TONES.items() if outcome == word), None)
    return Cell(text, tone)


def _reasons(letter: str, ran: Ran, differing: Iterable[Subject]) -> Iterator[str]:
    """Yield why the MSIs of devices whose outcomes differ are not delivered, each reason once."""
    wanted = set(differing)
    seen: dict[str, dict[str, None]] = {}
    for result in ran.results:
        name, kernel = name_of(result), str(result.options.get("profile", ""))
        for verdict in result.verdicts:
            is_wanted = Subject(name, kernel, str(verdict.device)) in wanted
            if is_wanted and verdict.outcome is not Outcome.DELIVERED:
                text = f"{verdict.device}: {verdict.reason}"
                seen.setdefault(text, {})[name] = None
    for text, names in seen.items():
        yield f"{letter}, {', '.join(names)}: {text}"


def _addresses(first: Ran, second: Ran, same: Iterable[Subject]) -> dict[Subject, tuple[str, ...]]:
    """Return the addresses of MSIs whose outcome is the same, where they are others."""
    a, b = (_possible(ran) for ran in (first, second))
    return {
        subject: (a[subject], b[subject])
        for subject in same
        if subject in a and subject in b and a[subject] != b[subject]
    }


def _possible(ran: Ran) -> dict[Subject, str]:
    return {
        Subject(name_of(result), str(result.options.get("profile", "")), str(verdict.device)): (
            addresses_text(verdict.possible)
        )
        for result in ran.results
        for verdict in result.verdicts
        if verdict.possible
    }


def _costs(first: Ran, second: Ran) -> dict[Subject, tuple[str, ...]]:
    """Return the costs of strategies, where they are others."""
    a, b = (
        {
            Subject(name_of(result), str(result.options.get("profile", "")), ""): (
                f"S2 {result.costs.s2_domains}, maps {result.costs.s2_mappings}, "
                f"slots {result.costs.sw_msi_slots}, bindings {result.costs.bindings}"
            )
            for result in ran.results
        }
        for ran in (first, second)
    )
    return {key: (a[key], b[key]) for key in a if key in b and a[key] != b[key]}


def _without_device(costs: Table) -> Table:
    return Table(
        costs.caption,
        (costs.head[0], *costs.head[2:]),
        tuple((row[0], *row[2:]) for row in costs.rows),
    )


def to_page(runs: Sequence[Ran], blocks: tuple[Block, ...], provenance: Mapping[str, str]) -> Page:
    """Return the blocks as a page, with a row for each outcome in each world as data."""
    rows = tuple(
        cells(ran.world.name, subject.strategy, subject.kernel, subject.device, outcome)
        for subject, outcomes in table_of_outcomes(runs).items()
        for ran, outcome in zip(runs, outcomes, strict=True)
    )
    head = ("world", "strategy", "kernel", "device", "outcome")
    title = f"Strategies in {quantity(len(runs), 'world')}"
    return Page(title, blocks, provenance, Table("Outcomes", head, rows))


def to_lines(blocks: Iterable[Block], width: int = WIDTH) -> Iterator[str]:
    """Yield blocks as text.

    :param width: of the terminal.
    """
    for block in blocks:
        if isinstance(block, Section):
            yield ""
            yield from prose(block.title, width)
            yield from to_lines(block.blocks, width)
        elif isinstance(block, Table):
            yield from indented("  ", table(block, width - 2))
        elif isinstance(block, Terms):
            yield from terms(block, width)
        elif isinstance(block, Items):
            for text in block.texts:
                yield from prose(text, width, "  ", "    ")
        elif isinstance(block, Text):
            yield from prose(block.text, width)
