"""Explanations of log lines, as values that a report prints or writes as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm_msi.types import Iova, Ipa, PciAddress, StreamId


class Program(StrEnum):
    """The program that wrote a line."""

    KERNEL = "kernel"
    QEMU = "qemu"
    LIBVIRT = "libvirt"
    CLOUD_HYPERVISOR = "cloud-hypervisor"
    OPENVMM = "openvmm"
    KATA = "kata"
    DPDK = "dpdk"
    AUDIT = "audit"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that fixes a problem.

    :param what: the exact change; for a strategy, how to switch to it, or how it works.
    :param strategy: the strategy as ``--strategy`` takes it; empty for another change.
    :param change: what else to change so that the strategy delivers; empty for nothing.
    """

    what: str
    strategy: str = ""
    change: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A device that a line is about, or may be about.

    :param address: on the host; None if only its address in the guest is known.
    :param guest_address: in the guest.
    :param note: more about it, such as its SMMU, its ITS and its guest.
    """

    address: PciAddress | None
    guest_address: PciAddress | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """Another cause that a text does not exclude.

    :param when: the condition for it: ``if a driver of the host uses the device``.
    :param why: how it comes about.
    :param remedies: changes that fix it.
    """

    when: str
    why: str
    remedies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The meaning of a known text or an event.

    :param id: which text or event it is; docs/explain.md lists all.
    :param what: the meaning, in a sentence.
    :param devices: the devices that it may be about; several if that is uncertain.
    :param stage: 1 or 2; None if it is about neither.
    :param iova: the address that was used, and ``iova_is`` its description.
    :param ipa: the address that stage 2 translates, and ``ipa_is`` its description.
    :param missing: the missing mapping.
    :param why: how it comes about.
    :param source: where the text, or the meaning, comes from.
    :param findings: ids of the doctor's findings about the same problem.
    :param otherwise: other causes, where the text and the context leave several.
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
    otherwise: tuple[Reading, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class ExplainedLine:
    """An explanation and the lines that it applies to.

    :param line: number of the first line.
    :param text: text of the first line.
    :param count: how many lines or events have this explanation.
    """

    explanation: Explanation
    line: int
    text: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class ExplainedText:
    """All explanations of a text.

    :param unrecognised: number of lines that match no known text.
    :param left_out: number of lines and events beyond the limit of different explanations.
    :param suppressed: number of events that the kernel counted and did not log.
    :param notes: what could not be checked.
    """

    lines: tuple[ExplainedLine, ...]
    unrecognised: int = 0
    left_out: int = 0
    suppressed: int = 0
    notes: tuple[str, ...] = ()
