"""Read a host from its device tree.

Bindings: Linux ``Documentation/devicetree/bindings/pci/pci-msi.txt`` and ``pci-iommu.txt``; the
code that reads them is ``drivers/of/base.c`` of_map_id, ``drivers/of/irq.c`` and
``drivers/iommu/of_iommu.c``.

A device tree has no numbers for ITSes and SMMUs: both are numbered from 0 in the order of the
blob, without those that Linux ignores: disabled ones, and GICv3 ITSes without the property
msi-controller (``drivers/irqchip/irq-gic-v3-its.c`` its_of_probe). A GICv5 ITS counts once for each
translate frame, which is the target of maps (``irq-gic-its-msi-parent.c``
its_translate_frame_address).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.dt_nodes import DeviceTree, DtNode
from vmm_msi.host.firmware.fdt import MAX_SIZE
from vmm_msi.host.firmware.intervals import MAX_PIECES, first_match, merge, overlapping
from vmm_msi.host.firmware.its_frame import its_frame
from vmm_msi.types import Firmware, Granule, HostTopology, Its, Pa, PciRoute, PciSegment, Smmu

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

ITS_COMPATIBLE = "arm,gic-v3-its"
GICV5_ITS_COMPATIBLE = "arm,gic-v5-its"
SMMU_COMPATIBLE = "arm,smmu-v3"
#: SMMUv1 and v2: Linux ``drivers/iommu/arm/arm-smmu/arm-smmu.c`` arm_smmu_of_match.
SMMU_V2_COMPATIBLES = frozenset(
    {
        "arm,mmu-400",
        "arm,mmu-401",
        "arm,mmu-500",
        "arm,smmu-v1",
        "arm,smmu-v2",
        "cavium,smmu-v2",
        "nvidia,smmu-500",
        "qcom,smmu-v2",
    }
)
_CONFIG_FRAME = "ns-config"
_TRANSLATE_FRAME = "ns-translate"
_PRE_ITS = "socionext,synquacer-pre-its"
_SEGMENT_END = 1 << 16
_ID_END = 1 << 32
_RIDS = 1 << 16
#: Cells of an output ID: Linux ``include/linux/of.h`` MAX_PHANDLE_ARGS.
_MAX_CELLS = 16


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a map: ``size`` IDs from ``base`` become IDs of one node, from ``out`` on.

    :param target: None if Linux ignores the entry: iommu-map with more than one ID, to more than
        one cell.
    :param out: None if the node takes no cell: the IDs stay the same.
    """

    base: int
    target: DtNode | None
    out: int | None
    size: int


@dataclass(frozen=True, slots=True)
class _Span:
    """RequesterIDs that a map turns into IDs of one node: ``first`` into ``base``.

    :param target: None if no entry of the map covers them.
    :param constant: all of them turn into ``base``.
    """

    first: int
    last: int
    target: DtNode | None
    base: int
    constant: bool = False

    def id_of(self, rid: int) -> int:
        return self.base + (0 if self.constant else rid - self.first)


def load_devicetree(path: Path, granule: Granule = Granule.K4) -> HostTopology:
    """Read the device tree blob in the file ``path``.

    :param granule: page size of the host's kernel, which a device tree does not have.
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

    A host without an ITS or an SMMU is read too; its devices are refused when they are resolved.

    :param data: the blob.
    :param source: its file, for messages.
    :raise TopologyError: when it is malformed, the target of a map does not exist, a map splits
        into more than :data:`MAX_PIECES` intervals, or an ITS or SMMU has no CPU address.
    """
    return _HostBuilder(DeviceTree(data, source)).host(granule)


