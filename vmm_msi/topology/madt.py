"""The ITSes in an ACPI MADT (signature ``APIC``): ACPI 6.5, 5.2.12.

Linux reads the same in ``drivers/irqchip/irq-gic-v3-its.c`` gic_acpi_parse_madt_its.
"""

from __future__ import annotations

from vmm_msi.model import Its, Pa
from vmm_msi.topology.acpi_table import AcpiTable

#: Offset of the first interrupt controller structure: header, address and flags.
_FIRST = 44
_GIC_ITS = 0xF
_GIC_ITS_SIZE = 20
_ITS_FRAME = 0x10000


def parse_madt(data: bytes, source: str) -> tuple[Its, ...]:
    """Return the GICv3 ITSes in the order of the table.

    Structures of other types, those of a GICv5 too, are skipped.

    :param data: the table.
    :param source: the file it is from, for messages.
    :raise TopologyError: when the table is malformed; the message has the byte offset.
    """
    table = AcpiTable(data, source, "APIC", _FIRST)
    itses: dict[int, Its] = {}
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
        if kind == _GIC_ITS:
            its = _its(table, offset, size)
            if its.id in itses:
                table.fail(offset + 4, f"ITS {its.id} is listed twice")
            itses[its.id] = its
        offset += size
    return tuple(itses.values())


def _its(table: AcpiTable, offset: int, size: int) -> Its:
    """Read a GIC ITS structure: ACPI 6.5, 5.2.12.18."""
    if size < _GIC_ITS_SIZE:
        table.fail(offset + 1, f"length {size}; a GIC ITS structure has {_GIC_ITS_SIZE} bytes")
    base = table.u64(offset + 8)
    if base % _ITS_FRAME or base >= 1 << 52:
        table.fail(
            offset + 8,
            f"ITS base {base:#x}: not a multiple of {_ITS_FRAME:#x} below {1 << 52:#x}",
        )
    return Its(table.u32(offset + 4), Pa(base))
