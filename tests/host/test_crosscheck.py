"""Disagreements between sources about one host, each kind once."""

from __future__ import annotations

from dataclasses import replace

from host.host_files import WINDOW, HostFiles
from host.hosts import NAMES, SMMUS, server, tables

from vmm_msi import samples
from vmm_msi.host.crosscheck import disagreements
from vmm_msi.host.join import host_of_functions
from vmm_msi.host.live import read_sources
from vmm_msi.host.sources import load_host
from vmm_msi.types import Its, Pa, PciAddress, PciFunction

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
