"""Check the results of ``compare`` against those that it printed before.

A strategy has to deliver, fault or refuse as it did: the same outcome, errno and possible addresses
of each vector. Reasons, traces and costs may change between releases and are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from vmm_msi.errors import InputError, errno_name
from vmm_msi.report.compare_json import SCHEMAS
from vmm_msi.report.compare_rows import strategy_name
from vmm_msi.types import Iova, Outcome
from vmm_msi.types.verdict import addresses_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from vmm_msi.engine.compare import Result

#: Of the file; schema 2 of 128 devices with 512 vectors takes less than a tenth.
MAX_BYTES = 64 << 20


class _Verdict(msgspec.Struct):
    device: str
    outcome: Outcome
    possible_iovas: list[str]
    errno: int | None = None
    first: int = 0
    count: int = 1
    vector: int | None = None


class _Result(msgspec.Struct):
    strategy: str
    options: dict[str, Any]
    verdicts: list[_Verdict]


class _Document(msgspec.Struct):
    schema: int
    results: list[_Result]


@dataclass(frozen=True)
class _MsiResult:
    """The result of an MSI, as far as it is compared."""

    outcome: Outcome
    errno: int | None
    possible: tuple[Iova, ...]

    def __str__(self) -> str:
        if self.outcome is Outcome.DELIVERED:
            return f"delivered at {addresses_text(self.possible)}"
        errno = "" if self.errno is None else f" ({errno_name(self.errno)})"
        return f"{self.outcome}{errno}"


@dataclass(frozen=True)
class _Span:
    """Adjacent vectors with the same result."""

    first: int
    count: int
    result: _MsiResult

    def __str__(self) -> str:
        last = self.first + self.count - 1
        vectors = f"vectors {self.first} to {last}" if self.count > 1 else f"vector {self.first}"
        return f"{self.result} ({vectors})"


class Expectation:
    """The results of an earlier run.

    :param source: what to call it in messages.
    """

    def __init__(self, document: _Document, source: str) -> None:
        self._document = document
        self.source = source

    def differences(self, results: Iterable[Result]) -> Iterator[str]:
        """Yield a line for each device of each strategy with other results.

        A strategy that the earlier run did not have is not compared.
        """
        present = list(results)
        for expected in self._document.results:
            name = strategy_name(expected.strategy, expected.options)
            result = next((r for r in present if _is_same(expected, r)), None)
            if result is None:
                yield f"{name}: expected, but it was not run with these options"
                continue
            spans = _spans_of_result(result)
            for device, before in _spans(expected.verdicts).items():
                now = spans.pop(device, ())
                if not now:
                    yield f"{name}: {device}: expected {_text(before)}, but the guest lacks it"
                elif now != before:
                    yield f"{name}: {device}: expected {_text(before)}, but it is {_text(now)}"
            for device, now in spans.items():
                yield f"{name}: {device}: not expected, but it is {_text(now)}"


def load(path: Path) -> Expectation:
    """Return what ``compare --format json`` wrote into a file.

    :raise InputError: when it cannot be read, has another form, or is larger than
        :data:`MAX_BYTES`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"reading {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise InputError(
            f"reading {path}: larger than {MAX_BYTES} bytes; write it again with --schema 2"
        )
    try:
        document = _decoded(data)
    except ValueError as error:
        raise InputError(
            f"reading {path}: not what vmm-msi compare --format json writes: {error}"
        ) from error
    return Expectation(document, str(path))


def _decoded(data: bytes) -> _Document:
    """Return the document.

    :raise ValueError: when it has another form.
    """
    document = msgspec.json.decode(data, type=_Document)
    if document.schema not in SCHEMAS:
        raise ValueError(f"schema {document.schema}; valid: {', '.join(map(str, SCHEMAS))}")
    for result in document.results:
        _spans(result.verdicts)
    return document


def _is_same(expected: _Result, result: Result) -> bool:
    """Return whether a result is of the same strategy with the expected options.

    A later release may have further options.
    """
    options: Mapping[str, object] = msgspec.to_builtins(dict(result.options))
    return expected.strategy == result.strategy and expected.options.items() <= options.items()


def _spans(verdicts: Iterable[_Verdict]) -> dict[str, Sequence[_Span]]:
    """Return the results of each device's vectors.

    :raise ValueError: for an address that is none.
    """
    return _by_device(
        (
            verdict.device,
            verdict.first if verdict.vector is None else verdict.vector,
            verdict.count,
            _MsiResult(
                verdict.outcome,
                verdict.errno,
                tuple(Iova(int(address, 16)) for address in verdict.possible_iovas),
            ),
        )
        for verdict in verdicts
    )


def _spans_of_result(result: Result) -> dict[str, Sequence[_Span]]:
    return _by_device(
        (str(v.device), v.first, v.count, _MsiResult(v.outcome, v.errno, v.possible))
        for v in result.verdicts
    )


def _by_device(
    parts: Iterable[tuple[str, int, int, _MsiResult]],
) -> dict[str, Sequence[_Span]]:
    """Return the spans of each device, from its address, first vector, count and result."""
    spans: dict[str, list[_Span]] = {}
    for device, first, count, result in parts:
        spans.setdefault(device, []).append(_Span(first, count, result))
    return {device: _merged(parts) for device, parts in spans.items()}


def _merged(spans: Iterable[_Span]) -> Sequence[_Span]:
    """Return spans of which no two neighbours have the same result."""
    merged = []
    for result, group in groupby(
        sorted(spans, key=lambda span: span.first), lambda span: span.result
    ):
        parts = list(group)
        merged.append(_Span(parts[0].first, sum(part.count for part in parts), result))
    return merged


def _text(spans: Sequence[_Span]) -> str:
    if len(spans) == 1:
        return str(spans[0].result)
    return ", ".join(map(str, spans))
