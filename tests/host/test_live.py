"""A host from its own files: firmware tables, sysfs, and messages about missing tables."""

from __future__ import annotations

import time

import pytest
from described_host import load_host
from host.firmware.dt_builder import dtb
from host.host_files import ACPI, HostFiles, config
from host.hosts import ITSES, NAMES, SMMUS, read_tree, server, tables

from vmm_msi import samples
from vmm_msi.errors import TopologyError
from vmm_msi.host import crosscheck
from vmm_msi.host.files import UnreadableError
from vmm_msi.host.files.capture_paths import PAGE_SIZE
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.host.firmware.dt_nodes import DeviceTree
from vmm_msi.host.join import join
from vmm_msi.host.live import read_sources
from vmm_msi.host.resolve import resolve
from vmm_msi.types import Granule, Pa, PciAddress

BOARD = samples.path("eight-its-server.dtb")


def address(text):
    return PciAddress.parse(text)


def test_a_server_with_acpi():
    host = read_tree(server().tree())
    assert (host.source, host.granule, host.granule_known) == ("host.tar.zst", Granule.K4, False)
    assert [smmu.base for smmu in host.smmus] == list(SMMUS)
    assert [(its.id, its.base) for its in host.itses] == list(ITSES)
    assert host.missing == ()
    device = resolve(host, address("0000:01:01.0"))
    assert (device.smmu, device.stream_id, device.its, device.device_id) == (0, 0x108, 0, 0x108)
    assert (device.iommu_group, device.vectors, device.streams) == (2, 17, 1)
    sources = read_sources(server().tree())
    assert [source.source for source in sources] == [f"host.tar.zst{ACPI}", "host.tar.zst/sys"]
    assert crosscheck.disagreements(sources) == []


def test_aliases_become_stream_ids_and_the_device_id():
    """A sound card behind a PCIe-to-PCI bridge: two StreamIDs for DMA, the bridge's for MSIs."""
    device = resolve(read_tree(server().tree()), address("0001:02:03.0"))
    assert (device.smmu, device.stream_id, device.streams) == (1, 0x218, 2)
    assert (device.its, device.device_id) == (1, 0x10200)
    assert (device.iommu_group, device.vectors) == (5, 1)


@pytest.mark.parametrize("size", [4096, 65536])
def test_page_size_of_a_capture(size):
    files = server()
    files.files[PAGE_SIZE] = b"%d\n" % size
    for granule in (None, Granule.K16):
        host = read_tree(files.tree(), granule)
        assert (host.granule, host.granule_known) == (Granule(size), True)
    assert read_tree(server().tree(), Granule.K64).granule == Granule.K64


@pytest.mark.parametrize("size", [b"8192", b"0", b"big"])
def test_a_malformed_page_size_is_refused(size):
    files = server()
    files.files[PAGE_SIZE] = size
    with pytest.raises(UnreadableError, match=r"/vmm-msi/page-size of host.tar.zst: .* is no"):
        read_tree(files.tree())


def test_functions_and_groups_without_root():
    files = server()
    for name in ("IORT", "APIC"):
        files.unreadable[f"{ACPI}/{name}"] = "Permission denied"
    host = read_tree(files.tree("this machine"))
    assert [smmu.base for smmu in host.smmus] == [Pa(base) for base in SMMUS]
    assert len(host.functions) == 7
    (gap,) = host.missing
    assert gap == (
        "/sys/firmware/acpi/tables/IORT of this machine shows how devices reach SMMUs and ITSes, "
        "and cannot be read: Permission denied; run as root, or name a copy made by root as HOST"
    )
    with pytest.raises(TopologyError) as caught:
        resolve(host, address("0000:01:00.0"))
    assert str(caught.value) == f"finding 0000:01:00.0 in this machine: {gap}"


def test_a_host_without_tables():
    files = HostFiles().function("0000:00:01.0", group=0)
    host = read_tree(files.tree())
    assert [str(function.address) for function in host.functions] == ["0000:00:01.0"]
    with pytest.raises(TopologyError, match=r"host.tar.zst has neither .*IORT nor a device tree"):
        resolve(host, address("0000:00:01.0"))


def test_routes_without_apic():
    files = server()
    del files.files[f"{ACPI}/APIC"]
    host = read_tree(files.tree())
    assert (host.itses, len(host.routes)) == ((), 2)
    with pytest.raises(TopologyError, match="APIC is missing"):
        resolve(host, address("0000:01:00.0"))


def test_a_malformed_table_is_refused():
    files = server()
    files.files[f"{ACPI}/IORT"] = b"IORT"
    with pytest.raises(TopologyError, match=r"host.tar.zst/sys/firmware/acpi/tables/IORT: offset"):
        read_tree(files.tree())
    files = HostFiles().tables(fdt=b"\xd0\x0d\xfe\xed")
    with pytest.raises(TopologyError, match=r"host.tar.zst/sys/firmware/fdt: "):
        read_tree(files.tree())


