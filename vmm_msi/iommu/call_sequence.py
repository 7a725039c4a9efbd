"""One vocabulary of calls on iommufd, VFIO and a device's MSI, for the model and for a kernel.

A :class:`Scenario` is a list of steps, each one call of a :class:`Machine` with its arguments.
:func:`run` makes the calls and notes what each gave: a value, or the errno it was refused with.
The same scenario on two machines gives two lists, and :func:`agree` tells whether a step went the
same way on both. Numbers of objects are not part of that: a step refers to the object that an
earlier one made by the position of that step (:class:`Ref`).

This module is used in the emulated host too: standard library and the model's types only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmm_msi.errors import BackendError, ScenarioError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.iommu.smmu_events import SmmuEvent
    from vmm_msi.types import Granule

#: Guest RAM as every scenario has it: stage 1 tables lie in its first half, all else is unused.
RAM_BASE = 0x4000_0000
RAM_SIZE = 0x20_0000
#: What ``ioas_map`` calls guest RAM; the numbers from 1 to ``WITNESSES`` are witness pages.
RAM_PAGE = 0
WITNESSES = 8
#: An id that no kernel gives out: what a reference to an object that is not there stands for.
NO_OBJECT = 0x7FFF_FFFF


class NestedConfig(StrEnum):
    """The stream table entry of a guest, by its Config field."""

    TRANSLATE = "translate"
    BYPASS = "bypass"
    ABORT = "abort"
    #: As TRANSLATE, with a bit set that the kernel does not let a guest set
    #: (outside ``STRTAB_STE_0_NESTING_ALLOWED``).
    INVALID = "invalid"


class LandingKind(StrEnum):
    """Where a write that was meant as an MSI went."""

    ITS = "its"
    WITNESS = "witness"
    FAULT = "fault"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class Landing:
    """Where one MSI went.

    :param kind: the ITS (the device's eventfd fired), a witness page, an event of the SMMU, or
        nowhere: no MSI was sent, the SMMU aborted it without an event, or it was written to
        guest RAM or to what is no doorbell.
    :param page: number of the witness page, from 1.
    :param offset: where in that page, in bytes.
    :param event: the event as it was reported. To a guest that is with the virtual StreamID.
    :param guest: the event came through the vEVENTQ of a vIOMMU, and not to the kernel's log.
    """

    kind: LandingKind
    page: int | None = None
    offset: int | None = None
    event: SmmuEvent | None = None
    guest: bool = False

    def __str__(self) -> str:
        match self.kind:
            case LandingKind.WITNESS:
                return f"witness page {self.page} at {self.offset or 0:#x}"
            case LandingKind.FAULT:
                return f"{self.event}, told to the {'guest' if self.guest else 'host'}"
            case _:
                return self.kind.value


@dataclass(frozen=True, slots=True)
class Stage1Shape:
    """A guest's stage 1: a context descriptor and tables in guest RAM.

    :param asid: its address space id, another one in each shape of a scenario.
    :param pages: (gIOVA, IPA) of each page that is mapped, for reading and writing.
    """

    granule: Granule
    asid: int
    pages: tuple[tuple[int, int], ...] = ()


class Machine(Protocol):
    """A host with iommufd and VFIO, modelled or real.

    A device is an index into the machine's list of devices, a file descriptor of /dev/iommu what
    :meth:`open` returned, everything else of iommufd the id that the call which made it returned.
    Every method but :meth:`prepare` and :meth:`reset` raises
    :class:`~vmm_msi.errors.BackendError` with the kernel's errno when the kernel refuses the call,
    and what the kernel never sees is refused alike by all machines:

    - a file descriptor that is closed or was never opened: EBADF, before anything else;
    - a device whose character device is not open, in any method with a ``device`` but
      :meth:`bind` and :meth:`program`: EBADF.
    """

    @property
    def devices(self) -> int:
        """Number of devices."""

    def prepare(self, stage1: Sequence[Stage1Shape]) -> None:
        """Begin a scenario: build the stage 1 tables in guest RAM and clear the witness pages.

        Guest RAM is :data:`RAM_SIZE` bytes, which the guest has at IPA :data:`RAM_BASE`; the
        tables say so whether or not a step maps it there. The tables lie in its first half.
        """

    def reset(self) -> None:
        """End a scenario: disable MSIs, close everything, clear the memory."""

    def open(self) -> int:
        """Open /dev/iommu; return an index that stands for the file descriptor."""

    def close(self, fd: int) -> None:
        """Close it; while a device is bound to it the kernel keeps what is behind it."""

    def bind(self, fd: int, device: int) -> int:
        """VFIO_DEVICE_BIND_IOMMUFD; return the device's id.

        The character device is opened first where it is not open, and stays open when the kernel
        refuses to bind it.
        """

    def unbind(self, device: int) -> None:
        """Close the character device: MSIs, attachment, vDEVICE and binding end with it."""

    def ioas_alloc(self, fd: int) -> int:
        """IOMMU_IOAS_ALLOC; return the IOAS's id."""

    def ioas_map(self, fd: int, ioas: int, iova: int, size: int, page: int) -> None:
        """IOMMU_IOAS_MAP at a fixed IOVA, for reading and writing.

        :param page: what is mapped: :data:`RAM_PAGE` for guest RAM from its first byte, else the
            number of a witness page. Witness pages are as large as the kernel's pages and
            adjacent, so that two pages' bytes from page 1 are pages 1 and 2. ``size`` is given
            to the kernel as it is, even past the end of that memory.
        """

    def ioas_unmap(self, fd: int, ioas: int, iova: int, size: int) -> int:
        """IOMMU_IOAS_UNMAP; return the bytes unmapped. ``0, 2**64 - 1`` unmaps everything."""

    def hwpt_alloc(self, fd: int, dev_id: int, ioas: int, *, nest_parent: bool) -> int:
        """IOMMU_HWPT_ALLOC on an IOAS, without data; return the HWPT's id."""

    def viommu_alloc(self, fd: int, dev_id: int, hwpt: int) -> int:
        """IOMMU_VIOMMU_ALLOC of type ARM_SMMUV3; return the vIOMMU's id.

        A real machine allocates a vEVENTQ with it, to be told of events. It has no number here,
        ends with the vIOMMU, and does not keep it from being destroyed.
        """

    def vdevice_alloc(self, fd: int, viommu: int, dev_id: int, virt_id: int) -> int:
        """IOMMU_VDEVICE_ALLOC with a virtual StreamID; return the vDEVICE's id."""

    def hwpt_alloc_nested(
        self, fd: int, dev_id: int, viommu: int, config: NestedConfig, stage1: int
    ) -> int:
        """IOMMU_HWPT_ALLOC on a vIOMMU with a guest's stream table entry; return the HWPT's id.

        :param stage1: index of the prepared stage 1 that TRANSLATE uses.
        """

    def attach(self, device: int, pt_id: int) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT to an IOAS or a HWPT; an attached device is moved."""

    def detach(self, device: int) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT."""

    def destroy(self, fd: int, number: int) -> None:
        """IOMMU_DESTROY."""

    def enable(self, device: int) -> int:
        """VFIO_DEVICE_SET_IRQS of MSI 0 with an eventfd.

        :return: the address that is in the device's real MSI capability then.
        """

    def disable(self, device: int) -> None:
        """VFIO_DEVICE_SET_IRQS of the MSI index with count 0."""

    def program(self, device: int, address: int) -> None:
        """Write the address, and not the data, in the device's real MSI capability."""

    def raise_msi(self, device: int) -> Landing:
        """Let the device send MSI 0, with memory access and bus mastering on; see where it went."""


class Gives(Enum):
    """What a call returns, and with it how two returned values are compared."""

    NOTHING = "nothing"
    #: The number of an object: both sides have one.
    ID = "id"
    #: A number that is the same on both sides.
    NUMBER = "number"
    LANDING = "landing"


class Kind(Enum):
    """What an argument is: its type and its bounds."""

    FD = "fd"
    DEVICE = "device"
    ID = "id"
    U64 = "u64"
    PAGE = "page"
    CONFIG = "config"
    STAGE1 = "stage1"
    FLAG = "flag"


class Op(NamedTuple):
    """A method of :class:`Machine` that a step may call."""

    gives: Gives
    parameters: Mapping[str, Kind]


OPS: Mapping[str, Op] = {
    "open": Op(Gives.ID, {}),
    "close": Op(Gives.NOTHING, {"fd": Kind.FD}),
    "bind": Op(Gives.ID, {"fd": Kind.FD, "device": Kind.DEVICE}),
    "unbind": Op(Gives.NOTHING, {"device": Kind.DEVICE}),
    "ioas_alloc": Op(Gives.ID, {"fd": Kind.FD}),
    "ioas_map": Op(
        Gives.NOTHING,
        {"fd": Kind.FD, "ioas": Kind.ID, "iova": Kind.U64, "size": Kind.U64, "page": Kind.PAGE},
    ),
    "ioas_unmap": Op(
        Gives.NUMBER, {"fd": Kind.FD, "ioas": Kind.ID, "iova": Kind.U64, "size": Kind.U64}
    ),
    "hwpt_alloc": Op(
        Gives.ID, {"fd": Kind.FD, "dev_id": Kind.ID, "ioas": Kind.ID, "nest_parent": Kind.FLAG}
    ),
    "viommu_alloc": Op(Gives.ID, {"fd": Kind.FD, "dev_id": Kind.ID, "hwpt": Kind.ID}),
    "vdevice_alloc": Op(
        Gives.ID, {"fd": Kind.FD, "viommu": Kind.ID, "dev_id": Kind.ID, "virt_id": Kind.U64}
    ),
    "hwpt_alloc_nested": Op(
        Gives.ID,
        {
            "fd": Kind.FD,
            "dev_id": Kind.ID,
            "viommu": Kind.ID,
            "config": Kind.CONFIG,
            "stage1": Kind.STAGE1,
        },
    ),
    "attach": Op(Gives.NOTHING, {"device": Kind.DEVICE, "pt_id": Kind.ID}),
    "detach": Op(Gives.NOTHING, {"device": Kind.DEVICE}),
    "destroy": Op(Gives.NOTHING, {"fd": Kind.FD, "number": Kind.ID}),
    "enable": Op(Gives.NUMBER, {"device": Kind.DEVICE}),
    "disable": Op(Gives.NOTHING, {"device": Kind.DEVICE}),
    "program": Op(Gives.NOTHING, {"device": Kind.DEVICE, "address": Kind.U64}),
    "raise_msi": Op(Gives.LANDING, {"device": Kind.DEVICE}),
}


@dataclass(frozen=True, slots=True)
class Ref:
    """What the step at position ``step`` returned.

    Where that step was refused, or the object has been destroyed since, it is
    :data:`NO_OBJECT`: the kernel uses the numbers of destroyed objects again.
    """

    step: int


#: An argument of a step.
Argument = Ref | int | str | bool


@dataclass(frozen=True, slots=True)
class Step:
    """One call: the name of a method of :class:`Machine`, and its arguments by name."""

    op: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)

    def __str__(self) -> str:
        given = (f"{name}={_shown(name, value)}" for name, value in self.arguments.items())
        return f"{self.op}({', '.join(given)})"


