"""Listings of a host as people post them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from described_host import load_host
from host.host_files import ACPI, HostFiles
from host.hosts import server, tables

from vmm_msi.doctor.case_reader import Selection, read_case
from vmm_msi.doctor.rules import examine
from vmm_msi.errors import TopologyError
from vmm_msi.host import sources
from vmm_msi.host.crosscheck import disagreements
from vmm_msi.host.listing import read_listing
from vmm_msi.host.pci.sysfs import MAX_FUNCTIONS
from vmm_msi.host.sources import read_host
from vmm_msi.types import SW_MSI_WINDOW, PciAddress, ReservedKind

#: As ``lspci -vvv -nn -k -D`` of pciutils 3.13 prints them, shortened.
LSPCI = """\
0000:00:01.0 PCI bridge [0604]: QEMU port [1b36:000c] (prog-if 00 [Normal decode])
\tControl: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR+
\tNUMA node: 0
\tIOMMU group: 3
\tBus: primary=00, secondary=01, subordinate=01, sec-latency=0
\tCapabilities: [54] Express (v2) Root Port (Slot+), IntMsgNum 0
\tCapabilities: [48] MSI-X: Enable+ Count=1 Masked-
\t\tVector table: BAR=0 offset=00000000
\tKernel driver in use: pcieport

0000:01:00.0 Non-Volatile memory controller [0108]: Vendor [1234:5678] (prog-if 02 [NVM Express])
\tSubsystem: Vendor Device [1234:5678]
\tNUMA node: 1
\tIOMMU group: 14
\tCapabilities: [40] MSI: Enable- Count=1/32 Maskable+ 64bit+
\t\tAddress: 0000000008000040  Data: 0000
\tCapabilities: [b0] MSI-X: Enable+ Count=65 Masked-
\tCapabilities: [100 v2] Advanced Error Reporting
\tCapabilities: [2a0 v1] Address Translation Service (ATS)
\t\tATSCap:\tInvalidate Queue Depth: 00
\tKernel driver in use: vfio-pci
\tKernel modules: nvme

0001:81:00.1 Ethernet controller [0200]: Vendor Device [1234:9abc]
\tIOMMU group: 15
\tCapabilities: [50] MSI: Enable+ Count=2/8 Maskable+ 64bit+
\tCapabilities: [100 v1] Process Address Space ID (PASID)
"""
PORT, NVME, NIC = (
    PciAddress.parse(name) for name in ("0000:00:01.0", "0000:01:00.0", "0001:81:00.1")
)


@pytest.fixture
def write(tmp_path):
    def write(text, name="posted.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "".join(f"> {line}\n" for line in text.splitlines()),
        lambda text: "$ sudo lspci -vvvnnkD\n" + text + "$\n",
        lambda text: text.replace("\t", "        "),
    ],
)
def test_lspci(write, change):
    port, nvme, nic = load_host(write(change(LSPCI))).functions
    assert (port.address, port.iommu_group, port.driver, port.vectors) == (PORT, 3, "pcieport", 1)
    assert (port.is_bridge, port.numa_node) == (True, 0)
    assert (nvme.address, nvme.iommu_group, nvme.driver) == (NVME, 14, "vfio-pci")
    assert (nvme.vectors, nvme.class_code, nvme.numa_node) == (65, 0x010802, 1)
    assert (nvme.ats, nvme.pasid, nvme.members) == (True, False, (NVME,))
    assert (nic.address, nic.iommu_group, nic.driver, nic.vectors) == (NIC, 15, None, 8)
    assert (nic.ats, nic.pasid, nic.class_code) == (False, True, 0x020000)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("01:00.0 Ethernet controller: Vendor Device (rev 01)", 0x020000),
        ("01:00.0 Ethernet controller [0200]: Vendor Device [1234:9abc]", 0x020000),
        ("01:00.0 0200: 1234:9abc (rev 01)", 0x020000),
        ("0000:01:00.0 PCI bridge: Vendor Device", 0x060400),
        ("01:00.0 Unheard-of controller: Vendor Device", None),
    ],
)
def test_lspci_without_options(write, line, code):
    host = load_host(write(line))
    assert [(function.address, function.class_code) for function in host.functions] == [
        (NVME, code)
    ]


def test_lspci_without_root(write):
    text = "01:00.0 Ethernet controller: Vendor\n\tCapabilities: <access denied>\n"
    (function,) = load_host(write(text)).functions
    assert (function.vectors, function.ats, function.iommu_group) == (None, None, None)


#: How ``ls -l`` begins the line of a link.
LINK = "lrwxrwxrwx 1 root root 0 Jan  1 00:00"


def test_lspci_in_records(write):
    """lspci -vmmnnk, and without -nn."""
    text = """Slot:\t0000:00:01.0
Class:\tPCI bridge [0604]
Vendor:\tVendor [1b36]
Device:\tPort [000c]
Driver:\tpcieport
NUMANode:\t0
IOMMUGroup:\t3

