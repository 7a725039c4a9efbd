"""A host from its own files: this machine's, those of a folder or those of a capture."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError, UsageError
from vmm_msi.host.files import THIS_MACHINE, UnreadableError, number, place
from vmm_msi.host.files.capture_paths import PAGE_SIZE
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.host.join import join
from vmm_msi.host.pci import sysfs
from vmm_msi.types import Granule, HostTopology

if TYPE_CHECKING:
    from vmm_msi.host.files import HostTree

ACPI_TABLES = Path("/sys/firmware/acpi/tables")
DEVICE_TREE = Path("/sys/firmware/fdt")
#: The device tree as a folder, which everybody can read.
DEVICE_TREE_FOLDER = "/proc/device-tree"


def load_live() -> HostTopology:
    """Read this machine, with its kernel's page size.

    The tables of the firmware are readable by root only.

    :raise UsageError: when it has neither an IORT nor a device tree with an SMMU or an ITS.
    :raise TopologyError: when what it has cannot be read or is malformed.
    """
    host = join(read_live(), THIS_MACHINE)
    if not host.missing:
        return host
    paths = (str(ACPI_TABLES / "IORT"), str(DEVICE_TREE))
    if any(map(os.path.exists, paths)):
        raise TopologyError("; ".join(host.missing))
    raise UsageError(
        f"this machine has neither {paths[0]} nor {paths[1]}, so it is no Arm host with an SMMU; "
        "name a HOST that is: a TOML file, a device-tree blob, a folder with IORT and APIC, or a "
        "capture"
    )


def this_machine() -> FolderTree:
    """Return the files of the machine that this runs on."""
    return FolderTree(Path("/"))


def read_live() -> tuple[HostTopology, ...]:
    """Return what each source on this machine says: :func:`read_sources`."""
    return read_sources(this_machine())


def read_host(tree: HostTree, granule: Granule | None = None) -> HostTopology:
    """Read a host from its files: the sources of :func:`read_sources` as one.

    :param granule: as there.
    :raise InputError: as there.
    """
    return join(read_sources(tree, granule), tree.source)


def read_sources(tree: HostTree, granule: Granule | None = None) -> tuple[HostTopology, ...]:
    """Return what each source in a host's files says, the most believed first.

    ACPI comes before a device tree, as in Linux ``arch/arm64/kernel/acpi.c``; sysfs is the last
    and always there. What the tables' absence means is said by its ``missing``.

    :param granule: page size of the host's kernel, where neither a capture nor this machine tells.
    :raise TopologyError: when a table is malformed.
    :raise InputError: when a file of sysfs has not what the kernel writes there.
    """
    told = _page_size(tree) or granule
    size = Granule.K4 if told is None else told
    tables = _Tables(tree, size)
    found = [source for source in (tables.acpi(), tables.device_tree()) if source is not None]
    found.append(
        HostTopology(
            place(tree, "/sys"),
            size,
            smmus=sysfs.read_smmus(tree),
            itses=(),
            functions=sysfs.read_functions(tree),
            missing=() if found else (tables.missing(),),
        )
    )
    return tuple(replace(one, granule_known=told is not None) for one in found)


def _page_size(tree: HostTree) -> Granule | None:
    if tree.source == THIS_MACHINE:
        return Granule(os.sysconf("SC_PAGE_SIZE"))
    size = number(tree, PAGE_SIZE, 10)
    if size is None:
        return None
    try:
        return Granule(size)
    except ValueError:
        raise UnreadableError(
            tree.source, PAGE_SIZE, f"{size} is no page size; valid are 4096, 16384 and 65536"
        ) from None


class _Tables:
    """What a host's firmware hands over.

    :ivar unreadable: what is there and cannot be read.
    """

    def __init__(self, tree: HostTree, granule: Granule) -> None:
        self.tree = tree
        self.granule = granule
        self.unreadable: list[UnreadableError] = []
        self.has_iort = False

    def acpi(self) -> HostTopology | None:
        iort, madt = (self._read(str(ACPI_TABLES / name)) for name in ("IORT", "APIC"))
        if iort is None:
            return None
        from vmm_msi.host.firmware.acpi import parse_acpi

        self.has_iort = True
        return parse_acpi(iort, madt, place(self.tree, str(ACPI_TABLES)), self.granule)

    def device_tree(self) -> HostTopology | None:
        path = str(DEVICE_TREE)
        data = self._read(path)
        if data is None:
            from vmm_msi.host.firmware.dt_folder import blob_of

            path = DEVICE_TREE_FOLDER
            data = blob_of(self.tree, path)
        if data is None:
            return None
        from vmm_msi.host.firmware.device_tree import parse_devicetree

        try:
            host = parse_devicetree(data, place(self.tree, path), self.granule)
        except TopologyError:
            # Beside ACPI there is one without devices: Linux drivers/firmware/efi/libstub/fdt.c.
            if self.has_iort or self.unreadable:
                return None
            raise
        return host if host.smmus or host.itses else None

    def missing(self) -> str:
        """Say why there are no tables."""
        if not self.unreadable:
            return (
                f"{self.tree.source} has neither {ACPI_TABLES / 'IORT'} nor a device tree with an "
                "SMMU or an ITS, which tell of the way to them; name a HOST that has, beside this "
                "one"
            )
        first = self.unreadable[0]
        return (
            f"{first.path} of {self.tree.source} tells of the way to SMMUs and ITSes, and cannot "
            f"be read: {first.reason}; try as root, or name a copy of it, which root made, as HOST"
        )

    def _read(self, path: str) -> bytes | None:
        try:
            return self.tree.read(path)
        except UnreadableError as error:
            self.unreadable.append(error)
            return None
