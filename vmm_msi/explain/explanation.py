"""What is said of a line: values that a table or a document is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm_msi.types import Iova, Ipa, PciAddress, StreamId


class Program(StrEnum):
    """Who wrote it."""

    KERNEL = "kernel"
    QEMU = "qemu"
    LIBVIRT = "libvirt"


@dataclass(frozen=True, slots=True)
class Remedy:
    """What would mend it.

    :param what: the exact change, or what the strategy does and who carries it out.
    :param strategy: the strategy, as ``--strategy`` takes it; empty where it is another change.
    :param change: what has to be changed besides, for the strategy to deliver; empty for nothing.
    """

    what: str
    strategy: str = ""
    change: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A device that is meant, or may be.

    :param address: on the host; None where only the guest's view of it is known.
    :param guest_address: in the guest.
    :param note: what else is known of it, such as its SMMU, its ITS and who has it.
    """

    address: PciAddress | None
    guest_address: PciAddress | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one text, or one event, means.

    :param id: which text or event it is; docs/explain.md has them all.
    :param what: what it says, in a sentence.
    :param devices: the devices that it may be about: one, several where that is not certain.
    :param stage: 1 or 2, None where it is about neither.
    :param iova: the address that was used, and what it is.
    :param ipa: the address that stage 2 was asked for, and what it is.
    :param missing: the mapping that is not there.
    :param why: how it comes about.
    :param source: where the text, or the meaning, is from.
    :param findings: ids of the doctor's findings about the same thing.
    """

    id: str
    program: Program
    what: str
    devices: tuple[Subject, ...] = ()
    stream: StreamId | None = None
    stage: int | None = None
    iova: Iova | None = None
    iova_is: str = ""
    ipa: Ipa | None = None
    ipa_is: str = ""
    missing: str = ""
    why: str = ""
    remedies: tuple[Remedy, ...] = ()
    findings: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class ExplainedLine:
    """An explanation, and where it applies.

    :param line: number of the first line.
    :param text: what that line says.
    :param count: how often the same was said.
    """

    explanation: Explanation
    line: int
    text: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class ExplainedText:
    """What came of a text.

    :param unrecognised: lines in which nothing was recognised.
    :param left_out: different explanations that are not listed, there being too many.
    :param suppressed: events that the kernel counted and did not log.
    :param notes: what could not be looked at.
    """

    lines: tuple[ExplainedLine, ...]
    unrecognised: int = 0
    left_out: int = 0
    suppressed: int = 0
    notes: tuple[str, ...] = ()
