"""The vocabulary of steps: what a scenario may say, and what is made of it."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import CASES, HOST, Play

from vmm_msi.errors import ScenarioError
from vmm_msi.iommu import call_sequence, call_sequence_json
from vmm_msi.iommu.call_sequence import OPS, Ref, Scenario, Step, StepResult
from vmm_msi.iommu.sim.call_machine import SimMachine

GOOD = {
    "schema": 1,
    "stage1": [{"granule": 4096, "asid": 1, "map": [["0xfffff000", "0x8000000"]]}],
    "steps": [
        {"op": "open"},
        {"op": "bind", "fd": {"step": 0}, "device": 0},
        {"op": "ioas_alloc", "fd": {"step": 0}},
        {
            "op": "ioas_map",
            "fd": {"step": 0},
            "ioas": {"step": 2},
            "iova": "0x40000000",
            "size": 0x200000,
            "page": 0,
        },
        {
            "op": "hwpt_alloc_nested",
            "fd": {"step": 0},
            "dev_id": {"step": 1},
            "viommu": 65536,
            "config": "translate",
            "stage1": 0,
        },
    ],
}


@pytest.fixture
def machine():
    return SimMachine(HOST, output_bits=44)


def changed(path, value):
    document = copy.deepcopy(GOOD)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


def test_every_step_is_a_method_of_a_machine(machine):
    for op in OPS:
        assert callable(getattr(machine, op))


def test_a_document_is_read_and_written():
    scenario = call_sequence_json.scenario_from_json(GOOD)
    written = json.loads(json.dumps(call_sequence_json.scenario_to_json(scenario)))
    assert call_sequence_json.scenario_from_json(written) == scenario
    assert scenario.steps[3].arguments["size"] == 0x200000
    assert str(scenario.steps[3]) == (
        "ioas_map(fd=#0, ioas=#2, iova=0x40000000, size=0x200000, page=0)"
    )


@pytest.mark.parametrize("name", CASES)
def test_results_are_read_and_written(name, machine):
    play = Play(machine)
    CASES[name](play)
    results = call_sequence.run(machine, play.scenario())
    written = json.loads(json.dumps(call_sequence_json.results_to_json(results)))
    assert call_sequence_json.results_from_json(written) == results
    scenario = call_sequence_json.scenario_to_json(call_sequence_json.check(play.scenario()))
    assert call_sequence_json.scenario_from_json(scenario) == play.scenario()


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("schema",), 2, "schema 2"),
        (("schema",), True, "schema True"),
        (("stage1",), {}, "is no list"),
        (("stage1",), [GOOD["stage1"][0]] * 2, "one ASID"),
        (("stage1",), [GOOD["stage1"][0]] * 17, "17 entries"),
        (("stage1", 0, "granule"), 8192, "granule 8192"),
        (("stage1", 0, "granule"), True, "valid is a number"),
        (("stage1", 0, "asid"), 1 << 16, "ASID 65536"),
        (("stage1", 0, "asid"), -1, "-1; valid is a number"),
        (("stage1", 0, "map"), [[1]], "an entry is a gIOVA and an IPA"),
        (("stage1", 0, "map"), [[1, 2, 3]], "3 entries"),
        (("stage1", 0, "map"), [["0x1001", 0]], "multiples of 0x1000"),
        (("stage1", 0, "map"), [[1 << 48, 0]], "below 0x1000000000000"),
        (("stage1", 0, "map"), [[0, 1 << 48]], "below 0x1000000000000"),
        (("stage1", 0, "map"), [["0x", 0]], "valid is a number"),
        (("stage1", 0, "map"), [[0, 0], [0, 4096]], "mapped twice"),
        (("stage1", 0, "map"), [[0, 0]] * 65, "65 entries"),
        (("steps",), "open", "is no list"),
        (("steps",), [{"op": "open"}] * 1001, "1001 entries"),
        (("steps", 0), "open", "is no object"),
        (("steps", 0), {}, "'None' is no step"),
        (("steps", 0), {"op": ["open"]}, "is no step"),
        (("steps", 0), {"op": "prepare"}, "'prepare' is no step"),
        (("steps", 0), {"op": "open", "device": 1}, "what it takes: none"),
        (("steps", 1), {"op": "bind"}, "has the arguments none"),
        (("steps", 1, "device"), {"step": 0}, "cannot be what an earlier step returned"),
        (("steps", 1, "device"), 1 << 32, "valid is a number"),
        (("steps", 1, "device"), [0], "valid is a number"),
        (("steps", 1, "fd"), {"step": 1}, "does not come before"),
        (("steps", 1, "fd"), {"step": -1}, "valid is a number"),
        (("steps", 1, "fd"), {"step": 0, "more": 1}, "what it takes: step"),
        (("steps", 1, "fd"), 0, "by chance"),
        (("steps", 4, "viommu"), 1, "by chance"),
        (("steps", 4, "viommu"), 1 << 32, "valid is a number"),
        (("steps", 4, "viommu"), {"step": 3}, "returns no number"),
        (("steps", 4, "config"), "passthrough", "valid: translate"),
        (("steps", 4, "config"), 1, "valid: translate"),
        (("steps", 4, "config"), None, "is no argument"),
        (("steps", 4, "stage1"), 1, "the scenario has 1"),
        (("steps", 3, "page"), 9, "valid is a number from 0 to 8"),
        (("steps", 3, "iova"), 1 << 64, "valid is a number"),
        (("steps", 3, "iova"), "0x-1", "valid is a number"),
        (("steps", 3, "size"), 0x200001, "valid is up to 0x200000"),
        (("steps", 3, "size"), {"step": 2}, "are numbers"),
        (
            ("steps", 4),
            {"op": "hwpt_alloc", "fd": {"step": 0}, "dev_id": 0, "ioas": 0, "nest_parent": 1},
            "valid: true, false",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(path, value, told):
    with pytest.raises(ScenarioError, match=told):
        call_sequence_json.scenario_from_json(changed(path, value))


@pytest.mark.parametrize("document", [None, [], "x", {"schema": 1}, {**GOOD, "more": 1}])
def test_what_is_no_scenario_is_refused(document):
    with pytest.raises(ScenarioError):
        call_sequence_json.scenario_from_json(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [(), ("steps",), ("steps", 1), ("steps", 1, "fd"), ("steps", 3, "iova"), ("stage1", 0, "map")]
)


@given(path=KEYS, value=JSON)
def test_anything_is_read_or_refused(path, value):
    document = changed(path, value) if path else value
    try:
        scenario = call_sequence_json.scenario_from_json(document)
    except ScenarioError:
        return
    assert (
        call_sequence_json.scenario_from_json(call_sequence_json.scenario_to_json(scenario))
        == scenario
    )


@given(JSON)
def test_results_of_any_kind_are_read_or_refused(value):
    for document in (value, [value], [{"landing": value}], [{"value": value}]):
        try:
            call_sequence_json.results_from_json(document)
        except ScenarioError:
            continue


def test_ids_agree_when_there_is_one_on_both_sides():
    made, mapped = Step("open"), Step("ioas_unmap")
    assert call_sequence.agree(made, StepResult(value=1), StepResult(value=7))
    assert not call_sequence.agree(made, StepResult(value=1), StepResult(22))
    assert not call_sequence.agree(mapped, StepResult(value=1), StepResult(value=7))
    assert not call_sequence.agree(mapped, StepResult(22), StepResult(2))
    assert call_sequence.agree(mapped, StepResult(22, reason="one"), StepResult(22, reason="two"))


def test_a_destroyed_object_is_none(machine):
    """The kernel gives the number out again, and a reference must not find what has it now."""
    scenario = Scenario(
        (),
        (
            Step("open"),
            Step("ioas_alloc", {"fd": Ref(0)}),
            Step("destroy", {"fd": Ref(0), "number": Ref(1)}),
            Step("ioas_alloc", {"fd": Ref(0)}),
            Step("destroy", {"fd": Ref(0), "number": Ref(1)}),
        ),
    )
    assert [each.errno for each in call_sequence.run(machine, scenario)] == [0, 0, 0, 0, 2]


def test_a_run_ends_where_it_goes_another_way(machine):
    scenario = Scenario((), (Step("open"), Step("ioas_alloc", {"fd": Ref(0)}), Step("open")))
    right = call_sequence.run(machine, scenario)
    assert call_sequence.run(machine, scenario, right) == right
    wrong = [right[0], StepResult(12), right[2]]
    assert call_sequence.run(machine, scenario, wrong) == right[:2]


def test_a_device_that_is_not_there_is_refused(machine):
    scenario = Scenario((), (Step("detach", {"device": 6}),))
    with pytest.raises(ScenarioError, match="device 6: the host has 6"):
        call_sequence.run(machine, scenario)
