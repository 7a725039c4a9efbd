"""Disagreements between sources about one host, each kind once."""

from __future__ import annotations

from dataclasses import replace

from described_host import load_host
from host.host_files import WINDOW, HostFiles
from host.hosts import NAMES, SMMUS, server, tables

from vmm_msi import samples
from vmm_msi.host.crosscheck import disagreements
from vmm_msi.host.join import host_of_functions
from vmm_msi.host.live import read_sources
from vmm_msi.host.resolve import resolve
from vmm_msi.types import (
    DeviceId,
    Granule,
    Its,
    Pa,
    PciAddress,
    PciFunction,
    PciSegment,
    ReservedKind,
    ReservedMemory,
    ReservedRegion,
    Smmu,
)

BOARD = load_host(samples.path("eight-its-server.dtb"))
TABLES, SYSTEM = "host.tar.zst/sys/firmware/acpi/tables", "host.tar.zst/sys"
#: The IORT gives a memory range to the StreamID of the NIC.
RMR = (0xA0000000, 0x100000)
DIRECT = "0x00000000a0000000 0x00000000a00fffff direct\n"
RELAXABLE = "0x00000000a0000000 0x00000000a00fffff direct-relaxable\n"


def rows(differences):
    """Return the subject of each disagreement and both descriptions."""
    return [
        (difference.subject, *(text for _source, text in difference.statements))
        for difference in differences
    ]


def compared(files):
    """Return the disagreements within a host's own files."""
    differences = disagreements(read_sources(files.tree()))
    for difference in differences:
        assert [source for source, _text in difference.statements] == [TABLES, SYSTEM]
    return rows(differences)


def test_agreeing_sources():
    assert compared(server()) == []
    assert compared(HostFiles().tables(**tables())) == []
    assert compared(HostFiles().function("0000:00:01.0")) == []
    assert disagreements([BOARD]) == []


def test_an_smmu_at_another_address_and_its_devices():
    other = (SMMUS[0], 0x2B600000)
    result = compared(server(smmus=other))
    assert result[:2] == [
        ("SMMU at 0x2b500000", "absent", "SMMUv3"),
        ("SMMU at 0x2b600000", "SMMUv3", "absent"),
    ]
    assert result[2:] == [
        (f"SMMU of {text}", "0x2b600000", "0x2b500000")
        for text in ("0001:00:00.0", "0001:01:00.0", "0001:02:03.0")
    ]


def test_a_device_without_an_smmu_in_sysfs():
    files = server()
    del files.links[f"{files.paths['0000:01:00.0']}/iommu"]
    assert compared(files) == [("SMMU of 0000:01:00.0", "0x2b400000", "none")]


def test_a_function_in_no_route():
    files = server().function("0002:00:00.0", smmu=NAMES[0])
    assert compared(files) == [("route of 0002:00:00.0", "no route", "device present")]


def test_memory_that_the_kernel_does_not_reserve():
    files = server(memory=[RMR])
    required = "0xa0000000-0xa00fffff (direct-relaxable)"
    subject = "memory mapped 1:1 for IOMMU group 1"
    assert compared(files) == [(subject, required, "none")]
    path = "/sys/kernel/iommu_groups/1/reserved_regions"
    files.files[path] = (DIRECT + WINDOW).encode()
    assert compared(files) == [(subject, required, "0xa0000000-0xa00fffff (direct)")]
    files.files[path] = (RELAXABLE + WINDOW).encode()
    assert compared(files) == []


def test_memory_that_the_kernel_reserves_and_the_table_does_not():
    files = server(memory=[RMR])
    files.files["/sys/kernel/iommu_groups/1/reserved_regions"] = (RELAXABLE + WINDOW).encode()
    files.files["/sys/kernel/iommu_groups/2/reserved_regions"] = DIRECT.encode()
    assert compared(files) == [
        ("memory mapped 1:1 for IOMMU group 2", "none", "0xa0000000-0xa00fffff (direct)")
    ]


def test_groups_in_libvirt_and_in_sysfs():
    a, b, c = (PciAddress(0, bus, 0, 0) for bus in range(3))
    kernel = host_of_functions(
        "kernel",
        [PciFunction(a, 1, (a, b)), PciFunction(b, 1, (a, b)), PciFunction(c)],
    )
    libvirt = host_of_functions(
        "qemu:///system",
        [PciFunction(a, 1, (b, a)), PciFunction(b, 2, (b,)), PciFunction(c, 3, (c,))],
    )
    (difference,) = disagreements([kernel, libvirt])
    assert str(difference) == (
        "IOMMU group of 0000:01:00.0: kernel: 1 (0000:00:00.0, 0000:01:00.0); qemu:///system: "
        "2 (0000:01:00.0)"
    )


def test_two_sets_of_tables():
    """A device tree, and one in which an ITS and the StreamIDs of segment 3 are others."""
    moved = Its(1, Pa(0x70040000))
    routes = list(BOARD.routes)
    routes[3] = replace(routes[3], stream_base=0x5000)
    other = replace(
        BOARD,
        source="other",
        itses=(BOARD.itses[0], moved, *BOARD.itses[2:]),
        routes=tuple(routes),
    )
    functions = [PciFunction(PciAddress(segment, 1, 0, 0)) for segment in range(5)]
    system = host_of_functions("system", functions)
    result = rows(disagreements([BOARD, other, system]))
    first = "SMMU 0x30000000, StreamID 0x10100, ITS {}, DeviceID 0x10100"
    third = "SMMU 0x20030000000, StreamID {}, ITS 0x20020040000, DeviceID 0x30100"
    assert result == [
        ("ITS at 0x20040000", "present", "absent"),
        ("ITS at 0x70040000", "absent", "present"),
        ("path of 0001:01:00.0", first.format("0x20040000"), first.format("0x70040000")),
        ("path of 0003:01:00.0", third.format("0x10100"), third.format("0x5100")),
    ]


