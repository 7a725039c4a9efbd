"""The smallest scenario with an outcome: it has the outcome, and nothing can be left out of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_scenarios import CHOICES, scenarios
from scenarios import pair

from vmm_msi import samples
from vmm_msi.config import Choice, Config
from vmm_msi.errors import ScenarioError, UsageError
from vmm_msi.host.scenario import load_scenario, parse_scenario
from vmm_msi.host.scenario_export import scenario_document
from vmm_msi.library.comparison import Runs
from vmm_msi.library.minimise import Kept, Minimiser, removals
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import Outcome, PciAddress

PLUGINS = PluginManager.load()
A, B = PciAddress(0, 1, 0, 0), PciAddress(0, 2, 0, 0)


def minimiser(scenario, choice, device=None):
    if isinstance(choice, str):
        choice = Choice.parse(choice)
    return Minimiser(Runs.of(scenario, [choice], PLUGINS, Config()), device)


def check_smallest(minimiser):
    """Check the result; return it."""
    result = minimiser.minimise()
    assert Kept.of(result.verdict) == minimiser.kept
    text = result.to_text("x", "y")
    scenario = parse_scenario(text, result.scenario.host.source)
    assert scenario == result.scenario
    for smaller in removals(result.document):
        assert minimiser.shown_by(smaller) is None, smaller
    return result


@settings(deadline=None)
@given(scenarios(max_devices=4), st.sampled_from(CHOICES))
def test_random_scenarios(drawn, choice):
    *vits, last = drawn.guest.vits
    vits.append(replace(last, base=last.base.offset(0x100000)))
    memory = (replace(drawn.guest.memory[0], size=0x4000000), *drawn.guest.memory[1:])
    scenario = replace(drawn, guest=replace(drawn.guest, vits=tuple(vits), memory=memory))
    first = minimiser(scenario, choice)
    again = minimiser(scenario, choice)
    assert check_smallest(first).document == again.minimise().document


@pytest.mark.parametrize(
    ("strategy", "lines"),
    [
        ("direct", 10),
        ("coerced:revision=v4", 10),
        ("host-cookie", 4),
        ("identity", 4),
        ("preset", 10),
    ],
)
def test_two_its(strategy, lines):
    scenario = load_scenario(Path(samples.path("two-its.toml")))
    result = check_smallest(minimiser(scenario, strategy))
    text = result.to_text("x", strategy)
    entries = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(entries) <= lines + 1


def test_a_device_that_is_named():
    scenario = parse_scenario(pair("own", pits=2).toml(), "x")
    result = check_smallest(minimiser(scenario, "direct", A))
    assert result.verdict.device == A
    assert result.verdict.outcome is Outcome.DELIVERED
    assert [device.host for device in result.scenario.guest.devices] == [A]
    with pytest.raises(UsageError, match="the guest has no such device; valid: "):
        minimiser(scenario, "direct", PciAddress(0, 9, 0, 0))


def test_many_devices_are_few_runs():
    scenario = load_scenario(Path(samples.path("eight-its.toml")))
    result = check_smallest(minimiser(scenario, "direct"))
    assert len(result.scenario.host.devices) == 2
    assert len(result.scenario.host.itses) == 2
    assert result.runs < 100


def test_the_kind_of_a_reason_is_kept():
    """Both refuse the device with the same errno, and only one because of the other device."""
    text = pair("own", pits=2).toml().replace("vits = 0", "vits = 0\nvfio = true", 1)
    scenario = parse_scenario(text, "x")
    first = minimiser(scenario, "identity").kept
    assert first.outcome is Outcome.REFUSED
    assert "VFIO in the guest refuses it" in first.reason
    result = check_smallest(minimiser(scenario, "identity"))
    assert result.scenario.guest.devices[0].vfio is True


def test_a_scenario_that_cannot_be_smaller():
    scenario = load_scenario(Path(samples.path("two-its.toml")))
    smallest = minimiser(scenario, "direct").minimise()
    again = minimiser(smallest.scenario, "direct").minimise()
    assert again.document == smallest.document
    assert scenario_document(smallest.scenario) != smallest.document
    with pytest.raises(ScenarioError):
        parse_scenario("[host]\n", "x")
