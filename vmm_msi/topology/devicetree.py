"""A host as its device tree describes it.

Bindings: Linux ``Documentation/devicetree/bindings/pci/pci-msi.txt`` and ``pci-iommu.txt``; the
code that reads them is ``drivers/of/base.c`` of_map_id, ``drivers/of/irq.c`` and
``drivers/iommu/of_iommu.c``.

A device tree has no numbers for ITSes and SMMUs: both are numbered from 0 in the order of the
blob, disabled ones left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.model import Granule, HostTopology, Its, Pa, PciRoute, Smmu
from vmm_msi.topology.dt_tree import MAX_SIZE, DeviceTree, DtNode
from vmm_msi.topology.intervals import MAX_PIECES, first_match, merge, overlapping

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

ITS_COMPATIBLE = "arm,gic-v3-its"
SMMU_COMPATIBLE = "arm,smmu-v3"
_ITS_FRAME = 0x10000
_SEGMENT_END = 1 << 16
_ID_END = 1 << 32


@dataclass(frozen=True, slots=True)
class _Span:
    """RequesterIDs that a map turns into IDs of one node: ``first`` into ``base``.

    :param target: None where no entry of the map has them.
    """

    first: int
    last: int
    target: DtNode | None
    base: int


def load_devicetree(path: Path, granule: Granule = Granule.K4) -> HostTopology:
    """Read the device tree blob in the file ``path``.

    :param granule: page size of the host's kernel, which a device tree does not tell.
    :raise TopologyError: as for :func:`parse_devicetree`, or when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as failure:
        raise TopologyError(f"{path}: cannot be read: {failure.strerror}") from failure
    return parse_devicetree(data, str(path), granule)


def parse_devicetree(data: bytes, source: str, granule: Granule = Granule.K4) -> HostTopology:
    """Read a device tree blob.

    :param data: the blob.
    :param source: the file it is from, for messages.
    :raise TopologyError: when it is malformed, has no ITS, or a map leads to no node or would
        fall into more than :data:`MAX_PIECES` linear pieces.
    """
    return _Reader(DeviceTree(data, source)).host(granule)