def _shown(name: str, value: Argument) -> str:
    if isinstance(value, Ref):
        return f"#{value.step}"
    if name in {"iova", "size", "address"} and isinstance(value, int):
        return f"{value:#x}"
    return str(value)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Steps, and the stage 1 tables that are there when they begin."""

    stage1: tuple[Stage1Shape, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave.

    :param errno: 0 where the call was not refused.
    :param reason: why it was refused, for people.
    """

    errno: int = 0
    value: int | None = None
    landing: Landing | None = None
    reason: str = field(default="", compare=False)


def agree(step: Step, one: StepResult, other: StepResult) -> bool:
    """Tell whether a step went the same way on two machines."""
    if one.errno != other.errno:
        return False
    if OPS[step.op].gives is Gives.ID:
        return (one.value is None) == (other.value is None)
    return one == other


class Course:
    """Makes the calls of a scenario, one after the other, and notes what each returned.

    :param machine: prepared for the scenario.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._at = 0
        self._values: dict[int, int] = {}
        self._bound: dict[int, int] = {}

    def make(self, step: Step) -> StepResult:
        """Make the next call."""
        op = OPS[step.op]
        arguments = {name: self._value(value) for name, value in step.arguments.items()}
        if "config" in arguments:
            arguments["config"] = NestedConfig(str(arguments["config"]))
        at = self._at
        self._at += 1
        try:
            value = getattr(self._machine, step.op)(**arguments)
        except BackendError as error:
            return StepResult(error.errno, reason=error.reason)
        if op.gives in {Gives.ID, Gives.NUMBER}:
            self._values[at] = int(value)
        self._forget(at, step)
        match op.gives:
            case Gives.NOTHING:
                return StepResult()
            case Gives.LANDING:
                return StepResult(landing=value)
            case _:
                return StepResult(value=int(value))

    def take_back(self) -> None:
        """Forget the last call, which returned no number."""
        self._at -= 1

    def _value(self, argument: Argument) -> int | str | bool:
        """Return the value an argument stands for."""
        if isinstance(argument, Ref):
            return self._values.get(argument.step, NO_OBJECT)
        return argument

    def _forget(self, at: int, step: Step) -> None:
        """Forget the number of an object that the step at position ``at`` destroyed."""
        match step.op:
            case "bind":
                self._bound[_number(step.arguments["device"])] = at
            case "unbind":
                self._values.pop(self._bound.pop(_number(step.arguments["device"]), -1), None)
            case "destroy":
                number = step.arguments["number"]
                if isinstance(number, Ref):
                    self._values.pop(number.step, None)


def _number(argument: Argument) -> int:
    """Return an argument that is no reference."""
    if not isinstance(argument, int):
        raise ScenarioError(f"scenario: {argument!r} is no number")
    return argument


def run(
    machine: Machine, scenario: Scenario, expected: Sequence[StepResult] | None = None
) -> list[StepResult]:
    """Run a scenario from a fresh state to its end, and leave a fresh state.

    :param expected: what another machine returned; the run ends with the first step that goes
        another way here, since what follows would be made in another state.
    :return: one result per step that was made.
    :raise ScenarioError: when it names a device that the machine does not have.
    """
    check_devices(scenario, machine.devices)
    results: list[StepResult] = []
    try:
        machine.prepare(scenario.stage1)
        course = Course(machine)
        for at, step in enumerate(scenario.steps):
            result = course.make(step)
            results.append(result)
            if expected is not None and not agree(step, expected[at], result):
                break
    finally:
        machine.reset()
    return results


def check_devices(scenario: Scenario, devices: int) -> None:
    """Check that a machine with so many devices has those that a scenario names.

    :raise ScenarioError: when it has not.
    """
    for at, step in enumerate(scenario.steps):
        device = _number(step.arguments.get("device", 0))
        if device >= devices:
            raise ScenarioError(
                f"scenario, step {at}: {step.op}: device {device}: the host has {devices}, "
                "numbered from 0"
            )
