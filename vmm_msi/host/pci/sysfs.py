"""Read what a host's kernel lists in sysfs: PCI functions, IOMMU groups and SMMUs.

Every user can read all of it but most of a configuration space. Folders and files are those of
Linux ``Documentation/ABI/testing/sysfs-bus-pci``, ``sysfs-class-iommu`` and
``sysfs-kernel-iommu_groups``. Any :class:`~vmm_msi.host.files.HostTree` will do: this machine, a
folder, a capture.
"""

from __future__ import annotations

import re
from functools import cached_property
from posixpath import normpath
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import InputError, TopologyError
from vmm_msi.host.files import UnreadableError, name_of, number, text
from vmm_msi.host.pci.reserved_regions import parse_reserved_regions
from vmm_msi.host.pci.vfio_drivers import is_listed, vfio_modules
from vmm_msi.types import Pa, PciAddress, PciFunction, Smmu
from vmm_msi.types.pci_function import VfioEvidence

if TYPE_CHECKING:
    from vmm_msi.host.files import HostTree
    from vmm_msi.types import ReservedRegion

DEVICES = "/sys/bus/pci/devices"
IOMMUS = "/sys/class/iommu"
GROUPS = "/sys/kernel/iommu_groups"
#: Limit of PCI functions of one host; with SR-IOV large ones have 2,000.
MAX_FUNCTIONS = 10_000

# The names that arm_smmu_device_probe of drivers/iommu/arm/arm-smmu-v3 and arm-smmu gives.
_SMMU = re.compile(r"smmu(3?)\.0x([0-9a-f]{1,16})", re.IGNORECASE)
_VIRTUAL = re.compile(r"virtfn[0-9]+")
#: The end of the address space of SMMUs and ITSes.
_PA_END = 1 << 52


class DrivenSmmu(NamedTuple):
    """An SMMU that a kernel driver has taken over.

    :param base: address of its registers.
    :param version: of the architecture: 3 for an SMMUv3, 2 for an SMMUv1 or v2.
    :param device: name of its platform device; empty if the kernel's link does not show it.
    """

    base: Pa
    version: int
    device: str = ""


def driven_smmus(tree: HostTree) -> tuple[DrivenSmmu, ...]:
    """Return the SMMUs that the kernel has a driver for, by address.

    :raise UnreadableError: when the folder cannot be listed.
    """
    smmus = []
    for name in tree.names(IOMMUS):
        smmu = _smmu_named(name)
        if smmu is not None:
            # ../../devices/platform/DEVICE/iommu/smmu3.0x…
            target = (tree.link(f"{IOMMUS}/{name}") or "").split("/")
            smmus.append(smmu._replace(device=target[-3] if len(target) > 2 else ""))
    return tuple(sorted(smmus))


def read_smmus(tree: HostTree) -> tuple[Smmu, ...]:
    """Return the SMMUs that the kernel has a driver for, by address; their ids count from 0.

    An SMMUv1 or v2 counts as one that cannot nest; sysfs does not show whether an SMMUv3 can.

    :raise UnreadableError: when the folder cannot be listed.
    """
    return tuple(
        Smmu(index, smmu.base, nested=smmu.version == 3, version=smmu.version)
        for index, smmu in enumerate(driven_smmus(tree))
    )


