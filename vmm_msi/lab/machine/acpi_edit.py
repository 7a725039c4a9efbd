"""Copy an ACPI table with one change, to override the firmware's.

Linux takes a table from the initial RAM file system when its OEM revision is higher than that of
the firmware's (``drivers/acpi/tables.c`` acpi_table_initrd_override,
``Documentation/admin-guide/acpi/initrd_table_override.rst``).
"""

from __future__ import annotations

import struct

from vmm_msi.lab.build.cpio import Archive, concatenate

_LENGTH, _CHECKSUM, _OEM_REVISION = 4, 9, 24  # ACPI 6.5, 5.2.6
_U32 = struct.Struct("<I")


def override_path(signature: str) -> str:
    """Return the path from which Linux reads an override of the table."""
    return f"kernel/firmware/acpi/{signature}.aml"


def with_override(initrd: bytes, signature: str, table: bytes) -> bytes:
    """Return an initial RAM file system with an override of a table in front."""
    archive = Archive()
    archive.add_file(override_path(signature), table)
    return concatenate((archive.encode(), initrd))


def newer(table: bytes) -> bytes:
    """Return a changed table with the right length and checksum and a higher OEM revision."""
    changed = bytearray(table)
    (revision,) = _U32.unpack_from(changed, _OEM_REVISION)
    _U32.pack_into(changed, _OEM_REVISION, (revision + 1) & 0xFFFFFFFF)
    _U32.pack_into(changed, _LENGTH, len(changed))
    changed[_CHECKSUM] = (changed[_CHECKSUM] - sum(changed)) & 0xFF
    return bytes(changed)
