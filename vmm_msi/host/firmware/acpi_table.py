"""Read one ACPI table within bounds: every access is checked, every error names the offset."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NoReturn
from zlib import adler32

from vmm_msi.errors import TopologyError
from vmm_msi.quantity import quantity
from vmm_msi.types import TableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Size of the header of all tables: ACPI 6.5, 5.2.6.
HEADER_SIZE = 36
#: Limit of a table in bytes; the largest known IORT and MADT are below 1 MiB.
MAX_SIZE = 4 << 20

_U32 = struct.Struct("<I")
#: Bytes whose sum always stays below the modulus of Adler-32, 65521.
_SUMMED = 256


class AcpiTable:
    """The bytes of a table whose header was checked (ACPI 6.5, 5.2.6).

    :param data: the whole table.
    :param source: its file, for messages.
    :param signature: the four characters that it must start with.
    :param minimum: bytes of its fixed part, header included.
    :param errors: receives the errors that Linux tolerates.
    :raise TopologyError: when signature or length are wrong.
    """

    def __init__(
        self,
        data: bytes,
        source: str,
        signature: str,
        minimum: int,
        errors: list[TableError] | None = None,
    ) -> None:
        self.source = source
        self._errors = [] if errors is None else errors
        self._data = memoryview(data)
        if len(data) > MAX_SIZE:
            self.fail(MAX_SIZE, f"larger than {MAX_SIZE} bytes, the limit of such a table")
        if len(data) < HEADER_SIZE:
            self.fail(len(data), f"truncated: an ACPI table has a header of {HEADER_SIZE} bytes")
        if data[:4] != signature.encode():
            self.fail(0, f"signature {data[:4]!r}, not {signature.encode()!r}")
        self.length = self.u32(4)
        if self.length > len(data):
            self.fail(4, f"length {self.length}, but the file has {len(data)} bytes")
        if self.length < minimum:
            self.fail(4, f"length {self.length}; a {signature} has at least {minimum} bytes")
        if surplus := len(data) - self.length:
            self.tolerate(self.length, f"{quantity(surplus, 'byte')} after the end of the table")
            self._data = self._data[: self.length]
        if total := byte_sum(self._data) & 0xFF:
            text = f"wrong checksum: the sum of the bytes modulo 256 is {total:#x}, not 0"
            self.tolerate(9, text)
        self.revision = data[8]

    def tolerate(self, offset: int, message: str) -> None:
        """Record an error that Linux tolerates.

        A wrong checksum: Linux ``drivers/acpi/acpica/utcksum.c`` acpi_ut_verify_checksum (older:
        ``tbprint.c`` acpi_tb_verify_checksum) warns and aborts only with ACPI_CHECKSUM_ABORT, which
        it does not set.
        """
        self._errors.append(TableError(self.source, f"offset {offset:#x}: {message}"))

    def fail(self, offset: int, message: str) -> NoReturn:
        """Refuse the table for the bytes at ``offset``.

        :raise TopologyError: always.
        """
        raise TopologyError(f"{self.source}: offset {offset:#x}: {message}")

    def u8(self, offset: int) -> int:
        """Return the byte at ``offset``."""
        self._need(offset, 1)
        return self._data[offset]

    def u32(self, offset: int) -> int:
        """Return the little-endian 32-bit number at ``offset``."""
        self._need(offset, 4)
        return int(_U32.unpack_from(self._data, offset)[0])

    def fields(self, form: struct.Struct, offset: int) -> tuple[Any, ...]:
        """Return the numbers at ``offset``.

        :param form: describes them as little-endian.
        """
        self._need(offset, form.size)
        return form.unpack_from(self._data, offset)

    def records(self, form: struct.Struct, offset: int, count: int) -> Iterator[tuple[Any, ...]]:
        """Yield ``count`` records of numbers from ``offset`` on.

        :param form: describes one record as little-endian.
        """
        self._need(offset, form.size * count)
        return form.iter_unpack(self._data[offset : offset + form.size * count])

    def string(self, offset: int, end: int) -> str:
        """Return the NUL-terminated ASCII string at ``offset``, which ends before ``end``.

        :raise TopologyError: when it has no NUL or is not printable ASCII.
        """
        data = bytes(self._data[offset:end])
        text, nul, _rest = data.partition(b"\0")
        if not nul:
            self.fail(offset, "a name without a NUL at its end")
        if not text.isascii() or not text.decode("ascii").isprintable():
            self.fail(offset, "a name that is not printable ASCII")
        return text.decode("ascii")

    def _need(self, offset: int, size: int) -> None:
        if offset < 0 or offset + size > len(self._data):
            self.fail(offset, f"{size} bytes are read here, beyond the end of the table")


def byte_sum(data: bytes | memoryview) -> int:
    """Return the sum of the bytes.

    The low half of an Adler-32 that starts at 0 (RFC 1950, 8.2) is the sum modulo 65521; it is
    computed of so few bytes at a time that the modulus has no effect.
    """
    view = memoryview(data)
    return sum(adler32(view[at : at + _SUMMED], 0) & 0xFFFF for at in range(0, len(data), _SUMMED))


def read_table(path: Path) -> bytes | None:
    """Return the bytes of the table in the file ``path``, at most one byte more than the limit.

    :return: None if the file does not exist.
    :raise TopologyError: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise TopologyError(f"{path}: cannot be read: {failure.strerror}") from failure
