"""Scenarios and their results as JSON values: to and from files, to and from the emulated host.

::

    {
      "schema": 1,
      "stage1": [{"granule": 4096, "asid": 1, "map": [["0xfffff000", "0x8000000"]]}],
      "steps": [{"op": "open"}, {"op": "bind", "fd": {"step": 0}, "device": 0}]
    }

Numbers may be written in hexadecimal, as strings. What is read is checked against the vocabulary
of :mod:`vmm_msi.iommu.call_sequence` and its bounds before any of it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_msi.errors import ScenarioError
from vmm_msi.iommu.call_sequence import (
    OPS,
    RAM_PAGE,
    RAM_SIZE,
    WITNESSES,
    Argument,
    Gives,
    Kind,
    Landing,
    LandingKind,
    NestedConfig,
    Ref,
    Scenario,
    Stage1Shape,
    Step,
    StepResult,
)
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import Granule, Iova, Ipa, StreamId

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = 1

_U64 = (1 << 64) - 1
_U32 = (1 << 32) - 1
_MOST_STEPS = 1000
_MOST_SHAPES = 16
_MOST_PAGES = 64
_INPUT_BITS = 48
#: Numbers of objects below this may be some object's by chance, another one on each machine.
_FIRST_FREE_NUMBER = 1 << 16


def scenario_to_json(scenario: Scenario) -> dict[str, Any]:
    """Return a scenario as a JSON value."""
    return {
        "schema": SCHEMA,
        "stage1": [
            {
                "granule": int(shape.granule),
                "asid": shape.asid,
                "map": [[hex(giova), hex(ipa)] for giova, ipa in shape.pages],
            }
            for shape in scenario.stage1
        ],
        "steps": [
            {
                "op": step.op,
                **{
                    name: _argument_to_json(value, OPS[step.op].parameters[name])
                    for name, value in step.arguments.items()
                },
            }
            for step in scenario.steps
        ],
    }


def _argument_to_json(value: Argument, kind: Kind) -> object:
    if isinstance(value, Ref):
        return {"step": value.step}
    return hex(value) if kind is Kind.U64 and isinstance(value, int) else value


def scenario_from_json(value: object) -> Scenario:
    """Read a scenario.

    :raise ScenarioError: when it is none; it says where.
    """
    given = _table("scenario", value, {"schema", "stage1", "steps"})
    if isinstance(given["schema"], bool) or given["schema"] != SCHEMA:
        raise ScenarioError(f"scenario: schema {given['schema']!r}; this version reads {SCHEMA}")
    shapes = _list("scenario: stage1", given["stage1"], _MOST_SHAPES)
    steps = _list("scenario: steps", given["steps"], _MOST_STEPS)
    return check(
        Scenario(
            tuple(_shape(f"scenario, stage 1 {n}", shape) for n, shape in enumerate(shapes)),
            tuple(_step(f"scenario, step {n}", step) for n, step in enumerate(steps)),
        )
    )


def _table(where: str, value: object, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ScenarioError(f"{where}: {value!r} is no object")
    if value.keys() != keys:
        raise ScenarioError(
            f"{where}: has the keys {', '.join(map(str, value)) or 'none'}; "
            f"what it takes: {', '.join(sorted(keys))}"
        )
    return value


def _list(where: str, value: object, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise ScenarioError(f"{where}: {value!r} is no list")
    if len(value) > most:
        raise ScenarioError(f"{where}: {len(value)} entries; valid is up to {most}")
    return value


def _number(where: str, value: object, most: int = _U64) -> int:
    found = value
    if isinstance(value, str):
        try:
            found = int(value, 16) if value.startswith("0x") else None
        except ValueError:
            found = None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= most:
        raise ScenarioError(f"{where}: {value!r}; valid is a number from 0 to {most}")
    return found


def _shape(where: str, value: object) -> Stage1Shape:
    given = _table(where, value, {"granule", "asid", "map"})
    try:
        granule = Granule(_number(f"{where}: granule", given["granule"]))
    except ValueError:
        valid = ", ".join(str(int(each)) for each in Granule)
        raise ScenarioError(f"{where}: granule {given['granule']}; valid: {valid}") from None
    pages = []
    for entry in _list(f"{where}: map", given["map"], _MOST_PAGES):
        pair = _list(f"{where}: map", entry, 2)
        if len(pair) != 2:
            raise ScenarioError(f"{where}: map: {entry!r}: an entry is a gIOVA and an IPA")
        pages.append((_number(f"{where}: gIOVA", pair[0]), _number(f"{where}: IPA", pair[1])))
    return Stage1Shape(granule, _number(f"{where}: asid", given["asid"]), tuple(pages))


def _step(where: str, value: object) -> Step:
    if not isinstance(value, dict):
        raise ScenarioError(f"{where}: {value!r} is no object")
    op = value.get("op")
    parameters = OPS[op].parameters if isinstance(op, str) and op in OPS else {}
    return Step(
        str(op),
        {
            str(name): _argument(f"{where}: {op}: {name}", given, parameters.get(name))
            for name, given in value.items()
            if name != "op"
        },
    )


def _argument(where: str, value: object, kind: Kind | None) -> Argument:
    if isinstance(value, dict):
        return Ref(_number(where, _table(where, value, {"step"})["step"]))
    if kind in {Kind.CONFIG, Kind.FLAG, None}:
        if isinstance(value, str | bool | int):
            return value
        raise ScenarioError(f"{where}: {value!r} is no argument")
    return _number(where, value)


def check(scenario: Scenario) -> Scenario:
    """Check a scenario against the vocabulary and its bounds, and return it.

    :raise ScenarioError: when it does not fit; it says where.
    """
    for number, shape in enumerate(scenario.stage1):
        _check_shape(f"scenario, stage 1 {number}", shape)
    if len({shape.asid for shape in scenario.stage1}) != len(scenario.stage1):
        raise ScenarioError("scenario: two stage 1 tables have one ASID; give each its own")
    for at, step in enumerate(scenario.steps):
        where = f"scenario, step {at}"
        op = OPS.get(step.op)
        if op is None:
            raise ScenarioError(f"{where}: {step.op!r} is no step; valid: {', '.join(OPS)}")
        if step.arguments.keys() != op.parameters.keys():
            raise ScenarioError(
                f"{where}: {step.op}: has the arguments {', '.join(step.arguments) or 'none'}; "
                f"what it takes: {', '.join(op.parameters) or 'none'}"
            )
        for name, kind in op.parameters.items():
            _check_argument(f"{where}: {step.op}: {name}", step.arguments[name], kind, at, scenario)
        if step.op == "ioas_map":
            _check_memory(where, step)
    return scenario


def _check_memory(where: str, step: Step) -> None:
    """Check that what is mapped is the machine's memory, or refused for its size alone."""
    page, size = step.arguments["page"], step.arguments["size"]
    if not isinstance(page, int) or not isinstance(size, int):
        raise ScenarioError(f"{where}: ioas_map: page and size are numbers")
    room = RAM_SIZE if page == RAM_PAGE else (WITNESSES + 1 - page) * Granule.K64
    if room < size < _U64:
        raise ScenarioError(
            f"{where}: ioas_map: {size:#x} bytes from page {page}; valid is up to {room:#x}, or "
            f"{_U64:#x}"
        )