def test_attributes_of_pci_segments():
    first, second = (
        replace(
            BOARD,
            segments=(
                PciSegment(0, ats=True, canwbs=canwbs),
                PciSegment(1, ats=False, canwbs=None if canwbs else True),
                PciSegment(other),
            ),
        )
        for canwbs, other in ((False, 2), (True, 3))
    )
    assert rows(disagreements([first, second])) == [
        ("CANWBS of PCI segment 0", "no", "yes"),
        ("PCI segment 2", "present", "absent"),
        ("PCI segment 3", "absent", "present"),
    ]


def test_doorbells_page_sizes_and_memory():
    memory = ReservedMemory(0xA0000000, 0x10000, 0, 0x100, 0x100)
    segments = tuple(replace(segment, canwbs=True) for segment in BOARD.segments)
    acpi = replace(BOARD, segments=segments)
    moved = replace(BOARD.itses[0], pre_its=Pa(0x58000000))
    other = replace(
        acpi,
        granule=Granule.K64,
        itses=(moved, *BOARD.itses[1:]),
        reserved_memory=(memory,),
    )
    acpi = replace(acpi, granule_known=True)
    assert rows(disagreements([acpi, replace(other, granule_known=True)])) == [
        ("page size", "4K", "64K"),
        (
            "ITS at 0x20000000",
            "doorbell 0x20010040",
            "doorbell 0x20010040, behind a pre-ITS at 0x58000000",
        ),
        ("memory mapped 1:1 0xa0000000-0xa000ffff (direct)", "absent", "present"),
    ]
    # A device tree has neither RMRs nor CANWBS.
    tree = replace(other, segments=BOARD.segments, granule_known=False, itses=acpi.itses)
    assert disagreements([acpi, tree]) == []


def test_routes_without_functions():
    """The routes of segment 3 differ from its second bus on, where no function is listed."""
    routes = list(BOARD.routes)
    low, high = replace(routes[3], last=0x1FF), replace(routes[3], first=0x200, stream_base=0x7)
    other = replace(BOARD, routes=(*routes[:3], low, high, *routes[4:]))
    path = "SMMU 0x20030000000, StreamID {}, ITS 0x20020040000, DeviceID {}"
    assert rows(disagreements([BOARD, other])) == [
        (
            "route of 0003:02:00.0",
            path.format("0x10200", "0x30200"),
            path.format("0x7", "0x30000"),
        )
    ]
    split = replace(routes[3], first=0x200, stream_base=0x10200, device_base=0x30200)
    assert (
        disagreements([BOARD, replace(BOARD, routes=(*routes[:3], low, split, *routes[4:]))]) == []
    )
    assert len(disagreements([BOARD, replace(BOARD, routes=BOARD.routes[1:])])) == 1


def test_listed_devices_and_routes():
    """The devices of a TOML file: their SMMUs have no addresses."""
    address = PciAddress(3, 1, 0, 0)
    device = resolve(BOARD, address)
    listed = replace(BOARD, source="toml", routes=(), devices=(device,), smmus=(Smmu(1),))
    assert disagreements([BOARD, listed]) == []
    moved = replace(listed, devices=(replace(device, device_id=DeviceId(7)),))
    assert rows(disagreements([BOARD, moved])) == [
        (
            "path of 0003:01:00.0",
            "SMMU 0x20030000000, StreamID 0x10100, ITS 0x20020040000, DeviceID 0x30100",
            "StreamID 0x10100, ITS 0x20020040000, DeviceID 0x7",
        )
    ]


def test_every_fact_about_a_function():
    address, port = PciAddress(0, 1, 0, 0), PciAddress(0, 0, 1, 0)
    window = ReservedRegion(0x8000000, 0x100000, ReservedKind.SW_MSI)
    first = PciFunction(
        address,
        1,
        driver="nvme",
        numa_node=0,
        class_code=0x010802,
        smmu=Pa(0x2B400000),
        vectors=4,
        ats=True,
        pasid=False,
        reserved=(window,),
    )
    second = PciFunction(
        address,
        1,
        driver="vfio-pci",
        numa_node=1,
        class_code=0x020000,
        physical_function=port,
        smmu=Pa(0x2B500000),
        vectors=8,
        ats=False,
        pasid=True,
        reserved=(),
    )
    known = host_of_functions("first", [first])
    assert rows(disagreements([known, host_of_functions("second", [second])])) == [
        ("class of 0000:01:00.0", "0x010802", "0x020000"),
        ("driver of 0000:01:00.0", "nvme", "vfio-pci"),
        ("NUMA node of 0000:01:00.0", "0", "1"),
        ("SMMU by the kernel of 0000:01:00.0", "0x2b400000", "0x2b500000"),
        ("number of vectors of 0000:01:00.0", "4", "8"),
        ("ATS of 0000:01:00.0", "yes", "no"),
        ("PASID of 0000:01:00.0", "no", "yes"),
        ("reserved regions of 0000:01:00.0", "0x8000000-0x80fffff (sw-msi)", "none"),
    ]
    assert disagreements([known, host_of_functions("second", [PciFunction(address)])]) == []


def test_functions_that_one_source_lists():
    names = [PciAddress(0, bus, 0, 0) for bus in range(9)]
    first = host_of_functions("first", map(PciFunction, names))
    second = host_of_functions("second", map(PciFunction, [*names[:1], PciAddress(1, 0, 0, 0)]))
    (difference,) = rows(disagreements([first, second]))
    assert difference == (
        "PCI functions in one source only",
        f"{', '.join(map(str, names[1:7]))} and 2 more",
        "0001:00:00.0",
    )
