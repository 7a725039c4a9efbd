"""Read a host from its ACPI tables: ``IORT`` and ``APIC``, the MADT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.acpi_table import read_table
from vmm_msi.host.firmware.iort import parse_iort
from vmm_msi.host.firmware.iort_host import reserved_memory, segments, smmus, with_hw_msi
from vmm_msi.host.firmware.iort_routes import routes
from vmm_msi.host.firmware.madt import parse_madt
from vmm_msi.types import Granule, HostTopology

if TYPE_CHECKING:
    from pathlib import Path


def load_acpi(folder: Path, granule: Granule = Granule.K4) -> HostTopology:
    """Read the tables ``IORT`` and ``APIC`` in ``folder``, laid out like /sys/firmware/acpi/tables.

    :param granule: page size of the host's kernel, which the tables do not have.
    :raise TopologyError: as for :func:`parse_acpi`, or when the IORT is missing or a table cannot
        be read.
    """
    iort, madt = read_table(folder / "IORT"), read_table(folder / "APIC")
    if iort is None:
        raise TopologyError(
            f"{folder}: IORT is missing; copy /sys/firmware/acpi/tables/IORT and APIC into it"
        )
    return parse_acpi(iort, madt, str(folder), granule)


def parse_acpi(
    iort: bytes, madt: bytes | None, source: str, granule: Granule = Granule.K4
) -> HostTopology:
    """Read the two tables.

    :param iort: the bytes of the table ``IORT``.
    :param madt: the bytes of the table ``APIC``; without it the host has SMMUs and routes but no
        ITSes, whose bases are unknown.
    :param source: their folder or file, for messages.
    :param granule: page size of the host's kernel, which the tables do not have.
    :raise TopologyError: when a table is malformed, or the ID mappings cut the RequesterIDs into
        too many pieces.
    """
    table = parse_iort(iort, f"{source}/IORT")
    itses = () if madt is None else parse_madt(madt, f"{source}/APIC")
    return HostTopology(
        source,
        granule,
        smmus(table),
        itses,
        routes=with_hw_msi(table, routes(table), itses),
        segments=segments(table),
        reserved_memory=reserved_memory(table, granule),
    )
