"""A server with ACPI tables that several tests read."""

from __future__ import annotations

from host.firmware.acpi_builder import iort, its_group, madt, rmr, root_complex, smmu_v3
from host.host_files import HostFiles, config

from vmm_msi.host.join import join
from vmm_msi.host.live import read_sources

SMMUS = (0x2B400000, 0x2B500000)
ITSES = ((0, 0x30040000), (1, 0x30060000))
NAMES = tuple(f"smmu3.0x{base:016x}" for base in SMMUS)


def read_tree(tree, granule=None):
    """Read a host from its files, all sources joined."""
    return join(read_sources(tree, granule), tree.source)


def tables(*, memory=(), smmus=SMMUS):
    """Return the IORT and the MADT: segment 0 is behind SMMU 0 and ITS 0, segment 1 behind 1."""
    nodes = [
        its_group(0),
        its_group(1),
        smmu_v3((0, 0xFFFF, 0x0, 0, 0), base=smmus[0]),
        smmu_v3((0, 0xFFFF, 0x10000, 1, 0), base=smmus[1]),
        root_complex((0, 0xFFFF, 0, 2, 0), segment=0, ats=1, flags=4),
        root_complex((0, 0xFFFF, 0, 3, 0), segment=1),
    ]
    if memory:
        nodes.append(rmr(*memory, to=[(0, 0, 0x100, 2, 0)]))
    return {"iort": iort(*nodes), "apic": madt(*ITSES)}


def server(**options):
    """Return the files of a server: an SR-IOV NIC and a card behind a bridge to PCI."""
    files = HostFiles().tables(**tables(**options))
    for number, name in enumerate(NAMES):
        files.smmu(name, f"arm-smmu-v3.{number}.auto")
    first, second = NAMES
    port = {"code": 0x060400, "driver": "pcieport"}
    files.function(
        "0000:00:01.0",
        space=config(bridge=(0, 1, 1), express=4, msi=0),
        group=0,
        smmu=first,
        **port,
    )
    nic = config(express=0, msix=129, extended=(0x01, 0x0F, 0x1B))
    files.function(
        "0000:01:00.0", space=nic, below="0000:00:01.0", driver="ice", group=1, smmu=first, node=0
    )
    virtual = config((0xFFFF, 0xFFFF), express=0, msix=17, extended=(0x0F,))
    for function, group in (("0000:01:01.0", 2), ("0000:01:01.1", 3)):
        files.function(
            function,
            ids=(0x8086, 0x1889),
            space=virtual,
            below="0000:00:01.0",
            driver="vfio-pci",
            group=group,
            smmu=first,
            vf_of="0000:01:00.0",
        )
    files.function(
        "0001:00:00.0", space=config(bridge=(0, 1, 3), express=4, msi=0), group=4, smmu=second,
        **port,
    )  # fmt: skip
    files.function(
        "0001:01:00.0",
        code=0x060400,
        space=config(bridge=(1, 2, 2), express=7),
        below="0001:00:00.0",
        group=5,
        smmu=second,
    )
    files.function(
        "0001:02:03.0",
        code=0x040100,
        space=config((0x1102, 0x0002), msi=0, size=256),
        below="0001:01:00.0",
        group=5,
        smmu=second,
    )
    return files
