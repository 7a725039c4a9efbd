"""Results of MSIs, costs of a strategy, and its plan for the domain XML."""

from __future__ import annotations

# Imported at run time too: JSON readers build the fields from their types.
from collections.abc import Collection, Mapping, Sequence  # noqa: TC003
from dataclasses import dataclass, field
from enum import StrEnum

from vmm_msi.errors import Rule  # noqa: TC001
from vmm_msi.types.address import Iova, PciAddress  # noqa: TC001


class Outcome(StrEnum):
    """The result of one MSI."""

    DELIVERED = "delivered"
    S1_FAULT = "s1-fault"
    S2_FAULT = "s2-fault"
    MISROUTED = "misrouted"
    REFUSED = "refused"


#: What each outcome means, for people; docs/strategies.md has the same table.
OUTCOME_MEANINGS: Mapping[Outcome, str] = {
    Outcome.DELIVERED: "reached the pITS that knows its DeviceID and EventID",
    Outcome.S1_FAULT: "no translation in S1",
    Outcome.S2_FAULT: (
        "S2 has no translation, or no write permission, for the IPA that S1 returned or for S1's "
        "own table"
    ),
    Outcome.MISROUTED: "reached another pITS, or an address that is not a doorbell",
    Outcome.REFUSED: (
        "the strategy or the kernel refused the device, with an errno where the kernel has one"
    ),
}


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step in the path of an MSI.

    :param step: ``programmed``, ``s1``, ``s2``, ``doorbell`` or ``its``.
    :param values: values at that step: addresses as hex strings, others as ints or words.
    :param decided_by: the rule by which the step ended as it did; only a simulator knows it, so it
        is not compared.
    """

    step: str
    values: Mapping[str, str | int | None] = field(default_factory=dict)
    decided_by: Rule | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the MSIs ``first`` to ``first + count - 1`` of one device.

    All vectors of a device write to one doorbell address, so they take the same path through the
    SMMU and differ only in EventID and LPI, which count up with the vector.

    :param its: id of the ITS that was reached; None if none was.
    :param expected_its: id of the ITS that knows the device.
    :param programmed: doorbell address in the device; None if it was not programmed.
    :param possible: every address that the device may have, in ascending order: one if the address
        is certain, several if the kernel assigns its slots by order of first use; empty if it was
        not programmed.
    :param errno: positive error number of a refusal, as the caller of the ioctl sees it; None
        without one.
    :param errno_inside: error number of the function in the kernel that refused, where it differs
        from ``errno`` and is known.
    :param lpi: LPI of vector ``first`` if it was delivered.
    :param decided_by: the rule that refused the device or broke the path of its MSIs; of delivered
        ones the rule that gave the device its address. Only a simulator knows it, so it is not
        compared.
    """

    device: PciAddress
    first: int
    count: int
    outcome: Outcome
    its: int | None
    expected_its: int
    programmed: Iova | None = None
    errno: int | None = None
    errno_inside: int | None = None
    reason: str = ""
    trace: tuple[TraceStep, ...] = ()
    lpi: int | None = None
    possible: tuple[Iova, ...] = ()
    decided_by: Rule | None = field(default=None, compare=False)


def possible_addresses(
    programmed: Iova, slots: Collection[Iova], page_size: int
) -> tuple[Iova, ...]:
    """Return every address that a device may have which was programmed with ``programmed``.

    The kernel assigns the slots of its MSI window in the order in which the guest's drivers first
    enable MSIs, which differs from boot to boot: a device on one slot may get any of them. An
    address that is not a slot is certain.

    :param slots: the pages of all slots of the device's iommufd file descriptor, or of its IOMMU
        domain in a kernel without iommufd.
    """
    if programmed.align_down(page_size) not in slots:
        return (programmed,)
    offset = programmed & (page_size - 1)
    return tuple(slot.offset(offset) for slot in sorted(slots))


def addresses_text(possible: Sequence[Iova]) -> str:
    """Return possible addresses for people: all up to three, else the first and the last."""
    if len(possible) > 3:
        return f"one of {possible[0]} to {possible[-1]}"
    return " or ".join(map(str, possible))


#: What decides between several possible addresses, for people.
ADDRESS_ORDER = "the order of first use decides which: vmm-msi doctor --explain slot-order"


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of a strategy.

    :param s2_domains: stage 2 tables.
    :param s2_mappings: doorbell pages mapped in all of them, without guest RAM.
    :param sw_msi_slots: pages taken from the software MSI window.
    :param bindings: guest bindings the kernel holds.
    :param containers: VFIO containers; guest RAM is mapped in each stage 2 of each of them.
    """

    s2_domains: int = 0
    s2_mappings: int = 0
    sw_msi_slots: int = 0
    bindings: int = 0
    containers: int = 0


@dataclass(frozen=True, slots=True)
class VsmmuPlan:
    """One virtual SMMUv3 of the guest, in front of devices of one physical SMMU.

    :param smmu: id of the physical SMMU.
    :param its: id of the physical ITS of its devices, if the strategy separates ITSes.
    :param accelerated: it uses the physical SMMU's own stage 1.
    :param own_iommufd: its devices share an iommufd object with those of no other vSMMU.
    """

    smmu: int
    devices: tuple[PciAddress, ...]
    its: int | None = None
    accelerated: bool = True
    own_iommufd: bool = False


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """The parts that a strategy requires in the domain XML.

    :param iommufd: devices are assigned through iommufd rather than VFIO's type1 container.
    """

    vsmmus: tuple[VsmmuPlan, ...]
    iommufd: bool = True
