"""Call sequences and their results as JSON values, for files and for the emulated host.

::

    {
      "schema": 1,
      "stage1": [{"granule": 4096, "asid": 1, "map": [["0xfffff000", "0x8000000"]]}],
      "steps": [{"op": "open"}, {"op": "bind", "fd": {"step": 0}, "device": 0}]
    }

Numbers may be written in hexadecimal, as strings. A document is checked against the vocabulary of
:mod:`vmm_msi.iommu.call_sequence` and its bounds before any of it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_msi.errors import CallSequenceError
from vmm_msi.iommu.call_sequence import (
    OPS,
    RAM_PAGE,
    RAM_SIZE,
    WITNESSES,
    Argument,
    CallSequence,
    Landing,
    LandingKind,
    NestedConfig,
    Ref,
    Stage1Shape,
    Step,
    StepResult,
    ValueKind,
)
from vmm_msi.iommu.guest_msi import BoundMsi
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import Granule, Iova, Ipa, StreamId

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = 1

_U64 = (1 << 64) - 1
_U32 = (1 << 32) - 1
_U16 = (1 << 16) - 1
_MOST_STEPS = 1000
_MOST_SHAPES = 16
_MOST_PAGES = 64
_INPUT_BITS = 48
#: Numbers below this may be numbers of objects, of different ones on each machine.
_FIRST_FREE_NUMBER = 1 << 16
#: What error messages call a document.
_NAME = "call sequence"


def sequence_to_json(sequence: CallSequence) -> dict[str, Any]:
    """Return a call sequence as a JSON value."""
    return {
        "schema": SCHEMA,
        "stage1": [
            {
                "granule": int(shape.granule),
                "asid": shape.asid,
                "map": [[hex(giova), hex(ipa)] for giova, ipa in shape.pages],
            }
            for shape in sequence.stage1
        ],
        "steps": [
            {
                "op": step.op,
                **{
                    name: _argument_to_json(value, OPS[step.op].parameters[name])
                    for name, value in step.arguments.items()
                },
            }
            for step in sequence.steps
        ],
    }


def _argument_to_json(value: Argument, kind: ValueKind) -> object:
    if isinstance(value, Ref):
        return {"step": value.step}
    return hex(value) if kind is ValueKind.U64 and isinstance(value, int) else value


def sequence_from_json(value: object) -> CallSequence:
    """Read a call sequence.

    :raise CallSequenceError: when it is not valid, with the place of the error.
    """
    document = _object(_NAME, value, {"schema", "stage1", "steps"})
    schema = document["schema"]
    if isinstance(schema, bool) or schema != SCHEMA:
        raise CallSequenceError(f"{_NAME}: schema {schema!r}; this version reads {SCHEMA}")
    shapes = _list(f"{_NAME}: stage1", document["stage1"], _MOST_SHAPES)
    steps = _list(f"{_NAME}: steps", document["steps"], _MOST_STEPS)
    return check(
        CallSequence(
            tuple(_shape(f"{_NAME}, stage 1 {n}", shape) for n, shape in enumerate(shapes)),
            tuple(_step(f"{_NAME}, step {n}", step) for n, step in enumerate(steps)),
        )
    )


def _object(where: str, value: object, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CallSequenceError(f"{where}: {value!r} is not an object")
    if value.keys() != keys:
        raise CallSequenceError(
            f"{where}: has the keys {', '.join(map(str, value)) or 'none'}; "
            f"valid: {', '.join(sorted(keys))}"
        )
    return value


def _list(where: str, value: object, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise CallSequenceError(f"{where}: {value!r} is not a list")
    if len(value) > most:
        raise CallSequenceError(f"{where}: {len(value)} entries; valid is up to {most}")
    return value


def _number(where: str, value: object, most: int = _U64) -> int:
    number = value
    if isinstance(value, str):
        try:
            number = int(value, 16) if value.startswith("0x") else None
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
        raise CallSequenceError(f"{where}: {value!r}; valid is a number from 0 to {most}")
    return number


def _shape(where: str, value: object) -> Stage1Shape:
    document = _object(where, value, {"granule", "asid", "map"})
    try:
        granule = Granule(_number(f"{where}: granule", document["granule"]))
    except ValueError:
        valid = ", ".join(str(int(granule)) for granule in Granule)
        raise CallSequenceError(f"{where}: granule {document['granule']}; valid: {valid}") from None
    pages = []
    for entry in _list(f"{where}: map", document["map"], _MOST_PAGES):
        pair = _list(f"{where}: map", entry, 2)
        if len(pair) != 2:
            raise CallSequenceError(f"{where}: map: {entry!r}: an entry is a gIOVA and an IPA")
        pages.append((_number(f"{where}: gIOVA", pair[0]), _number(f"{where}: IPA", pair[1])))
    return Stage1Shape(granule, _number(f"{where}: asid", document["asid"]), tuple(pages))


def _step(where: str, value: object) -> Step:
    if not isinstance(value, dict):
        raise CallSequenceError(f"{where}: {value!r} is not an object")
    op = value.get("op")
    parameters = OPS[op].parameters if isinstance(op, str) and op in OPS else {}
    return Step(
        str(op),
        {
            str(name): _argument(f"{where}: {op}: {name}", argument, parameters.get(name))
            for name, argument in value.items()
            if name != "op"
        },
    )


def _argument(where: str, value: object, kind: ValueKind | None) -> Argument:
    if isinstance(value, dict):
        return Ref(_number(where, _object(where, value, {"step"})["step"]))
    if kind in {ValueKind.CONFIG, ValueKind.FLAG, None}:
        if isinstance(value, str | bool | int):
            return value
        raise CallSequenceError(f"{where}: {value!r} is not an argument")
    return _number(where, value)


def check(sequence: CallSequence) -> CallSequence:
    """Check a call sequence against the vocabulary and its bounds, and return it.

    :raise CallSequenceError: when it is not valid, with the place of the error.
    """
    for number, shape in enumerate(sequence.stage1):
        _check_shape(f"{_NAME}, stage 1 {number}", shape)
    if len({shape.asid for shape in sequence.stage1}) != len(sequence.stage1):
        raise CallSequenceError(f"{_NAME}: two stage 1 tables have the same ASID; use one for each")
    for at, step in enumerate(sequence.steps):
        where = f"{_NAME}, step {at}"
        op = OPS.get(step.op)
        if op is None:
            raise CallSequenceError(f"{where}: {step.op!r} is not a step; valid: {', '.join(OPS)}")
        if step.arguments.keys() != op.parameters.keys():
            raise CallSequenceError(
                f"{where}: {step.op}: has the arguments {', '.join(step.arguments) or 'none'}; "
                f"valid: {', '.join(op.parameters) or 'none'}"
            )
        for name, kind in op.parameters.items():
            _check_argument(f"{where}: {step.op}: {name}", step.arguments[name], kind, at, sequence)
        if step.op == "ioas_map":
            _check_memory(where, step)
    return sequence


def _check_memory(where: str, step: Step) -> None:
    """Check that a mapping covers only the machine's memory, or is refused for its size."""
    page, size = step.arguments["page"], step.arguments["size"]
    if not isinstance(page, int) or not isinstance(size, int):
        raise CallSequenceError(f"{where}: ioas_map: page and size are numbers")
    room = RAM_SIZE if page == RAM_PAGE else (WITNESSES + 1 - page) * Granule.K64
    if room < size < _U64:
        raise CallSequenceError(
            f"{where}: ioas_map: {size:#x} bytes from page {page}; valid is up to {room:#x}, or "
            f"{_U64:#x}"
        )


