"""The JSON that ``compare`` prints: one document, written as a stream with a verdict per line.

::

    {"schema": 2, "results": [{"strategy", "applied_by", "options", "verdicts": [{"device",
    "first", "count", "outcome", "its", "expected_its", "programmed_iova", "possible_iovas",
    "errno", "errno_inside", "reason", "decided_by", "trace": [...]}],
    "costs": {"s2_domains", "s2_mappings", "sw_msi_slots", "bindings", "containers"}}]}

A verdict is about the vectors ``first`` to ``first + count - 1``, which take the same path; the
``event_id`` and the ``lpi`` in its trace are those of ``first`` and count up with the vector.
``applied_by`` is what can apply the strategy to a guest that runs: ``qemu``, ``kernel`` (one with
guest MSI bindings) or ``sim`` (the simulator alone). ``decided_by``, of the verdict and of each
step of the trace, is the rule that decided it and the function or specification that has the
rule: ``{"rule", "source"}``, null or missing where the simulator did not decide. Schema 1 has a
verdict for each vector, with ``vector`` in place of ``first`` and ``count``, and neither
``applied_by`` nor ``decided_by``.

Addresses are hex strings; ``errno`` is the positive number that the caller sees or null,
``errno_inside`` the number inside the kernel, where it differs.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, Literal, TextIO

import msgspec

from vmm_msi.report.json_text import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.engine.compare import Result
    from vmm_msi.errors import Rule
    from vmm_msi.report.compare_documents import CompareDocument
    from vmm_msi.types import Verdict

#: The version that ``compare`` prints unless another is selected.
SCHEMA: Final = 2
#: The versions that it can print.
SCHEMAS: Final = (1, 2)

# Place holder of a number that differs between vectors; JSON text cannot contain NUL.
_NUL = "\0"
_NUMBER = msgspec.Raw(_NUL.encode())


def write(results: Iterable[Result], out: TextIO, schema: Literal[1, 2] = SCHEMA) -> None:
    """Write the document to ``out`` while the results come in."""
    out.write(f'{{"schema": {schema}, "results": [')
    write_results(results, out, schema)
    out.write("]}\n")


def document(results: Iterable[Result]) -> CompareDocument:
    """Return the document as a value."""
    text = io.StringIO()
    write(results, text)
    value: CompareDocument = json.loads(text.getvalue())
    return value


def write_results(results: Iterable[Result], out: TextIO, schema: Literal[1, 2] = SCHEMA) -> None:
    """Write the elements of ``results`` to ``out``."""
    for number, result in enumerate(results):
        strategy, options = _encode(result.strategy), _encode(dict(result.options))
        out.write("," if number else "")
        binder = "" if schema == 1 else f'"applied_by":{_encode(result.applied_by)},'
        out.write(f'\n{{"strategy":{strategy},{binder}"options":{options}, "verdicts": [')
        separator = "\n"
        for verdict in result.verdicts:
            for text in _vectors(verdict) if schema == 1 else (_run_of_vectors(verdict),):
                out.write(separator)
                out.write(text)
                separator = ",\n"
        out.write(f'],\n"costs": {_encode(asdict(result.costs))}}}')


def _run_of_vectors(verdict: Verdict) -> str:
    """Return a JSON object for all vectors of a verdict."""
    trace = _trace(verdict)
    if trace and trace[-1]["step"] == "its":
        trace[-1] |= {"event_id": verdict.first, "lpi": verdict.lpi}
    vectors = {"first": verdict.first, "count": verdict.count}
    for step, values in zip(verdict.trace, trace, strict=True):
        if step.decided_by is not None:
            values["decided_by"] = _rule(step.decided_by)
    shared = {**_shared(verdict), "decided_by": _rule(verdict.decided_by)}
    return _encode({"device": str(verdict.device), **vectors, **shared, "trace": trace})


def _rule(rule: Rule | None) -> dict[str, str] | None:
    return None if rule is None else {"rule": rule.text, "source": rule.source}


def _vectors(verdict: Verdict) -> Iterator[str]:
    """Yield a JSON object per vector.

    A device has up to 2,048 vectors, which differ in the vector itself, the EventID and the LPI;
    the rest is encoded once.
    """
    trace = _trace(verdict)
    if trace and trace[-1]["step"] == "its":
        trace[-1] |= {"event_id": _NUMBER, "lpi": _NUMBER}
    device = {"device": str(verdict.device), "vector": _NUMBER}
    template = _encode({**device, **_shared(verdict), "trace": trace})
    before, *middle, after = template.split(_NUL)
    if not middle:
        for vector in range(verdict.first, verdict.first + verdict.count):
            yield f"{before}{vector}{after}"
        return
    its, event = middle
    for index in range(verdict.count):
        vector = verdict.first + index
        lpi = "null" if verdict.lpi is None else verdict.lpi + index
        yield f"{before}{vector}{its}{vector}{event}{lpi}{after}"


def _trace(verdict: Verdict) -> list[dict[str, object]]:
    """Return the steps, without the LPI of the last one, which differs between vectors."""
    trace: list[dict[str, object]] = [{"step": s.step, **s.values} for s in verdict.trace]
    if trace and trace[-1]["step"] == "its":
        trace[-1].pop("lpi", None)
    return trace


def _shared(verdict: Verdict) -> dict[str, object]:
    """Return what all vectors of a verdict have in common, but for the trace."""
    return {
        "outcome": verdict.outcome.value,
        "its": verdict.its,
        "expected_its": verdict.expected_its,
        "programmed_iova": None if verdict.programmed is None else str(verdict.programmed),
        "possible_iovas": [str(address) for address in verdict.possible],
        "errno": verdict.errno,
        "errno_inside": verdict.errno_inside,
        "reason": verdict.reason,
    }


def _encode(value: object) -> str:
    return _NUL.join(map(escape_unprintable, msgspec.json.encode(value).decode().split(_NUL)))
