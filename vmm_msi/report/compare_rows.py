"""The results of ``compare`` as rows, without layout: what its text and its pages print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm_msi.engine.session import outcomes
from vmm_msi.iommu.profiles import PROFILES
from vmm_msi.pages.blocks import Cell, Table, Terms, Tone, cells
from vmm_msi.quantity import quantity
from vmm_msi.types import BinderKind, Outcome
from vmm_msi.types.verdict import OUTCOME_MEANINGS, addresses_text

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    from vmm_msi.engine.compare import Result
    from vmm_msi.types import PciAddress, Scenario, Verdict

#: Columns of devices, or of groups of devices with the same outcomes; if there are more, rows are
#: devices.
MAX_DEVICE_COLUMNS: Final = 4
#: ITSes that a group of devices names; if there are more, they are counted.
_MAX_ITSES = 4

#: Other devices with the same result that are named; if there are more, they are counted.
_MAX_NAMED = 3

#: What applies a strategy to a guest that runs, in a word or two, and what that means.
APPLIED_BY: Final[Mapping[BinderKind, tuple[str, str]]] = {
    BinderKind.QEMU: (
        "QEMU, stock kernel",
        "QEMU and a released Linux; vmm-msi attach writes the XML",
    ),
    BinderKind.KERNEL: (
        "patched kernel",
        "a kernel with guest MSI bindings, which is in no release; vmm-msi watch binds",
    ),
    BinderKind.SIM: (
        "simulator",
        "the simulator alone: neither QEMU nor a patched kernel applies it to a guest",
    ),
}

#: What the columns of costs count.
COSTS = (
    ("S2", "stage 2 tables"),
    ("maps", "doorbell pages mapped in all stage 2 tables"),
    ("slots", "pages taken from the software MSI window of the host's kernel"),
    ("bindings", "guest bindings (gIOVA -> gDB) that the host's kernel holds"),
)

# What differs between verdicts that are alike: PCI addresses, hex numbers, numbers.
_NUMBER = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]|0x[0-9a-f]+|\b\d+\b")

#: What an outcome means for the reader.
OUTCOME_TONES: Final = {
    Outcome.DELIVERED: Tone.GOOD,
    Outcome.S1_FAULT: Tone.BAD,
    Outcome.S2_FAULT: Tone.BAD,
    Outcome.MISROUTED: Tone.BAD,
    Outcome.REFUSED: Tone.WARNING,
}


def strategy_name(strategy: str, options: Mapping[str, object]) -> str:
    """Return how a strategy with options is written, without those that are empty."""
    text = ",".join(f"{k}={v}" for k, v in options.items() if k != "profile" and v)
    return f"{strategy}:{text}" if text else strategy


def name_of(result: Result) -> str:
    """Return how the strategy of a result is written."""
    return strategy_name(result.strategy, result.options)


def strategies(results: Sequence[Result]) -> Table:
    """Return a row per strategy: what applies it, how many MSIs it delivers, and its costs."""
    head = ("strategy", "applied by", "delivered", *(name for name, _meaning in COSTS))
    return Table("Strategies", head, tuple(map(_strategy_row, results)))


def _strategy_row(result: Result) -> tuple[Cell, ...]:
    counts = outcomes(result.verdicts)
    delivered, total = counts[Outcome.DELIVERED], sum(counts.values())
    tone = Tone.GOOD if delivered == total else Tone.WARNING if delivered else Tone.BAD
    costs = result.costs
    return cells(
        name_of(result),
        APPLIED_BY[result.applied_by][0],
        Cell(f"{delivered}/{total}", tone),
        costs.s2_domains,
        costs.s2_mappings,
        costs.sw_msi_slots,
        costs.bindings,
    )


@dataclass(frozen=True)
class DeviceGroup:
    """Devices that have the same outcomes with every strategy.

    :param outcomes: of each strategy; in a word, or in several if the vectors differ.
    """

    devices: tuple[PciAddress, ...]
    itses: tuple[int | None, ...]
    outcomes: tuple[tuple[Outcome, ...], ...]

    @property
    def name(self) -> str:
        """The first device, and the number of others."""
        return _first_and_others(self.devices)

    @property
    def its_text(self) -> str:
        """Their ITSes, or their number where there are many."""
        if len(self.itses) > _MAX_ITSES:
            return quantity(len(self.itses), "ITS")
        return f"ITS {', '.join(map(str, self.itses))}"


def device_groups(scenario: Scenario, results: Sequence[Result]) -> list[DeviceGroup]:
    """Return the devices; if they are many, those with the same outcomes in one group."""
    its_of = {device.address: device.its for device in scenario.host.devices}
    devices = [device.host for device in scenario.guest.devices]
    of_strategies = [_outcomes_of_devices(result) for result in results]
    groups: dict[Hashable, list[PciAddress]] = {}
    for device in devices:
        results_of_device = tuple(by_device.get(device, ()) for by_device in of_strategies)
        alone = device if len(devices) <= MAX_DEVICE_COLUMNS else None
        groups.setdefault((alone, results_of_device), []).append(device)
    return [
        DeviceGroup(
            tuple(members),
            tuple(dict.fromkeys(its_of.get(device) for device in members)),
            tuple(by_device.get(members[0], ()) for by_device in of_strategies),
        )
        for members in groups.values()
    ]


def _outcomes_of_devices(result: Result) -> dict[PciAddress, tuple[Outcome, ...]]:
    """Return the outcomes of each device's vectors, in order, each once."""
    outcomes_of: dict[PciAddress, dict[Outcome, None]] = {}
    for verdict in result.verdicts:
        outcomes_of.setdefault(verdict.device, {})[verdict.outcome] = None
    return {device: tuple(outcomes) for device, outcomes in outcomes_of.items()}


