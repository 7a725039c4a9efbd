"""Read the configuration space of a PCI function: its capabilities and the buses below it.

Layouts are those of PCI Express Base 6.0, chapter 7, as in Linux
``include/uapi/linux/pci_regs.h``. Only the needed parts are read, since reading others makes some
devices fail; without root Linux returns only the first 64 bytes (``drivers/pci/pci-sysfs.c``
pci_read_config).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    #: Returns ``size`` bytes from ``offset`` on, less if no more can be read.
    ReadPart = Callable[[int, int], bytes]

_HEADER_SIZE = 64
_HAS_CAPABILITIES = 0x10
_MSI, _EXPRESS, _MSIX = 0x05, 0x10, 0x11
_ATS, _PASID = 0x0F, 0x1B
#: Limits of the lists of capabilities: Linux ``drivers/pci/pci.h`` PCI_FIND_CAP_TTL, and twice as
#: many extended ones, of which functions have up to 20.
_MAX_CAPABILITIES = 48
_MAX_EXTENDED = 96
_EXTENDED = 0x100


class ExpressType(IntEnum):
    """The type of a PCI Express function: bits 7:4 of its PCI Express Capabilities register."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM = 5
    DOWNSTREAM = 6
    PCI_BRIDGE = 7
    PCIE_BRIDGE = 8
    ROOT_COMPLEX_ENDPOINT = 9
    EVENT_COLLECTOR = 10


@dataclass(frozen=True, slots=True)
class PciConfig:
    """Values of a configuration space; None if they could not be read.

    :param is_bridge: it has the header of a bridge, and buses below it.
    :param subordinate: the last bus below it, 0 if it is not a bridge.
    :param subsystem: vendor and device of the card; None for a bridge.
    :param is_express: it has the PCI Express capability.
    :param express_type: an :class:`ExpressType` or an unknown number; None also for conventional
        PCI.
    :param vectors: MSIs it can signal: MSI-X if it has that, else MSI; 0 if it has neither.
    """

    is_bridge: bool | None = None
    subordinate: int | None = None
    subsystem: tuple[int, int] | None = None
    is_express: bool | None = None
    express_type: int | None = None
    vectors: int | None = None
    ats: bool | None = None
    pasid: bool | None = None


def read_config(read: ReadPart) -> PciConfig:
    """Read a configuration space, of which ``read`` returns parts."""
    header = read(0, _HEADER_SIZE)
    if len(header) < _HEADER_SIZE:
        return PciConfig()
    kind = header[0x0E] & 0x7F
    subordinate = header[0x1A] if kind == 1 else 0
    subsystem = struct.unpack_from("<HH", header, 0x2C) if kind == 0 else None
    capabilities = _capabilities(read, header)
    if capabilities is None:
        return PciConfig(kind == 1, subordinate, subsystem)
    express_at = capabilities.get(_EXPRESS)
    flags = None if express_at is None else _u16(read, express_at + 2)
    extended: set[int] | None = set()
    if express_at is not None:
        extended = _extended(read)
    return PciConfig(
        is_bridge=kind == 1,
        subordinate=subordinate,
        subsystem=subsystem,
        is_express=express_at is not None,
        express_type=None if flags is None else flags >> 4 & 0xF,
        vectors=_vectors(read, capabilities),
        ats=None if extended is None else _ATS in extended,
        pasid=None if extended is None else _PASID in extended,
    )


def _vectors(read: ReadPart, capabilities: dict[int, int]) -> int | None:
    """Return the size of the MSI-X table, else the number of vectors of the MSI capability."""
    if _MSIX in capabilities:
        control = _u16(read, capabilities[_MSIX] + 2)
        return None if control is None else (control & 0x7FF) + 1
    if _MSI in capabilities:
        control = _u16(read, capabilities[_MSI] + 2)
        return None if control is None else 1 << (control >> 1 & 7)
    return 0


def _capabilities(read: ReadPart, header: bytes) -> dict[int, int] | None:
    """Return the offset of each capability, the first of a kind; None if it cannot be read."""
    if not header[6] & _HAS_CAPABILITIES:
        return {}
    capabilities: dict[int, int] = {}
    at = header[0x34]
    for _ in range(_MAX_CAPABILITIES):
        at &= 0xFC
        if at < _HEADER_SIZE:
            break
        entry = read(at, 2)
        if len(entry) < 2:
            return None
        if entry[0] == 0xFF:
            break
        capabilities.setdefault(entry[0], at)
        at = entry[1]
    return capabilities


def _extended(read: ReadPart) -> set[int] | None:
    """Return the ids of the extended capabilities; None if they end within an entry."""
    if len(read(_EXTENDED, 1)) == 0:
        return set()  # it has only 256 bytes
    ids = set()
    for entry in _extended_entries(read):
        if entry is None:
            return None
        ids.add(entry)
    return ids


def _extended_entries(read: ReadPart) -> Iterator[int | None]:
    at = _EXTENDED
    for _ in range(_MAX_EXTENDED):
        part = read(at, 4)
        if len(part) < 4:
            yield None
            return
        entry = int.from_bytes(part, "little")
        if entry in {0, 0xFFFF_FFFF}:
            return
        yield entry & 0xFFFF
        at = entry >> 20 & 0xFFC
        if at < _EXTENDED:
            return


def _u16(read: ReadPart, at: int) -> int | None:
    part = read(at, 2)
    return int.from_bytes(part, "little") if len(part) == 2 else None
