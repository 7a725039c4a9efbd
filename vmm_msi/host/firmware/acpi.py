"""Read a host from its ACPI tables: ``IORT`` and ``APIC``, the MADT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.acpi_files import tables_in, tables_of
from vmm_msi.host.firmware.iort import parse_iort
from vmm_msi.host.firmware.iort_host import reserved_memory, segments, smmus, with_hw_msi
from vmm_msi.host.firmware.iort_routes import routes
from vmm_msi.host.firmware.madt import parse_madt
from vmm_msi.types import Firmware, Granule, HostTopology

if TYPE_CHECKING:
    from pathlib import Path

    from vmm_msi.host.firmware.acpi_files import AcpiFiles
    from vmm_msi.types import TableError


_NO_MADT = (
    "APIC is missing: copy /sys/firmware/acpi/tables/APIC of this machine next to IORT; it has the "
    "addresses of the ITSes"
)


def load_acpi(folder: Path, granule: Granule = Granule.K4) -> HostTopology:
    """Read the tables ``IORT`` and ``APIC`` in a folder.

    :param granule: page size of the host's kernel, which the tables do not have.
    :raise TopologyError: as for :func:`parse_acpi`, or when the IORT is missing or a table cannot
        be read.
    """
    return _topology(tables_in(folder), str(folder), granule)


def load_acpi_file(path: Path, data: bytes, granule: Granule = Granule.K4) -> HostTopology | None:
    """Read one table, or a text with the dumps of both.

    :param data: the content of the file.
    :param granule: page size of the host's kernel, which the tables do not have.
    :return: None if the file has neither.
    :raise TopologyError: as for :func:`parse_acpi`, or when the IORT is missing.
    """
    files = tables_of(path, data)
    return None if files is None else _topology(files, str(path), granule)


def _topology(files: AcpiFiles, source: str, granule: Granule) -> HostTopology:
    iort, apic = files
    if iort is None:
        raise TopologyError(
            f"{source}: IORT is missing; copy /sys/firmware/acpi/tables/IORT and APIC into one "
            "folder, or name a file with the output of acpidump"
        )
    names = iort.source, "" if apic is None else apic.source
    return parse_acpi(iort.data, None if apic is None else apic.data, source, granule, names)


def parse_acpi(
    iort: bytes,
    madt: bytes | None,
    source: str,
    granule: Granule = Granule.K4,
    names: tuple[str, str] | None = None,
) -> HostTopology:
    """Read the two tables.

    :param iort: the bytes of the table ``IORT``.
    :param madt: the bytes of the table ``APIC``; without it the host has SMMUs and routes but no
        ITSes, whose bases are unknown.
    :param source: their folder or file, for messages.
    :param granule: page size of the host's kernel, which the tables do not have.
    :param names: the files of both, for messages; the default is that of sysfs in ``source``.
    :raise TopologyError: when a table is malformed, or the ID mappings cut the RequesterIDs into
        too many pieces.
    """
    errors: list[TableError] = []
    iort_name, madt_name = names or (f"{source}/IORT", f"{source}/APIC")
    table = parse_iort(iort, iort_name, errors)
    itses = () if madt is None else parse_madt(madt, madt_name, errors)
    return HostTopology(
        source,
        granule,
        smmus(table),
        itses,
        routes=with_hw_msi(table, routes(table), itses),
        segments=segments(table),
        reserved_memory=reserved_memory(table, granule),
        missing=() if madt is not None else (_NO_MADT,),
        table_errors=tuple(errors),
        firmware=Firmware.ACPI,
    )
