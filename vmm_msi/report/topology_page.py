"""A host as a page: its parts as tables, and its devices as rows for CSV."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from vmm_msi.doctor.devices import with_routed
from vmm_msi.pages.blocks import Items, Page, Section, Table, Text, cells
from vmm_msi.quantity import quantity
from vmm_msi.report import system
from vmm_msi.report.host_map import host_picture
from vmm_msi.report.topology import group_text, sections

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_msi.host.crosscheck import Disagreement
    from vmm_msi.pages.blocks import Block, Cell
    from vmm_msi.report.columns import Rows
    from vmm_msi.types import HostTopology

#: Rows of a table that are shown without opening it, and rows from which it has a filter.
_MAX_ROWS: Final = 200
_FILTERED_ROWS: Final = 12

_COLUMNS: Final = (
    "address",
    "smmu",
    "stream_id",
    "its_group",
    "device_id",
    "iommu_group",
    "vectors",
    "driver",
)


def to_page(
    host: HostTopology, differences: Sequence[Disagreement] | None, provenance: Mapping[str, str]
) -> Page:
    """Return ``host`` as a page.

    :param differences: what its sources describe differently; None if it has only one.
    :param provenance: what the caller adds to it: version, date and command line.
    """
    return Page(
        f"Host {PurePath(host.source).name}",
        tuple(_blocks(host, differences)),
        {"host": host.source, **provenance},
        Table(
            "Devices",
            _COLUMNS,
            tuple(_device_rows(host)),
        ),
    )


def _blocks(host: HostTopology, differences: Sequence[Disagreement] | None) -> Iterator[Block]:
    bindings = "" if host.msi_bindings is None else f", guest MSI bindings {host.msi_bindings}"
    count = len(host.functions or host.devices)
    parts = (
        quantity(len(host.smmus), "SMMU"),
        quantity(len(host.itses), "ITS"),
        quantity(count, "PCI function") if count else "no PCI functions listed",
        f"stage 2 granule {host.granule}{bindings}",
    )
    yield Text(f"{', '.join(parts)}.")
    gaps = (*host.missing, *(f"warning: {error}" for error in host.table_errors))
    if gaps:
        yield Items(gaps)
    yield host_picture(with_routed(host, host.function_by_address))
    for rows in sections(host):
        yield from _table(rows)
    if differences is not None:
        yield from _table(system.disagreements(differences))


def _table(rows: Rows) -> Iterator[Block]:
    count = len(rows.rows)
    if count:
        table = Table(
            f"{rows.title} ({count})",
            tuple(rows.head),
            tuple(cells(*row) for row in rows.rows),
            filterable=count >= _FILTERED_ROWS,
        )
        yield table if count <= _MAX_ROWS else Section(table.caption, (table,), folded=True)
    else:
        yield Text(f"{rows.title}: {rows.note or 'none'}.")


def _device_rows(host: HostTopology) -> Iterator[tuple[Cell, ...]]:
    """Yield a row for each device and PCI function, by address; what is unknown is empty."""
    functions = host.function_by_address
    devices = with_routed(host, functions).device_by_address
    for address in sorted({*devices, *functions}):
        device, function = devices.get(address), functions.get(address)
        if device is None:
            known = ("",) * 6
        else:
            has_smmu, has_its = device.smmu is not None, bool(device.its_group)
            known = (
                str(device.smmu) if has_smmu else "",
                str(device.stream_id) if has_smmu else "",
                group_text(device.its_group) if has_its else "",
                str(device.device_id) if has_its else "",
                str(device.iommu_group) if device.iommu_group >= 0 else "",
                str(device.vectors),
            )
        yield cells(address, *known, (function and function.driver) or "")
