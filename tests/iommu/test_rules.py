"""Every refusal and every verdict of the simulator names the rule that decided it."""

from __future__ import annotations

import ast
import errno
from dataclasses import replace
from itertools import product
from pathlib import Path

import binding_cases
import pytest
from hypothesis import given, settings
from kernel_cases import CASES, HOST, CheckedCalls
from random_scenarios import CHOICES, scenarios
from simulator_rules import all_rules

from vmm_msi import samples
from vmm_msi.engine.compare import compare
from vmm_msi.errors import BackendError, Rule
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.iommu import call_sequence, rules
from vmm_msi.iommu.profiles import PROFILES
from vmm_msi.iommu.sim.call_machine import SimMachine
from vmm_msi.lab.conformance import conform
from vmm_msi.lab.conformance.random_sequences import draw_sequences
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import Outcome

IOMMU = Path(call_sequence.__file__).parent
OUTSIDE = ("allocators", "backend", "guest_msi", "nest_bindings", "type1", "vmm")
#: The modules with rules of the simulated kernels; the others call a real one or read answers.
SIMULATOR = [
    *sorted((IOMMU / "sim").glob("*.py")),
    *(IOMMU / f"{name}.py" for name in OUTSIDE),
]
PLUGINS = PluginManager.load()


@pytest.mark.parametrize("module", SIMULATOR, ids=lambda path: path.stem)
def test_a_refusal_is_made_from_its_rule(module):
    """``rule.refusal(…)``: a BackendError that is made by hand would have no rule."""
    tree = ast.parse(module.read_text())
    by_hand = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == BackendError.__name__
    ]
    assert by_hand == []


@pytest.fixture
def refusals(monkeypatch):
    """The rule of each refusal that is made, by its message."""
    seen = {}
    original = BackendError.__init__

    def record(self, *args, **named):
        original(self, *args, **named)
        seen[str(self)] = self.decided_by

    monkeypatch.setattr(BackendError, "__init__", record)
    return seen


def check(refusals, at_least):
    known = set(all_rules())
    assert {message: rule for message, rule in refusals.items() if rule not in known} == {}
    used = set(refusals.values())
    assert len(used) >= at_least, sorted(used)


def test_the_refusals_of_the_rules_of_linux(refusals):
    for cases, bindings in ((CASES, False), (binding_cases.CASES, True)):
        for case in cases.values():
            machine = SimMachine(HOST, output_bits=conform.OUTPUT_BITS, bindings=bindings)
            case(CheckedCalls(machine))
    check(refusals, at_least=40)


@pytest.mark.parametrize("bindings", [False, True])
def test_the_refusals_of_random_calls(refusals, bindings):
    machine = SimMachine(HOST, output_bits=conform.OUTPUT_BITS, bindings=bindings)
    for sequence in draw_sequences(machine, 200, 7):
        for _result in call_sequence.run(machine, sequence):
            pass
    check(refusals, at_least=30)


def check_verdicts(verdicts):
    for verdict in verdicts:
        assert isinstance(verdict.decided_by, Rule), verdict
        assert all(step.decided_by is not None for step in verdict.trace), verdict
        if verdict.outcome is Outcome.DELIVERED:
            assert verdict.decided_by == verdict.trace[0].decided_by
        elif verdict.trace and "doorbell" in {step.step for step in verdict.trace}:
            assert verdict.decided_by == verdict.trace[-1].decided_by


@settings(max_examples=100)
@given(scenarios())
def test_every_verdict_and_step_of_random_scenarios(scenario):
    for result in compare(PLUGINS, scenario, CHOICES, "first-in-group"):
        check_verdicts(result.verdicts)


@pytest.mark.parametrize("sample", ["two-its.toml", "eight-its.toml"])
def test_every_verdict_and_step_of_each_kernel(sample):
    scenario = parse_scenario(samples.path(sample).read_text(), sample)
    seen = set()
    for choice, profile in product(PLUGINS.choices(), PROFILES):
        needs = PLUGINS.needs(choice.strategy, PLUGINS.options(choice.strategy, choice.options))
        if not needs.capabilities <= profile.capabilities:
            continue
        selected = replace(choice, profile=profile.name)
        for result in compare(PLUGINS, scenario, [selected], "first-in-group"):
            check_verdicts(result.verdicts)
            seen |= {step.decided_by for v in result.verdicts for step in v.trace}
            seen |= {v.decided_by for v in result.verdicts}
    assert {rules.SLOT, rules.CHOOSE_BINDING, rules.PRESET, rules.COOKIE, rules.GUEST_RMR} <= seen


def test_a_replaced_errno_keeps_the_rule():
    error = rules.SLOT.refusal(errno.EOVERFLOW, "no slot").seen_as(errno.ENOSPC)
    assert (error.decided_by, error.inside) == (rules.SLOT, errno.EOVERFLOW)
    assert str(rules.SLOT).endswith(f"({rules.SLOT.source})")
