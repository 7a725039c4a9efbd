"""Call sequences: calls on iommufd, VFIO and a device's MSI, for the simulator and for a kernel.

A :class:`CallSequence` is a list of steps, each one call of a :class:`Machine` with its arguments.
:func:`run` makes the calls and records the result of each: a value, or the errno of a refusal. The
same sequence on two machines gives two lists, and :func:`agree` returns whether a step had the same
result on both. Numbers of objects are not compared: a step refers to the object of an earlier step
by the position of that step (:class:`Ref`).

The emulated host uses this module too: standard library and the package's types only.
"""

from __future__ import annotations

# Imported at run time, not for type checkers alone: OPS is derived from annotations.
from collections.abc import Sequence  # noqa: TC003
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, TypeAlias

from vmm_msi.errors import BackendError, CallSequenceError, errno_name
from vmm_msi.iommu.guest_msi import BoundMsi
from vmm_msi.iommu.signatures import methods_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.iommu.smmu_events import SmmuEvent
    from vmm_msi.types import Granule

#: Guest RAM of every sequence: stage 1 tables are in its first half, the rest is unused.
RAM_BASE = 0x4000_0000
RAM_SIZE = 0x20_0000
#: Guest RAM as a page of ``ioas_map``; the numbers from 1 to ``WITNESSES`` are witness pages.
RAM_PAGE = 0
WITNESSES = 8
#: An id that no kernel allocates: the value of a reference to an object that does not exist.
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
    """Where the write of an MSI landed."""

    ITS = "its"
    WITNESS = "witness"
    FAULT = "fault"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class Landing:
    """Where one MSI landed.

    :param kind: the ITS (the device's eventfd was signalled), a witness page, an event of the
        SMMU, or nowhere: no MSI was sent, the SMMU aborted it without an event, or it was written
        to guest RAM or to another address without a doorbell.
    :param page: number of the witness page, from 1.
    :param offset: in that page, in bytes.
    :param event: the event as it was reported; to a guest, with the virtual StreamID.
    :param guest: the event was reported to the vEVENTQ of a vIOMMU, not to the kernel's log.
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
                return f"{self.event}, reported to the {'guest' if self.guest else 'host'}"
            case _:
                return self.kind.value


@dataclass(frozen=True, slots=True)
class Stage1Shape:
    """A guest's stage 1: a context descriptor and tables in guest RAM.

    :param asid: its address space id, different in each shape of a sequence.
    :param pages: (gIOVA, IPA) of each page mapped for reading and writing.
    """

    granule: Granule
    asid: int
    pages: tuple[tuple[int, int], ...] = ()


class ValueKind(Enum):
    """What an argument or a result of a call is: its type, its bounds and how it is compared."""

    FD = "fd"
    DEVICE = "device"
    #: The number of an object; two results agree if both sides have one.
    ID = "id"
    U64 = "u64"
    PAGE = "page"
    CONFIG = "config"
    STAGE1 = "stage1"
    FLAG = "flag"
    LANDING = "landing"
    BINDING = "binding"


Fd: TypeAlias = Annotated[int, ValueKind.FD]
DeviceIndex: TypeAlias = Annotated[int, ValueKind.DEVICE]
ObjectId: TypeAlias = Annotated[int, ValueKind.ID]
U64: TypeAlias = Annotated[int, ValueKind.U64]
PageNumber: TypeAlias = Annotated[int, ValueKind.PAGE]
Stage1Index: TypeAlias = Annotated[int, ValueKind.STAGE1]

#: The kinds of the types that have one kind only.
_KIND_OF_TYPE: dict[object, ValueKind] = {
    NestedConfig: ValueKind.CONFIG,
    bool: ValueKind.FLAG,
    Landing: ValueKind.LANDING,
    BoundMsi: ValueKind.BINDING,
}


class Machine(Protocol):
    """A host with iommufd and VFIO, simulated or real.

    A device is an index into the machine's list of devices, a file descriptor of /dev/iommu is the
    result of :meth:`open`, any other object of iommufd is the id that the allocating call returned.
    Every method but :meth:`prepare` and :meth:`reset` is a call that a step can make, and raises
    :class:`~vmm_msi.errors.BackendError` with the kernel's errno when the kernel refuses it. Calls
    that do not reach the kernel are refused alike by all machines:

    - a file descriptor that is closed or was never opened: EBADF, before anything else;
    - a device whose character device is not open, in any method with a ``device`` but
      :meth:`bind` and :meth:`program`: EBADF.

    The annotations define the vocabulary of steps, :data:`OPS`.
    """

    @property
    def devices(self) -> int:
        """Number of devices."""

    def prepare(self, stage1: Sequence[Stage1Shape]) -> None:
        """Begin a sequence: build the stage 1 tables in guest RAM and clear the witness pages.

        Guest RAM is :data:`RAM_SIZE` bytes at IPA :data:`RAM_BASE`; the tables refer to these IPAs
        whether or not a step maps them. The tables are in its first half.
        """

    def reset(self) -> None:
        """End a sequence: disable MSIs, close everything, clear the memory."""

    def open(self) -> Fd:
        """Open /dev/iommu; return an index for the file descriptor."""

    def close(self, fd: Fd) -> None:
        """Close a file descriptor; the kernel keeps its objects while a device is bound to it."""

    def bind(self, fd: Fd, device: DeviceIndex) -> ObjectId:
        """VFIO_DEVICE_BIND_IOMMUFD; return the device's id.

        The character device is opened first if it is not open, and stays open when the kernel
        refuses to bind it.
        """

    def unbind(self, device: DeviceIndex) -> None:
        """Close the character device, which ends MSIs, attachment, vDEVICE and binding."""

    def ioas_alloc(self, fd: Fd) -> ObjectId:
        """IOMMU_IOAS_ALLOC; return the IOAS's id."""

    def ioas_map(self, fd: Fd, ioas: ObjectId, iova: U64, size: U64, page: PageNumber) -> None:
        """IOMMU_IOAS_MAP at a fixed IOVA, for reading and writing.

        :param size: passed to the kernel unchanged, even past the end of the memory.
        :param page: the memory to map: :data:`RAM_PAGE` for guest RAM from its first byte, else
            the number of a witness page. Witness pages have the size of the kernel's pages and
            are adjacent, so two pages' bytes from page 1 are pages 1 and 2.
        """

    def ioas_unmap(self, fd: Fd, ioas: ObjectId, iova: U64, size: U64) -> U64:
        """IOMMU_IOAS_UNMAP; return the number of bytes unmapped.

        ``0, 2**64 - 1`` unmaps everything.
        """

    def hwpt_alloc(
        self, fd: Fd, dev_id: ObjectId, ioas: ObjectId, *, nest_parent: bool
    ) -> ObjectId:
        """IOMMU_HWPT_ALLOC on an IOAS, without data; return the HWPT's id."""

    def viommu_alloc(self, fd: Fd, dev_id: ObjectId, hwpt: ObjectId) -> ObjectId:
        """IOMMU_VIOMMU_ALLOC of type ARM_SMMUV3; return the vIOMMU's id.

        A real machine allocates a vEVENTQ with it, to receive events. The vEVENTQ has no number
        here, is destroyed with the vIOMMU, and does not count as a user of it.
        """

    def vdevice_alloc(self, fd: Fd, viommu: ObjectId, dev_id: ObjectId, virt_id: U64) -> ObjectId:
        """IOMMU_VDEVICE_ALLOC with a virtual StreamID; return the vDEVICE's id."""

    def hwpt_alloc_nested(
        self,
        fd: Fd,
        dev_id: ObjectId,
        viommu: ObjectId,
        config: NestedConfig,
        stage1: Stage1Index,
    ) -> ObjectId:
        """IOMMU_HWPT_ALLOC on a vIOMMU with a guest's stream table entry; return the HWPT's id.

        :param stage1: index of the prepared stage 1 that TRANSLATE uses.
        """

    def attach(self, device: DeviceIndex, pt_id: ObjectId) -> None:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT to an IOAS or a HWPT; an attached device is moved."""

    def detach(self, device: DeviceIndex) -> None:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT."""

    def destroy(self, fd: Fd, number: ObjectId) -> None:
        """IOMMU_DESTROY."""

    def enable(self, device: DeviceIndex) -> U64:
        """VFIO_DEVICE_SET_IRQS of MSI 0 with an eventfd.

        :return: the address in the device's real MSI capability afterwards.
        """

    def disable(self, device: DeviceIndex) -> None:
        """VFIO_DEVICE_SET_IRQS of the MSI index with count 0."""

    def program(self, device: DeviceIndex, address: U64) -> None:
        """Write the address, but not the data, of the device's real MSI capability."""

    def raise_msi(self, device: DeviceIndex) -> Landing:
        """Make the device send MSI 0, with memory access and bus mastering enabled.

        :return: where it landed.
        """

    def msi_address(self, device: DeviceIndex) -> U64:
        """Return the address in the device's real MSI capability; 0 while the MSI is disabled."""

    def set_msi_binding(self, fd: Fd, hwpt: ObjectId, value: U64) -> None:
        """IOMMU_OPTION_SET of IOMMU_OPTION_MSI_BINDING."""

    def msi_binding(self, fd: Fd, hwpt: ObjectId) -> U64:
        """IOMMU_OPTION_GET of IOMMU_OPTION_MSI_BINDING."""

    def msi_bind(self, fd: Fd, vdevice: ObjectId, iova: U64, gpa: U64, page_shift: U64) -> None:
        """IOMMU_VDEVICE_MSI_OP_BIND of a vDEVICE's doorbell: gIOVA, gDB and stage 1 page."""

    def msi_unbind(self, fd: Fd, vdevice: ObjectId, iova: U64) -> None:
        """IOMMU_VDEVICE_MSI_OP_UNBIND of a gIOVA."""

    def msi_prepare(self, fd: Fd, vdevice: ObjectId) -> None:
        """IOMMU_VDEVICE_MSI_OP_PREPARE."""

    def msi_query(self, fd: Fd, vdevice: ObjectId, index: U64) -> BoundMsi:
        """IOMMU_VDEVICE_MSI_OP_QUERY of the binding with a number, from 0."""

    def vdevice_msi(
        self,
        fd: Fd,
        vdevice: ObjectId,
        msi_op: U64,
        page_shift: U64,
        index: U64,
        flags: U64,
        reserved: U64,
        iova: U64,
        gpa: U64,
    ) -> None:
        """IOMMU_VDEVICE_MSI with any values, also in fields that must be 0."""


