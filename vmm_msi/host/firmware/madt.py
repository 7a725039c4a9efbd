"""Read the ITSes in an ACPI MADT (signature ``APIC``): ACPI 6.5, 5.2.12; of a GICv5, ACPI 6.7.

Layouts are those of Linux ``include/acpi/actbl2.h``. Linux reads the same in
``drivers/irqchip/irq-gic-v3-its.c`` gic_acpi_parse_madt_its and ``irq-gic-v5-its.c``
gic_acpi_parse_madt_its_translate.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, Any

from vmm_msi.host.firmware.acpi_table import AcpiTable
from vmm_msi.host.firmware.its_frame import its_frame
from vmm_msi.types import Its, Pa

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.types import TableError

#: Offset of the first interrupt controller structure: header, address and flags.
_FIRST = 44

_GIC_ITS = 15
_GICV5_ITS = 29
_GICV5_TRANSLATE = 30
#: GIC ITS: id, base.
_GIC_ITS_FORM = struct.Struct("<4xIQ4x")
#: GICv5 ITS configuration frame: translator id, base.
_GICV5_ITS_FORM = struct.Struct("<4xIQ")
#: GICv5 ITS translate frame: linked translator id, id of the frame, base.
_GICV5_TRANSLATE_FORM = struct.Struct("<4xII4xQ")


def parse_madt(data: bytes, source: str, errors: list[TableError] | None = None) -> tuple[Its, ...]:
    """Return the ITSes of a GICv3, and of a GICv5 one for each translate frame.

    The ITS groups of an IORT name both by one kind of id: iort_register_domain_token takes the id
    of a GICv3 ITS, or that of a translate frame. A translate frame whose ITS is not in the table is
    left out, as in Linux. Structures of other types, such as the MSI frames of a GICv2m, are
    skipped.

    :param data: the table.
    :param source: its file, for messages.
    :param errors: receives the errors that Linux tolerates.
    :return: in the order of the table.
    :raise TopologyError: when the table is malformed; the message has the byte offset.
    """
    table = AcpiTable(data, source, "APIC", _FIRST, errors)
    #: Bases of configuration frames by translator id.
    configured: dict[int, Pa] = {}
    #: By id: the base of a GICv3 ITS, or a translate frame and the id of its translator.
    frames: dict[int, Pa | tuple[Pa, int]] = {}
    for offset, kind, size in _structures(table):
        if kind == _GIC_ITS:
            number, base = _fields(table, offset, size, _GIC_ITS_FORM, "GIC ITS")
            _check_id(table, offset + 4, frames, number, "ITS")
            frames[number] = _frame(table, offset + 8, base, "ITS")
        elif kind == _GICV5_ITS:
            number, base = _fields(table, offset, size, _GICV5_ITS_FORM, "GICv5 ITS")
            _check_id(table, offset + 4, configured, number, "GICv5 ITS")
            configured[number] = _frame(table, offset + 8, base, "GICv5 ITS")
        elif kind == _GICV5_TRANSLATE:
            what = "GICv5 translate frame"
            translator, number, base = _fields(table, offset, size, _GICV5_TRANSLATE_FORM, what)
            _check_id(table, offset + 8, frames, number, "ITS")
            frames[number] = _frame(table, offset + 16, base, what), translator
    return tuple(_itses(frames, configured))


def _structures(table: AcpiTable) -> Iterator[tuple[int, int, int]]:
    """Yield offset, type and length of each structure."""
    offset = _FIRST
    while offset < table.length:
        if offset + 2 > table.length:
            table.fail(offset, "truncated: a structure has at least 2 bytes")
        kind, size = table.u8(offset), table.u8(offset + 1)
        if size < 2:
            table.fail(offset + 1, f"length {size}; a structure has at least 2 bytes")
        if offset + size > table.length:
            table.fail(
                offset + 1, f"length {size}, but {table.length - offset} bytes of the table remain"
            )
        yield offset, kind, size
        offset += size


def _fields(
    table: AcpiTable, offset: int, size: int, form: struct.Struct, what: str
) -> tuple[Any, ...]:
    if size < form.size:
        table.fail(offset + 1, f"length {size}; a {what} structure has {form.size} bytes")
    return table.fields(form, offset)


def _check_id(table: AcpiTable, offset: int, taken: dict[int, Any], number: int, what: str) -> None:
    if number in taken:
        table.fail(offset, f"{what} {number} is listed twice")


def _frame(table: AcpiTable, offset: int, base: int, what: str) -> Pa:
    return its_frame(base, what, partial(table.fail, offset))


def _itses(frames: dict[int, Pa | tuple[Pa, int]], configured: dict[int, Pa]) -> Iterator[Its]:
    for number, frame in frames.items():
        if isinstance(frame, Pa):
            yield Its(number, frame)
        elif frame[1] in configured:
            yield Its(number, configured[frame[1]], translate_frame=frame[0])
