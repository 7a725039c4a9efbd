"""Read a host from its own files: this machine's, a folder's or a capture's."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError, UnreadableError
from vmm_msi.host import msi_bindings
from vmm_msi.host.files import THIS_MACHINE, number, shown_path
from vmm_msi.host.files.capture_paths import PAGE_SIZE
from vmm_msi.host.pci.functions import read_functions
from vmm_msi.host.pci.sysfs import read_smmus
from vmm_msi.types import Granule, HostTopology

if TYPE_CHECKING:
    from vmm_msi.host.files import HostTree

ACPI_TABLES = Path("/sys/firmware/acpi/tables")
DEVICE_TREE = Path("/sys/firmware/fdt")
#: The device tree as a folder, which every user can read.
DEVICE_TREE_FOLDER = "/proc/device-tree"


def read_sources(tree: HostTree, granule: Granule | None = None) -> tuple[HostTopology, ...]:
    """Return what each source in a host's files reports, the most trusted first.

    ACPI comes before a device tree, as in Linux ``arch/arm64/kernel/acpi.c``. sysfs comes last and
    is always present; its ``missing`` says why there are no tables.

    :param granule: page size of the host's kernel, used unless a capture or this machine has it.
    :raise TopologyError: when a table is malformed.
    :raise InputError: when a file of sysfs has something that the kernel does not write there.
    """
    page_size = _page_size(tree) or granule
    size = Granule.K4 if page_size is None else page_size
    tables = _Tables(tree, size)
    sources = [source for source in (tables.acpi(), tables.device_tree()) if source is not None]
    sources.append(
        HostTopology(
            shown_path(tree, "/sys"),
            size,
            smmus=read_smmus(tree),
            itses=(),
            functions=read_functions(tree),
            missing=() if sources else (tables.missing(),),
            unsafe_interrupts=_unsafe_interrupts(tree),
            msi_bindings=_msi_bindings(tree),
        )
    )
    return tuple(replace(source, granule_known=page_size is not None) for source in sources)


def _unsafe_interrupts(tree: HostTree) -> frozenset[str]:
    """Return the modules with allow_unsafe_interrupts: Linux ``kernel/params.c`` param_get_bool.

    A file that cannot be read counts as off, which is the default; the doctor reports it.
    """
    modules = set()
    for module in ("iommufd", "vfio_iommu_type1"):
        with suppress(UnreadableError):
            value = tree.read(f"/sys/module/{module}/parameters/allow_unsafe_interrupts")
            if value is not None and value.strip() == b"Y":
                modules.add(module)
    return frozenset(modules)


def _msi_bindings(tree: HostTree) -> int | None:
    """Return the version of the kernel's interface for guest MSI bindings.

    Only root can read the file; for other users it counts as missing.
    """
    with suppress(UnreadableError, ValueError):
        data = tree.read(str(msi_bindings.PATH), msi_bindings.MAX_BYTES)
        if data is not None:
            return msi_bindings.read_version(data.decode("ascii"))
    return None


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
            tree.source, PAGE_SIZE, f"{size} is not a page size; use 4096, 16384 or 65536"
        ) from None


class _Tables:
    """The tables that a host's firmware passes to its kernel.

    :ivar unreadable: the tables that exist and cannot be read.
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
        return parse_acpi(iort, madt, shown_path(self.tree, str(ACPI_TABLES)), self.granule)

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
            host = parse_devicetree(data, shown_path(self.tree, path), self.granule)
        except TopologyError:
            # The tree beside ACPI has no devices: Linux drivers/firmware/efi/libstub/fdt.c.
            if self.has_iort or self.unreadable:
                return None
            raise
        # Without PCI hosts it is that tree, too; with them it shows that they have no SMMU.
        return host if host.smmus or host.itses or host.segments else None

    def missing(self) -> str:
        """Return why there are no tables and what to use instead."""
        if not self.unreadable:
            return (
                f"{self.tree.source} has neither {ACPI_TABLES / 'IORT'} nor a device tree with an "
                "SMMU or an ITS, which show how devices reach them; name a HOST that has one as "
                "well"
            )
        first = self.unreadable[0]
        return (
            f"{first.path} of {self.tree.source} shows how devices reach SMMUs and ITSes, and "
            f"cannot be read: {first.reason}; run as root, or name a copy made by root as HOST"
        )

    def _read(self, path: str) -> bytes | None:
        try:
            return self.tree.read(path)
        except UnreadableError as error:
            self.unreadable.append(error)
            return None
