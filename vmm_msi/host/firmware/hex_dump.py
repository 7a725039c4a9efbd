"""Read ACPI tables from hex dumps in a text.

The forms are those of ``acpidump``, of the raw table data at the end of a listing of ``iasl -d``,
of ``xxd``, ``hexdump -C`` and ``od -A x -t x1``; mail may have quoted them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.acpi_table import HEADER_SIZE, MAX_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

#: An offset and what follows it; quoted mail has ``>`` in front.
_LINE = re.compile(rb"[>|\s]*([0-9A-Fa-f]{4,16})(?::[ \t]*|[ \t]+)(?=[0-9A-Fa-f]{2})")
#: The bytes of a line, one or two together, without the characters that are printed beside them.
_BYTES = re.compile(rb"(?:[0-9A-Fa-f]{2}){1,2}(?:[ \t]{1,2}(?:[0-9A-Fa-f]{2}){1,2})*")
_BLANKS = re.compile(rb"[ \t]+")
#: Bytes in a line.
_WIDTH = 16
#: The line that stands for repetitions of the line before it.
_REPEATED = b"*"


def dumped_tables(
    lines: Iterable[bytes], signatures: Iterable[bytes], source: str
) -> dict[bytes, bytes]:
    """Return the tables with one of the signatures.

    A dump starts at offset 0 with a signature and continues while offsets do; other lines between
    are skipped.

    :param source: the file, for messages.
    :return: by signature.
    :raise TopologyError: when a table or the repeated rows are larger than :data:`MAX_SIZE` bytes,
        or two tables have one signature and differ.
    """
    dump = _Dump(frozenset(signatures), source)
    for line in lines:
        dump.add(line)
    dump.finish()
    return dump.tables


class _Dump:
    def __init__(self, signatures: frozenset[bytes], source: str) -> None:
        self._signatures = signatures
        self._source = source
        self._table = bytearray()
        self._repeated = False
        self._filled = 0
        self.tables: dict[bytes, bytes] = {}

    def add(self, line: bytes) -> None:
        """Read one line."""
        match = _LINE.match(line)
        if match is None:
            self._repeated = bool(self._table) and line.strip() == _REPEATED
            return
        row = _BYTES.match(line, match.end())
        if row is None:
            return
        data = bytes.fromhex(_BLANKS.sub(b"", row[0])[: 2 * _WIDTH].decode("ascii"))
        offset = int(match[1], 16)
        if offset == 0:
            self.finish()
            if data[:4] in self._signatures:
                self._table += data
        elif self._table:
            if self._repeated and offset <= MAX_SIZE:
                self._fill(offset)
            if offset == len(self._table):
                self._table += data
        self._repeated = False
        if len(self._table) > MAX_SIZE:
            raise TopologyError(
                f"{self._source}: a table of more than {MAX_SIZE} bytes, the limit of such a table"
            )

    def _fill(self, offset: int) -> None:
        """Repeat the last row up to an offset.

        :raise TopologyError: when repetitions of all tables exceed :data:`MAX_SIZE` bytes.
        """
        missing = max(0, offset - len(self._table)) // _WIDTH * _WIDTH
        self._filled += missing
        if self._filled > MAX_SIZE:
            raise TopologyError(f"{self._source}: repeated rows of more than {MAX_SIZE} bytes")
        self._table += self._table[-_WIDTH:] * (missing // _WIDTH)

    def finish(self) -> None:
        """Keep the table that was read until now."""
        if len(self._table) >= HEADER_SIZE:
            # Characters beside a short last line may look like bytes.
            size = int.from_bytes(self._table[4:8], "little")
            table = bytes(self._table[:size])
            signature = table[:4]
            if self.tables.setdefault(signature, table) != table:
                raise TopologyError(
                    f"{self._source}: two tables {signature.decode('ascii')} that differ; use a "
                    "file with the tables of one host"
                )
        self._table.clear()
