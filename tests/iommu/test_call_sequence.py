"""Call sequences: their vocabulary, their documents, and how they run."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import CASES, HOST, CheckedCalls

from vmm_msi.errors import CallSequenceError
from vmm_msi.iommu import call_sequence, call_sequence_json
from vmm_msi.iommu.call_sequence import OPS, CallSequence, Machine, Ref, Step, StepResult, ValueKind
from vmm_msi.iommu.linux.call_machine import LinuxMachine
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


#: Methods of a machine that a step cannot call.
NOT_STEPS = {"prepare", "reset"}


def test_every_method_of_a_machine_is_a_step():
    methods = {name for name, member in vars(Machine).items() if inspect.isfunction(member)}
    assert OPS.keys() == {name for name in methods if name[0] != "_"} - NOT_STEPS


@pytest.mark.parametrize("machine", [SimMachine, LinuxMachine])
@pytest.mark.parametrize("op", OPS)
def test_machines_take_the_parameters_of_a_step(op, machine):
    parameters = dict(inspect.signature(getattr(machine, op)).parameters)
    del parameters["self"]
    assert list(parameters) == list(OPS[op].parameters)


def test_parameters_with_the_same_name_are_of_the_same_kind():
    kinds = {}
    for op in OPS.values():
        for name, kind in op.parameters.items():
            assert kinds.setdefault(name, kind) is kind
    assert set(kinds.values()) == set(ValueKind) - {ValueKind.LANDING, ValueKind.BINDING}
    assert {op.result for op in OPS.values()} == {
        None,
        ValueKind.FD,
        ValueKind.ID,
        ValueKind.U64,
        ValueKind.LANDING,
        ValueKind.BINDING,
    }


def test_a_document_is_read_and_written():
    sequence = call_sequence_json.sequence_from_json(GOOD)
    written = json.loads(json.dumps(call_sequence_json.sequence_to_json(sequence)))
    assert call_sequence_json.sequence_from_json(written) == sequence
    assert sequence.steps[3].arguments["size"] == 0x200000
    assert str(sequence.steps[3]) == (
        "ioas_map(fd=#0, ioas=#2, iova=0x40000000, size=0x200000, page=0)"
    )


@pytest.mark.parametrize("name", CASES)
def test_results_are_read_and_written(name, machine):
    calls = CheckedCalls(machine)
    CASES[name](calls)
    results = call_sequence.run(machine, calls.sequence())
    written = json.loads(json.dumps(call_sequence_json.results_to_json(results)))
    assert call_sequence_json.results_from_json(written) == results
    sequence = call_sequence_json.sequence_to_json(call_sequence_json.check(calls.sequence()))
    assert call_sequence_json.sequence_from_json(sequence) == calls.sequence()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema 2"),
        (("schema",), True, "schema True"),
        (("stage1",), {}, "is not a list"),
        (("stage1",), [GOOD["stage1"][0]] * 2, "the same ASID"),
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
        (("steps",), "open", "is not a list"),
        (("steps",), [{"op": "open"}] * 1001, "1001 entries"),
        (("steps", 0), "open", "is not an object"),
        (("steps", 0), {}, "'None' is not a step"),
        (("steps", 0), {"op": ["open"]}, "is not a step"),
        (("steps", 0), {"op": "prepare"}, "'prepare' is not a step"),
        (("steps", 0), {"op": "open", "device": 1}, "; valid: none"),
        (("steps", 1), {"op": "bind"}, "has the arguments none"),
        (("steps", 1, "device"), {"step": 0}, "cannot be the result of an earlier step"),
        (("steps", 1, "device"), 1 << 32, "valid is a number"),
        (("steps", 1, "device"), [0], "valid is a number"),
        (("steps", 1, "fd"), {"step": 1}, "does not come before"),
        (("steps", 1, "fd"), {"step": -1}, "valid is a number"),
        (("steps", 1, "fd"), {"step": 0, "more": 1}, "; valid: step"),
        (("steps", 1, "fd"), 0, "may be the number of some object"),
        (("steps", 4, "viommu"), 1, "may be the number of some object"),
        (("steps", 4, "viommu"), 1 << 32, "valid is a number"),
        (("steps", 4, "viommu"), {"step": 3}, "returns no number"),
        (("steps", 4, "config"), "passthrough", "valid: translate"),
        (("steps", 4, "config"), 1, "valid: translate"),
        (("steps", 4, "config"), None, "is not an argument"),
        (("steps", 4, "stage1"), 1, "the sequence has 1"),
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
def test_an_invalid_document_is_refused_with_the_place(path, value, message):
    with pytest.raises(CallSequenceError, match=message):
        call_sequence_json.sequence_from_json(changed(path, value))


@pytest.mark.parametrize("document", [None, [], "x", {"schema": 1}, {**GOOD, "more": 1}])
def test_another_document_is_refused(document):
    with pytest.raises(CallSequenceError):
        call_sequence_json.sequence_from_json(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [(), ("steps",), ("steps", 1), ("steps", 1, "fd"), ("steps", 3, "iova"), ("stage1", 0, "map")]
)


@given(path=KEYS, value=JSON)
def test_any_value_is_read_or_refused(path, value):
    document = changed(path, value) if path else value
    try:
        sequence = call_sequence_json.sequence_from_json(document)
    except CallSequenceError:
        return
    assert (
        call_sequence_json.sequence_from_json(call_sequence_json.sequence_to_json(sequence))
        == sequence
    )


@given(JSON)
def test_results_of_any_kind_are_read_or_refused(value):
    for document in (value, [value], [{"landing": value}], [{"value": value}]):
        try:
            call_sequence_json.results_from_json(document)
        except CallSequenceError:
            continue


def test_ids_agree_if_both_sides_have_one():
    opened, mapped = Step("open"), Step("ioas_unmap")
    assert call_sequence.agree(opened, StepResult(value=1), StepResult(value=7))
    assert not call_sequence.agree(opened, StepResult(value=1), StepResult(22))
    assert not call_sequence.agree(mapped, StepResult(value=1), StepResult(value=7))
    assert not call_sequence.agree(mapped, StepResult(22), StepResult(2))
    assert call_sequence.agree(mapped, StepResult(22, reason="one"), StepResult(22, reason="two"))


def test_a_reference_to_a_destroyed_object_refers_to_no_object(machine):
    """The kernel reuses the number, and the reference must not mean the new object."""
    sequence = CallSequence(
        (),
        (
            Step("open"),
            Step("ioas_alloc", {"fd": Ref(0)}),
            Step("destroy", {"fd": Ref(0), "number": Ref(1)}),
            Step("ioas_alloc", {"fd": Ref(0)}),
            Step("destroy", {"fd": Ref(0), "number": Ref(1)}),
        ),
    )
    assert [result.errno for result in call_sequence.run(machine, sequence)] == [0, 0, 0, 0, 2]


def test_a_run_ends_at_the_first_other_result(machine):
    sequence = CallSequence((), (Step("open"), Step("ioas_alloc", {"fd": Ref(0)}), Step("open")))
    right = call_sequence.run(machine, sequence)
    assert call_sequence.run(machine, sequence, right) == right
    wrong = [right[0], StepResult(12), right[2]]
    assert call_sequence.run(machine, sequence, wrong) == right[:2]


def test_a_missing_device_is_refused(machine):
    sequence = CallSequence((), (Step("detach", {"device": 6}),))
    with pytest.raises(CallSequenceError, match="device 6: the host has 6"):
        call_sequence.run(machine, sequence)
