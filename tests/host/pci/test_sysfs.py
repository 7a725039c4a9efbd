"""SMMUs and devices in the sysfs of a host."""

from __future__ import annotations

from host.host_files import HostFiles
from host.hosts import NAMES, SMMUS, server

from vmm_msi.host.files.folder import FolderTree
from vmm_msi.host.pci.sysfs import DrivenSmmu, PciDevices, driven_smmus, read_smmus
from vmm_msi.types import Pa, PciAddress, Smmu


def test_smmus_by_name():
    files = HostFiles()
    for name in (
        "smmu3.0x0000000040000000",
        "smmu.0x000000002b400000",
        "smmu3.0x000000002b500000",
        "dmar0",
        "smmu3.0xfffffffffffffff0",
    ):
        files.smmu(name)
    assert read_smmus(files.tree()) == (
        Smmu(0, Pa(0x2B400000), nested=False, version=2),
        Smmu(1, Pa(0x2B500000)),
        Smmu(2, Pa(0x40000000)),
    )


def test_smmus_with_their_platform_devices():
    tree = server().tree()
    assert driven_smmus(tree) == (
        DrivenSmmu(Pa(SMMUS[0]), 3, "arm-smmu-v3.0.auto"),
        DrivenSmmu(Pa(SMMUS[1]), 3, "arm-smmu-v3.1.auto"),
    )
    files = HostFiles()
    files.links[f"/sys/class/iommu/{NAMES[0]}"] = "../x"
    assert driven_smmus(files.tree()) == (DrivenSmmu(Pa(SMMUS[0]), 3),)


def test_smmus_of_a_folder(tmp_path):
    tree = FolderTree(server().write(tmp_path))
    assert read_smmus(tree) == read_smmus(server().tree())


def test_links_and_numbers_of_a_device():
    pci = PciDevices(server().tree())
    card, bridge = PciAddress.parse("0001:02:03.0"), PciAddress.parse("0001:01:00.0")
    assert card in pci.addresses()
    assert pci.exists(card)
    assert not pci.exists(PciAddress.parse("0009:00:00.0"))
    assert (pci.bridge(card), pci.parent(card)) == (bridge, str(bridge))
    assert (pci.link(card, "iommu_group"), pci.link(card, "iommu")) == ("5", NAMES[1])
    assert pci.link(card, "driver") is None
    assert (pci.ids(card), pci.class_code(card)) == ((0x8086, 0x1572), 0x040100)
    assert pci.members(5) == (bridge, card)


def test_a_function_without_its_configuration_space():
    pci = PciDevices(server().tree())
    function = pci.function(PciAddress.parse("0000:01:01.0"))
    assert (function.driver, function.iommu_group) == ("vfio-pci", 2)
    assert (function.vectors, function.dma_rids, function.reserved) == (None, (), None)
