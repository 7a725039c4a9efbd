"""Run scenarios on the model and on the real kernel, and compare them step by step.

The model goes first. The other side gets what the model said and ends a scenario with the first
step that goes another way, since what follows would be made in another state. A scenario in which
that happens is shrunk, which takes runs on both sides.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from vmm_msi.errors import LabError, errno_name
from vmm_msi.iommu import call_sequence, call_sequence_json
from vmm_msi.iommu.linux.raise_msi import EDU
from vmm_msi.lab.conformance.shrink import shrink, without
from vmm_msi.lab.rpc.codec import to_wire
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_msi.iommu.call_sequence import Scenario, Step, StepResult
    from vmm_msi.iommu.sim.call_machine import SimMachine
    from vmm_msi.lab.rpc.link import AgentLink
    from vmm_msi.types import HostDevice, HostTopology

    #: Tells how many scenarios are done, of how many.
    Tell = Callable[[int, int], None]

#: Width of the output addresses of QEMU's SMMUv3 (``hw/arm/smmuv3.c``, IDR5.OAS).
OUTPUT_BITS = 44

_CHUNK = 25
#: Mismatches that are shrunk; it takes seconds each, and the first few tell most.
_MOST_SHRUNK = 5
#: How long the kernel may take over one scenario, in seconds.
_PATIENCE_S = 120


class Side(Protocol):
    """What scenarios are run on beside the model."""

    def run(
        self, scenarios: Sequence[Scenario], expected: Sequence[Sequence[StepResult]], tell: Tell
    ) -> list[list[StepResult]]:
        """Run scenarios, each up to the first step that does not go as expected."""


class MachineSide:
    """A machine in this process."""

    def __init__(self, machine: call_sequence.Machine) -> None:
        self._machine = machine

    def run(
        self, scenarios: Sequence[Scenario], expected: Sequence[Sequence[StepResult]], tell: Tell
    ) -> list[list[StepResult]]:
        """Run scenarios."""
        found = []
        for number, (scenario, right) in enumerate(zip(scenarios, expected, strict=True), 1):
            found.append(call_sequence.run(self._machine, scenario, right))
            tell(number, len(scenarios))
        return found


class KernelSide:
    """The kernel of the emulated host.

    :param devices: addresses of the devices, by number.
    """

    def __init__(self, link: AgentLink, devices: Sequence[PciAddress]) -> None:
        self._link = link
        self._devices = devices

    def run(
        self, scenarios: Sequence[Scenario], expected: Sequence[Sequence[StepResult]], tell: Tell
    ) -> list[list[StepResult]]:
        """Run scenarios, some in each request.

        :raise LabError: when the emulated host fails.
        """
        found: list[list[StepResult]] = []
        for begin in range(0, len(scenarios), _CHUNK):
            end = begin + _CHUNK
            answer = self._link.call(
                "conform",
                timeout_s=_PATIENCE_S,
                on_progress=partial(_tell_all, tell, begin, len(scenarios)),
                devices=to_wire(self._devices),
                scenarios=[
                    call_sequence_json.scenario_to_json(each) for each in scenarios[begin:end]
                ],
                expected=[call_sequence_json.results_to_json(each) for each in expected[begin:end]],
            )
            found += [call_sequence_json.results_from_json(each) for each in answer]
        if len(found) != len(scenarios):
            raise LabError(
                f"comparing with the kernel: {len(found)} results came back for {len(scenarios)} "
                "scenarios; the agent is of another version: vmm-msi lab down, then try again"
            )
        return found


def _tell_all(tell: Tell, before: int, total: int, done: int, _of: int) -> None:
    tell(before + done, total)


@dataclass(frozen=True)
class Mismatch:
    """A scenario in which the two sides part.

    :param number: of the scenario among those that ran.
    :param scenario: shrunk, and cut behind the step at which they part.
    """

    number: int
    scenario: Scenario
    model: StepResult
    kernel: StepResult

    @property
    def step(self) -> Step:
        """The step at which they part: the last one."""
        return self.scenario.steps[-1]


@dataclass
class Report:
    """What a comparison found.

    :param steps: how many were compared.
    :param seconds: what took how long.
    """

    scenarios: int = 0
    steps: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def compare(model: SimMachine, side: Side, scenarios: Sequence[Scenario], tell: Tell) -> Report:
    """Run scenarios on both sides and compare them.

    :raise ScenarioError: when a scenario names devices that are not there.
    :raise LabError: when the other side fails.
    """
    begun = time.monotonic()
    expected = [call_sequence.run(model, scenario) for scenario in scenarios]
    modelled = time.monotonic()
    found = side.run(scenarios, expected, tell)
    done = time.monotonic()
    report = Report(scenarios=len(scenarios), steps=sum(map(len, found)))
    for number, (scenario, right, got) in enumerate(zip(scenarios, expected, found, strict=True)):
        at = parting(scenario, right, got)
        if at is not None:
            shorter = without(scenario, range(at + 1, len(scenario.steps)))
            report.mismatches.append(Mismatch(number, shorter, right[at], got[at]))
    report.mismatches[:_MOST_SHRUNK] = [
        _shrunk(model, side, mismatch) for mismatch in report.mismatches[:_MOST_SHRUNK]
    ]
    report.seconds = {
        "model": modelled - begun,
        "kernel": done - modelled,
        "shrinking": time.monotonic() - done,
    }
    return report


def parting(
    scenario: Scenario, right: Sequence[StepResult], got: Sequence[StepResult]
) -> int | None:
    """Return the position of the first step on which the sides do not agree."""
    for at, step in enumerate(scenario.steps[: len(got)]):
        if not call_sequence.agree(step, right[at], got[at]):
            return at
    return None


def _shrunk(model: SimMachine, side: Side, mismatch: Mismatch) -> Mismatch:
    """Shrink a mismatch; what parts the sides stays the same call, refused or not alike."""
    if mismatch.step.op == "enable":
        # Each try would cost the device an event in the ITS.
        return mismatch
    last = mismatch

    def shows(candidate: Scenario) -> bool:
        nonlocal last
        found = part(model, side, candidate)
        if found is None or _kind(found) != _kind(mismatch):
            return False
        last = found
        return True

    shrink(mismatch.scenario, shows)
    return Mismatch(mismatch.number, last.scenario, last.model, last.kernel)


def _kind(mismatch: Mismatch) -> tuple[object, ...]:
    results = (mismatch.model, mismatch.kernel)
    landings = (None if each.landing is None else each.landing.kind for each in results)
    return (mismatch.step.op, *(each.errno for each in results), *landings)


def part(model: SimMachine, side: Side, scenario: Scenario) -> Mismatch | None:
    """Run one scenario on both sides and return where they part, if they do.

    One that would cost a device its event in the ITS is not run.
    """
    model.lost_events.clear()
    right = call_sequence.run(model, scenario)
    if model.lost_events:
        model.lost_events.clear()
        return None
    (got,) = side.run([scenario], [right], lambda _done, _of: None)
    at = parting(scenario, right, got)
    if at is None:
        return None
    shorter = without(scenario, range(at + 1, len(scenario.steps)))
    return Mismatch(0, shorter, right[at], got[at])


def conform_host(topology: HostTopology, told: Sequence[dict[str, Any]]) -> HostTopology:
    """Return the emulated host with its test devices, by what its agent tells of them.

    :param topology: what its tables say.
    :param told: the agent's devices.
    :raise LabError: when a device is in no route of the tables.
    """
    devices = tuple(
        _device(topology, PciAddress.parse(str(each["address"])), int(each["group"]))
        for each in told
        if (each["vendor"], each["device"]) == EDU
    )
    return replace(topology, devices=devices)


def _device(topology: HostTopology, address: PciAddress, group: int) -> HostDevice:
    for route in topology.routes:
        if route.segment == address.segment and route.first <= address.rid <= route.last:
            return route.device(address, group)
    raise LabError(f"comparing with the kernel: {address} is in none of the board's routes")


def lines(mismatch: Mismatch) -> Iterator[str]:
    """Yield what a person reads of a mismatch."""
    scenario = mismatch.scenario
    for number, shape in enumerate(scenario.stage1):
        pages = ", ".join(f"{giova:#x} -> {ipa:#x}" for giova, ipa in shape.pages)
        yield f"stage 1 {number}: {shape.granule} pages, ASID {shape.asid}: {pages or 'nothing'}"
    for at, step in enumerate(scenario.steps):
        yield f"#{at} {step}"
    yield f"model: {result_text(mismatch.model)}"
    yield f"kernel: {result_text(mismatch.kernel)}"


def result_text(result: StepResult) -> str:
    """Return what a step gave, in words."""
    if result.errno:
        name = errno_name(result.errno)
        return f"{name} ({result.reason})" if result.reason else name
    if result.landing is not None:
        return str(result.landing)
    return "done" if result.value is None else f"{result.value:#x}"


def to_json(report: Report, seed: int | None) -> dict[str, Any]:
    """Return the report as a JSON value."""
    return {
        "schema": 1,
        "seed": seed,
        "scenarios": report.scenarios,
        "steps": report.steps,
        "mismatches": [
            {
                "scenario": mismatch.number,
                "step": str(mismatch.step),
                "model": result_text(mismatch.model),
                "kernel": result_text(mismatch.kernel),
                "shrunk": call_sequence_json.scenario_to_json(mismatch.scenario),
            }
            for mismatch in report.mismatches
        ],
        "seconds": {name: round(value, 2) for name, value in report.seconds.items()},
    }