def _check_shape(where: str, shape: Stage1Shape) -> None:
    if not 0 <= shape.asid < 1 << 16:
        raise ScenarioError(f"{where}: ASID {shape.asid}; valid is 0 to 65535")
    for giova, ipa in shape.pages:
        if (giova | ipa) % shape.granule or max(giova, ipa) >> _INPUT_BITS:
            raise ScenarioError(
                f"{where}: {giova:#x} -> {ipa:#x}; valid are multiples of {shape.granule:#x} "
                f"below {1 << _INPUT_BITS:#x}"
            )
    if len({giova for giova, _ipa in shape.pages}) != len(shape.pages):
        raise ScenarioError(f"{where}: a gIOVA is mapped twice; map each once")


_MOST = {Kind.DEVICE: _U32, Kind.U64: _U64, Kind.PAGE: WITNESSES}


def _check_argument(where: str, value: Argument, kind: Kind, at: int, scenario: Scenario) -> None:
    if isinstance(value, Ref):
        _check_reference(where, value, kind, at, scenario)
    elif kind is Kind.FLAG:
        if not isinstance(value, bool):
            raise ScenarioError(f"{where}: {value!r}; valid: true, false")
    elif kind is Kind.CONFIG:
        if value not in list(NestedConfig):
            raise ScenarioError(f"{where}: {value!r}; valid: {', '.join(NestedConfig)}")
    elif kind in {Kind.FD, Kind.ID}:
        if 0 < _number(where, value, _U32) < _FIRST_FREE_NUMBER or (kind is Kind.FD and not value):
            raise ScenarioError(
                f"{where}: {value} is some object by chance; name it by the step that made it, "
                f'as in {{"step": 0}}; for a number that is none, take {_FIRST_FREE_NUMBER} or more'
            )
    elif kind is Kind.STAGE1:
        if _number(where, value) >= len(scenario.stage1):
            raise ScenarioError(f"{where}: {value}; the scenario has {len(scenario.stage1)}")
    else:
        _number(where, value, _MOST[kind])