def _check_shape(where: str, shape: Stage1Shape) -> None:
    if not 0 <= shape.asid < 1 << 16:
        raise CallSequenceError(f"{where}: ASID {shape.asid}; valid is 0 to 65535")
    for giova, ipa in shape.pages:
        if (giova | ipa) % shape.granule or max(giova, ipa) >> _INPUT_BITS:
            raise CallSequenceError(
                f"{where}: {giova:#x} -> {ipa:#x}; valid are multiples of {shape.granule:#x} "
                f"below {1 << _INPUT_BITS:#x}"
            )
    if len({giova for giova, _ipa in shape.pages}) != len(shape.pages):
        raise CallSequenceError(f"{where}: a gIOVA is mapped twice; map each once")


_MOST = {ValueKind.DEVICE: _U32, ValueKind.U64: _U64, ValueKind.PAGE: WITNESSES}


def _check_argument(
    where: str, value: Argument, kind: ValueKind, at: int, sequence: CallSequence
) -> None:
    if isinstance(value, Ref):
        _check_reference(where, value, kind, at, sequence)
    elif kind is ValueKind.FLAG:
        if not isinstance(value, bool):
            raise CallSequenceError(f"{where}: {value!r}; valid: true, false")
    elif kind is ValueKind.CONFIG:
        if value not in list(NestedConfig):
            raise CallSequenceError(f"{where}: {value!r}; valid: {', '.join(NestedConfig)}")
    elif kind in {ValueKind.FD, ValueKind.ID}:
        if 0 < _number(where, value, _U32) < _FIRST_FREE_NUMBER or (
            kind is ValueKind.FD and not value
        ):
            raise CallSequenceError(
                f"{where}: {value} may be the number of some object; refer to the step that "
                f'returned the object, as in {{"step": 0}}; for a number of no object, use '
                f"{_FIRST_FREE_NUMBER} or more"
            )
    elif kind is ValueKind.STAGE1:
        if _number(where, value) >= len(sequence.stage1):
            raise CallSequenceError(f"{where}: {value}; the sequence has {len(sequence.stage1)}")
    else:
        _number(where, value, _MOST[kind])


