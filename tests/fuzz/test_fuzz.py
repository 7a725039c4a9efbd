"""Readers of untrusted data read or refuse any bytes.

FUZZ_SECONDS is the time of all targets: 60 in CI and for ``make fuzz``, otherwise 5.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from depth import IS_FULL
from fuzz.mutate import mutated
from fuzz.run import TESTS, fuzz
from fuzz.targets import targets, with_valid_header

from vmm_msi.errors import InputError

TARGETS = targets()
SECONDS = float(os.environ.get("FUZZ_SECONDS", "60" if IS_FULL else "5"))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name):
    """Otherwise most inputs derived from them would be refused early; a few are malformed."""
    refused = 0
    seeds = TARGETS[name].seeds()
    for seed in seeds:
        try:
            TARGETS[name].call(seed)
        except InputError:
            refused += 1
    assert refused <= len(seeds) // 2


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    results = fuzz([*TARGETS], SECONDS / len(TARGETS), tmp_path_factory.mktemp("guided"))
    return {result.name: result for result in results}


@pytest.fixture(scope="module")
def random_changes(tmp_path_factory):
    results = fuzz([*TARGETS], 0.2, tmp_path_factory.mktemp("random"), "random")
    return {result.name: result for result in results}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.timeout(SECONDS + 300)
def test_any_bytes_are_read_or_refused(name, guided, counts):
    result = guided[name]
    assert result.failure is None, result.failure
    assert result.runs > len(TARGETS[name].seeds())
    counts[f"inputs to the reader of {name}"] += result.runs


@pytest.mark.parametrize("name", TARGETS)
def test_random_changes_without_atheris(name, random_changes):
    result = random_changes[name]
    assert result.failure is None, result.failure
    assert result.runs > len(TARGETS[name].seeds())


BROKEN = """
import sys
from fuzz import targets, worker
def broken(data):
    {}
targets.targets = lambda: {{"broken": targets.Target("broken", broken, lambda: [b"seed"])}}
worker.PATIENCE = 1
sys.exit(worker.main([sys.argv[2], "5", sys.argv[1], "broken"]))
"""


@pytest.mark.parametrize("mode", ["guided", "random"])
@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("raise IndexError('out of range')", "crash"),
        ("bytearray(1 << 31)", "*"),
        ("while True: pass", "timeout"),
    ],
)
def test_a_failing_input_is_kept(statement, kind, mode, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(statement), str(tmp_path), mode],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert [*tmp_path.glob(f"broken/{kind}-*")], done.stderr


def test_mutations_repeat():
    def mutations():
        chance = random.Random(1)  # noqa: S311
        return [mutated(b"0123456789" * 20, [b"abcdef" * 20], chance) for _ in range(200)]

    assert mutations() == mutations()
    assert len(set(mutations())) == 200


def test_a_table_with_a_valid_header():
    table = with_valid_header(b"\xff" * 60, b"IORT")
    assert (table[:4], len(table), sum(table) & 0xFF) == (b"IORT", 60, 0)