def _check_reference(where: str, ref: Ref, kind: Kind, at: int, scenario: Scenario) -> None:
    if kind not in {Kind.FD, Kind.ID, Kind.U64}:
        raise ScenarioError(f"{where}: cannot be what an earlier step returned")
    if not 0 <= ref.step < at:
        raise ScenarioError(f"{where}: step {ref.step} does not come before this one")
    made_by = scenario.steps[ref.step].op
    if OPS[made_by].gives not in {Gives.ID, Gives.NUMBER}:
        raise ScenarioError(f"{where}: step {ref.step}, {made_by}, returns no number")


def results_to_json(results: Sequence[StepResult]) -> list[dict[str, Any]]:
    """Return the results of a scenario's steps as a JSON value."""
    return [_result_to_json(result) for result in results]


def _result_to_json(result: StepResult) -> dict[str, Any]:
    if result.errno:
        return {"errno": result.errno, "reason": result.reason}
    if result.landing is not None:
        return {"landing": _landing_to_json(result.landing)}
    return {} if result.value is None else {"value": result.value}


def _landing_to_json(landing: Landing) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": landing.kind.value}
    if landing.kind is LandingKind.WITNESS:
        found |= {"page": landing.page, "offset": landing.offset}
    event = landing.event
    if event is not None:
        found["event"] = {
            "kind": event.kind.name,
            "stage": event.stage,
            "stream": int(event.stream_id),
            "iova": hex(event.iova),
            "ipa": None if event.ipa is None else hex(event.ipa),
            "table_walk": event.table_walk,
        }
        found["guest"] = landing.guest
    return found


def results_from_json(value: object) -> list[StepResult]:
    """Read the results of a scenario's steps.

    :raise ScenarioError: when they are none.
    """
    try:
        return [_result(each) for each in _list("results", value, _MOST_STEPS)]
    except (KeyError, TypeError, ValueError) as error:
        raise ScenarioError(f"results: {type(error).__name__}: {error}") from error


def _result(value: dict[str, Any]) -> StepResult:
    if "errno" in value:
        number = _number("results: errno", value["errno"])
        return StepResult(number, reason=str(value["reason"]))
    if "landing" in value:
        return StepResult(landing=_landing(value["landing"]))
    if "value" in value:
        return StepResult(value=_number("results: value", value["value"]))
    return StepResult()


def _landing(value: dict[str, Any]) -> Landing:
    kind = LandingKind(value["kind"])
    if kind is LandingKind.WITNESS:
        return Landing(kind, int(value["page"]), int(value["offset"]))
    if kind is not LandingKind.FAULT:
        return Landing(kind)
    event = value["event"]
    ipa = event["ipa"]
    return Landing(
        kind,
        event=SmmuEvent(
            EventKind[event["kind"]],
            int(event["stage"]),
            StreamId(event["stream"]),
            Iova(_number("results: iova", event["iova"])),
            None if ipa is None else Ipa(_number("results: ipa", ipa)),
            bool(event["table_walk"]),
        ),
        guest=bool(value["guest"]),
    )
