"""What libvirt says of a guest as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm_msi.domxml.libvirt_domain import DomainXml


@dataclass(frozen=True)
class GuestState:
    """A guest: its definition, its run, and what its next start depends on.

    :param definition: what its next start uses.
    :param running: what runs now; None where it is off.
    :param persistent: the definition outlives the run.
    :param saved: its next start takes up a state that libvirt saved, with the XML of then.
    :param snapshots: how many it has.
    """

    definition: DomainXml
    running: DomainXml | None = None
    persistent: bool = True
    saved: bool = False
    snapshots: int = 0
