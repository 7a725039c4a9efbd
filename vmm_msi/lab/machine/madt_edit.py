"""Add ITSes to a copy of a MADT (:mod:`vmm_msi.lab.machine.acpi_edit`)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm_msi.host.firmware.madt import parse_madt
from vmm_msi.lab.machine.acpi_edit import newer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.types import Its

#: Type, length, id and base of a GIC ITS structure: ACPI 6.5, 5.2.12.18.
_GIC_ITS = struct.Struct("<BBxxIQ4x")
_GIC_ITS_TYPE = 15


def with_itses(table: bytes, itses: Iterable[Its], source: str) -> bytes:
    """Return a MADT that also has ``itses``.

    :param source: the table's origin, for messages.
    :raise TopologyError: when the table is malformed, or has one of their ids.
    """
    structures = [_GIC_ITS.pack(_GIC_ITS_TYPE, _GIC_ITS.size, its.id, its.base) for its in itses]
    changed = newer(table + b"".join(structures))
    parse_madt(changed, f"{source}, changed")
    return changed
