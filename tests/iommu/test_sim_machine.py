"""The simulator has Linux's result for every call; the lab makes the same calls on Linux."""

from __future__ import annotations

import pytest
from kernel_cases import CASES, GDB, HOST, PAGE, RAM, STAGE1, CheckedCalls

from vmm_msi.errors import CallSequenceError
from vmm_msi.iommu import call_sequence
from vmm_msi.iommu.call_sequence import Stage1Shape
from vmm_msi.iommu.sim.call_machine import SimMachine
from vmm_msi.types import Granule


@pytest.fixture
def machine():
    return SimMachine(HOST, output_bits=44)


@pytest.mark.parametrize("name", CASES)
def test_rule(name, machine):
    CASES[name](CheckedCalls(machine))
    assert not machine.lost_events


def test_a_device_without_an_address_loses_its_event_in_the_its(machine):
    """its_irq_domain_alloc: the event is allocated before iommu_dma_prepare_msi, and not freed."""
    calls = CheckedCalls(machine)
    fd = calls.open()
    ioas = calls.ioas_alloc(fd)
    calls.bind(fd, 0)
    calls.enable(0, expect="ENOSPC", inside="EOPNOTSUPP")
    calls.attach(0, ioas)
    calls.enable(0, expect="ENOSPC")
    calls.bind(fd, 1)
    calls.attach(1, ioas)
    calls.enable(1)
    machine.reset()
    calls = CheckedCalls(machine)
    fd = calls.open()
    calls.bind(fd, 0)
    calls.attach(0, calls.ioas_alloc(fd))
    calls.enable(0, expect="ENOSPC")


def test_a_page_at_the_address_of_a_slot_loses_the_event_too(machine):
    """iommufd_sw_msi_install: iommu_map meets a page that a lost reservation admitted."""
    calls = CheckedCalls(machine)
    fd = calls.open()
    number, other, ioas = calls.bind(fd, 0), calls.bind(fd, 4), calls.ioas_alloc(fd)
    calls.attach(0, calls.hwpt_alloc(fd, number, ioas, True))
    calls.attach(0, calls.hwpt_alloc(fd, other, ioas, True), expect="EINVAL")
    calls.ioas_map(fd, ioas, 0x800_0000, PAGE, 1)
    calls.enable(0, expect="ENOSPC", inside="EEXIST")


def test_reset_leaves_nothing(machine):
    for _ in range(2):
        calls = CheckedCalls(machine)
        calls.nested(calls.open(), 0)
        calls.enable(0)
        machine.reset()


def test_a_larger_page_of_the_host():
    host = type(HOST)(
        HOST.source, Granule.K64, HOST.smmus, HOST.itses, HOST.devices, HOST.routes
    )  # fmt: skip
    calls = CheckedCalls(SimMachine(host, output_bits=44))
    fd = calls.open()
    _number, ioas, *_rest = calls.nested(fd, 0)
    calls.ioas_map(fd, ioas, GDB, PAGE, 1, expect="EINVAL")
    calls.ioas_map(fd, ioas, GDB, 0x10000, 2)
    calls.enable(0)
    calls.raise_msi(0)


def test_stage_1_tables_have_to_fit(machine):
    pages = tuple((n << 42, RAM) for n in range(64))
    with pytest.raises(CallSequenceError, match="valid is up to"):
        machine.prepare([Stage1Shape(Granule.K64, 1, pages)])


def test_a_second_run_has_the_same_results(machine):
    calls = CheckedCalls(machine)
    CASES["a_stage_1_translates_first"](calls)
    first = call_sequence.run(machine, calls.sequence())
    assert call_sequence.run(machine, calls.sequence()) == first
    assert len(first) == len(calls.steps)
    assert calls.sequence().stage1 == STAGE1