Slot:\t01:00.0
Class:\tEthernet controller
Device:\tOther device
IOMMUGroup:\t14
"""
    port, card = load_host(write(text)).functions
    assert (port.address, port.class_code, port.driver) == (PORT, 0x060400, "pcieport")
    assert (port.numa_node, port.iommu_group) == (0, 3)
    assert (card.address, card.class_code, card.iommu_group) == (NVME, 0x020000, 14)


@pytest.mark.parametrize(
    "text",
    [
        "-[0000:00]-+-00.0  Vendor Host bridge\n           \\-01.0-[01]----00.0  Vendor Card\n",
        "-+-[0001:80]-+-00.0\n | \\-01.0\n \\-[0000:00]-+-00.0\n",
    ],
)
def test_a_tree_of_lspci(write, text):
    path = write(text)
    with pytest.raises(TopologyError) as caught:
        load_host(path)
    assert str(caught.value) == (
        f"{path}: the tree of lspci -t, which has no IOMMU groups; use lspci -Dvvvnnk as root; "
        "vmm-msi topology capture on that host, as root, writes all of it to one file"
    )


GROUPS = {1: [PORT, NVME], 12: [NIC]}


@pytest.mark.parametrize(
    "text",
    [
        # find /sys/kernel/iommu_groups -type l
        """/sys/kernel/iommu_groups/12/devices/0001:81:00.1
/sys/kernel/iommu_groups/1/devices/0000:01:00.0
/sys/kernel/iommu_groups/1/devices/0000:00:01.0
""",
        # In that folder: find . -type l
        "./12/devices/0001:81:00.1\n./1/devices/0000:01:00.0\n1/devices/0000:00:01.0\n",
        # ls -l /sys/kernel/iommu_groups/*/devices
        f"""/sys/kernel/iommu_groups/1/devices:
total 0
{LINK} 0000:00:01.0 -> ../../../../devices/pci0000:00/0000:00:01.0
{LINK} 0000:01:00.0 -> ../../../../devices/pci0000:00/0000:01:00.0

/sys/kernel/iommu_groups/12/devices:
total 0
{LINK} 0001:81:00.1 -> ../../../../devices/pci0001:80/0001:81:00.1
""",
        # ls -l /sys/kernel/iommu_groups/*/devices/*
        f"""{LINK} /sys/kernel/iommu_groups/1/devices/0000:00:01.0 -> ../../../../devices/x
{LINK} /sys/kernel/iommu_groups/1/devices/0000:01:00.0 -> ../../../../devices/x
{LINK} /sys/kernel/iommu_groups/12/devices/0001:81:00.1 -> ../../../../devices/y
""",
        # ls /sys/kernel/iommu_groups/*/devices
        """/sys/kernel/iommu_groups/1/devices:
0000:00:01.0  0000:01:00.0

/sys/kernel/iommu_groups/12/devices:
0001:81:00.1
""",
        # ls -l /sys/bus/pci/devices/*/iommu_group
        f"""{LINK} /sys/bus/pci/devices/0000:00:01.0/iommu_group -> ../../../kernel/iommu_groups/1
{LINK} /sys/bus/pci/devices/0000:01:00.0/iommu_group -> ../../../../kernel/iommu_groups/1
{LINK} /sys/bus/pci/devices/0001:81:00.1/iommu_group -> ../../../kernel/iommu_groups/12
""",
        # The kernel's log.
        """[    2.1] pcieport 0000:00:01.0: Adding to iommu group 1
[    2.2] nvme 0000:01:00.0: Adding to iommu group 1
[    2.3] pci 0001:81:00.1: Adding to iommu group 12
""",
        # The loop over the groups, in three versions.
        """IOMMU Group 1:
\t0000:00:01.0 PCI bridge [0604]: Vendor Device [1b36:000c]
\t0000:01:00.0 Non-Volatile memory controller [0108]: Vendor Device [1234:5678] (rev 02)
IOMMU Group 12:
\t0001:81:00.1 Ethernet controller [0200]: Vendor Device [1234:9abc]
""",
        """IOMMU Group 1 00:01.0 PCI bridge [0604]: Vendor Device [1b36:000c]
IOMMU Group 1 01:00.0 Non-Volatile memory controller [0108]: Vendor Device [1234:5678]
IOMMU Group 12 0001:81:00.1 Ethernet controller [0200]: Vendor Device [1234:9abc]
""",
        """Group 1:        [1b36:000c]     00:01.0  PCI bridge                 Vendor Device
                [1234:5678] [R] 01:00.0  Non-Volatile memory controller
Group 12:       [1234:9abc] [R] 0001:81:00.1  Ethernet controller
""",
        """iommu group 1: 0000:00:01.0
