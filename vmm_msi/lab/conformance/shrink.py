"""Shrink a call sequence for as long as it reproduces a mismatch: delta debugging.

After Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002): remove
halves, quarters and so on down to single steps, and start over after each removal that succeeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.iommu.call_sequence import CallSequence, Ref, Stage1Shape, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmm_msi.iommu.call_sequence import Argument

#: Sequences to try at most.
LIMIT = 400


def shrink(
    sequence: CallSequence, reproduces: Callable[[CallSequence], bool], limit: int = LIMIT
) -> CallSequence:
    """Return a smaller sequence for which ``reproduces`` is true, as it is for ``sequence``.

    :param reproduces: runs a sequence and returns whether it has the mismatch.
    :param limit: most sequences to try.
    """
    best = sequence
    tried = {_key(sequence)}
    while True:
        for candidate in _smaller(best):
            key = _key(candidate)
            if key in tried:
                continue
            if len(tried) > limit:
                return best
            tried.add(key)
            if reproduces(candidate):
                best = candidate
                break
        else:
            return best


def _key(sequence: CallSequence) -> tuple[object, ...]:
    return (sequence.stage1, *map(str, sequence.steps))


def _smaller(sequence: CallSequence) -> Iterator[CallSequence]:
    """Yield smaller sequences, the smallest first."""
    size = len(sequence.steps) // 2
    while size:
        # The mismatch is in the last step, so only the steps before it are removed.
        for end in range(len(sequence.steps) - 1, 0, -size):
            yield without(sequence, range(max(end - size, 0), end))
        size //= 2
    for number in range(len(sequence.stage1) - 1, -1, -1):
        yield from _smaller_stage1(sequence, number)


def _smaller_stage1(sequence: CallSequence, number: int) -> Iterator[CallSequence]:
    used = any(step.arguments.get("stage1") == number for step in sequence.steps)
    shapes = sequence.stage1
    if not used and len(shapes) > 1:
        rest = (*shapes[:number], *shapes[number + 1 :])
        yield CallSequence(rest, tuple(_renumbered(step, number) for step in sequence.steps))
    for position in range(len(shapes[number].pages)):
        shape = shapes[number]
        pages = (*shape.pages[:position], *shape.pages[position + 1 :])
        smaller = Stage1Shape(shape.granule, shape.asid, pages)
        yield CallSequence((*shapes[:number], smaller, *shapes[number + 1 :]), sequence.steps)


def _renumbered(step: Step, removed: int) -> Step:
    """Return a step with its stage 1 renumbered after the stage 1 ``removed`` was removed."""
    stage1 = step.arguments.get("stage1")
    if not isinstance(stage1, int) or stage1 < removed:
        return step
    return Step(step.op, {**step.arguments, "stage1": stage1 - 1})


def without(sequence: CallSequence, positions: Iterable[int]) -> CallSequence:
    """Return a sequence without the steps at ``positions`` and those that refer to them."""
    removed = set(positions)
    moved: dict[int, int] = {}
    steps: list[Step] = []
    for position, step in enumerate(sequence.steps):
        references = {value.step for value in step.arguments.values() if isinstance(value, Ref)}
        if position in removed or references & removed:
            removed.add(position)
            continue
        moved[position] = len(steps)
        steps.append(Step(step.op, {n: _moved(v, moved) for n, v in step.arguments.items()}))
    return CallSequence(sequence.stage1, tuple(steps))


def _moved(value: Argument, moved: dict[int, int]) -> Argument:
    return Ref(moved[value.step]) if isinstance(value, Ref) else value