class _HostBuilder:
    def __init__(self, tree: DeviceTree) -> None:
        self.tree = tree
        self.nodes = tree.by_phandle()
        #: Numbers of ITSes and SMMUs.
        self.its: dict[DtNode, int] = {}
        self.smmu: dict[DtNode, int] = {}
        self.hosts: list[DtNode] = []
        self.steps = 0
        for node in tree.nodes:
            if not node.is_available:
                continue
            if _is_its(node):
                self.its[node] = len(self.its)
            elif _smmu_version(node):
                self.smmu[node] = len(self.smmu)
            if node.is_pci and not node.below_pci:
                self.hosts.append(node)

    def host(self, granule: Granule) -> HostTopology:
        hosts = [*self._segments()]
        routes = merge(route for segment, node in hosts for route in self._routes(segment, node))
        for low, high in pairwise(routes):
            if low.segment == high.segment and high.first <= low.last:
                raise TopologyError(
                    f"{self.tree.source}: two PCI hosts have linux,pci-domain {low.segment} and "
                    "overlapping bus-range"
                )
        return HostTopology(
            self.tree.source,
            granule,
            tuple(self._smmu(node, number) for node, number in self.smmu.items()),
            tuple(self._its(node, number) for node, number in self.its.items()),
            routes=routes,
            segments=tuple(_segments(hosts)),
            firmware=Firmware.DEVICE_TREE,
        )

    def _smmu(self, node: DtNode, number: int) -> Smmu:
        version = _smmu_version(node)
        return Smmu(number, Pa(self.tree.address(node)), nested=version == 3, version=version)

    def _its(self, node: DtNode, number: int) -> Its:
        if node.is_compatible(ITS_COMPATIBLE):
            return Its(number, self._frame(node), pre_its=_pre_its(node))
        if node.parent is None:
            node.fail("a translate frame must be a child of its ITS")
        return Its(
            number,
            self._frame(node.parent, _CONFIG_FRAME),
            translate_frame=self._frame(node, _TRANSLATE_FRAME),
        )

    def _frame(self, node: DtNode, name: str | None = None) -> Pa:
        index = 0 if name is None else node.strings("reg-names").index(name)
        base = self.tree.address(node, index)
        return its_frame(base, "ITS", node.fail)

    def _segments(self) -> Iterator[tuple[int, DtNode]]:
        """Yield the hosts with their segments.

        A host without linux,pci-domain gets the lowest free number, as in Linux
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
        streams = self._map(host, "iommu-map", "#iommu-cells", first, last)
        devices = self._map(host, "msi-map", "#msi-cells", first, last)
        stream, device = next(streams), next(devices)
        while first <= last:
            end = min(stream.last, device.last)
            smmu = self.smmu.get(stream.target) if stream.target is not None else None
            # RequesterIDs outside msi-map go to the host bridge's MSI domain with the RequesterID
            # as DeviceID: drivers/pci/msi/irqdomain.c pci_msi_domain_get_msi_rid.
            group = parents
            if device.target is not None:
                group = (self.its[device.target],) if device.target in self.its else ()
            if smmu is not None or group:
                yield PciRoute(
                    segment=segment,
                    first=first,
                    last=end,
                    smmu=smmu,
                    stream_base=first if smmu is None else stream.id_of(first),
                    its_group=group,
                    device_base=device.id_of(first) if group else first,
                    one_stream=first < end and smmu is not None and stream.constant,
                    one_device=first < end and bool(group) and device.constant,
                )
            first = end + 1
            if first <= last:
                stream = next(streams) if stream.last < first else stream
                device = next(devices) if device.last < first else device

    def _msi_parents(self, host: DtNode) -> tuple[int, ...]:
        """Return the ITSes in ``msi-parent``, each followed by ``#msi-cells`` numbers."""
        cells = host.cells("msi-parent")
        itses: list[int] = []
        at = 0
        while at < len(cells):
            node = self._target(host, "msi-parent", cells[at])
            at += 1 + (node.number("#msi-cells") or 0)
            if at > len(cells):
                host.fail(f"msi-parent ends within the arguments for {node.path}")
            if node in self.its and self.its[node] not in itses:
                itses.append(self.its[node])
        return tuple(itses)

    def _target(self, host: DtNode, name: str, phandle: int) -> DtNode:
        node = self.nodes.get(phandle)
        if node is None:
            host.fail(f"{name} has phandle {phandle:#x}, which no node has")
        return node

    def _entries(self, host: DtNode, name: str, cells_name: str) -> Iterator[_Entry]:
        """Yield the entries of a map; the target defines the number of cells of its IDs."""
        cells = host.cells(name)
        if name in host.properties and not cells:
            host.fail(f"{name} has 0 numbers; an entry has 3 and those of the output ID")
        mask = _mask(host, name)
        one_cell = False
        at = 0
        while at < len(cells):
            if at + 1 == len(cells):
                host.fail(f"{name} has {len(cells)} numbers: the last entry is truncated")
            target = self._target(host, name, cells[at + 1])
            given = None if one_cell else target.number(cells_name)
            width = 1 if given is None else given
            if width > _MAX_CELLS:
                target.fail(f"{cells_name} is {width}; at most {_MAX_CELLS}")
            if not at and width == 2:
                # Maps written for one cell before the target got two: of_check_bad_map.
                one_cell = len(cells) % 4 == 0 and all(
                    cells[entry + 1] == cells[1] and cells[entry + 3] == 1
                    for entry in range(0, len(cells), 4)
                )
                width = 1 if one_cell else 2
            if at + 3 + width > len(cells):
                host.fail(
                    f"{name} has {len(cells)} numbers; the entry for {target.path} at {at} has "
                    f"{3 + width}"
                )
            base, size = cells[at], cells[at + 2 + width]
            out = cells[at + 2] if width else None
            if base & ~mask:
                host.fail(f"{name}-mask {mask:#x} clears bits of the entry from {base:#x}")
            if base + size > _ID_END or (out or 0) + size > _ID_END:
                host.fail(f"{name}: {size:#x} IDs from {base:#x} to {out or 0:#x} exceed 32 bits")
            yield _Entry(base, None if width > 1 and size > 1 else target, out, size)
            at += 3 + width

    def _map(
        self, host: DtNode, name: str, cells_name: str, first: int, last: int
    ) -> Iterator[_Span]:
        """Yield the results of ``of_map_id`` for RequesterIDs ``first`` to ``last``, in order."""
        entries = list(self._entries(host, name, cells_name))
        mask = _mask(host, name)
        intervals = first_match([(entry.base, entry.base + entry.size - 1) for entry in entries])
        # The low end of the mask: RequesterIDs that differ in its zeros only share their ID, those
        # that differ in its ones only stay in sequence.
        constant = not mask & 1
        changing = mask if constant else ~mask
        block = min(changing & -changing, _RIDS) or _RIDS
        at = first
        while at <= last and intervals:
            self._count(host, name)
            end = min(at | block - 1, last)
            masked = at & mask
            for interval in overlapping(
                intervals, masked, masked if constant else masked + end - at
            ):
                self._count(host, name)
                low = at + interval.first - masked
                if first < low:
                    yield _Span(first, low - 1, None, first)
                entry = entries[interval.number]
                first = end + 1 if constant else at + interval.last - masked + 1
                if entry.out is None:
                    yield _Span(low, first - 1, entry.target, low)
                else:
                    out = entry.out + interval.first - entry.base
                    yield _Span(low, first - 1, entry.target, out, constant)
            at = end + 1
        if first <= last:
            yield _Span(first, last, None, first)

    def _count(self, host: DtNode, name: str) -> None:
        self.steps += 1
        if self.steps > 2 * MAX_PIECES:
            host.fail(f"{name} and its mask split the RequesterIDs into too many pieces")