iommu group 1: 0000:01:00.0
iommu group 12: 0001:81:00.1
""",
    ],
)
def test_groups(write, text):
    for content in (text, "".join(f"> {line}\n" for line in text.splitlines())):
        host = load_host(write(content))
        members = {function.iommu_group: list(function.members) for function in host.functions}
        assert members == GROUPS
        assert sorted(function.address for function in host.functions) == [PORT, NVME, NIC]


def test_groups_with_descriptions(write):
    text = "IOMMU Group 1:\n\t00:01.0 PCI bridge [0604]: Vendor [1b36:000c]\n"
    text += "\t\tKernel driver in use: pcieport\n"
    (port,) = load_host(write(text)).functions
    assert (port.is_bridge, port.driver, port.iommu_group) == (True, "pcieport", 1)


WINDOW = "0x0000000008000000 0x00000000080fffff msi\n"
DIRECT = "0x00000000a0000000 0x00000000a00fffff direct\n"


@pytest.mark.parametrize(
    "text",
    [
        # grep "" /sys/kernel/iommu_groups/*/reserved_regions
        "".join(
            f"/sys/kernel/iommu_groups/{group}/reserved_regions:{line}"
            for group, line in ((1, WINDOW), (1, DIRECT), (12, WINDOW))
        ),
        # head /sys/kernel/iommu_groups/*/reserved_regions
        (
            f"==> /sys/kernel/iommu_groups/1/reserved_regions <==\n{WINDOW}{DIRECT}\n"
            f"==> /sys/kernel/iommu_groups/12/reserved_regions <==\n{WINDOW}"
        ),
    ],
)
def test_reserved_regions(write, text):
    host = load_host(write(LSPCI.replace("group: 14", "group: 1").replace("15", "12") + text))
    nvme, nic = (host.function_by_address[address] for address in (NVME, NIC))
    assert nvme.reserved[0] == nic.reserved[0] == SW_MSI_WINDOW
    assert [region.kind for region in nvme.reserved] == [ReservedKind.SW_MSI, ReservedKind.DIRECT]
    assert host.function_by_address[PORT].reserved is None


def test_reserved_regions_alone(write):
    path = write(WINDOW + "0x00000000fee00000 0x00000000feefffff msi\n")
    with pytest.raises(TopologyError) as caught:
        load_host(path)
    assert str(caught.value) == (
        f"{path}: reserved regions of an unknown IOMMU group (0x8000000-0x80fffff (sw-msi), "
        "0xfee00000-0xfeefffff (hw-msi)), but no devices; vmm-msi topology capture on that host, "
        "as root, writes all of it to one file"
    )


def test_a_listing_is_a_source_beside_the_tables(write, tmp_path):
    """It does not list all functions, so that those it lacks do not count as a disagreement."""
    folder = HostFiles().tables(**tables()).write(tmp_path / "tables") / ACPI[1:]
    path = write("/sys/kernel/iommu_groups/7/devices/0000:01:00.0\n")
    read = read_host([path, folder])
    host = read.topology
    assert host.smmus
    assert not host.missing
    assert host.function_by_address[NVME].iommu_group == 7
    root = server().write(tmp_path / "root")
    (difference,) = disagreements(read_host([path, root]).sources)
    assert difference.subject == f"IOMMU group of {NVME}"


def test_lines_that_are_not_read(write):
    text = b"\xff\xfe\xff\n" + b"x" * 5000 + b" 01:00.0 Ethernet controller: X\n"
    text += b"IOMMU Group 5:\n\nnothing\n01:00 Ethernet controller: X\n"
    text += b"10000:01:00.0 Ethernet controller: X\nIOMMU Group 99999999999: 01:00.0\n"
    assert read_listing(text.splitlines(), "x").functions == {}
    with pytest.raises(TopologyError, match="a host is a TOML file"):
        load_host(write(text[5:]))


def test_limits(write, monkeypatch):
    lines = [
        b"%04x:%02x:%02x.%d Bridge: X" % (n >> 16, n >> 8 & 255, n >> 3 & 31, n & 7)
        for n in range(MAX_FUNCTIONS + 1)
    ]
    with pytest.raises(TopologyError, match=f"x: more than {MAX_FUNCTIONS} PCI functions"):
        read_listing(lines, "x")
    assert len(read_listing(lines[1:], "x").functions) == MAX_FUNCTIONS
    with pytest.raises(TopologyError, match="more than 100000 reserved regions"):
        read_listing([WINDOW.encode()] * 100_001, "x")
    monkeypatch.setattr(sources, "MAX_LINES", 2)
    with pytest.raises(TopologyError, match="more than 2 lines, the limit of a text"):
        load_host(write("a\n" * 3))


def test_a_listing_has_no_page_size(write):
    host = load_host(write(LSPCI))
    assert (host.granule_known, host.lists_all_functions) == (False, False)
    assert replace(host, missing=()).smmus == ()


def test_what_a_listing_lacks_may_exist(write, tmp_path):
    """The doctor reports neither a device that it lacks as missing nor one without a group."""
    path = write("0000:01:00.0 Ethernet controller: X\n")
    folder = HostFiles().tables(**tables()).write(tmp_path / "tables") / ACPI[1:]
    other = PciAddress.parse("0000:02:00.0")
    for names in ([path], [path, folder]):
        read = read_host(names)
        assert not read.topology.lists_all_functions
        ids = {finding.id for finding in examine(read_case(read, Selection([NVME, other])))}
        assert not ids & {"no-iommu-group", "device-missing"}
    root = server().write(tmp_path / "root")
    assert read_host([path, root]).topology.lists_all_functions