class PciDevices:
    """The PCI devices that the kernel of one host lists.

    Folders, IOMMU groups and modules are looked up once.
    """

    def __init__(self, tree: HostTree) -> None:
        self._tree = tree
        self._folders: dict[PciAddress, str] = {}
        self._members: dict[int, tuple[PciAddress, ...]] = {}
        self._reserved: dict[int, tuple[ReservedRegion, ...] | None] = {}

    def addresses(self) -> tuple[PciAddress, ...]:
        """Return the addresses of all devices, sorted.

        :raise UnreadableError: when the folder of all devices cannot be listed.
        :raise TopologyError: when there are more than :data:`MAX_FUNCTIONS`.
        """
        addresses = tuple(sorted(filter(None, map(_address, self._tree.names(DEVICES)))))
        if len(addresses) > MAX_FUNCTIONS:
            raise TopologyError(
                f"{self._tree.source}: {len(addresses)} PCI functions; the limit is {MAX_FUNCTIONS}"
            )
        return addresses

    def exists(self, address: PciAddress) -> bool:
        """Return whether the host has a device at ``address``."""
        return self._tree.exists(f"{DEVICES}/{address}")

    def is_linked(self, address: PciAddress) -> bool:
        """Return whether the device's entry is a link, as in a real sysfs."""
        return self.folder(address) != f"{DEVICES}/{address}"

    def folder(self, address: PciAddress) -> str:
        """Return the path of the device's folder, below those of the bridges above it."""
        if address not in self._folders:
            path = f"{DEVICES}/{address}"
            link = self._tree.link(path)
            if link is not None:
                path = normpath(link if link.startswith("/") else f"{DEVICES}/{link}")
            self._folders[address] = path
        return self._folders[address]

    def parent(self, address: PciAddress) -> str:
        """Return the name of the folder above the device's: its bridge, or the root bus."""
        return self.folder(address).rsplit("/", 2)[-2]

    def link(self, address: PciAddress, name: str) -> str | None:
        """Return the name of what a link of the device leads to; None if there is no such link."""
        return name_of(self._tree, f"{self.folder(address)}/{name}")

    def ids(self, address: PciAddress) -> tuple[int | None, int | None]:
        """Return the device's vendor id and device id; None for one that cannot be read."""
        folder = self.folder(address)
        return self._number(f"{folder}/vendor", 16), self._number(f"{folder}/device", 16)

    def class_code(self, address: PciAddress) -> int | None:
        """Return the device's class code, 24 bits; None if it cannot be read."""
        return self._number(f"{self.folder(address)}/class", 16)

    def bridge(self, address: PciAddress) -> PciAddress | None:
        """Return the bridge above the device; None on a root bus."""
        return _address(self.parent(address))

    def read_config(self, address: PciAddress, offset: int, size: int) -> bytes:
        """Return a part of the device's configuration space, less if the file ends before.

        :raise UnreadableError: when it cannot be read.
        """
        return self._tree.read_part(f"{self.folder(address)}/config", offset, size) or b""

    def function(self, address: PciAddress) -> PciFunction:
        """Return what the links and files of the device's folder show.

        Its configuration space, aliases and reserved regions are not read.
        """
        folder = self.folder(address)
        names = self._names(folder)

        def link(name: str) -> str | None:
            return name_of(self._tree, f"{folder}/{name}") if name in names else None

        group = _decimal(link("iommu_group"))
        node = self._number(f"{folder}/numa_node", 10)
        smmu = _smmu_named(link("iommu") or "")
        driver = link("driver")
        return PciFunction(
            address=address,
            iommu_group=group,
            members=() if group is None else self.members(group),
            # -1 if it belongs to no node: Linux include/linux/numa.h NUMA_NO_NODE.
            numa_node=None if node is None or node < 0 else node,
            driver=driver,
            physical_function=_address(link("physfn")),
            virtual_functions=tuple(
                filter(None, (_address(link(name)) for name in _virtual_functions(names)))
            ),
            smmu=None if smmu is None else smmu.base,
            class_code=self.class_code(address),
            vfio=self._vfio_evidence(driver, names),
        )

    def members(self, group: int) -> tuple[PciAddress, ...]:
        """Return the PCI devices of an IOMMU group, sorted."""
        if group not in self._members:
            names = self._names(f"{GROUPS}/{group}/devices")
            self._members[group] = tuple(sorted(filter(None, map(_address, names))))
        return self._members[group]

    def reserved_regions(self, group: int) -> tuple[ReservedRegion, ...] | None:
        """Return the reserved regions of an IOMMU group; None if they cannot be read.

        :raise InputError: when the file has something that the kernel does not write there.
        """
        if group not in self._reserved:
            path = f"{GROUPS}/{group}/reserved_regions"
            try:
                listing = text(self._tree, path)
            except UnreadableError:
                listing = None
            self._reserved[group] = (
                None
                if listing is None
                else parse_reserved_regions(listing, f"{path} of {self._tree.source}")
            )
        return self._reserved[group]

    @cached_property
    def _vfio_modules(self) -> frozenset[str]:
        return vfio_modules(self._tree)

    def _vfio_evidence(self, driver: str | None, names: tuple[str, ...]) -> VfioEvidence | None:
        if "vfio-dev" in names:
            return VfioEvidence.VFIO_DEV
        if driver is not None and is_listed(driver, self._vfio_modules):
            return VfioEvidence.MODULES_ALIAS
        return None

    def _names(self, folder: str) -> tuple[str, ...]:
        """Return the names in a folder; none also if it cannot be listed."""
        try:
            return self._tree.names(folder)
        except UnreadableError:
            return ()

    def _number(self, path: str, base: int) -> int | None:
        """Return a file's number; None also if it cannot be read."""
        try:
            return number(self._tree, path, base)
        except UnreadableError:
            return None


def _virtual_functions(names: tuple[str, ...]) -> list[str]:
    """Return the links to virtual functions, in the order of their numbers."""
    links = [name for name in names if _VIRTUAL.fullmatch(name)]
    return sorted(links, key=lambda name: (len(name), name))


def _smmu_named(name: str) -> DrivenSmmu | None:
    """Return the SMMU that the kernel calls ``name``; None if it is not an SMMU's name."""
    match = _SMMU.fullmatch(name)
    if match is None:
        return None
    base = int(match[2], 16)
    return DrivenSmmu(Pa(base), 3 if match[1] else 2) if base < _PA_END else None


def _address(name: str | None) -> PciAddress | None:
    if name is None:
        return None
    try:
        return PciAddress.parse(name)
    except InputError:
        return None


def _decimal(name: str | None) -> int | None:
    return int(name) if name is not None and name.isascii() and name.isdigit() else None