def outcomes_by_strategy(results: Sequence[Result], groups: Sequence[DeviceGroup]) -> Table:
    """Return a row per strategy with a column per group of devices."""
    head = ("strategy", *(f"{group.name} {group.its_text}" for group in groups))
    rows = (
        (Cell(name_of(result)), *(outcome_cell(group.outcomes[number]) for group in groups))
        for number, result in enumerate(results)
    )
    return Table("Outcomes", head, tuple(rows))


def outcomes_by_device(results: Sequence[Result], groups: Sequence[DeviceGroup]) -> Table:
    """Return a row per group of devices; strategies with the same outcomes share a column."""
    columns: dict[Hashable, list[int]] = {}
    for number in range(len(results)):
        columns.setdefault(tuple(g.outcomes[number] for g in groups), []).append(number)
    names = [", ".join(name_of(results[n]) for n in numbers) for numbers in columns.values()]
    rows = (
        (
            *cells(group.name, group.its_text),
            *(outcome_cell(group.outcomes[numbers[0]]) for numbers in columns.values()),
        )
        for group in groups
    )
    return Table("Outcomes", ("device", "its ITS", *names), tuple(rows))


def outcome_cell(outcomes_of_vectors: Sequence[Outcome]) -> Cell:
    """Return the outcomes of a device's vectors as a cell."""
    text = ", ".join(outcomes_of_vectors)
    return Cell(
        text, OUTCOME_TONES[outcomes_of_vectors[0]] if len(outcomes_of_vectors) == 1 else None
    )


def details(results: Sequence[Result]) -> Table:
    """Return where MSIs arrive and why others do not.

    A row is about devices that are alike; strategies with the same rows share them, which is why
    the first cell of a row may be that of the row before.
    """
    names: dict[tuple[tuple[Cell, ...], ...], list[str]] = {}
    for result in results:
        names.setdefault(tuple(_alike(result.verdicts)), []).append(name_of(result))
    rows = (
        (Cell(", ".join(strategies_alike)), *row)
        for alike, strategies_alike in names.items()
        for row in alike
    )
    return Table(
        "Where MSIs arrive", ("strategies", "device", "outcome", "where or why"), tuple(rows)
    )


def reason_kind(reason: str) -> str:
    """Return a reason without what differs between verdicts that are alike."""
    return _NUMBER.sub("#", reason)


