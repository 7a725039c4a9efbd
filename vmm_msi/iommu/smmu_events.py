"""The events of an SMMUv3, simulated or real.

Source: Arm SMMUv3 architecture specification (IHI 0070), 7.3 event records.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from vmm_msi.types import Iova, Ipa, StreamId

if TYPE_CHECKING:
    from collections.abc import Sequence


class EventKind(IntEnum):
    """Number of an event record (IHI 0070, 7.3)."""

    F_UUT = 0x01
    C_BAD_STREAMID = 0x02
    F_STE_FETCH = 0x03
    C_BAD_STE = 0x04
    F_BAD_ATS_TREQ = 0x05
    F_STREAM_DISABLED = 0x06
    F_TRANSL_FORBIDDEN = 0x07
    C_BAD_SUBSTREAMID = 0x08
    F_CD_FETCH = 0x09
    C_BAD_CD = 0x0A
    F_WALK_EABT = 0x0B
    F_TRANSLATION = 0x10
    F_ADDR_SIZE = 0x11
    F_ACCESS = 0x12
    F_PERMISSION = 0x13
    F_TLB_CONFLICT = 0x20
    F_CFG_CONFLICT = 0x21
    E_PAGE_REQUEST = 0x24
    F_VMS_FETCH = 0x25


@dataclass(frozen=True, slots=True)
class SmmuEvent:
    """An event record.

    :param stage: 1 or 2; 0 for a configuration error.
    :param iova: the address that the device emitted.
    :param ipa: the input address of stage 2, for a stage 2 event.
    :param table_walk: stage 2 faulted on a stage 1 table (the record's Class is TT), not on the
        address itself.
    """

    kind: EventKind
    stage: int
    stream_id: StreamId
    iova: Iova
    ipa: Ipa | None = None
    table_walk: bool = False

    def may_be_of(self, address: int) -> bool:
        """Return whether a write to ``address`` may have caused the event.

        A configuration error has no address.
        """
        return not self.stage or self.iova == address

    def __str__(self) -> str:
        stage = f"stage {self.stage}" if self.stage else "configuration"
        ipa = "" if self.ipa is None else f", IPA {self.ipa}"
        walk = " on a stage 1 table walk" if self.table_walk else ""
        return f"{self.kind.name} ({stage}{walk}) StreamID {self.stream_id}, IOVA {self.iova}{ipa}"


#: Kinds whose record has an input address; the others are configuration errors.
_ADDRESSED = {
    EventKind.F_TRANSLATION,
    EventKind.F_ADDR_SIZE,
    EventKind.F_ACCESS,
    EventKind.F_PERMISSION,
}

_S2 = 1 << 39
_CLASS_SHIFT = 40
_CLASS_TABLE_WALK = 1
_CLASS_INPUT = 2
_IPA = 0x000F_FFFF_FFFF_F000


def decode(words: Sequence[int]) -> SmmuEvent:
    """Read an event record of four 64-bit words.

    An IPA is recorded as a page. Its offset is that of the input address, unless stage 2 translated
    the address of a stage 1 table or a context descriptor.

    :raise ValueError: for a number that is not in :class:`EventKind`.
    """
    kind = EventKind(words[0] & 0xFF)
    stream = StreamId(words[0] >> 32)
    iova = Iova(words[2])
    if kind not in _ADDRESSED:
        return SmmuEvent(kind, 0, stream, iova)
    if not words[1] & _S2:
        return SmmuEvent(kind, 1, stream, iova)
    fault_class = words[1] >> _CLASS_SHIFT & 3
    page = words[3] & _IPA
    ipa = Ipa(page | (iova & 0xFFF) if fault_class == _CLASS_INPUT else page)
    return SmmuEvent(kind, 2, stream, iova, ipa, fault_class == _CLASS_TABLE_WALK)
