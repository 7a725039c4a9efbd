"""Attaching and detaching again and again keeps nothing: see tests/bench/cycles.py for 10,000."""

from __future__ import annotations

import gc
import tracemalloc

from provision.helpers import HOST, PLUGINS, A, B, texts

from vmm_msi import provision
from vmm_msi.config import Config
from vmm_msi.provision import AttachRequest, DetachRequest

WARM_UP, CYCLES = 40, 160


def kept():
    """Return how many objects the collector knows, and how many bytes Python has allocated."""
    gc.collect()
    return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]


def test_nothing_is_kept(connection):
    before = texts(connection)

    def cycles(count):
        for _ in range(count):
            provision.attach(connection, PLUGINS, Config(), HOST, AttachRequest("guest0", (A, B)))
            provision.detach(connection, DetachRequest("guest0"), PLUGINS)

    cycles(WARM_UP)
    tracemalloc.start()
    try:
        cycles(WARM_UP)
        objects, size = kept()
        cycles(CYCLES)
        more_objects, more_size = kept()
    finally:
        tracemalloc.stop()
    assert texts(connection) == before
    # One object, or 32 bytes, that each cycle keeps would be more.
    assert more_objects - objects < CYCLES // 2
    assert more_size - size < 32 * CYCLES
