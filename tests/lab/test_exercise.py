"""The counts that a guest reads while a device works."""

from __future__ import annotations

import pytest

from vmm_msi.lab.guest.exercise import _SAMPLES, _Sampler


@pytest.mark.parametrize("count", [1, 2, _SAMPLES, _SAMPLES + 1, 1000, 100_000])
def test_the_number_of_samples_is_bounded(tmp_path, count):
    """The end is not among them: it is counted when the work is over."""
    reports = []
    sampler = _Sampler(tmp_path, {}, count, lambda done, total: reports.append((done, total)))
    for done in range(1, count + 1):
        sampler.operated(done)
    seconds, operations, interrupts = zip(*sampler.samples, strict=True)
    assert 1 <= len(sampler.samples) <= _SAMPLES
    assert list(seconds) == sorted(seconds)
    assert list(operations) == sorted(set(operations))
    assert operations[0] == 0
    assert operations[-1] < count
    assert set(interrupts) == {0}
    assert reports == [(done, count) for done in range(0, count, 1024)]
