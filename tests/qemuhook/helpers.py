"""Guests managed by vmm-msi, and PCI devices in a folder, for the tests of the hook."""

from __future__ import annotations

import os

from vmm_msi.domxml import editor
from vmm_msi.domxml.support import XmlLayout
from vmm_msi.domxml.template import nested_guest
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.types import GuestPlan, PciAddress, VsmmuPlan

A, B = (PciAddress.parse(f"000{segment}:01:00.0") for segment in range(2))
UUID = "5b6d4f0a-2a5e-4b0e-9d53-0f6d3a7f1e00"


def plain(name="g", kind="kvm"):
    """Return a guest without attached devices."""
    domain = nested_guest(name, memory=1 << 30, kind=kind)
    element = domain.root.makeelement("uuid")
    element.text = UUID
    domain.root.find("name").addnext(element)
    return domain


def managed(name="g", kind="kvm", backend="qemu"):
    """Return a guest with A and B, each behind an accelerated vSMMU of its own."""
    plan = GuestPlan((VsmmuPlan(0, (A,)), VsmmuPlan(1, (B,))), iommufd=True)
    assignments = {device: editor.Assignment("identity", backend) for device in (A, B)}
    return editor.apply(plain(name, kind), plan, XmlLayout(), assignments)


class Host:
    """PCI devices of a host below a folder, laid out as in sysfs."""

    def __init__(self, folder):
        self._root = folder / "host"
        self._devices = self._root / "sys/bus/pci/devices"
        self._devices.mkdir(parents=True)

    @property
    def tree(self):
        return FolderTree(self._root)

    def device(self, name, group=None, driver=None, kind="0x010802"):
        device = self._devices / str(name)
        device.mkdir()
        (device / "class").write_text(f"{kind}\n")
        if driver is not None:
            (device / "driver").symlink_to(f"/sys/bus/pci/drivers/{driver}")
        if group is not None:
            path = f"/sys/kernel/iommu_groups/{group}"
            members = self._root / path[1:] / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (device / "iommu_group").symlink_to(path)
            (members / device.name).symlink_to(f"/sys/bus/pci/devices/{name}")


def descriptor(data):
    """Return the descriptor of a file in memory that contains ``data``."""
    number = os.memfd_create("xml")
    os.write(number, data)
    os.lseek(number, 0, os.SEEK_SET)
    return number