def _alike(verdicts: Sequence[Verdict]) -> Iterator[tuple[Cell, ...]]:
    """Yield device, outcome and its detail, a row for verdicts that are alike.

    Of many verdicts, those that differ only in addresses and numbers are alike, too.
    """
    many = len(verdicts) > MAX_DEVICE_COLUMNS
    groups: dict[Hashable, list[Verdict]] = {}
    for verdict in verdicts:
        reason = _reason(verdict)
        where = reason_kind(reason) if many else (verdict.possible, reason)
        key = (verdict.outcome, verdict.errno, where, verdict.first)
        groups.setdefault(key, []).append(verdict)
    for alike in groups.values():
        first = alike[0]
        device = str(first.device) + (f" from vector {first.first}" if first.first else "")
        yield Cell(device), outcome_cell([first.outcome]), Cell(_detail(alike))


def _reason(verdict: Verdict) -> str:
    """Return why an MSI is lost, without the device where it only starts the text."""
    return verdict.reason.replace(f"{verdict.device}: ", "", 1)


def _detail(alike: Sequence[Verdict]) -> str:
    """Return the address, or the reason, of the first verdict, and how many others share it."""
    first, others = alike[0], len(alike) - 1
    if first.outcome is Outcome.DELIVERED:
        text = f"at {addresses_text(first.possible)}"
        same = len({verdict.possible for verdict in alike}) == 1
        differ = ", at an address of its own" if others == 1 else ", at addresses of their own"
    else:
        text = _reason(first)
        same = len({v.reason.replace(str(v.device), "") for v in alike}) == 1
        differ = f", with numbers of {'its' if others == 1 else 'their'} own"
    if not others:
        return text
    rest = (
        ", ".join(str(verdict.device) for verdict in alike[1:])
        if others <= _MAX_NAMED
        else quantity(others, "other device")
    )
    return f"{text}; the same for {rest}{'' if same else differ}"


def depend_on_order(results: Sequence[Result]) -> bool:
    """Return whether a device has an address that the order of first use decides."""
    return any(len(verdict.possible) > 1 for result in results for verdict in result.verdicts)


def kernels(results: Sequence[Result]) -> Table:
    """Return the kernels that ran, what keeps each out of a release, and its strategies."""
    names: dict[str, list[str]] = {}
    for result in results:
        names.setdefault(str(result.options.get("profile", "")), []).append(name_of(result))
    standing = {profile.name: profile.standing for profile in PROFILES}
    rows = (
        cells(kernel, standing.get(kernel) or "released", ", ".join(names[kernel]))
        for kernel in names
    )
    return Table("Kernels", ("kernel", "standing", "strategies"), tuple(rows))


def legend(results: Sequence[Result]) -> Terms:
    """Return what the words mean that occur: outcomes, costs, and what applies a strategy."""
    present = {verdict.outcome for result in results for verdict in result.verdicts}
    binders = {result.applied_by for result in results}
    rows = (
        *((str(outcome), OUTCOME_MEANINGS[outcome]) for outcome in Outcome if outcome in present),
        *(APPLIED_BY[binder] for binder in BinderKind if binder in binders),
        *COSTS,
    )
    return Terms(rows)


def verdict_rows(scenario: Scenario, results: Iterable[Result]) -> Table:
    """Return a row per strategy and device, nothing folded: for programs that read CSV."""
    its_of = {device.address: device.its for device in scenario.host.devices}
    head = (
        "strategy", "kernel", "applied by", "device", "ITS", "first vector", "vectors",
        "outcome", "possible addresses", "errno", "reason", "decided by",
    )  # fmt: skip
    rows = (
        (
            *cells(
                name_of(result),
                result.options.get("profile", ""),
                APPLIED_BY[result.applied_by][0],
                verdict.device,
                its_of.get(verdict.device, ""),
                verdict.first,
                verdict.count,
            ),
            outcome_cell([verdict.outcome]),
            *cells(
                " ".join(map(str, verdict.possible)),
                "" if verdict.errno is None else verdict.errno,
                verdict.reason,
                verdict.decided_by or "",
            ),
        )
        for result in results
        for verdict in result.verdicts
    )
    return Table("Verdicts", head, tuple(rows))


def _first_and_others(devices: Sequence[PciAddress]) -> str:
    others = len(devices) - 1
    return f"{devices[0]} and {quantity(others, 'other')}" if others else str(devices[0])