def _is_its(node: DtNode) -> bool:
    """Return whether Linux uses the node as a GICv3 ITS or as a translate frame of a GICv5 ITS."""
    if node.is_compatible(ITS_COMPATIBLE):
        return "msi-controller" in node.properties
    return (
        node.parent is not None
        and node.parent.is_compatible(GICV5_ITS_COMPATIBLE)
        and _TRANSLATE_FRAME in node.strings("reg-names")
        and _CONFIG_FRAME in node.parent.strings("reg-names")
    )


def _smmu_version(node: DtNode) -> int:
    """Return 3 or 2; 0 if the node is not an SMMU."""
    names = node.strings("compatible")
    if SMMU_COMPATIBLE in names:
        return 3
    return 0 if SMMU_V2_COMPATIBLES.isdisjoint(names) else 2


def _pre_its(node: DtNode) -> Pa | None:
    """Return the address of the window of a pre-ITS, which Linux does not translate."""
    if _PRE_ITS not in node.properties:
        return None
    cells = node.cells(_PRE_ITS)
    if len(cells) != 2:
        node.fail(f"{_PRE_ITS} has {len(cells)} numbers, not address and size")
    return Pa(cells[0])


def _segments(hosts: Iterable[tuple[int, DtNode]]) -> Iterator[PciSegment]:
    """Yield the segments; ATS works in a segment if all its hosts have ats-supported."""
    ats: dict[int, bool] = {}
    for segment, node in hosts:
        ats[segment] = ats.get(segment, True) and "ats-supported" in node.properties
    for segment in sorted(ats):
        yield PciSegment(segment, ats=ats[segment])


def _mask(host: DtNode, name: str) -> int:
    mask = host.number(f"{name}-mask")
    return _ID_END - 1 if mask is None else mask


def _rids(host: DtNode) -> tuple[int, int]:
    """Return the first and the last RequesterID of the host's buses."""
    if "bus-range" not in host.properties:
        return 0, 0xFFFF
    cells = host.cells("bus-range")
    if len(cells) != 2 or not cells[0] <= cells[1] <= 0xFF:
        host.fail(f"bus-range {list(cells)}: not two numbers from 0 to 255, the lower first")
    return cells[0] << 8, cells[1] << 8 | 0xFF