class _Reader:
    def __init__(self, tree: DeviceTree) -> None:
        self.tree = tree
        self.nodes = tree.by_phandle()
        available = [node for node in tree.nodes if node.is_available]
        self.its = _numbered(available, ITS_COMPATIBLE)
        self.smmu = _numbered(available, SMMU_COMPATIBLE)
        self.hosts = [node for node in available if node.is_pci and not node.below_pci]
        self.steps = 0

    def host(self, granule: Granule) -> HostTopology:
        if not self.its:
            raise TopologyError(
                f"{self.tree.source}: no enabled ITS (compatible {ITS_COMPATIBLE!r}): MSIs of this "
                "host do not go through a GICv3 ITS"
            )
        itses = tuple(Its(number, self._its_base(node)) for node, number in self.its.items())
        smmus = tuple(
            Smmu(number, Pa(self.tree.address(node))) for node, number in self.smmu.items()
        )
        routes = merge(
            route for segment, node in self._segments() for route in self._routes(segment, node)
        )
        for low, high in pairwise(routes):
            if low.segment == high.segment and high.first <= low.last:
                raise TopologyError(
                    f"{self.tree.source}: two PCI hosts have linux,pci-domain {low.segment} and "
                    "overlapping bus-range"
                )
        return HostTopology(self.tree.source, granule, smmus, itses, routes=routes)

    def _its_base(self, node: DtNode) -> Pa:
        base = self.tree.address(node)
        if base % _ITS_FRAME or base >= 1 << 52:
            node.fail(f"ITS base {base:#x}: not a multiple of {_ITS_FRAME:#x} below {1 << 52:#x}")
        return Pa(base)

    def _segments(self) -> Iterator[tuple[int, DtNode]]:
        """Yield the hosts with their segments.

        A host without linux,pci-domain gets the lowest number that is free, as in Linux
        ``drivers/pci/pci.c`` of_pci_bus_find_domain_nr.
        """
        given = {node: node.number("linux,pci-domain") for node in self.hosts}
        taken = set(given.values())
        following = 0
        for node, segment in given.items():
            if segment is None:
                while following in taken:
                    following += 1
                segment, following = following, following + 1
            if segment >= _SEGMENT_END:
                node.fail(f"linux,pci-domain {segment:#x}: not from 0 to 0xffff")
            yield segment, node

    def _routes(self, segment: int, host: DtNode) -> Iterator[PciRoute]:
        first, last = _rids(host)
        parents = self._msi_parents(host)
        streams = self._map(host, "iommu-map", first, last)
        devices = self._map(host, "msi-map", first, last)
        stream, device = next(streams), next(devices)
        while first <= last:
            end = min(stream.last, device.last)
            smmu = self.smmu.get(stream.target) if stream.target is not None else None
            # What msi-map does not have goes to the host bridge's MSI domain with the RequesterID
            # as DeviceID: drivers/pci/msi/irqdomain.c pci_msi_domain_get_msi_rid.
            if device.target is None:
                group, device_id = parents, first
            else:
                group = (self.its[device.target],) if device.target in self.its else ()
                device_id = device.base + first - device.first
            if smmu is not None or group:
                yield PciRoute(
                    segment=segment,
                    first=first,
                    last=end,
                    smmu=smmu,
                    stream_base=first if smmu is None else stream.base + first - stream.first,
                    its_group=group,
                    device_base=device_id if group else first,
                )
            first = end + 1
            if first <= last:
                stream = next(streams) if stream.last < first else stream
                device = next(devices) if device.last < first else device

    def _msi_parents(self, host: DtNode) -> tuple[int, ...]:
        """Return the ITSes in ``msi-parent``, which may be followed by ``#msi-cells`` numbers."""
        cells = host.cells("msi-parent")
        found: list[int] = []
        at = 0
        while at < len(cells):
            node = self._target(host, "msi-parent", cells[at])
            at += 1 + (node.number("#msi-cells") or 0)
            if at > len(cells):
                host.fail(f"msi-parent ends within the arguments for {node.path}")
            if node in self.its and self.its[node] not in found:
                found.append(self.its[node])
        return tuple(found)

    def _target(self, host: DtNode, name: str, phandle: int) -> DtNode:
        node = self.nodes.get(phandle)
        if node is None:
            host.fail(f"{name} leads to phandle {phandle:#x}, which no node has")
        if node.is_pci or node in host.ancestors():
            host.fail(f"{name} leads to {node.path}: PCI hosts and what is above take no IDs")
        return node

    def _map(self, host: DtNode, name: str, first: int, last: int) -> Iterator[_Span]:
        """Yield what ``of_map_id`` makes of the RequesterIDs ``first`` to ``last``, in order."""
        cells = host.cells(name)
        mask = host.number(f"{name}-mask")
        mask = 0xFFFF_FFFF if mask is None else mask
        if name in host.properties and (not cells or len(cells) % 4):
            host.fail(f"{name} has {len(cells)} numbers; an entry has 4")
        entries = [
            (cells[at], self._target(host, name, cells[at + 1]), cells[at + 2], cells[at + 3])
            for at in range(0, len(cells), 4)
        ]
        for base, _target, out, size in entries:
            if base & ~mask:
                host.fail(f"{name}-mask {mask:#x} clears bits of the entry from {base:#x}")
            if base + size > _ID_END or out + size > _ID_END:
                host.fail(f"{name}: {size:#x} IDs from {base:#x} to {out:#x} exceed 32 bits")
        pieces = first_match([(base, base + size - 1) for base, _, _, size in entries])
        # RequesterIDs that differ in the ones at the low end of the mask only stay in sequence.
        block = (~mask & mask + 1) if mask != 0xFFFF_FFFF else 0x10000
        at = first
        while at <= last and pieces:
            self._count(host, name)
            end = min(at | block - 1, last)
            masked = at & mask
            for piece in overlapping(pieces, masked, masked + end - at):
                self._count(host, name)
                low = at + piece.first - masked
                if first < low:
                    yield _Span(first, low - 1, None, first)
                base, target, out, _size = entries[piece.number]
                first = at + piece.last - masked + 1
                yield _Span(low, first - 1, target, out + piece.first - base)
            at = end + 1
        if first <= last:
            yield _Span(first, last, None, first)

    def _count(self, host: DtNode, name: str) -> None:
        self.steps += 1
        if self.steps > 2 * MAX_PIECES:
            host.fail(f"{name} and its mask cut the RequesterIDs into too many pieces")


def _numbered(nodes: Sequence[DtNode], compatible: str) -> Mapping[DtNode, int]:
    found = [node for node in nodes if node.is_compatible(compatible)]
    return {node: number for number, node in enumerate(found)}


def _rids(host: DtNode) -> tuple[int, int]:
    """Return the first and the last RequesterID of the host's buses."""
    if "bus-range" not in host.properties:
        return 0, 0xFFFF
    cells = host.cells("bus-range")
    if len(cells) != 2 or not cells[0] <= cells[1] <= 0xFF:
        host.fail(f"bus-range {list(cells)}: not two numbers from 0 to 255, the lower first")
    return cells[0] << 8, cells[1] << 8 | 0xFF
