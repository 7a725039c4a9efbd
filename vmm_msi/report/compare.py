"""The table that ``compare`` prints: a row per strategy, then the reasons of lost MSIs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.engine.session import outcomes
from vmm_msi.iommu.profiles import PROFILES
from vmm_msi.quantity import quantity
from vmm_msi.report.columns import columns
from vmm_msi.types import Outcome
from vmm_msi.types.verdict import ADDRESS_ORDER, addresses_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmm_msi.engine.compare import Result
    from vmm_msi.types import PciAddress, Scenario, Verdict

#: Devices that get a column each; if there are more, they are only counted.
MAX_DEVICE_COLUMNS = 8


def compare_table(scenario: Scenario, results: Iterable[Result]) -> Iterator[str]:
    """Yield a row per strategy, the proposed kernels, and the reasons why MSIs did not arrive."""
    devices = [device.host for device in scenario.guest.devices]
    its_of = {device.address: device.its for device in scenario.host.devices}
    shown = devices if len(devices) <= MAX_DEVICE_COLUMNS else []
    rows = [
        [
            "strategy",
            "kernel",
            *(f"{address} (ITS {its_of[address]})" for address in shown),
            "delivered",
            "S2",
            "maps",
            "slots",
            "bindings",
        ]
    ]
    failed: list[tuple[str, Verdict]] = []
    kernels: set[object] = set()
    certain = True
    for result in results:
        name = strategy_name(result.strategy, result.options)
        kernels.add(result.options.get("profile"))
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
        certain = certain and all(len(verdict.possible) < 2 for verdict in result.verdicts)
        failed += [(name, v) for v in result.verdicts if v.outcome is not Outcome.DELIVERED]
    yield from columns(rows)
    proposed = [(p.name, p.standing) for p in PROFILES if p.standing and p.name in kernels]
    if proposed:
        yield ""
        yield "Kernels:"
        width = max(len(name) for name, _standing in proposed)
        yield from (f"  {name:{width}}  {standing}" for name, standing in proposed)
    if shown and not certain:
        yield ""
        yield f"note: {ADDRESS_ORDER}"
    if failed:
        yield ""
        yield "Why not delivered:"
        yield from _reasons(failed)


def strategy_name(strategy: str, options: Mapping[str, object]) -> str:
    """Return how a strategy with options is written, without those that are empty."""
    text = ",".join(f"{k}={v}" for k, v in options.items() if k != "profile" and v)
    return f"{strategy}:{text}" if text else strategy


def _cell(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.DELIVERED:
        return f"delivered at {addresses_text(verdict.possible)}"
    return str(verdict.outcome)


def _reasons(results: Iterable[tuple[str, Verdict]]) -> Iterator[str]:
    """Yield a line per outcome and reason: the first device, and the number of others."""
    groups: dict[tuple[Outcome, str], tuple[Verdict, dict[str, None], set[PciAddress]]] = {}
    for name, verdict in results:
        key = (verdict.outcome, verdict.reason.replace(str(verdict.device), ""))
        _first, names, devices = groups.setdefault(key, (verdict, {}, set()))
        names[name] = None
        devices.add(verdict.device)
    for first, names, devices in groups.values():
        others = len(devices) - 1
        more = f" (and {quantity(others, 'more device')})" if others else ""
        yield f"  {', '.join(names)}"
        yield f"      {first.device} {first.outcome}: {first.reason}{more}"
