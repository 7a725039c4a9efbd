"""Change well-formed inputs at random, for machines without a coverage-guided fuzzer."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS = (0, 1, 2, 3, 4, 16, 20, 0x7F, 0x80, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
#: Number of inputs that are kept for further changes.
POOL = 200


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Return ``data`` with one to eight changes of random kinds."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randint(0, len(changed))
        kind = chance.randint(0, 6)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << chance.randint(0, 7)
        elif kind == 1 and changed:
            changed[at % len(changed)] = chance.randint(0, 255)
        elif kind == 2:
            size = chance.choice((1, 2, 4, 8))
            order = chance.choice(("little", "big"))
            number = chance.choice(NUMBERS) % (1 << 8 * size)
            changed[at : at + size] = number.to_bytes(size, order)
        elif kind == 3:
            del changed[at : at + chance.randint(1, 40)]
        elif kind == 4:
            other = chance.choice(others)
            start = chance.randint(0, len(other))
            changed[at:at] = other[start : start + chance.randint(1, 80)]
        elif kind == 5:
            changed[at:at] = changed[max(0, at - chance.randint(1, 80)) : at]
        else:
            changed[at:] = changed[at:][: chance.randint(0, 400)]
    return bytes(changed)


def run(call: Callable[[bytes], None], seeds: list[bytes], seconds: float) -> int:
    """Call ``call`` for ``seconds``, seeds first; return the number of calls."""
    chance = random.Random(0)  # noqa: S311 - not for secrets, and the same in every run
    pool = [*seeds]
    for seed in (b"", *seeds):
        call(seed)
    count = len(seeds) + 1
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(chance.choice(pool), seeds, chance)
        call(data)
        count += 1
        if len(pool) < POOL:
            pool.append(data)
        elif not chance.randint(0, 20):
            pool[chance.randint(len(seeds), POOL - 1)] = data
    return count
