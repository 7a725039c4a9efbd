"""Find the smallest scenario in which an MSI ends as in a larger one, by delta debugging.

Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002: parts of a list
are left out, half of it, then smaller ones, as long as the outcome is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm_msi.engine import compare as engine
from vmm_msi.errors import PluginError, RefusedError, ScenarioError, UsageError, errno_name
from vmm_msi.host.scenario import scenario_of_document
from vmm_msi.host.scenario_export import scenario_document
from vmm_msi.host.scenario_text import toml_lines
from vmm_msi.report.chain import to_lines
from vmm_msi.report.compare_rows import reason_kind
from vmm_msi.tomlfile import copied
from vmm_msi.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm_msi.config import Choice
    from vmm_msi.engine.compare import Result
    from vmm_msi.errors import Rule
    from vmm_msi.library.comparison import Runs
    from vmm_msi.tomlfile import KeyPath
    from vmm_msi.types import PciAddress, Scenario, Verdict

#: Arrays whose elements are left out first, in this order; the most expensive parts of a scenario.
_FIRST: tuple[KeyPath, ...] = (
    ("guest", "device"),
    ("host", "device"),
    ("host", "function"),
    ("host", "route"),
    ("host", "smmu"),
    ("host", "its"),
)


class Kept(NamedTuple):
    """What a smaller scenario has to show, too.

    :param reason: its kind: without addresses and numbers.
    """

    outcome: Outcome
    errno: int | None
    errno_inside: int | None
    rule: Rule | None
    reason: str

    @classmethod
    def of(cls, verdict: Verdict) -> Kept:
        """Return what a verdict shows."""
        return cls(
            verdict.outcome,
            verdict.errno,
            verdict.errno_inside,
            verdict.decided_by,
            reason_kind(verdict.reason),
        )


@dataclass(frozen=True)
class Minimised:
    """The smallest scenario, and the MSI whose outcome it keeps.

    :param document: of the scenario, as TOML has it.
    :param runs: how often a scenario was run.
    """

    scenario: Scenario
    document: dict[str, Any]
    result: Result
    verdict: Verdict
    runs: int

    def to_text(self, source: str, strategy: str) -> str:
        """Return a scenario file with a comment that says which outcome it keeps.

        :param source: of the scenario that it is smaller than.
        :param strategy: with its options, as the user wrote it.
        """
        verdict = self.verdict
        errno = "" if verdict.errno is None else f" ({errno_name(verdict.errno)})"
        path = to_lines(self.result, verdict, self.scenario.guest, verdict.first)
        heading = [
            f"The smallest scenario in which {verdict.device} ends with",
            f"{strategy} as {verdict.outcome}{errno}, like in",
            f"{source}.",
            "",
            *(line.removeprefix("  ") for line in path),
            "",
            f"vmm-msi compare --scenario FILE --strategy {strategy} \\",
            f"    --trace {verdict.device}",
        ]
        return "".join(f"{line}\n" for line in toml_lines(self.document, heading))


class Minimiser:
    """Leaves out of a scenario what an outcome does not need.

    :param runs: the one strategy to run.
    :param device: whose MSIs; None for the first device whose MSIs are not delivered, or the first.
    :param progress: is called with the number of values that are left, and of runs.
    :raise UsageError: if the guest has no such device.
    :raise PluginError: if the strategy breaks.
    """

    def __init__(
        self,
        runs: Runs,
        device: PciAddress | None = None,
        progress: Callable[[int, int], None] = lambda _size, _runs: None,
    ) -> None:
        self._choice: Choice = runs.choices[0]
        self._plugins, self._selector = runs.plugins, runs.selector
        self._source = runs.scenario.host.source
        self._progress = progress
        self._runs = 0
        self._document: dict[str, Any] = copied(scenario_document(runs.scenario))
        (result,) = self._run(runs.scenario)
        verdict = _selected(result, device)
        self._device = verdict.device
        self.kept = Kept.of(verdict)
        self._shown = (runs.scenario, result, verdict)

    def minimise(self) -> Minimised:
        """Return the smallest scenario: leaving out one more value loses the outcome."""
        is_smaller = True
        while is_smaller:
            is_smaller = False
            for path in _FIRST:
                is_smaller |= self._without_elements(path)
            for path in list(_paths(self._document)):
                value = _at(self._document, path)
                if isinstance(value, list) and path not in _FIRST:
                    is_smaller |= self._without_elements(path)
            for path in list(_paths(self._document)):
                is_smaller |= self._try(path)
        scenario, result, verdict = self._shown
        return Minimised(scenario, self._document, result, verdict, self._runs)

    def _without_elements(self, path: KeyPath) -> bool:
        """Leave out parts of an array, the half, then smaller ones; return whether one was."""
        elements = _at(self._document, path)
        if not isinstance(elements, list):
            return False
        is_smaller = False
        size = max(len(elements) // 2, 1)
        while size and elements:
            start = 0
            while start < len(elements):
                left = elements[:start] + elements[start + size :]
                if self._keeps(_with(self._document, path, left or None)):
                    is_smaller = True
                    elements = left
                else:
                    start += size
            size //= 2
        return is_smaller

    def _try(self, path: KeyPath) -> bool:
        """Leave out a value, so that it has its default; return whether it could be."""
        if _at(self._document, path) is None:
            return False
        return self._keeps(_with(self._document, path, None))

    def _keeps(self, document: dict[str, Any]) -> bool:
        """Return whether a document keeps the outcome; it is the document from then on."""
        shown = self.shown_by(document)
        if shown is None:
            return False
        self._document, self._shown = document, shown
        return True

    def shown_by(self, document: dict[str, Any]) -> tuple[Scenario, Result, Verdict] | None:
        """Return the scenario of a document, and the MSI that ends in the same way.

        :return: None if no MSI of the device does, or the document contradicts itself.
        """
        try:
            scenario = scenario_of_document(document, self._source)
        except ScenarioError:
            return None
        self._progress(sum(1 for _path in _paths(document)), self._runs)
        for result in self._run(scenario):
            for verdict in result.verdicts:
                if verdict.device == self._device and Kept.of(verdict) == self.kept:
                    return scenario, result, verdict
        return None

    def _run(self, scenario: Scenario) -> list[Result]:
        self._runs += 1
        try:
            return list(engine.compare(self._plugins, scenario, [self._choice], self._selector))
        except (PluginError, RefusedError):
            if self._runs == 1:
                raise
            return []


def removals(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every document with one value less: an element of an array, or a key."""
    for path in _paths(document):
        yield _with(document, path, None)


