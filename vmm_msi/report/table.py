"""Text tables: compare's summary and any other rows, in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.model import Outcome
from vmm_msi.run import outcomes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_msi.compare import Result
    from vmm_msi.model import Scenario, Verdict

#: Devices that ``compare`` shows in a column each; more are counted only.
MAX_DEVICE_COLUMNS = 8


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield one line per row, every column as wide as its widest cell; the first row is a head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)


def compare_table(scenario: Scenario, results: Iterable[Result]) -> Iterator[str]:
    """Yield the lines of compare's table: a row per strategy, then why MSIs did not arrive."""
    devices = [device.host for device in scenario.guest.devices]
    shown = devices if len(devices) <= MAX_DEVICE_COLUMNS else []
    rows = [
        [
            "strategy",
            "kernel",
            *(f"{address} (ITS {_its(scenario, address)})" for address in shown),
            "delivered",
            "S2",
            "maps",
            "slots",
            "bindings",
        ]
    ]
    reasons: list[str] = []
    for result in results:
        name = _name(result)
        counts = outcomes(result.verdicts)
        total = sum(counts.values())
        costs = result.costs
        rows.append(
            [
                name,
                str(result.options.get("profile", "")),
                *(_cell(verdict) for verdict in result.verdicts if shown),
                f"{counts[Outcome.DELIVERED]}/{total}",
                str(costs.s2_domains),
                str(costs.s2_mappings),
                str(costs.sw_msi_slots),
                str(costs.bindings),
            ]
        )
        reasons += _reasons(name, result.verdicts)
    yield from columns(rows)
    if reasons:
        yield ""
        yield "Why not delivered:"
        yield from reasons


def _its(scenario: Scenario, address: object) -> int:
    return next(d.its for d in scenario.host.devices if d.address == address)


def _name(result: Result) -> str:
    options = ",".join(f"{k}={v}" for k, v in result.options.items() if k != "profile")
    return f"{result.strategy}:{options}" if options else result.strategy


def _cell(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.DELIVERED:
        return f"delivered at {verdict.programmed}"
    return str(verdict.outcome)


def _reasons(name: str, verdicts: Iterable[Verdict]) -> Iterator[str]:
    """Yield the first device of each outcome and reason, and how many devices share it."""
    groups: dict[tuple[Outcome, str], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.outcome is not Outcome.DELIVERED:
            key = verdict.reason.replace(str(verdict.device), "")
            groups.setdefault((verdict.outcome, key), []).append(verdict)
    for (outcome, _), members in groups.items():
        more = f" (and {len(members) - 1} more devices)" if len(members) > 1 else ""
        yield f"  {name}: {members[0].device} {outcome}: {members[0].reason}{more}"
