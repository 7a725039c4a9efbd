"""The JSON that ``compare`` prints: one document, written as a stream, one verdict a line.

::

    {"schema": 1, "results": [{"strategy", "options", "verdicts": [{"device", "vector", "outcome",
    "its", "expected_its", "programmed_iova", "errno", "reason", "trace": [...]}],
    "costs": {"s2_domains", "s2_mappings", "sw_msi_slots", "bindings"}}]}

Addresses are hex strings, ``errno`` is the positive number or null.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.engine.compare import Result
    from vmm_msi.types import Verdict

SCHEMA = 1


def write(results: Iterable[Result], out: TextIO) -> None:
    """Write the document to ``out`` while the results come in."""
    out.write(f'{{"schema": {SCHEMA}, "results": [')
    between = "\n"
    for result in results:
        head = _encode({"strategy": result.strategy, "options": dict(result.options)})
        out.write(f'{between}{head[:-1]}, "verdicts": [')
        separator = "\n"
        for verdict in result.verdicts:
            for line in _lines(verdict):
                out.write(f"{separator}{line}")
                separator = ",\n"
        out.write(f'],\n"costs": {_encode(asdict(result.costs))}}}')
        between = ",\n"
    out.write("]}\n")


def _lines(verdict: Verdict) -> Iterator[str]:
    """Yield a JSON object per vector; all but vector, EventID and LPI is encoded once."""
    shared = {
        "outcome": verdict.outcome.value,
        "its": verdict.its,
        "expected_its": verdict.expected_its,
        "programmed_iova": None if verdict.programmed is None else str(verdict.programmed),
        "errno": verdict.errno,
        "reason": verdict.reason,
    }
    head = f'{{"device":"{verdict.device}","vector":'
    middle = "," + _encode(shared)[1:-1] + ',"trace":['
    steps = [_encode({"step": step.step, **step.values}) for step in verdict.trace]
    if not verdict.trace or verdict.trace[-1].step != "its":
        tail = middle + ",".join(steps) + "]}"
        for vector in range(verdict.first, verdict.first + verdict.count):
            yield f"{head}{vector}{tail}"
        return
    last = {key: value for key, value in verdict.trace[-1].values.items() if key != "lpi"}
    its = _encode({"step": "its", **last})[:-1]
    before = middle + ",".join([*steps[:-1], its])
    for index in range(verdict.count):
        lpi = "null" if verdict.lpi is None else verdict.lpi + index
        vector = verdict.first + index
        yield f'{head}{vector}{before},"event_id":{vector},"lpi":{lpi}}}]}}'


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()