class Op(NamedTuple):
    """A method of :class:`Machine` that a step can call.

    :param result: None for a method without a result.
    """

    parameters: Mapping[str, ValueKind]
    result: ValueKind | None

    @property
    def returns_number(self) -> bool:
        """Whether a later step can refer to the result."""
        return self.result in {ValueKind.FD, ValueKind.ID, ValueKind.U64}


def _kind(annotation: Any) -> ValueKind:  # noqa: ANN401
    """Return the kind of a parameter's or a result's annotation."""
    metadata: tuple[ValueKind, ...] = getattr(annotation, "__metadata__", ())
    return metadata[0] if metadata else _KIND_OF_TYPE[annotation]


#: The calls that a step can make, by name.
OPS: Mapping[str, Op] = {
    name: Op(
        {parameter: _kind(annotation) for parameter, annotation in method.parameters.items()},
        None if method.result is NoneType else _kind(method.result),
    )
    for name, method in methods_of(Machine).items()
    if name not in {"prepare", "reset"}
}


@dataclass(frozen=True, slots=True)
class Ref:
    """The result of the step at position ``step``.

    If that step was refused or the object has been destroyed since, it is :data:`NO_OBJECT`: the
    kernel reuses the numbers of destroyed objects.
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
        arguments = (f"{name}={_text(name, value)}" for name, value in self.arguments.items())
        return f"{self.op}({', '.join(arguments)})"


def _text(name: str, value: Argument) -> str:
    if isinstance(value, Ref):
        return f"#{value.step}"
    if name in {"iova", "gpa", "size", "address"} and isinstance(value, int):
        return f"{value:#x}"
    return str(value)


@dataclass(frozen=True, slots=True)
class CallSequence:
    """Steps, and the stage 1 tables that exist when they begin."""

    stage1: tuple[Stage1Shape, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step.

    :param errno: as the caller of the ioctl sees it; 0 for a call that was not refused.
    :param reason: why it was refused, for people.
    """

    errno: int = 0
    value: int | None = None
    landing: Landing | None = None
    binding: BoundMsi | None = None
    reason: str = field(default="", compare=False)


