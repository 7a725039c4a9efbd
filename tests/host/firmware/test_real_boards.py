"""Every device tree of Debian's arm64 kernel, compared with a reader on libfdt.

That reader looks up nodes by ``compatible`` in libfdt and follows one RequesterID at a time
through the maps, as Linux's of_map_id does; it shares no code with the product.
"""

from __future__ import annotations

import random
import struct

import debian_kernel
import libfdt
import pytest
from host.firmware import boards

from vmm_msi.host.firmware.device_tree import parse_devicetree
from vmm_msi.host.firmware.intervals import MAX_PIECES

pytestmark = pytest.mark.lab_root

SMMU_V2 = (
    "arm,mmu-400", "arm,mmu-401", "arm,mmu-500", "arm,smmu-v1", "arm,smmu-v2", "cavium,smmu-v2",
    "nvidia,smmu-500", "qcom,smmu-v2",
)  # fmt: skip
PRE_ITS = "socionext,synquacer-pre-its"
RANDOM_RIDS = 8


class Fdt:
    """A blob, read with libfdt."""

    def __init__(self, data):
        self.data = data
        self.tree = libfdt.FdtRo(data)
        self.by_phandle = {}
        self.itses = self.enabled("arm,gic-v3-its", required="msi-controller")
        self.smmus_v3 = self.enabled("arm,smmu-v3")
        self.smmus_v2 = sorted(
            {node for name in SMMU_V2 for node in self.enabled(name)} - {*self.smmus_v3}
        )
        self.smmus = sorted({*self.smmus_v3, *self.smmus_v2})

    def enabled(self, compatible, required="compatible"):
        """Return the offsets of the nodes that are not below or at a disabled one.

        :param required: a property that they must have.
        """
        return [
            node
            for node in self.compatible(compatible)
            if self.value(node, required) is not None
            and all(self.status(above) for above in self.and_above(node))
        ]

    def compatible(self, name):
        if name.encode() not in self.data:
            return
        offset = libfdt.fdt_node_offset_by_compatible(self.tree._fdt, -1, name)
        while offset >= 0:
            yield offset
            offset = libfdt.fdt_node_offset_by_compatible(self.tree._fdt, offset, name)

    def hosts(self):
        """Return the PCI hosts: device_type is pci, but not that of a node above."""
        nodes, offset, depth = [], 0, 0
        while b"pci\0" in self.data and offset >= 0 <= depth:
            if self.value(offset, "device_type") == b"pci\0":
                nodes.append(offset)
            offset, depth = libfdt.fdt_next_node(self.tree._fdt, offset, depth)
        return [
            node
            for node in nodes
            if all(self.status(above) for above in self.and_above(node))
            and all(self.value(above, "device_type") != b"pci\0" for above in self.above(node))
        ]

    def above(self, node):
        while node:
            node = self.tree.parent_offset(node)
            yield node

    def and_above(self, node):
        return (node, *self.above(node))

    def status(self, node):
        return self.value(node, "status") in {None, b"okay\0", b"ok\0"}

    def value(self, node, name):
        value = self.tree.getprop(node, name, (libfdt.NOTFOUND,))
        return None if isinstance(value, int) else bytes(value)

    def cells(self, node, name):
        data = self.value(node, name) or b""
        return struct.unpack(f">{len(data) // 4}I", data)

    def target(self, phandle):
        if phandle not in self.by_phandle:
            self.by_phandle[phandle] = self.tree.node_offset_by_phandle(phandle)
        return self.by_phandle[phandle]

    def map_id(self, host, name, cells_name, rid):
        """Return the target and the ID that a map gives a RequesterID; None if it gives none."""
        cells = self.cells(host, name)
        mask = (*self.cells(host, f"{name}-mask"), 0xFFFFFFFF)[0]
        old = len(cells) % 4 == 0 and {*cells[1::4]} == {*cells[1:2]} and {*cells[3::4]} == {1}
        at = 0
        while at < len(cells):
            target = self.target(cells[at + 1])
            width = (*self.cells(target, cells_name), 1)[0]
            if width == 2 and old:
                width = 1
            size = cells[at + 2 + width]
            distance = (rid & mask) - cells[at]
            if 0 <= distance < size:
                return None if width > 1 and size > 1 else (target, cells[at + 2] + distance)
            at += 3 + width
        return None

    def resolve(self, host, rid):
        """Return SMMU and StreamID, ITS and DeviceID of a RequesterID; each may be None."""
        stream = self.map_id(host, "iommu-map", "#iommu-cells", rid)
        device = self.map_id(host, "msi-map", "#msi-cells", rid)
        if device is None:
            parent = self.cells(host, "msi-parent")
            device = (self.target(parent[0]), rid) if parent else None
        smmu = its = None
        if stream is not None and stream[0] in self.smmus:
            smmu = self.smmus.index(stream[0]), stream[1]
        if device is not None and device[0] in self.itses:
            its = self.itses.index(device[0]), device[1]
        return smmu, its


