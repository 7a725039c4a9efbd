"""A simulated SMMUv3: stream table, nested walk, TLB and event records.

Sources: Arm SMMUv3 architecture specification (IHI 0070), 3.3 stream table, 3.4 address sizes,
3.17 TLB tagging, 7.3 event records. Attributes, ATS and PASID are not simulated: an MSI is a write
without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.iommu.sim.page_table import Access, PageTable
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import Iova, Ipa, Pa, Stage1Mode, StreamId

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Stage1Config:
    """A context descriptor: the table, the IPA of its first level and the ASID.

    :param mode: whether the stream table entry lets the table translate an MSI.
    """

    asid: int
    table: PageTable
    root: Ipa
    mode: Stage1Mode = Stage1Mode.TRANSLATE


@dataclass(frozen=True, slots=True)
class Stage2Config:
    """The stage 2 part of a stream table entry."""

    vmid: int
    table: PageTable


@dataclass(frozen=True, slots=True)
class StreamTableEntry:
    """A valid stream table entry that nests a stage 1 on a stage 2."""

    s1: Stage1Config
    s2: Stage2Config


class Walk(NamedTuple):
    """The result of a walk: the addresses it reached and, if it faulted, the event."""

    ipa: Ipa | None
    pa: Pa | None
    event: SmmuEvent | None

    @property
    def stage(self) -> int:
        """The stage that faulted, 0 for none."""
        return 0 if self.event is None else self.event.stage


def walk_stage1(table: PageTable, stream_id: StreamId, iova: Iova) -> Walk:
    """Translate a write to ``iova`` by a stage 1 table; the result has no physical address."""
    output = _output(table, iova)
    if isinstance(output, EventKind):
        return Walk(None, None, SmmuEvent(output, 1, stream_id, iova))
    return Walk(Ipa(output), None, None)


def walk_stage2(table: PageTable, stream_id: StreamId, iova: Iova, ipa: Ipa) -> Walk:
    """Translate a write to ``iova``, which stage 1 translated to ``ipa``, by a stage 2 table."""
    output = _output(table, ipa)
    if isinstance(output, EventKind):
        return Walk(ipa, None, SmmuEvent(output, 2, stream_id, iova, ipa))
    return Walk(ipa, Pa(output), None)


def _output(table: PageTable, address: int) -> int | EventKind:
    """Return a table's output address for a write to ``address``, or the kind of its fault."""
    leaf = None if address >> table.INPUT_BITS else table.lookup(address)
    if leaf is None:
        return EventKind.F_TRANSLATION
    if leaf.output >> table.output_bits:
        return EventKind.F_ADDR_SIZE
    if Access.WRITE not in leaf.access:
        return EventKind.F_PERMISSION
    return leaf.output


class SimSmmu:
    """A simulated SMMUv3 with both stages."""

    #: Entries are cached by the smallest granule, so that a larger one cannot hide an invalidation.
    TLB_PAGE_SHIFT = 12

    def __init__(self) -> None:
        self.streams: dict[StreamId, StreamTableEntry] = {}
        #: VMID -> ASID -> page -> IPA and PA of the page.
        self._tlb: dict[int, dict[int, dict[int, tuple[Ipa, Pa]]]] = {}

    def install(self, stream_id: StreamId, entry: StreamTableEntry) -> None:
        """Write a stream table entry (and CMD_CFGI_STE: this simulator caches no configuration)."""
        self.streams[stream_id] = entry

    def clear(self, stream_id: StreamId) -> None:
        """Make a stream abort, as Linux does for a device without an IOMMU domain."""
        del self.streams[stream_id]

    def translate(self, stream_id: StreamId, iova: Iova) -> Walk:
        """Translate a write to ``iova``, through the TLB."""
        entry = self.streams.get(stream_id)
        if entry is None:
            event = SmmuEvent(EventKind.C_BAD_STE, 0, stream_id, iova)
            return Walk(None, None, event)
        page = iova >> self.TLB_PAGE_SHIFT
        low = iova & ((1 << self.TLB_PAGE_SHIFT) - 1)
        tagged = self._tlb.setdefault(entry.s2.vmid, {}).setdefault(entry.s1.asid, {})
        cached = tagged.get(page)
        if cached is not None:
            return Walk(cached[0].offset(low), cached[1].offset(low), None)
        walk = self.walk(entry, stream_id, iova)
        if walk.ipa is not None and walk.pa is not None:
            tagged[page] = (walk.ipa.offset(-low), walk.pa.offset(-low))
        return walk

    @staticmethod
    def walk(entry: StreamTableEntry, stream_id: StreamId, iova: Iova) -> Walk:
        """Translate a write to ``iova`` by the tables alone."""
        s1, s2 = entry.s1, entry.s2
        if s1.mode is not Stage1Mode.TRANSLATE:
            return walk_stage2(s2.table, stream_id, iova, Ipa(iova))
        if not iova >> s1.table.INPUT_BITS and s2.table.lookup(s1.root) is None:
            kind = EventKind.F_TRANSLATION
            return Walk(None, None, SmmuEvent(kind, 2, stream_id, iova, s1.root, table_walk=True))
        first = walk_stage1(s1.table, stream_id, iova)
        if first.ipa is None:
            return first
        return walk_stage2(s2.table, stream_id, iova, first.ipa)

    def invalidate_asid(self, vmid: int, asid: int) -> None:
        """CMD_TLBI_NH_ASID: issued by a guest, with the VMID that the host inserts."""
        self._tlb.get(vmid, {}).pop(asid, None)

    def invalidate_vmid(self, vmid: int) -> None:
        """CMD_TLBI_S12_VMALL: all entries of a VMID.

        Linux issues it when the last device of a stage 2 is detached
        (``arm_smmu_inv_flush_iotlb_tag``). After an unmap in a nest parent it follows
        CMD_TLBI_S2_IPA with CMD_TLBI_NH_ALL, since combined entries are not tagged by IPA
        (``arm_smmu_domain_inv_range``, INV_TYPE_S2_VMID_S1_CLEAR).
        """
        self._tlb.pop(vmid, None)

    def stale(self) -> Iterator[tuple[StreamId, Iova]]:
        """Yield each cached translation that differs from the stream's tables."""
        for stream_id, entry in self.streams.items():
            tagged = self._tlb.get(entry.s2.vmid, {}).get(entry.s1.asid, {})
            for page, (ipa, pa) in tagged.items():
                iova = Iova(page << self.TLB_PAGE_SHIFT)
                walk = self.walk(entry, stream_id, iova)
                if (walk.ipa, walk.pa) != (ipa, pa):
                    yield stream_id, iova
