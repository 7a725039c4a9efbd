"""A host as its ACPI tables describe it: a folder with ``IORT`` and ``APIC``.

The folder is laid out like ``/sys/firmware/acpi/tables``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.model import Granule, HostTopology
from vmm_msi.topology.acpi_table import read_table
from vmm_msi.topology.iort import parse_iort
from vmm_msi.topology.iort_routes import routes, smmus
from vmm_msi.topology.madt import parse_madt

if TYPE_CHECKING:
    from pathlib import Path


def load_acpi(folder: Path, granule: Granule = Granule.K4) -> HostTopology:
    """Read the tables ``IORT`` and ``APIC`` (MADT) in ``folder``.

    Without APIC the bases of the ITSes are unknown: SMMUs and routes are there, ITSes are not.

    :param granule: page size of the host's kernel, which the tables do not tell.
    :raise TopologyError: when there is no IORT, or a table cannot be read or is malformed.
    """
    path, madt_path = folder / "IORT", folder / "APIC"
    data, madt = read_table(path), read_table(madt_path)
    if data is None:
        raise TopologyError(
            f"{folder}: IORT is missing; copy /sys/firmware/acpi/tables/IORT and APIC into it"
        )
    iort = parse_iort(data, str(path))
    itses = () if madt is None else parse_madt(madt, str(madt_path))
    return HostTopology(str(folder), granule, smmus(iort), itses, routes=routes(iort))
