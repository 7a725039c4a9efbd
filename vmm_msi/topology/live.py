"""The machine this runs on, as a host: its ACPI tables or its device tree."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi import topology
from vmm_msi.errors import UsageError
from vmm_msi.model import Granule

if TYPE_CHECKING:
    from vmm_msi.model import HostTopology

ACPI_TABLES = Path("/sys/firmware/acpi/tables")
DEVICE_TREE = Path("/sys/firmware/fdt")


def load_live() -> HostTopology:
    """Read this machine's IORT and APIC, or its device tree, with its kernel's page size.

    Both are readable by root only.

    :raise UsageError: when it has neither.
    :raise TopologyError: when what it has cannot be read.
    """
    granule = Granule(os.sysconf("SC_PAGE_SIZE"))
    if (ACPI_TABLES / "IORT").exists():
        return topology.load_host(ACPI_TABLES, granule)
    if DEVICE_TREE.exists():
        return topology.load_host(DEVICE_TREE, granule)
    raise UsageError(
        f"this machine has neither {ACPI_TABLES / 'IORT'} nor {DEVICE_TREE}, so it is no Arm host "
        "with an SMMU; name one with --host: a TOML file, a device-tree blob or a folder with "
        "IORT and APIC"
    )