def test_an_empty_device_tree_beside_acpi():
    """UEFI leaves a tree that has only /chosen."""
    files = as_folder(dtb('/dts-v1/; / { chosen { bootargs = "quiet"; }; };'))
    files.unreadable["/sys/firmware/fdt"] = "Permission denied"
    files.tables(**tables())
    assert len(read_sources(files.tree())) == 2
    files = server().tables(fdt=b"\xd0\x0d\xfe\xed")
    assert len(read_sources(files.tree())) == 2


def test_a_device_tree():
    host = read_tree(HostFiles().tables(fdt=BOARD.read_bytes()).tree())
    assert host.routes == load_host(BOARD).routes
    assert resolve(host, address("0002:01:00.0")).device_id == 0x20100


def as_folder(blob):
    """Return the files of /proc/device-tree for a blob."""
    files = HostFiles()
    base = "/sys/firmware/devicetree/base"
    for node in DeviceTree(blob, "blob").nodes:
        folder = f"{base}{node.path.rstrip('/')}"
        files.folders.append(folder)
        for name, value in node.properties.items():
            files.files[f"{folder}/{name}"] = value
    files.links["/proc/device-tree"] = base
    return files


def test_a_device_tree_as_a_folder(tmp_path):
    """Every user can read it; nodes come in the order of their names, so that ids differ."""
    files = as_folder(BOARD.read_bytes())
    files.unreadable["/sys/firmware/fdt"] = "Permission denied"
    blob, folder = load_host(BOARD), read_tree(files.tree())
    assert folder.missing == ()
    for segment in range(8):
        paths = []
        for host in (blob, folder):
            device = resolve(host, PciAddress(segment, 1, 0, 0))
            its, smmu = host.its_by_id[device.its], host.smmu_by_id[device.smmu]
            paths.append((its.base, smmu.base, device.stream_id, device.device_id))
        assert paths[0] == paths[1]
    del files.unreadable["/sys/firmware/fdt"]
    assert load_host(files.write(tmp_path)).routes == folder.routes


@pytest.mark.parametrize(
    ("depth", "size", "message"), [(70, 1, "deep"), (1, 3 << 20, "larger than")]
)
def test_a_device_tree_folder_beyond_the_limits(depth, size, message):
    files = HostFiles()
    files.files["/proc/device-tree" + "/node" * depth + "/a"] = bytes(size // 2)
    files.files["/proc/device-tree" + "/node" * depth + "/b"] = bytes(size // 2)
    with pytest.raises(TopologyError, match=f"device tree of host.tar.zst: .*{message}"):
        read_tree(files.tree())


def large(functions):
    """Return a server with many functions, four below each port."""
    files = HostFiles().tables(**tables())
    name, other = NAMES
    files.smmu(name).smmu(other, "arm-smmu-v3.1.auto")
    bus = 0
    for number in range(functions):
        if number % 4 == 0:
            bus += 1
            port = f"0000:00:{bus >> 3:02x}.{bus & 7}"
            files.function(
                port, space=config(bridge=(0, bus, bus), express=4), group=bus, smmu=name
            )
        files.function(
            f"0000:{bus:02x}:00.{number % 4}",
            space=config(express=0, msix=65, extended=range(1, 12)),
            below=port,
            group=1000 + number,
            smmu=name,
        )
    return files


def test_a_hundred_functions_are_read_fast(tmp_path):
    """The limit leaves room for busy machines."""
    files = large(100)
    root = FolderTree(files.write(tmp_path))
    for tree in (files.tree(), root):
        start = time.process_time()
        sources = read_sources(tree)
        assert crosscheck.disagreements(sources) == []
        seconds = time.process_time() - start
        assert len(sources[-1].functions) == 125
        assert seconds < 0.6, f"{tree.source}: {seconds:.3f} s"


@pytest.mark.parametrize("value", [b"Y\n", b"N\n", None])
@pytest.mark.parametrize("module", ["iommufd", "vfio_iommu_type1"])
def test_allow_unsafe_interrupts(module, value):
    files = HostFiles().tables(fdt=samples.path("eight-its-server.dtb").read_bytes())
    path = f"/sys/module/{module}/parameters/allow_unsafe_interrupts"
    if value is not None:
        files.files[path] = value
    host = join(read_sources(files.tree()))
    assert host.unsafe_interrupts == ({module} if value == b"Y\n" else set())
    files.unreadable[path] = "Permission denied"
    assert join(read_sources(files.tree())).unsafe_interrupts == frozenset()
