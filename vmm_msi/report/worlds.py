"""Worlds that are compared, and what differs between them: data, without layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmm_msi.errors import errno_name
from vmm_msi.host.scenario_keys import shown
from vmm_msi.report.compare_rows import name_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.engine.compare import Result
    from vmm_msi.host.scenario_keys import Change, Setting
    from vmm_msi.types import Scenario, Verdict


@dataclass(frozen=True)
class World:
    """One host and guest.

    :param name: for people.
    :param settings: what ``--vary`` or ``--against`` gave it.
    :param changes: what they did, those of ``--set`` included.
    :param scenario: None if the settings contradict each other.
    :param error: why.
    """

    name: str
    settings: tuple[Setting, ...]
    changes: tuple[Change, ...]
    scenario: Scenario | None
    error: str = ""


@dataclass(frozen=True)
class Subject:
    """What has an outcome in each world.

    :param strategy: with its options, as it is written.
    :param kernel: the kernel that it ran on.
    :param device: PCI address.
    """

    strategy: str
    kernel: str
    device: str


@dataclass(frozen=True)
class Ran:
    """A world and what the strategies did in it."""

    world: World
    results: Sequence[Result] = ()

    def outcomes(self) -> dict[Subject, str]:
        """Return the outcome of each device with each strategy: of all its MSIs, with the errno."""
        outcomes: dict[Subject, str] = {}
        for result in self.results:
            name = name_of(result)
            kernel = str(result.options.get("profile", ""))
            verdicts: dict[str, list[Verdict]] = {}
            for verdict in result.verdicts:
                verdicts.setdefault(str(verdict.device), []).append(verdict)
            for device, of_device in verdicts.items():
                texts = dict.fromkeys(map(outcome_text, of_device))
                outcomes[Subject(name, kernel, device)] = ", ".join(texts)
        return outcomes


def outcome_text(verdict: Verdict) -> str:
    """Return an outcome with its errno, for people."""
    errno = "" if verdict.errno is None else f" ({errno_name(verdict.errno)})"
    return f"{verdict.outcome}{errno}"


@dataclass(frozen=True)
class Axis:
    """A key and the values that it gets, one in each world."""

    key: str
    values: tuple[Any, ...]


def table_of_outcomes(runs: Sequence[Ran]) -> dict[Subject, tuple[str, ...]]:
    """Return the outcome of each subject in each world."""
    found = [ran.outcomes() for ran in runs]
    subjects = dict.fromkeys(subject for outcomes in found for subject in outcomes)
    return {
        subject: tuple(
            outcomes.get(subject, "impossible" if ran.world.scenario is None else "not assigned")
            for ran, outcomes in zip(runs, found, strict=True)
        )
        for subject in subjects
    }


def deciding_axes(
    worlds: Sequence[World], axes: Sequence[Axis], outcomes: Sequence[str]
) -> tuple[int, ...]:
    """Return the indexes of the axes that change an outcome.

    An axis does if two worlds that differ in its value alone have different outcomes. The worlds
    are those of all combinations, so the outcome depends on these axes and on no other.
    """
    deciding = []
    for number, _axis in enumerate(axes):
        seen: dict[str, str] = {}
        for world, outcome in zip(worlds, outcomes, strict=True):
            others = str([s for at, s in enumerate(world.settings) if at != number])
            if seen.setdefault(others, outcome) != outcome:
                deciding.append(number)
                break
    return tuple(deciding)


def by_value(
    worlds: Sequence[World], axes: Sequence[int], outcomes: Sequence[str]
) -> Mapping[tuple[str, ...], str]:
    """Return the outcome for each combination of the values of some axes."""
    return {
        tuple(shown(world.settings[axis].value) for axis in axes): outcome
        for world, outcome in zip(worlds, outcomes, strict=True)
    }
