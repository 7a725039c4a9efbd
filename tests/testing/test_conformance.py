"""The conformance checks: strategies that ship pass them; those that break a rule do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from random_scenarios import CHOICES
from testing import broken_strategies as broken

from vmm_msi.config import Choice
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.lab.backend import device_roles
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.testing import conformance
from vmm_msi.testing.location import located
from vmm_msi.testing.scenarios import (
    TRUTH_TABLE,
    DeviceShape,
    on_any_backend,
    pair,
    sample_scenarios,
    scenario_of,
)
from vmm_msi.testing.subject import Subject
from vmm_msi.types import Outcome

CHECKS = (*conformance.SCENARIO_CHECKS, *conformance.STRATEGY_CHECKS)
PLUGINS = PluginManager.load()


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_strategy_that_ships_passes(choice):
    for name, scenario in sample_scenarios().items():
        subject = Subject(PLUGINS, choice, scenario)
        for check in CHECKS:
            assert conformance.problems(check, subject) == [], (name, check.__name__)


def failed(strategy, scenario=None):
    """Return the problems of a strategy by check, each with its place."""
    plugins = PluginManager.load()
    info = plugins.register(strategy)
    subject = Subject(plugins, Choice(info.name), scenario or pair("own", itses=2))
    plugin = plugins.plugin(info.name)
    problems = {
        check.__name__: [located(plugin, p) for p in conformance.problems(check, subject)]
        for check in CHECKS
    }
    return {name: lines for name, lines in problems.items() if lines}


def test_a_sound_strategy_has_no_problem():
    assert failed(broken.Sound) == {}


@pytest.mark.parametrize(
    ("strategy", "check", "text"),
    [
        (broken.NoReason, "verdicts", "refused without a reason; give the reason"),
        (
            broken.Undeclared,
            "needs",
            "calls program_msi, which its needs do not declare; add Capability.MSI_ADDRESS_WRITE",
        ),
        (broken.HiddenRmr, "needs", "advertises an RMR; declare rmr=True in Needs"),
        (broken.NotQemu, "needs", "declares qemu=True and calls program_msi"),
        (
            broken.Forgetful,
            "all_or_nothing",
            "after attach was refused (call 2), 1 stage 2 table",
        ),
        (
            broken.NoErrno,
            "errno",
            "prepare_msi was refused with EIO, and the refusal has no errno",
        ),
        (broken.KeepsRmr, "undo_in_any_order", "the backend differs from how it was before"),
        (broken.Leaks, "no_leak", "1 stage 2 table left after all devices were detached"),
        (broken.Remembers, "repeated_runs", "0000:01:00.0 has outcome refused; before"),
        (broken.PlansByMood, "plan_domain", "two plans of one guest differ"),
        (broken.PlansAtOnce, "plan_domain", "planning changes the backend"),
        (broken.UnbindsOnce, "unbind_twice", "of an unbound doorbell failed with KeyError"),
        (broken.Raises, "verdicts", "failed with KeyError: 'gdb'; raise RefusedError"),
        (broken.TakesProfile, "options", "option profile is taken: it names the kernel"),
        (
            broken.TakesTuple,
            "options",
            "option pages: its default cannot be written as pages=(1,)",
        ),
        (broken.TwoPools, "undo_in_any_order", "S2Pool did not attach 0000:0"),
    ],
)
def test_a_broken_strategy_is_reported_with_its_place(strategy, check, text):
    broken.Remembers.served.clear()
    lines = failed(strategy)
    assert any(text in line for line in lines.get(check, [])), lines
    for line in (line for found in lines.values() for line in found):
        place, _, _rest = line.partition(": ")
        file, number = place.rsplit(":", 1)
        assert Path(file).resolve() == Path(broken.__file__)
        assert int(number) > 1
        assert "\n" not in line


def test_a_place_is_the_line_that_raised():
    lines = failed(broken.Raises)
    source = Path(broken.__file__).read_text().splitlines()
    number = int(lines["verdicts"][0].partition(": ")[0].rpartition(":")[2])
    assert source[number - 1].strip() == 'raise KeyError("gdb")'


class WrongIts(SimBackend):
    """Reports the delivery at another ITS than the device's own."""

    def deliver(self, device):
        verdict = super().deliver(device)
        return replace(verdict, outcome=Outcome.DELIVERED, its=1 - verdict.expected_its)


class OneLpi(SimBackend):
    """Reports one LPI for every device."""

    def deliver(self, device):
        verdict = super().deliver(device)
        return replace(verdict, lpi=8192)


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (WrongIts, "0000:01:00.0: delivered to ITS 1, its own is 0"),
        (OneLpi, "two vectors raise one LPI"),
    ],
)
def test_a_verdict_that_contradicts_itself_is_reported(backend, text):
    subject = Subject(
        PLUGINS,
        Choice("identity"),
        pair("own", itses=2),
        lambda scenario, profile: backend(scenario.host, scenario.guest, profile),
    )
    problems = conformance.problems(conformance.verdicts, subject)
    assert text in "\n".join(map(str, problems))


def test_a_missing_capability_is_a_problem():
    choice = Choice.parse("coerced:profile=linux-7.2")
    subject = Subject(PLUGINS, choice, pair())
    (problem,) = conformance.problems(conformance.verdicts, subject)
    assert "the backend sim (linux-7.2) lacks guest-binding-v15" in str(problem)


# The scenarios.


def test_the_truth_table_has_the_rows_of_the_documentation():
    from test_truth_table import TABLE

    assert [tuple(map(str, row)) for row in TRUTH_TABLE] == [
        tuple(map(str, row[:4])) for row in TABLE
    ]


def test_a_pair_is_the_one_of_the_scenario_file():
    """The same guest as a file describes: devices, stage 1, gIOVA, ITSes."""
    from scenarios import pair as described

    from vmm_msi.host.scenario import parse_scenario

    for itses, stage1, vitses, order in TRUTH_TABLE:
        text = described(stage1, pits=itses, vits=vitses, order=str(order)).toml()
        read, built = (
            parse_scenario(text, "x"),
            pair(stage1, itses=itses, vitses=vitses, order=order),
        )
        assert replace(read.guest, name="guest") == built.guest
        for one, other in zip(read.host.devices, built.host.devices, strict=True):
            assert (one.address, one.its_group, one.smmu) == (other.address, other.its_group, 0)
        assert read.host.itses == built.host.itses


@pytest.mark.parametrize("own_its", [False, True])
def test_one_emulated_host_runs_what_is_for_any_backend(own_its):
    scenarios = list(on_any_backend().values())
    for scenario in scenarios:
        device_roles.check(scenario, own_its=own_its)
    shape = device_roles.shape_for_each(scenarios, own_its=own_its)
    assert shape.itses == (2 if own_its else None)
    assert set(on_any_backend()) < set(sample_scenarios())


def test_devices_are_numbered_by_bus():
    scenario = scenario_of([DeviceShape()] * 3)
    addresses = [str(device.host) for device in scenario.guest.devices]
    assert addresses == ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]