def _check_reference(
    where: str, ref: Ref, kind: ValueKind, at: int, sequence: CallSequence
) -> None:
    if kind not in {ValueKind.FD, ValueKind.ID, ValueKind.U64}:
        raise CallSequenceError(f"{where}: cannot be the result of an earlier step")
    if not 0 <= ref.step < at:
        raise CallSequenceError(f"{where}: step {ref.step} does not come before this one")
    source = sequence.steps[ref.step].op
    if not OPS[source].returns_number:
        raise CallSequenceError(f"{where}: step {ref.step}, {source}, returns no number")


def results_to_json(results: Sequence[StepResult]) -> list[dict[str, Any]]:
    """Return the results of a sequence's steps as a JSON value."""
    return [_result_to_json(result) for result in results]


def _result_to_json(result: StepResult) -> dict[str, Any]:
    if result.errno:
        return {"errno": result.errno, "reason": result.reason}
    if result.landing is not None:
        return {"landing": _landing_to_json(result.landing)}
    if result.binding is not None:
        return {"binding": _binding_to_json(result.binding)}
    return {} if result.value is None else {"value": result.value}


def _binding_to_json(binding: BoundMsi) -> dict[str, Any]:
    return {
        "iova": hex(binding.iova),
        "gpa": hex(binding.gpa),
        "page_shift": binding.page_shift,
        "used": binding.used,
    }


def _landing_to_json(landing: Landing) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": landing.kind.value}
    if landing.kind is LandingKind.WITNESS:
        document |= {"page": landing.page, "offset": landing.offset}
    event = landing.event
    if event is not None:
        document["event"] = {
            "kind": event.kind.name,
            "stage": event.stage,
            "stream": int(event.stream_id),
            "iova": hex(event.iova),
            "ipa": None if event.ipa is None else hex(event.ipa),
            "table_walk": event.table_walk,
        }
        document["guest"] = landing.guest
    return document


def results_from_json(value: object) -> list[StepResult]:
    """Read the results of a sequence's steps.

    :raise CallSequenceError: when they are not valid.
    """
    try:
        return [_result(result) for result in _list("results", value, _MOST_STEPS)]
    except (KeyError, TypeError, ValueError) as error:
        raise CallSequenceError(f"results: {type(error).__name__}: {error}") from error


def _result(value: dict[str, Any]) -> StepResult:
    if "errno" in value:
        number = _number("results: errno", value["errno"])
        return StepResult(number, reason=str(value["reason"]))
    if "landing" in value:
        return StepResult(landing=_landing(value["landing"]))
    if "binding" in value:
        return StepResult(binding=_binding(value["binding"]))
    if "value" in value:
        return StepResult(value=_number("results: value", value["value"]))
    return StepResult()


def _binding(value: dict[str, Any]) -> BoundMsi:
    return BoundMsi(
        _number("results: iova", value["iova"]),
        _number("results: gpa", value["gpa"]),
        _number("results: page_shift", value["page_shift"], _U16),
        bool(value["used"]),
    )


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