def agree(step: Step, one: StepResult, other: StepResult) -> bool:
    """Return whether a step had the same result on two machines."""
    if one.errno != other.errno:
        return False
    if OPS[step.op].result in {ValueKind.FD, ValueKind.ID}:
        return (one.value is None) == (other.value is None)
    return one == other


class SequenceRunner:
    """Makes the calls of a sequence, one after the other.

    :param machine: prepared for the sequence.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._position = 0
        self._values: dict[int, int] = {}
        self._bound: dict[int, int] = {}

    def call(self, step: Step) -> StepResult:
        """Make the next call."""
        op = OPS[step.op]
        arguments = {name: self._value(value) for name, value in step.arguments.items()}
        if "config" in arguments:
            arguments["config"] = NestedConfig(str(arguments["config"]))
        position = self._position
        self._position += 1
        try:
            value = getattr(self._machine, step.op)(**arguments)
        except BackendError as error:
            within = "" if error.inside is None else f"{errno_name(error.inside)} in the kernel: "
            return StepResult(error.errno, reason=f"{within}{error.reason}")
        if op.returns_number:
            self._values[position] = int(value)
        self._forget(position, step)
        match op.result:
            case None:
                return StepResult()
            case ValueKind.LANDING:
                return StepResult(landing=value)
            case ValueKind.BINDING:
                return StepResult(binding=value)
            case _:
                return StepResult(value=int(value))

    def discard_last(self) -> None:
        """Leave the last call, which must have returned no number, out of the sequence."""
        self._position -= 1

    def _value(self, argument: Argument) -> int | str | bool:
        """Return the value of an argument."""
        if isinstance(argument, Ref):
            return self._values.get(argument.step, NO_OBJECT)
        return argument

    def _forget(self, position: int, step: Step) -> None:
        """Forget the number of an object that the step at ``position`` destroyed."""
        match step.op:
            case "bind":
                self._bound[_number(step.arguments["device"])] = position
            case "unbind":
                self._values.pop(self._bound.pop(_number(step.arguments["device"]), -1), None)
            case "destroy":
                number = step.arguments["number"]
                if isinstance(number, Ref):
                    self._values.pop(number.step, None)


def _number(argument: Argument) -> int:
    """Return an argument that must not be a reference."""
    if not isinstance(argument, int):
        raise CallSequenceError(f"call sequence: {argument!r} is not a number")
    return argument


def run(
    machine: Machine, sequence: CallSequence, expected: Sequence[StepResult] | None = None
) -> list[StepResult]:
    """Run a sequence from a fresh state to its end, and leave a fresh state.

    :param expected: another machine's results; the run ends at the first step with another
        result, since later steps would run in another state.
    :return: one result for each step that ran.
    :raise CallSequenceError: when it names a device that the machine does not have.
    """
    check_devices(sequence, machine.devices)
    results: list[StepResult] = []
    try:
        machine.prepare(sequence.stage1)
        runner = SequenceRunner(machine)
        for position, step in enumerate(sequence.steps):
            result = runner.call(step)
            results.append(result)
            if expected is not None and not agree(step, expected[position], result):
                break
    finally:
        machine.reset()
    return results


def check_devices(sequence: CallSequence, devices: int) -> None:
    """Check that a machine has all devices of a sequence.

    :param devices: number of the machine's devices.
    :raise CallSequenceError: when one is missing.
    """
    for position, step in enumerate(sequence.steps):
        device = _number(step.arguments.get("device", 0))
        if device >= devices:
            raise CallSequenceError(
                f"call sequence, step {position}: {step.op}: device {device}: the host has "
                f"{devices}, numbered from 0"
            )