def segments(fdt):
    """Return the PCI hosts by segment, as of_pci_bus_find_domain_nr numbers them."""
    numbered, unnumbered = {}, []
    for host in fdt.hosts():
        given = fdt.cells(host, "linux,pci-domain")
        if given:
            numbered.setdefault(given[0], []).append(host)
        else:
            unnumbered.append(host)
    free = (number for number in range(0x10000) if number not in {*numbered})
    numbers = [next(free) for _ in unnumbered]
    numbered.update({number: [host] for number, host in zip(numbers, unnumbered, strict=True)})
    return numbered


def resolve_by_routes(host, segment, rid):
    for route in host.routes:
        if route.segment == segment and route.first <= rid <= route.last:
            smmu = None if route.smmu is None else (route.smmu, route.stream_of(rid))
            its = (route.its_group[0], route.device_of(rid)) if route.its_group else None
            return smmu, its
    return None, None


def rids_of(fdt, node):
    first, last = (*fdt.cells(node, "bus-range"), 0, 0xFF)[:2]
    return first << 8, last << 8 | 0xFF


def compare(path, chance):
    """Return the differences of the two readers, and the number of RequesterIDs compared."""
    data = path.read_bytes()
    host, fdt = parse_devicetree(data, path.name), Fdt(data)
    differences = []
    counted = [
        (len(host.smmus), len(fdt.smmus)),
        (sum(smmu.version == 3 for smmu in host.smmus), len(fdt.smmus_v3)),
        (sum(smmu.nested for smmu in host.smmus), len(fdt.smmus_v3)),
        (len(host.itses), len(fdt.itses)),
    ]
    if len(host.routes) > MAX_PIECES // 100:
        differences.append(f"{len(host.routes)} routes, too close to the limit of {MAX_PIECES}")
    differences += [f"{ours} and {theirs} nodes" for ours, theirs in counted if ours != theirs]
    pre = [number for number, node in enumerate(fdt.itses) if fdt.cells(node, PRE_ITS)]
    if pre != [its.id for its in host.itses if its.pre_its is not None]:
        differences.append(f"pre-ITSes {pre}")
    numbered = segments(fdt)
    if sorted(numbered) != [segment.number for segment in host.segments]:
        differences.append(f"segments {sorted(numbered)}")
    followed = 0
    for number, nodes in numbered.items():
        for node in nodes:
            first, last = rids_of(fdt, node)
            rids = {first, last, *(chance.randint(first, last) for _ in range(RANDOM_RIDS))}
            near = [route for route in host.routes if route.segment == number][:20]
            rids |= {rid for route in near for rid in (route.first, route.last, route.last + 1)}
            for rid in sorted(rid for rid in rids if first <= rid <= last):
                followed += 1
                ours, theirs = resolve_by_routes(host, number, rid), fdt.resolve(node, rid)
                if ours != theirs:
                    differences.append(f"{number:04x} {rid:#x}: {ours}, not {theirs}")
    return differences, followed


def test_every_board_is_read_as_with_libfdt(counts):
    chance = random.Random(0)  # noqa: S311 - the same RequesterIDs in every run
    paths = debian_kernel.dtbs()
    different, followed = {}, 0
    for path in paths:
        differences, number = compare(path, chance)
        followed += number
        if differences:
            different[path.name] = differences
    assert paths
    assert not different
    counts["device trees of Debian's kernel that were read"] += len(paths)
    counts["RequesterIDs that were followed in them, one at a time"] += followed


def test_the_table_has_every_kind(capsys):
    boards.main()
    *rows, total = capsys.readouterr().out.splitlines()
    assert rows[0].split()[:3] == ["machine", "boards", "SMMUv3"]
    listed = sum(int(row.split()[1]) for row in rows[2:])
    number = len(debian_kernel.dtbs())
    assert total.startswith(f"{number} device trees")
    assert f": {listed} with an SMMU or an ITS, of {len(rows) - 2} kinds; " in total
    assert total.endswith(f"; {number - listed} with neither")


@pytest.mark.parametrize("name", ["CONFIG_IOMMUFD", "CONFIG_ARM_SMMU_V3_IOMMUFD"])
def test_debians_kernel_has_no_iommufd(name):
    lines = debian_kernel.config().splitlines()
    assert "CONFIG_ARM_SMMU_V3=y" in lines
    assert f"{name}=y" not in lines
    assert f"{name}=m" not in lines
