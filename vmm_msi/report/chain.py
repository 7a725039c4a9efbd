"""The path of one MSI, place by place: what compare --trace prints, and pictures draw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from vmm_msi.iommu import rules
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.report.columns import prose
from vmm_msi.report.compare_rows import OUTCOME_TONES, name_of
from vmm_msi.terminal import WIDTH, Line, Tone
from vmm_msi.types import Granule, Outcome
from vmm_msi.types.verdict import addresses_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_msi.engine.compare import Result
    from vmm_msi.errors import Rule
    from vmm_msi.types import GuestDomain, Verdict


class Place(StrEnum):
    """The places that an MSI passes, in order."""

    DEVICE = "device"
    STAGE_1 = "stage 1"
    STAGE_2 = "stage 2"
    DOORBELL = "doorbell"
    INTERRUPT = "interrupt"


class Passage(StrEnum):
    """What happens to an MSI at a place."""

    PASSED = "passed"
    BROKEN = "broken"
    NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Station:
    """One place on the path.

    :param text: what goes in and what comes out.
    :param notes: why: the reason, and the rule with the function that has it; a paragraph each.
    :param name: which device, table, ITS or interrupt it is; empty where the trace has none.
    :param out: the address or event that leaves it; empty if nothing does, or it is unknown.
    """

    place: Place
    passage: Passage
    text: str = ""
    notes: tuple[str, ...] = ()
    name: str = ""
    out: str = ""


def stations(result: Result, verdict: Verdict, guest: GuestDomain, vector: int) -> list[Station]:
    """Return every place on the path of a vector's MSI, those that it does not reach included.

    :param vector: one of the verdict's.
    """
    steps = {step.step: step.values for step in verdict.trace}
    rule_of = {step.step: step.decided_by for step in verdict.trace}
    known = {Place.DEVICE: _device(result, verdict, guest, vector, rule_of.get("programmed"))}
    if "s1" in steps:
        known[Place.STAGE_1] = _with_rule(_stage1(steps["s1"]), rule_of["s1"])
    elif "s2" in steps:
        table, iova = steps["s2"].get("stage1"), steps["s2"].get("iova")
        known[Place.STAGE_1] = _passed(
            Place.STAGE_1, f"{table}: its table, for {iova}", str(table or ""), "its table"
        )
    if "s2" in steps:
        known[Place.STAGE_2] = _with_rule(_stage2(steps["s2"]), rule_of["s2"])
    if "doorbell" in steps:
        values = steps["doorbell"]
        where = f"ITS {values['its']}: {values.get('pa') or 'EventID {}'.format(values['data'])}"
        known[Place.DOORBELL] = _passed(
            Place.DOORBELL, where, f"ITS {values['its']}", f"EventID {vector}"
        )
    elif verdict.outcome is Outcome.MISROUTED and "its" not in steps:
        known[Place.DOORBELL] = _passed(Place.DOORBELL, "none", "no doorbell")
    if "its" in steps:
        known[Place.INTERRUPT] = _interrupt(steps["its"], verdict, vector)
    places = list(Place)
    end = max(known, key=places.index)
    if verdict.outcome is not Outcome.DELIVERED:
        reasons = (verdict.reason,) if verdict.reason else ()
        broken = replace(known[end], notes=(*reasons, *known[end].notes), passage=Passage.BROKEN)
        known[end] = _with_rule(broken, verdict.decided_by)
    return [
        known.get(place) or Station(place, _unknown(place, end, verdict.outcome))
        for place in places
    ]


def _with_rule(station: Station, rule: Rule | None) -> Station:
    """Return a place with the rule that decided there as its last note."""
    if rule is None or str(rule) in station.notes:
        return station
    return replace(station, notes=(*station.notes, str(rule)))


def _passed(place: Place, text: str, name: str = "", out: str = "") -> Station:
    return Station(place, Passage.PASSED, text, name=name, out=out)


def _unknown(place: Place, end: Place, outcome: Outcome) -> Passage:
    """Return what happens at a place that the trace lacks: a real kernel does not show each."""
    places = list(Place)
    before = outcome is Outcome.DELIVERED or places.index(place) < places.index(end)
    return Passage.PASSED if before else Passage.NOT_REACHED


def _device(
    result: Result, verdict: Verdict, guest: GuestDomain, vector: int, rule: Rule | None
) -> Station:
    if verdict.programmed is None:
        text = f"{verdict.device} has no MSI address"
        return Station(Place.DEVICE, Passage.BROKEN, text, name=str(verdict.device))
    address = str(verdict.programmed)
    if len(verdict.possible) > 1:
        which = addresses_text(verdict.possible)
        address += f", {which if which.startswith('one') else f'of {which}'}"
    return Station(
        Place.DEVICE,
        Passage.PASSED,
        f"{verdict.device} writes EventID {vector} to {address}",
        tuple(_address_notes(result, verdict, guest, rule)),
        str(verdict.device),
        str(verdict.programmed),
    )


def _address_notes(
    result: Result, verdict: Verdict, guest: GuestDomain, rule: Rule | None
) -> Iterator[str]:
    """Yield whose address the device has, and the rule by which it got that address.

    :param rule: None without a simulator: what is not a gIOVA then comes from the kernel's own
        allocator.
    """
    page = None if verdict.programmed is None else verdict.programmed.align_down(Granule.K4)
    owners = [d.host for d in guest.devices if d.giova.align_down(Granule.K4) == page]
    if verdict.device in owners:
        yield "the gIOVA that the guest gave it"
    elif owners:
        yield f"the gIOVA of {owners[0]}: the kernel took that device's binding"
    elif rule is None:
        has_iommufd = profile_named(str(result.options["profile"])).iommufd
        rule = rules.SLOT if has_iommufd else rules.COOKIE
    if rule is not None:
        yield str(rule)


def _stage1(values: Mapping[str, object]) -> Station:
    iova, ipa = values.get("iova"), values.get("ipa")
    text = f"{values.get('stage1')}: {iova} -> {ipa or 'no translation'}"
    notes: tuple[str, ...] = ()
    if config := values.get("config"):
        notes = (f"the guest's stage 1 does not translate: {config}",)
    name, out = str(values.get("stage1") or ""), str(ipa or "")
    return Station(Place.STAGE_1, Passage.PASSED, text, notes, name, out)


def _stage2(values: Mapping[str, object]) -> Station:
    if "ipa" not in values:
        return _passed(Place.STAGE_2, "no translation")
    pa = values.get("pa")
    return _passed(Place.STAGE_2, f"{values['ipa']} -> {pa or 'no translation'}", out=str(pa or ""))


def _interrupt(values: Mapping[str, object], verdict: Verdict, vector: int) -> Station:
    if "interrupt" in values:
        text = f"ITS {values['its']}: {values['interrupt']}"
        return _passed(Place.INTERRUPT, text, str(values["interrupt"]))
    event = f"ITS {values['its']}: DeviceID {values['device_id']}, EventID {vector}"
    if verdict.lpi is None:
        return _passed(Place.INTERRUPT, event, f"DeviceID {values['device_id']}")
    lpi = f"LPI {verdict.lpi + vector - verdict.first}"
    return _passed(Place.INTERRUPT, f"{event} -> {lpi}", lpi)


def path_title(result: Result, verdict: Verdict, vector: int, names: Sequence[str] = ()) -> str:
    """Return what a path is: strategy, kernel, device, vector and outcome.

    :param names: strategies that share the path; default: that of ``result``.
    """
    name = ", ".join(names) or name_of(result)
    kernel = result.options["profile"]
    return f"{name} on {kernel}: {verdict.device}, vector {vector}: {verdict.outcome}"


def to_lines(
    result: Result, verdict: Verdict, guest: GuestDomain, vector: int, width: int = WIDTH
) -> Iterator[str]:
    """Yield the path as text for a terminal.

    :param width: of the terminal.
    """
    title = path_title(result, verdict, vector).removesuffix(verdict.outcome)
    yield Line([(title, None), (verdict.outcome, OUTCOME_TONES[verdict.outcome])])
    yield ""
    path = stations(result, verdict, guest, vector)
    for number, station in enumerate(path):
        broken = station.passage is Passage.BROKEN
        text = station.text or str(station.passage)
        head = f"  {station.place:10} {'x' if broken else ' '} "
        first, *others = prose(text, width, head)
        tone = Tone.BAD if broken else None if station.passage is Passage.PASSED else Tone.QUIET
        yield Line([(first, tone)])
        yield from others
        following = path[number + 1 : number + 2]
        line = "|" if following and following[0].passage is not Passage.NOT_REACHED else " "
        for note in station.notes:
            yield from prose(note, width, f"     {line}           ", f"     {line}           ")
        if line == "|":
            yield f"     {line}"
