"""Find the ACPI tables IORT and APIC in the forms in which people have them.

A folder, or one file beside which the other may be; in it the table itself, as
``/sys/firmware/acpi/tables``, ``acpidump -b`` and ``acpixtract`` write it, or a text with its hex
dump, as ``acpidump`` and ``iasl -d`` write it.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.acpi_table import HEADER_SIZE, read_table
from vmm_msi.host.firmware.hex_dump import dumped_tables

if TYPE_CHECKING:
    from pathlib import Path

IORT, APIC = b"IORT", b"APIC"
SIGNATURES = (IORT, APIC)
#: Names of a table's file: that of sysfs; of acpidump -b and acpixtract (``iort.dat``); of iasl
#: (``iort.aml``, ``iort.dsl``); of acpiview of the UEFI shell (``IORT0003.bin``).
_NAMES = {
    IORT: re.compile(r"iort\d{0,4}(?:\.(?:dat|aml|bin|tbl|dsl|hex|txt))?", re.IGNORECASE),
    APIC: re.compile(r"(?:apic|madt)\d{0,4}(?:\.(?:dat|aml|bin|tbl|dsl|hex|txt))?", re.IGNORECASE),
}
#: Names of texts: used only if there is no other.
_TEXT = re.compile(r".*\.(?:dsl|hex|txt)", re.IGNORECASE)
_LISTING = re.compile(rb"AML/ASL\+? Disassembler|^\[[0-9A-F]+h .*Signature : \"", re.MULTILINE)


class TableFile(NamedTuple):
    """A table and the name of its file, for messages."""

    data: bytes
    source: str


class AcpiFiles(NamedTuple):
    """The two tables; None for one that is missing."""

    iort: TableFile | None
    apic: TableFile | None


def tables_in(folder: Path) -> AcpiFiles:
    """Return the tables in a folder, by the names of files.

    :raise TopologyError: when a table cannot be read, or files with one table differ.
    """
    return AcpiFiles(*(_table_in(folder, signature) for signature in SIGNATURES))


def tables_of(path: Path, data: bytes) -> AcpiFiles | None:
    """Return the tables in a file; one that it lacks is taken from the file's folder.

    That is done only for a file with a usual name, ``iort.dat`` or ``APIC``: others may be of other
    hosts.

    :param data: the content of the file.
    :return: None if the file has neither.
    :raise TopologyError: when it has other tables, or is a listing without the bytes of its table.
    """
    signature = _signature(path, data)
    tables: dict[bytes, TableFile] = {}
    if signature is not None:
        tables[signature] = TableFile(data, str(path))
    else:
        for signature, table in _dumped(data, str(path)).items():
            tables[signature] = TableFile(table, f"{path}: {signature.decode('ascii')}")
    if not tables:
        if _LISTING.search(data):
            raise TopologyError(
                f"{path}: a listing of iasl without its raw table data: run iasl on it and use the "
                ".aml file that this writes"
            )
        return None
    if any(pattern.fullmatch(path.name) for pattern in _NAMES.values()):
        for signature in SIGNATURES:
            if signature not in tables:
                beside = _table_in(path.parent, signature)
                if beside is not None:
                    tables[signature] = beside
    return AcpiFiles(tables.get(IORT), tables.get(APIC))


def _signature(path: Path, data: bytes) -> bytes | None:
    """Return the signature of the table that a file is; None if it is not a table."""
    # acpidump prints ``IORT @ 0x…``.
    if data[:4] in SIGNATURES and data[4:7] != b" @ ":
        return data[:4]
    is_table = len(data) >= HEADER_SIZE and int.from_bytes(data[4:8], "little") == len(data)
    if is_table and re.fullmatch(rb"[A-Z0-9]{4}", data[:4]):
        raise TopologyError(
            f"{path}: the ACPI table {data[:4].decode('ascii')}; a host is described by IORT and "
            "APIC"
        )
    return None


def _dumped(data: bytes, source: str) -> dict[bytes, bytes]:
    return dumped_tables(io.BytesIO(data), SIGNATURES, source)


def _table_in(folder: Path, signature: bytes) -> TableFile | None:
    """Return a table of a folder: the file with the name of sysfs, else another usual name."""
    exact = folder / signature.decode("ascii")
    names = [exact.name]
    if not exact.exists():
        names = sorted(
            entry.name for entry in folder.iterdir() if _NAMES[signature].fullmatch(entry.name)
        )
        names = [name for name in names if not _TEXT.fullmatch(name)] or names
    tables: dict[bytes, TableFile] = {}
    for name in names:
        data = read_table(folder / name)
        if data is None:
            continue
        if _signature(folder / name, data) != signature:
            data = _dumped(data, str(folder / name)).get(signature, data)
        tables.setdefault(data, TableFile(data, str(folder / name)))
    if len(tables) > 1:
        files = ", ".join(file.source for file in tables.values())
        raise TopologyError(
            f"{folder}: several different tables {signature.decode('ascii')}: {files}; keep one"
        )
    return next(iter(tables.values()), None)
