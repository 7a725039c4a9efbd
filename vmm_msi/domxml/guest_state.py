"""The state of a guest as libvirt reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm_msi.domxml.libvirt_domain import DomainXml


@dataclass(frozen=True)
class GuestState:
    """A guest: its definition, its run, and what its next start depends on.

    :param definition: the XML for its next start.
    :param running: the XML of its run; None if it is off.
    :param persistent: the definition outlives the run.
    :param saved: its next start resumes a state that libvirt saved, with the XML of that time.
    :param snapshots: number of its snapshots.
    """

    definition: DomainXml
    running: DomainXml | None = None
    persistent: bool = True
    saved: bool = False
    snapshots: int = 0
