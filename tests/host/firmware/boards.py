"""Count SMMUs and ITSes of the boards of Debian's arm64 kernel: ``make boards`` prints the table.

A row for each kind of machine: boards whose root node names the same system on a chip last in
``compatible``. Boards with neither an SMMU nor an ITS are counted only.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

import debian_kernel

from vmm_msi.host.firmware.device_tree import load_devicetree
from vmm_msi.host.firmware.dt_nodes import DeviceTree
from vmm_msi.report.columns import columns

HEAD = [
    "machine", "boards", "SMMUv3", "SMMUv2", "ITS", "PCI segments", "with ATS", "routes",
    "to SMMU and ITS", "pre-ITS",
]  # fmt: skip


@dataclass
class BoardKind:
    """The boards of a kind; each count is the set of their numbers."""

    boards: int = 0
    counts: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def add(self, host):
        self.boards += 1
        for name, number in zip(HEAD[2:], of_host(host), strict=True):
            self.counts[name].add(number)

    def row(self, name):
        return [name, str(self.boards), *(_range(self.counts[column]) for column in HEAD[2:])]


def of_host(host):
    """Return the numbers of a board, in the order of the table's columns."""
    return (
        sum(smmu.version == 3 for smmu in host.smmus),
        sum(smmu.version == 2 for smmu in host.smmus),
        len(host.itses),
        len(host.segments),
        sum(segment.ats is True for segment in host.segments),
        len(host.routes),
        sum(route.smmu is not None and bool(route.its_group) for route in host.routes),
        sum(its.pre_its is not None for its in host.itses),
    )


def _range(numbers):
    low, high = min(numbers), max(numbers)
    return f"{low}-{high}" if low < high else str(low) if low else "-"


def main():
    start = time.perf_counter()
    kinds, total, without = defaultdict(BoardKind), 0, 0
    for path in debian_kernel.dtbs():
        total += 1
        host = load_devicetree(path)
        if not host.itses and not host.smmus:
            without += 1
            continue
        root = DeviceTree(path.read_bytes(), str(path)).nodes[0]
        kinds[root.strings("compatible")[-1]].add(host)
    print("\n".join(columns([HEAD, *(kinds[name].row(name) for name in sorted(kinds))])))
    print(
        f"{total} device trees of Debian's arm64 kernel in {time.perf_counter() - start:.1f} s: "
        f"{total - without} with an SMMU or an ITS, of {len(kinds)} kinds; {without} with neither"
    )


if __name__ == "__main__":
    main()