def _selected(result: Result, device: PciAddress | None) -> Verdict:
    """Return the verdict to keep.

    :raise UsageError: if the guest has no such device.
    """
    candidates = [v for v in result.verdicts if device is None or v.device == device]
    if not candidates:
        valid = ", ".join(dict.fromkeys(str(verdict.device) for verdict in result.verdicts[:8]))
        raise UsageError(f"--device {device}: the guest has no such device; valid: {valid}")
    return next((v for v in candidates if v.outcome is not Outcome.DELIVERED), candidates[0])


def _paths(document: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of every value in tables and arrays, an outer one before those in it.

    Elements come from the end, so that the others stay at their paths when one is left out.
    """
    for step, value in _entries(document):
        if path:
            yield (*path, step)
        yield from _paths(value, (*path, step))


def _entries(value: object) -> Iterator[tuple[str | int, object]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from ((index, value[index]) for index in range(len(value) - 1, -1, -1))


def _at(document: object, path: KeyPath) -> object:
    """Return the value at a path; None if the document lacks it."""
    for step in path:
        document = dict(_entries(document)).get(step)
    return document


def _with(document: dict[str, Any], path: KeyPath, value: object) -> dict[str, Any]:
    """Return a document with another value at a path; None leaves it out."""
    changed: dict[str, Any] = copied(document)
    parent: Any = changed
    for step in path[:-1]:
        parent = parent[step]
    if value is not None:
        parent[path[-1]] = value
        return changed
    del parent[path[-1]]
    is_empty = isinstance(parent, list) and not parent
    return _with(changed, path[:-1], None) if is_empty else changed
