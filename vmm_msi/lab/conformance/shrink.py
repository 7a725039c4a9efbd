"""Make a scenario smaller for as long as it still shows what it showed: delta debugging.

After Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002): take out
halves, quarters and so on down to single steps, and begin anew whenever something could go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.iommu.call_sequence import Ref, Scenario, Stage1Shape, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmm_msi.iommu.call_sequence import Argument

#: Scenarios that are tried at most.
LIMIT = 400


def shrink(scenario: Scenario, shows: Callable[[Scenario], bool], limit: int = LIMIT) -> Scenario:
    """Return a smaller scenario for which ``shows`` is true, as it is for ``scenario``.

    :param shows: runs a scenario and tells whether it shows what it should.
    :param limit: how often ``shows`` is asked at most.
    """
    best = scenario
    tried = {_key(scenario)}
    while True:
        for candidate in _smaller(best):
            key = _key(candidate)
            if key in tried:
                continue
            if len(tried) > limit:
                return best
            tried.add(key)
            if shows(candidate):
                best = candidate
                break
        else:
            return best


def _key(scenario: Scenario) -> tuple[object, ...]:
    return (scenario.stage1, *map(str, scenario.steps))


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Yield smaller scenarios, those that lack most first."""
    size = len(scenario.steps) // 2
    while size:
        # The last step is where the two sides part, so what is in front of it goes first.
        for end in range(len(scenario.steps) - 1, 0, -size):
            yield without(scenario, range(max(end - size, 0), end))
        size //= 2
    for number in range(len(scenario.stage1) - 1, -1, -1):
        yield from _smaller_stage1(scenario, number)


def _smaller_stage1(scenario: Scenario, number: int) -> Iterator[Scenario]:
    used = any(step.arguments.get("stage1") == number for step in scenario.steps)
    shapes = scenario.stage1
    if not used and len(shapes) > 1:
        rest = (*shapes[:number], *shapes[number + 1 :])
        yield Scenario(rest, tuple(_renumbered(step, number) for step in scenario.steps))
    for at in range(len(shapes[number].pages)):
        shape = shapes[number]
        pages = (*shape.pages[:at], *shape.pages[at + 1 :])
        smaller = Stage1Shape(shape.granule, shape.asid, pages)
        yield Scenario((*shapes[:number], smaller, *shapes[number + 1 :]), scenario.steps)


def _renumbered(step: Step, gone: int) -> Step:
    """Return a step as it is without the stage 1 ``gone``."""
    stage1 = step.arguments.get("stage1")
    if not isinstance(stage1, int) or stage1 < gone:
        return step
    return Step(step.op, {**step.arguments, "stage1": stage1 - 1})


def without(scenario: Scenario, positions: Iterable[int]) -> Scenario:
    """Return a scenario without the steps at ``positions`` and those that refer to them."""
    gone = set(positions)
    moved: dict[int, int] = {}
    steps: list[Step] = []
    for at, step in enumerate(scenario.steps):
        refers = {value.step for value in step.arguments.values() if isinstance(value, Ref)}
        if at in gone or refers & gone:
            gone.add(at)
            continue
        moved[at] = len(steps)
        steps.append(Step(step.op, {n: _moved(v, moved) for n, v in step.arguments.items()}))
    return Scenario(scenario.stage1, tuple(steps))


def _moved(value: Argument, moved: dict[int, int]) -> Argument:
    return Ref(moved[value.step]) if isinstance(value, Ref) else value
