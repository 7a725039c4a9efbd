"""The result of a guest test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.types import Iova, Pa, PciAddress


@dataclass(frozen=True)
class Counts:
    """What a device's MSIs did until one moment.

    :param addresses: the distinct addresses in its enabled MSIs, in order; None if unknown.
    :param interrupts: the interrupts that the emulated host's kernel counted; None if unknown.
    :param faults: its events in that kernel's log; None if unknown.
    """

    addresses: tuple[Iova, ...] | None
    interrupts: int | None
    faults: int | None


@dataclass(frozen=True)
class StatusCheck:
    """A measurement of ``vmm-msi status``, between two of the lab's own.

    :param reported: what ``vmm-msi status`` reported; None if it measured nothing.
    :param counted: what the lab counted right before and right after it, without vmm-msi.
    """

    reported: Counts | None
    counted: tuple[Counts, Counts]

    @property
    def agrees(self) -> bool:
        """Whether the measurement is right."""
        if self.reported is None:
            return False
        before, after = self.counted
        return all(
            value is not None and low <= value <= high
            for value, low, high in (
                (self.reported.interrupts, before.interrupts or 0, after.interrupts or 0),
                (self.reported.faults, before.faults or 0, after.faults or 0),
            )
        ) and self.reported.addresses in {before.addresses, after.addresses}


@dataclass(frozen=True)
class Vector:
    """An MSI of a device as the guest counts it.

    :param name: Linux's name of the interrupt.
    """

    name: str
    before: int
    after: int


class Sample(NamedTuple):
    """The counts of a device at one moment of its work.

    :param seconds: since the work began.
    :param done: operations since then.
    :param arrived: interrupts that the guest counted since then.
    """

    seconds: float
    done: int
    arrived: int


@dataclass(frozen=True)
class Prediction:
    """What the simulator predicted when ``vmm-msi attach`` attached a device.

    :param outcome: an outcome of ``vmm-msi compare``.
    :param addresses: the addresses that its MSIs may have.
    """

    outcome: str
    addresses: tuple[Iova, ...] = ()


@dataclass(frozen=True)
class DeviceRun:
    """The result of one device.

    :param host: its address in the emulated host.
    :param guest: its address in the guest; None if the guest does not have it.
    :param driver: the guest's driver.
    :param work: the kind of operation.
    :param done: number of operations.
    :param each: it signals one interrupt per operation.
    :param landed: its MSIs that reached its own physical ITS meanwhile, by EventID.
    :param checks: of ``vmm-msi status``, before its work and afterwards; empty without any.
    :param its: base of that ITS.
    :param misrouted: the number of its MSIs that reached another ITS meanwhile, by the base of that
        ITS; no kernel reports a fault for them.
    :param samples: counts from time to time during the work; its end is not among them.
    """

    host: PciAddress
    guest: PciAddress | None
    driver: str | None = None
    work: str = ""
    done: int = 0
    seconds: float = 0.0
    each: bool = False
    vectors: tuple[Vector, ...] = ()
    landed: Mapping[int, int] = field(default_factory=dict)
    checks: tuple[StatusCheck, ...] = ()
    its: Pa | None = None
    misrouted: Mapping[Pa, int] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()

    @property
    def course(self) -> tuple[Sample, ...]:
        """The samples and the end of the work; empty without samples."""
        end = Sample(self.seconds, self.done, self.arrived)
        return (*self.samples, end) if self.samples else ()

    @property
    def arrived(self) -> int:
        """Number of interrupts that arrived meanwhile."""
        return sum(vector.after - vector.before for vector in self.vectors)

    @property
    def complete(self) -> bool:
        """Whether no interrupt was lost, and no MSI reached another ITS than the device's own.

        With one interrupt per operation, all counts must be equal. Otherwise the guest may count
        fewer than the ITS received: an LPI that is still pending is not pending twice.
        """
        if self.misrouted:
            return False
        if self.each:
            return 0 < self.done == self.arrived == sum(self.landed.values())
        return self.done > 0 and self.arrived > 0


class Rmr(NamedTuple):
    """A range of an RMR.

    :param size: in bytes.
    :param remap_permitted: the flag of its node.
    """

    base: int
    size: int
    remap_permitted: bool = False


@dataclass(frozen=True)
class Phase:
    """The results between two actions.

    :param after: the action before: ``start``, ``reboot``, ``unplug 0000:11:00.0``,
        ``vfio 0000:11:00.0: EINVAL``, ``misdirect 0000:11:00.0: 0x8001040``.
    """

    after: str
    devices: Sequence[DeviceRun]


@dataclass(frozen=True)
class GuestTestResult:
    """The result of a guest test.

    :param releases: the releases of kernel, libvirt and QEMU.
    :param rmrs: the ranges of the RMRs in the guest's IORT.
    :param groups: the guest's IOMMU groups, as seen from inside.
    :param predicted: findings of ``vmm-msi doctor`` before the start.
    :param expected: what the simulator predicted for each device when it was attached.
    :param host_faults: SMMU faults in the emulated host's kernel log.
    :param guest_faults: vSMMU faults in the guest's kernel log.
    :param explained: the output of ``vmm-msi explain`` for both.
    :param status: the output of ``vmm-msi status`` at the end.
    :param seconds: the duration of each part.
    :param bindings: the bindings that the emulated host's kernel has at the end, line by line.
    :param watch: what ``vmm-msi watch`` logged of the guest's devices.
    :param recording: the file that ``vmm-msi record`` wrote; None if not requested.
    """

    releases: Mapping[str, str]
    phases: Sequence[Phase]
    rmrs: Sequence[Rmr]
    groups: Sequence[Mapping[str, Any]]
    predicted: Sequence[Mapping[str, Any]] = ()
    expected: Mapping[PciAddress, Prediction] = field(default_factory=dict)
    host_faults: Sequence[str] = ()
    guest_faults: Sequence[str] = ()
    explained: Sequence[str] = ()
    status: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    bindings: Sequence[str] = ()
    watch: Sequence[str] = ()
    recording: bytes | None = None

    @property
    def complete(self) -> bool:
        """Whether no device lost an interrupt in any phase."""
        return all(device.complete for phase in self.phases for device in phase.devices)

    @property
    def status_agrees(self) -> bool:
        """Whether every measurement of ``vmm-msi status`` is right."""
        devices = (device for phase in self.phases for device in phase.devices)
        return all(check.agrees for device in devices for check in device.checks)
