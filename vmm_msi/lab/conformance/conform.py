"""Run call sequences on the simulator and on the real kernel, and compare them step by step.

The simulator runs first. The other side gets the simulator's results and ends a sequence at the
first step with another result, since later steps would run in another state. A sequence with a
mismatch is shrunk, which runs it on both sides again.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from vmm_msi.errors import LabError, errno_name
from vmm_msi.host.resolve import find_route
from vmm_msi.iommu import call_sequence, call_sequence_json
from vmm_msi.iommu.call_sequence import NO_OBJECT, CallSequence, Ref, Step, StepResult
from vmm_msi.iommu.linux.raise_msi import EDU
from vmm_msi.lab.conformance.shrink import shrink, without
from vmm_msi.lab.rpc.codec import to_wire
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_msi.iommu.sim.call_machine import SimMachine
    from vmm_msi.lab.rpc.link import AgentLink
    from vmm_msi.types import HostDevice, HostTopology

    #: Called with the number of sequences done and their total.
    OnProgress = Callable[[int, int], None]

#: Width of the output addresses of QEMU's SMMUv3 (``hw/arm/smmuv3.c``, IDR5.OAS).
OUTPUT_BITS = 44

_CHUNK = 25
#: Number of mismatches that are shrunk, which takes seconds each.
_MOST_SHRUNK = 5
#: Time limit of the kernel for one request, in seconds.
_TIMEOUT_S = 120


class Side(Protocol):
    """The other side of a comparison with the simulator."""

    def run(
        self,
        sequences: Sequence[CallSequence],
        expected: Sequence[Sequence[StepResult]],
        on_progress: OnProgress,
    ) -> list[list[StepResult]]:
        """Run sequences, each up to the first step with another result than expected."""


class MachineSide:
    """A machine in this process."""

    def __init__(self, machine: call_sequence.Machine) -> None:
        self._machine = machine

    def run(
        self,
        sequences: Sequence[CallSequence],
        expected: Sequence[Sequence[StepResult]],
        on_progress: OnProgress,
    ) -> list[list[StepResult]]:
        """Run sequences."""
        results = []
        for number, (sequence, right) in enumerate(zip(sequences, expected, strict=True), 1):
            results.append(call_sequence.run(self._machine, sequence, right))
            on_progress(number, len(sequences))
        return results


class KernelSide:
    """The kernel of the emulated host.

    :param devices: addresses of the devices, by number.
    """

    def __init__(self, link: AgentLink, devices: Sequence[PciAddress]) -> None:
        self._link = link
        self._devices = devices

    def run(
        self,
        sequences: Sequence[CallSequence],
        expected: Sequence[Sequence[StepResult]],
        on_progress: OnProgress,
    ) -> list[list[StepResult]]:
        """Run sequences, several in each request.

        :raise LabError: when the emulated host fails.
        """
        results: list[list[StepResult]] = []
        for begin in range(0, len(sequences), _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            answer = self._link.call(
                "conform",
                timeout_s=_TIMEOUT_S,
                on_progress=partial(_report_all, on_progress, begin, len(sequences)),
                devices=to_wire(self._devices),
                scenarios=[call_sequence_json.sequence_to_json(s) for s in sequences[chunk]],
                expected=[call_sequence_json.results_to_json(r) for r in expected[chunk]],
            )
            results += [call_sequence_json.results_from_json(document) for document in answer]
        if len(results) != len(sequences):
            raise LabError(
                f"comparing with the kernel: {len(results)} results for {len(sequences)} call "
                "sequences; the agent has another version: run vmm-msi lab down and try again"
            )
        return results


def _report_all(on_progress: OnProgress, before: int, total: int, done: int, _of: int) -> None:
    on_progress(before + done, total)


@dataclass(frozen=True)
class Mismatch:
    """A sequence with different results on the two sides.

    :param number: of the sequence among those that ran.
    :param sequence: shrunk, and cut after the first step with different results.
    """

    number: int
    sequence: CallSequence
    simulator: StepResult
    kernel: StepResult

    @property
    def step(self) -> Step:
        """The step with different results: the last one."""
        return self.sequence.steps[-1]


@dataclass
class ConformanceReport:
    """The result of a comparison.

    :param steps: number of steps that were compared.
    :param seconds: duration of each part.
    """

    sequences: int = 0
    steps: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def compare(
    simulator: SimMachine, side: Side, sequences: Sequence[CallSequence], on_progress: OnProgress
) -> ConformanceReport:
    """Run sequences on both sides and compare them.

    :raise CallSequenceError: when a sequence names a device that is missing.
    :raise LabError: when the other side fails.
    """
    begun = time.monotonic()
    expected = [call_sequence.run(simulator, sequence) for sequence in sequences]
    simulated = time.monotonic()
    actual = side.run(sequences, expected, on_progress)
    done = time.monotonic()
    report = ConformanceReport(sequences=len(sequences), steps=sum(map(len, actual)))
    for number, (sequence, right, got) in enumerate(zip(sequences, expected, actual, strict=True)):
        position = first_difference(sequence, right, got)
        if position is not None:
            report.mismatches.append(_mismatch(number, sequence, right, got, position))
    report.mismatches[:_MOST_SHRUNK] = [
        _shrunk(simulator, side, mismatch) for mismatch in report.mismatches[:_MOST_SHRUNK]
    ]
    report.seconds = {
        "simulator": simulated - begun,
        "kernel": done - simulated,
        "shrinking": time.monotonic() - done,
    }
    return report


def first_difference(
    sequence: CallSequence, right: Sequence[StepResult], got: Sequence[StepResult]
) -> int | None:
    """Return the position of the first step with different results."""
    for position, step in enumerate(sequence.steps[: len(got)]):
        if not call_sequence.agree(step, right[position], got[position]):
            return position
    return None


def _mismatch(
    number: int,
    sequence: CallSequence,
    right: Sequence[StepResult],
    got: Sequence[StepResult],
    position: int,
) -> Mismatch:
    cut = without(sequence, range(position + 1, len(sequence.steps)))
    return Mismatch(number, cut, right[position], got[position])


def _shrunk(simulator: SimMachine, side: Side, mismatch: Mismatch) -> Mismatch:
    """Shrink a mismatch; it stays one of the same call, with the same kinds of results."""
    if mismatch.step.op == "enable":
        # Each run would cost the device an event in the ITS.
        return mismatch
    last = mismatch

    def reproduces(candidate: CallSequence) -> bool:
        nonlocal last
        other = find_mismatch(simulator, side, candidate)
        if other is None or _kind(other) != _kind(mismatch):
            return False
        last = other
        return True

    shrink(mismatch.sequence, reproduces)
    return replace(last, number=mismatch.number)


def _kind(mismatch: Mismatch) -> tuple[object, ...]:
    results = (mismatch.simulator, mismatch.kernel)
    landings = (None if r.landing is None else r.landing.kind for r in results)
    return (mismatch.step.op, *(r.errno for r in results), *landings)


def find_mismatch(simulator: SimMachine, side: Side, sequence: CallSequence) -> Mismatch | None:
    """Run one sequence on both sides and return its mismatch, if any.

    A sequence that would cost a device its event in the ITS is not run.
    """
    simulator.lost_events.clear()
    right = call_sequence.run(simulator, sequence)
    if simulator.lost_events:
        simulator.lost_events.clear()
        return None
    (got,) = side.run([sequence], [right], lambda _done, _of: None)
    position = first_difference(sequence, right, got)
    return None if position is None else _mismatch(0, sequence, right, got, position)


def has_bindings(side: Side) -> bool:
    """Return whether a kernel has the interface for guest MSI bindings.

    :raise LabError: when the other side fails.
    """
    option = Step("msi_binding", {"fd": Ref(0), "hwpt": NO_OBJECT})
    probe = CallSequence((), (Step("open"), option))
    # The value is not compared: the second step is refused in any case.
    expected = [StepResult(value=0), StepResult(errno.ENOENT)]
    (results,) = side.run([probe], [expected], lambda _done, _of: None)
    return results[-1].errno == errno.ENOENT


def conform_host(topology: HostTopology, devices: Sequence[dict[str, Any]]) -> HostTopology:
    """Return the emulated host with its test devices, as its agent lists them.

    :param topology: from the host's tables.
    :param devices: the agent's list of devices.
    :raise LabError: when no route of the tables has a device.
    """
    tested = tuple(
        _device(topology, PciAddress.parse(str(device["address"])), int(device["group"]))
        for device in devices
        if (device["vendor"], device["device"]) == EDU
    )
    return replace(topology, devices=tested)


def _device(topology: HostTopology, address: PciAddress, group: int) -> HostDevice:
    route = find_route(topology, address.segment, address.rid)
    if route is not None:
        return route.device(address, group)
    raise LabError(f"comparing with the kernel: {address} is in none of the board's routes")


def lines(mismatch: Mismatch) -> Iterator[str]:
    """Yield a mismatch as lines of text."""
    sequence = mismatch.sequence
    for number, shape in enumerate(sequence.stage1):
        pages = ", ".join(f"{giova:#x} -> {ipa:#x}" for giova, ipa in shape.pages)
        yield f"stage 1 {number}: {shape.granule} pages, ASID {shape.asid}: {pages or 'nothing'}"
    for position, step in enumerate(sequence.steps):
        yield f"#{position} {step}"
    yield f"simulator: {result_text(mismatch.simulator)}"
    yield f"kernel: {result_text(mismatch.kernel)}"


def result_text(result: StepResult) -> str:
    """Return the result of a step as text."""
    if result.errno:
        name = errno_name(result.errno)
        return f"{name} ({result.reason})" if result.reason else name
    if result.landing is not None:
        return str(result.landing)
    if result.binding is not None:
        return str(result.binding)
    return "done" if result.value is None else f"{result.value:#x}"


#: Parts of a comparison whose JSON key is not their name.
_JSON_KEYS = {"simulator": "model"}


def to_json(report: ConformanceReport, seed: int | None) -> dict[str, Any]:
    """Return the report as a JSON value."""
    return {
        "schema": 1,
        "seed": seed,
        "scenarios": report.sequences,
        "steps": report.steps,
        "mismatches": [
            {
                "scenario": mismatch.number,
                "step": str(mismatch.step),
                "model": result_text(mismatch.simulator),
                "kernel": result_text(mismatch.kernel),
                "shrunk": call_sequence_json.sequence_to_json(mismatch.sequence),
            }
            for mismatch in report.mismatches
        ],
        "seconds": {
            _JSON_KEYS.get(name, name): round(value, 2) for name, value in report.seconds.items()
        },
    }
