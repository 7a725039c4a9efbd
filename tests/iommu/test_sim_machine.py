"""The modelled host answers every call as Linux does; the lab asks Linux the same."""

from __future__ import annotations

import pytest
from kernel_cases import CASES, GDB, HOST, PAGE, RAM, STAGE1, Play

from vmm_msi.errors import ScenarioError
from vmm_msi.iommu import call_sequence
from vmm_msi.iommu.call_sequence import Stage1Shape
from vmm_msi.iommu.sim.call_machine import SimMachine
from vmm_msi.types import Granule


@pytest.fixture
def machine():
    return SimMachine(HOST, output_bits=44)


@pytest.mark.parametrize("name", CASES)
def test_the_rule(name, machine):
    CASES[name](Play(machine))
    assert not machine.lost_events


def test_a_device_without_an_address_loses_its_event_in_the_its(machine):
    """its_irq_domain_alloc: the event is taken before iommu_dma_prepare_msi, and not given back."""
    p = Play(machine)
    fd = p.open()
    ioas = p.ioas_alloc(fd)
    p.bind(fd, 0)
    p.enable(0, gives="ENOSPC")
    p.attach(0, ioas)
    p.enable(0, gives="ENOSPC")
    p.bind(fd, 1)
    p.attach(1, ioas)
    p.enable(1)
    machine.reset()
    p = Play(machine)
    fd = p.open()
    p.bind(fd, 0)
    p.attach(0, p.ioas_alloc(fd))
    p.enable(0, gives="ENOSPC")


def test_a_page_in_the_way_of_a_slot_loses_it_too(machine):
    """iommufd_sw_msi_install: iommu_map finds what a lost reservation let in."""
    p = Play(machine)
    fd = p.open()
    number, other, ioas = p.bind(fd, 0), p.bind(fd, 4), p.ioas_alloc(fd)
    p.attach(0, p.hwpt_alloc(fd, number, ioas, True))
    p.attach(0, p.hwpt_alloc(fd, other, ioas, True), gives="EINVAL")
    p.ioas_map(fd, ioas, 0x800_0000, PAGE, 1)
    p.enable(0, gives="ENOSPC")


def test_reset_leaves_nothing(machine):
    for _ in range(2):
        p = Play(machine)
        _ids = p.nested(p.open(), 0)
        p.enable(0)
        machine.reset()


def test_a_larger_page_of_the_host():
    host = type(HOST)(
        HOST.source, Granule.K64, HOST.smmus, HOST.itses, HOST.devices, HOST.routes
    )  # fmt: skip
    p = Play(SimMachine(host, output_bits=44))
    fd = p.open()
    _number, ioas, *_rest = p.nested(fd, 0)
    p.ioas_map(fd, ioas, GDB, PAGE, 1, gives="EINVAL")
    p.ioas_map(fd, ioas, GDB, 0x10000, 2)
    p.enable(0)
    p.raise_msi(0)


def test_stage_1_tables_have_to_fit(machine):
    pages = tuple((n << 42, RAM) for n in range(64))
    with pytest.raises(ScenarioError, match="valid is up to"):
        machine.prepare([Stage1Shape(Granule.K64, 1, pages)])


def test_a_scenario_gives_the_same_again(machine):
    p = Play(machine)
    CASES["a_stage_1_translates_first"](p)
    first = call_sequence.run(machine, p.scenario())
    assert call_sequence.run(machine, p.scenario()) == first
    assert len(first) == len(p.steps)
    assert p.scenario().stage1 == STAGE1
