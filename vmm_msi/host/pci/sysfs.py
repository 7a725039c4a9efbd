"""What a host's kernel lists in sysfs: PCI functions, IOMMU groups and SMMUs.

Everything but most of a configuration space can be read by whoever is not root. Folders and files
are those of Linux ``Documentation/ABI/testing/sysfs-bus-pci``, ``sysfs-class-iommu`` and
``sysfs-kernel-iommu_groups``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from posixpath import normpath
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError
from vmm_msi.host.files import UnreadableError, name_of, number, text
from vmm_msi.host.pci.aliases import PciPlace, rids
from vmm_msi.host.pci.config_space import PciConfig, read_config
from vmm_msi.types import Pa, PciAddress, PciFunction, Smmu
from vmm_msi.types.reserved import parse_reserved_regions

if TYPE_CHECKING:
    from vmm_msi.host.files import HostTree
    from vmm_msi.types import ReservedRegion

DEVICES = "/sys/bus/pci/devices"
IOMMUS = "/sys/class/iommu"
GROUPS = "/sys/kernel/iommu_groups"

# arm_smmu_device_probe of drivers/iommu/arm/arm-smmu-v3 and arm-smmu name what they found so.
_SMMU = re.compile(r"smmu(3?)\.0x([0-9a-f]{1,16})", re.IGNORECASE)
_VIRTUAL = re.compile(r"virtfn[0-9]+")
#: The address space of SMMUs and ITSes.
_PA_END = 1 << 52


@dataclass(frozen=True, slots=True)
class _Group:
    members: tuple[PciAddress, ...]
    reserved: tuple[ReservedRegion, ...] | None


def read_smmus(tree: HostTree) -> tuple[Smmu, ...]:
    """Return the SMMUs that the kernel has a driver for, by address; their ids count from 0.

    An SMMUv1 or v2 counts as one that cannot nest; whether an SMMUv3 can is not told.

    :raise UnreadableError: when the folder cannot be listed.
    """
    found = sorted(filter(None, map(_smmu_of, tree.names(IOMMUS))))
    return tuple(
        Smmu(index, base, nested=version == 3, version=version)
        for index, (base, version) in enumerate(found)
    )


def read_functions(tree: HostTree) -> tuple[PciFunction, ...]:
    """Return the PCI functions that the kernel lists, by address.

    What a folder does not have, or what cannot be read, is left open.

    :raise UnreadableError: when the folder with all of them cannot be listed.
    :raise InputError: when a file has not what the kernel writes there.
    """
    addresses = sorted(filter(None, map(_address, tree.names(DEVICES))))
    return _Reader(tree, addresses).functions()


class _Reader:
    def __init__(self, tree: HostTree, addresses: list[PciAddress]) -> None:
        self.tree = tree
        self.folders = {address: self._folder(address) for address in addresses}
        self.places = {address: self._place(address) for address in addresses}
        self.groups: dict[int, _Group] = {}

    def functions(self) -> tuple[PciFunction, ...]:
        return tuple(self._function(place) for place in self.places.values())

    def _folder(self, address: PciAddress) -> str:
        """Return where a function's folder is, so that its link is followed once."""
        path = f"{DEVICES}/{address}"
        link = self.tree.link(path)
        if link is None:
            return path
        return normpath(f"{DEVICES}/{link}" if not link.startswith("/") else link)

    def _place(self, address: PciAddress) -> PciPlace:
        folder = self.folders[address]
        vendor, device = (self._number(f"{folder}/{name}", 16) for name in ("vendor", "device"))
        return PciPlace(
            address,
            vendor or 0,
            device or 0,
            self._config(folder),
            _address(folder.rsplit("/", 2)[-2]),
        )

    def _config(self, folder: str) -> PciConfig:
        path = f"{folder}/config"
        try:
            return read_config(lambda offset, size: self.tree.read_part(path, offset, size) or b"")
        except UnreadableError:
            return PciConfig()

    def _function(self, place: PciPlace) -> PciFunction:
        folder = self.folders[place.address]
        names = self._names(folder)

        def link(name: str) -> str | None:
            return name_of(self.tree, f"{folder}/{name}") if name in names else None

        group = _decimal(link("iommu_group"))
        listed = _Group((), None) if group is None else self._group(group)
        # Without the link nothing is known of what is above.
        linked = folder != f"{DEVICES}/{place.address}"
        aliases = rids(place, self.places) if linked else None
        node = self._number(f"{folder}/numa_node", 10)
        smmu = _smmu_of(link("iommu") or "")
        return PciFunction(
            address=place.address,
            iommu_group=group,
            members=listed.members,
            # -1 where there is none: Linux include/linux/numa.h NUMA_NO_NODE.
            numa_node=None if node is None or node < 0 else node,
            driver=link("driver"),
            physical_function=_address(link("physfn")),
            virtual_functions=tuple(
                filter(None, (_address(link(name)) for name in _virtual_functions(names)))
            ),
            smmu=None if smmu is None else smmu[0],
            class_code=self._number(f"{folder}/class", 16),
            vectors=place.config.vectors,
            ats=place.config.ats,
            pasid=place.config.pasid,
            dma_rids=() if aliases is None else aliases[0],
            msi_rid=None if aliases is None else aliases[1],
            reserved=listed.reserved,
        )

    def _group(self, group: int) -> _Group:
        if group not in self.groups:
            folder = f"{GROUPS}/{group}"
            members = filter(None, map(_address, self._names(f"{folder}/devices")))
            self.groups[group] = _Group(tuple(sorted(members)), self._reserved(folder))
        return self.groups[group]

    def _reserved(self, folder: str) -> tuple[ReservedRegion, ...] | None:
        path = f"{folder}/reserved_regions"
        try:
            listing = text(self.tree, path)
        except UnreadableError:
            return None
        if listing is None:
            return None
        return parse_reserved_regions(listing, f"{path} of {self.tree.source}")

    def _names(self, folder: str) -> tuple[str, ...]:
        """Return what is in a folder; nothing also where it cannot be listed."""
        try:
            return self.tree.names(folder)
        except UnreadableError:
            return ()

    def _number(self, path: str, base: int) -> int | None:
        """Return a file's number; None also where it cannot be read."""
        try:
            return number(self.tree, path, base)
        except UnreadableError:
            return None


def _virtual_functions(names: tuple[str, ...]) -> list[str]:
    """Return the links to virtual functions, in the order of their numbers."""
    found = [name for name in names if _VIRTUAL.fullmatch(name)]
    return sorted(found, key=lambda name: (len(name), name))


def _smmu_of(name: str) -> tuple[Pa, int] | None:
    """Return the address and the version of the SMMU that the kernel calls ``name``."""
    match = _SMMU.fullmatch(name)
    if match is None:
        return None
    base = int(match[2], 16)
    return (Pa(base), 3 if match[1] else 2) if base < _PA_END else None


def _address(name: str | None) -> PciAddress | None:
    if name is None:
        return None
    try:
        return PciAddress.parse(name)
    except InputError:
        return None


def _decimal(name: str | None) -> int | None:
    return int(name) if name is not None and name.isascii() and name.isdigit() else None
