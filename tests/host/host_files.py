"""Build the files of a host in the layout of its kernel, for a tree or a folder."""

from __future__ import annotations

import struct
from posixpath import relpath

from vmm_msi.host.files.in_memory import MemoryTree

ACPI = "/sys/firmware/acpi/tables"
WINDOW = "0x0000000008000000 0x00000000080fffff msi\n"


def config(
    ids=(0x8086, 0x1572),
    *,
    bridge=None,
    express=None,
    msix=None,
    msi=None,
    extended=(),
    subsystem=(0, 0),
    size=4096,
):
    """Return a configuration space.

    :param bridge: primary, secondary and subordinate bus.
    :param express: the type of a PCI Express function.
    :param msix: number of vectors.
    :param msi: logarithm of the number of vectors.
    :param extended: ids of extended capabilities.
    """
    space = bytearray(size)
    struct.pack_into("<HH", space, 0, *ids)
    space[0x0E] = 0x81 if bridge else 0x80
    if bridge:
        struct.pack_into("<BBB", space, 0x18, *bridge)
    else:
        struct.pack_into("<HH", space, 0x2C, *subsystem)
    capabilities = []
    if msi is not None:
        capabilities.append((0x05, struct.pack("<H", msi << 1)))
    if msix is not None:
        capabilities.append((0x11, struct.pack("<H", msix - 1 | 0x8000)))
    if express is not None:
        capabilities.append((0x10, struct.pack("<H", express << 4 | 2)))
    at, link = 0x40, 0x34
    for number, body in capabilities:
        space[6] = 0x10
        space[link] = at
        space[at] = number
        space[at + 2 : at + 4] = body
        at, link = at + 0x20, at + 1
    for index, number in enumerate(extended):
        place = 0x100 + 0x40 * index
        after = place + 0x40 if index + 1 < len(extended) else 0
        struct.pack_into("<I", space, place, number | 1 << 16 | after << 20)
    return bytes(space)


class HostFiles:
    """Files and links by path."""

    def __init__(self):
        self.files = {}
        self.links = {}
        self.folders = ["/sys/bus/pci/devices", "/sys/class/iommu", "/sys/kernel/iommu_groups"]
        self.unreadable = {}
        self.paths = {}

    def tables(self, iort=None, apic=None, fdt=None):
        for path, data in (
            (f"{ACPI}/IORT", iort),
            (f"{ACPI}/APIC", apic),
            ("/sys/firmware/fdt", fdt),
        ):
            if data is not None:
                self.files[path] = data
        return self

    def smmu(self, name, device="arm-smmu-v3.0.auto"):
        """Add an SMMU with a driver, by the kernel's name of it."""
        folder = f"/sys/devices/platform/{device}/iommu/{name}"
        self.folders.append(f"{folder}/devices")
        self._link(f"/sys/class/iommu/{name}", folder)
        self.paths[name] = folder
        return self

    def function(
        self,
        address,
        *,
        ids=(0x8086, 0x1572),
        code=0x020000,
        space=None,
        below=None,
        driver=None,
        group=None,
        smmu=None,
        node=-1,
        vf_of=None,
        reserved=WINDOW,
    ):
        """Add a PCI function.

        :param below: the bridge above it, which was added before.
        """
        above = self.paths[below] if below else f"/sys/devices/pci{address[:7]}"
        folder = self.paths[address] = f"{above}/{address}"
        self._link(f"/sys/bus/pci/devices/{address}", folder)
        self.files |= {
            f"{folder}/vendor": f"{ids[0]:#06x}\n".encode(),
            f"{folder}/device": f"{ids[1]:#06x}\n".encode(),
            f"{folder}/class": f"{code:#08x}\n".encode(),
            f"{folder}/numa_node": f"{node}\n".encode(),
            f"{folder}/config": config(ids) if space is None else space,
        }
        if driver:
            self.folders.append(f"/sys/bus/pci/drivers/{driver}")
            self._link(f"{folder}/driver", f"/sys/bus/pci/drivers/{driver}")
        if smmu:
            self._link(f"{folder}/iommu", self.paths[smmu])
        if group is not None:
            place = f"/sys/kernel/iommu_groups/{group}"
            self._link(f"{folder}/iommu_group", place)
            self._link(f"{place}/devices/{address}", folder)
            self.files[f"{place}/reserved_regions"] = reserved.encode()
        if vf_of:
            parent = self.paths[vf_of]
            self._link(f"{folder}/physfn", parent)
            number = sum(path.startswith(f"{parent}/virtfn") for path in self.links)
            self._link(f"{parent}/virtfn{number}", folder)
        return self

    def tree(self, source="host.tar.zst"):
        return MemoryTree(source, self.files, self.links, self.folders, self.unreadable)

    def write(self, root):
        """Write them below a folder."""
        for path in self.folders:
            (root / path[1:]).mkdir(parents=True, exist_ok=True)
        for path, data in self.files.items():
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (root / path[1:]).write_bytes(data)
        for path, target in self.links.items():
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (root / path[1:]).symlink_to(target)
        return root

    def _link(self, path, target):
        """Add a relative link, as in sysfs."""
        self.links[path] = relpath(target, path.rpartition("/")[0])
