"""Write ACPI tables as programs print them."""

from __future__ import annotations


def shown(row):
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)


def rows(data):
    for at in range(0, len(data), 16):
        yield at, data[at : at + 16]


def acpidump(*tables, upper=True):
    """Return what ACPICA's acpidump prints (``source/common/dmtbdump.c``, ``utbuffer.c``)."""
    text = ""
    for data in tables:
        text += f"{data[:4].decode()} @ 0x0000000000000000\n"
        for at, row in rows(data):
            digits = "".join(f"{byte:02X} " for byte in row).ljust(48)
            text += f"    {at:04X}: {digits if upper else digits.lower()} {shown(row)}\n"
        text += "\n"
    return text


def listing(data, *, raw=True):
    """Return a part of what ``iasl -d`` writes."""
    name = data[:4].decode()
    text = f"""/*
 * Intel ACPI Component Architecture
 * AML/ASL+ Disassembler version 20251212 (64-bit version)
 * ACPI Data Table [{name}]
 * Format: [HexOffset DecimalOffset ByteLength]  FieldName : FieldValue (in hex)
 */

[000h 0000 004h]                   Signature : "{name}"    [IO Remapping Table]
[004h 0004 004h]                Table Length : {len(data):08X}
"""
    if raw:
        text += f"\nRaw Table Data: Length {len(data)} (0x{len(data):X})\n\n"
        for at, row in rows(data):
            digits = "".join(f"{byte:02X} " for byte in row).ljust(48)
            text += f"    {at:04X}: {digits} // {shown(row)}\n"
    return text


def xxd(*tables):
    text = ""
    for data in tables:
        for at, row in rows(data):
            pairs = " ".join(row[i : i + 2].hex() for i in range(0, len(row), 2))
            text += f"{at:08x}: {pairs:39}  {shown(row)}\n"
    return text


def hexdump(data):
    """Return what ``hexdump -C`` prints, with ``*`` for rows that repeat."""
    text, last, repeated = "", None, False
    for at, row in rows(data):
        if row == last and at + 16 < len(data):
            text += "" if repeated else "*\n"
            repeated = True
            continue
        repeated, last = False, row
        halves = "  ".join(row[half : half + 8].hex(" ") for half in (0, 8))
        text += f"{at:08x}  {halves:48}  |{shown(row)}|\n"
    return f"{text}{len(data):08x}\n"


def od(data):
    return "".join(f"{at:06x} {row.hex(' ')}\n" for at, row in rows(data))
