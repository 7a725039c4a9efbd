"""Repeated attaching and detaching leaks nothing; tests/bench/cycles.py does 10,000 cycles."""

from __future__ import annotations

import gc
import tracemalloc
from itertools import pairwise

from depth import depth
from provision.helpers import HOST, PLUGINS, A, B, texts

from vmm_msi import provision
from vmm_msi.config import Config
from vmm_msi.provision import AttachRequest, DetachRequest

WARM_UP, CYCLES = depth(40), depth(80)


def allocated():
    """Return the number of objects and of bytes that Python has allocated."""
    gc.collect()
    return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]


def test_no_leak(connection):
    before = texts(connection)

    def cycles(count):
        for _ in range(count):
            provision.attach(connection, PLUGINS, Config(), HOST, AttachRequest("guest0", (A, B)))
            provision.detach(connection, DetachRequest("guest0"), PLUGINS)

    cycles(WARM_UP)
    tracemalloc.start()
    try:
        cycles(WARM_UP)
        measured = [allocated()]
        for _ in range(2):
            cycles(CYCLES)
            measured.append(allocated())
    finally:
        tracemalloc.stop()
    assert texts(connection) == before
    growth = [
        (more_objects - objects, more_size - size)
        for (objects, size), (more_objects, more_size) in pairwise(measured)
    ]
    # A leak of one object or 32 bytes per cycle would be more, both times; a table that Python
    # itself enlarges, such as that of interned strings, grows once.
    assert min(objects for objects, _size in growth) < CYCLES // 2
    assert min(size for _objects, size in growth) < 32 * CYCLES
