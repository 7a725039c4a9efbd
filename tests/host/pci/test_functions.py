"""PCI functions of a host, from memory and from a folder."""

from __future__ import annotations

import pytest
from host.host_files import WINDOW, HostFiles, config
from host.hosts import SMMUS, server

from vmm_msi.errors import InputError
from vmm_msi.host.files import UnreadableError
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.host.pci.functions import read_functions
from vmm_msi.types import (
    SW_MSI_WINDOW,
    Pa,
    PciAddress,
    PciFunction,
    ReservedKind,
    ReservedRegion,
)


def address(text):
    return PciAddress.parse(text)


def functions(tree):
    return {str(function.address): function for function in read_functions(tree)}


def test_a_server():
    by_address = functions(server().tree())
    assert list(by_address) == sorted(by_address)
    assert by_address["0000:01:00.0"] == PciFunction(
        address=address("0000:01:00.0"),
        iommu_group=1,
        members=(address("0000:01:00.0"),),
        numa_node=0,
        driver="ice",
        virtual_functions=(address("0000:01:01.0"), address("0000:01:01.1")),
        smmu=Pa(SMMUS[0]),
        class_code=0x020000,
        vectors=129,
        ats=True,
        pasid=True,
        dma_rids=(0x100,),
        msi_rid=0x100,
        reserved=(SW_MSI_WINDOW,),
    )
    virtual = by_address["0000:01:01.1"]
    assert virtual.physical_function == address("0000:01:00.0")
    assert (virtual.vectors, virtual.ats, virtual.pasid) == (17, True, False)
    assert (virtual.numa_node, virtual.driver) == (None, "vfio-pci")
    card = by_address["0001:02:03.0"]
    assert card.members == (address("0001:01:00.0"), address("0001:02:03.0"))
    assert (card.dma_rids, card.msi_rid) == ((0x218, 0x200), 0x200)
    assert card.smmu == SMMUS[1]
    assert by_address["0000:00:01.0"].is_bridge


def test_a_folder_is_read_like_memory(tmp_path):
    assert read_functions(FolderTree(server().write(tmp_path))) == read_functions(server().tree())


def test_links_of_a_folder_stay_in_it(tmp_path):
    """An absolute link, one that leaves the folder, and a cycle."""
    files = HostFiles()
    files.function("0000:00:01.0", group=7, driver="e1000e")
    folder = files.paths["0000:00:01.0"]
    files.links["/sys/bus/pci/devices/0000:00:01.0"] = folder
    files.links[f"{folder}/driver"] = "../../../../../../../../sys/bus/pci/drivers/e1000e"
    root = files.write(tmp_path / "root")
    (root / "sys/kernel/iommu_groups/8").symlink_to("8")
    (root / "sys/bus/pci/devices/0000:00:02.0").symlink_to("0000:00:02.0")
    (root / "sys/bus/pci/devices/0000:00:03.0").symlink_to("/etc")
    by_address = functions(FolderTree(root))
    assert (by_address["0000:00:01.0"].driver, by_address["0000:00:01.0"].iommu_group) == (
        "e1000e",
        7,
    )
    # The targets of the others are unknown, the machine's own /etc included.
    assert by_address["0000:00:02.0"].class_code is None
    assert by_address["0000:00:03.0"].class_code is None


def test_functions_without_root():
    files = server()
    for path, data in files.files.items():
        if path.endswith("/config"):
            files.files[path] = data[:64]
    by_address = functions(files.tree())
    nic, card = by_address["0000:01:00.0"], by_address["0001:02:03.0"]
    assert (nic.vectors, nic.ats, nic.dma_rids, nic.msi_rid) == (None, None, (), None)
    assert (nic.iommu_group, nic.driver, nic.class_code) == (1, "ice", 0x020000)
    assert (card.dma_rids, card.msi_rid) == ((), None)
    assert by_address["0000:00:01.0"].dma_rids == (8,)


def test_bridges_are_unknown_without_links():
    """As in a copy of /sys/bus/pci/devices only, with its links followed."""
    files = HostFiles()
    files.files = {
        "/sys/bus/pci/devices/0000:01:00.0/class": b"0x020000\n",
        "/sys/bus/pci/devices/0000:01:00.0/config": config(express=0, msix=4),
        "/sys/bus/pci/devices/notes": b"",
    }
    (function,) = read_functions(files.tree())
    assert (function.vectors, function.dma_rids, function.iommu_group) == (4, (), None)


def test_unreadable_files_leave_gaps():
    files = server()
    folder = files.paths["0000:01:00.0"]
    for name in ("config", "numa_node"):
        files.unreadable[f"{folder}/{name}"] = "Input/output error"
    files.unreadable["/sys/kernel/iommu_groups/1/reserved_regions"] = "Permission denied"
    nic = functions(files.tree())["0000:01:00.0"]
    assert (nic.vectors, nic.numa_node, nic.reserved) == (None, None, None)
    files.unreadable["/sys/bus/pci/devices"] = "Permission denied"
    with pytest.raises(UnreadableError, match="Permission denied"):
        read_functions(files.tree())


def test_unexpected_content():
    files = HostFiles().function("0000:00:01.0", group=0, reserved="hello\n")
    with pytest.raises(InputError, match=r"reserved_regions of host.tar.zst: 'hello': not a first"):
        read_functions(files.tree())
    files = HostFiles().function("0000:00:01.0")
    files.files[f"{files.paths['0000:00:01.0']}/numa_node"] = b"one\n"
    assert read_functions(files.tree())[0].numa_node is None


def test_reserved_regions_of_a_group():
    listing = (
        "0x00000000a0000000 0x00000000a00fffff direct\n"
        "0x00000000b0000000 0x00000000b000ffff direct-relaxable\n"
        "0x00000000c6000000 0x00000000c601ffff msi\n" + WINDOW
    )
    files = HostFiles().function("0000:00:01.0", group=0, reserved=listing)
    assert read_functions(files.tree())[0].reserved == (
        ReservedRegion(0xA0000000, 0x100000, ReservedKind.DIRECT),
        ReservedRegion(0xB0000000, 0x10000, ReservedKind.DIRECT_RELAXABLE),
        ReservedRegion(0xC6000000, 0x20000, ReservedKind.HW_MSI),
        SW_MSI_WINDOW,
    )
