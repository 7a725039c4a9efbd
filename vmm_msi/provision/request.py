"""What is asked for, and the change that was planned for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from vmm_msi.domxml.metadata import DomainRecord, read_record

if TYPE_CHECKING:
    from vmm_msi.config import Choice
    from vmm_msi.domxml.domain import DomainXml
    from vmm_msi.hookspecs import Event
    from vmm_msi.model import PciAddress, Verdict


class Carrier(StrEnum):
    """Who binds the doorbells of a guest that runs."""

    #: QEMU and the kernel, by identity.
    QEMU = "qemu"
    #: The model: the XML is real, the binding is not.
    SIM = "sim"


@dataclass(frozen=True)
class AttachRequest:
    """What the user asks for.

    :param named: strategy the user names for the new devices; else the configuration's.
    :param carrier: None for what the hypervisor can do by itself.
    :param allow_faults: attach also where the model says that MSIs will not arrive.
    """

    domain: str
    devices: tuple[PciAddress, ...]
    named: Choice | None = None
    carrier: Carrier | None = None
    allow_faults: bool = False


@dataclass(frozen=True)
class Change:
    """A change of one domain's definition that was planned.

    :param verdicts: what the model says of each device's MSIs after the change.
    :param notes: what the user should know, a sentence each.
    :param events: what observers are told when it was carried out.
    """

    old: DomainXml
    new: DomainXml
    carrier: Carrier
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def record(self) -> DomainRecord:
        """What vmm-msi records of the domain after the change."""
        return read_record(self.new) or DomainRecord()
