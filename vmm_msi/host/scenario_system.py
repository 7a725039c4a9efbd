"""What firmware and the operating system of a host in a scenario file report of it.

A scenario that is written by hand lists devices; a host that is exported has the ranges and lists
of its sources too.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, TypedDict

from vmm_msi.host.scenario_problems import UnusableError
from vmm_msi.host.scenario_tables import FIRMWARE
from vmm_msi.types import (
    Firmware,
    Pa,
    PciAddress,
    PciFunction,
    PciRoute,
    PciSegment,
    ReservedMemory,
    ReservedRegion,
    TableError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from vmm_msi.host.scenario_problems import Problems
    from vmm_msi.host.scenario_tables import (
        FunctionTable,
        HostTable,
        ReservedMemoryTable,
        ReservedTable,
        RouteTable,
    )
    from vmm_msi.tomlfile import KeyPath

_ROUTES: KeyPath = ("host", "route")


class SystemFacts(TypedDict):
    """Arguments of a :class:`~vmm_msi.types.HostTopology`."""

    routes: tuple[PciRoute, ...]
    functions: tuple[PciFunction, ...]
    segments: tuple[PciSegment, ...]
    reserved_memory: tuple[ReservedMemory, ...]
    table_errors: tuple[TableError, ...]
    firmware: Firmware | None
    missing: tuple[str, ...]
    lists_all_functions: bool
    unsafe_interrupts: frozenset[str]
    msi_bindings: int | None


class SystemReader:
    """Reads the tables of ``[host]`` that are not its hardware.

    :param problems: where contradictions are recorded.
    :param smmus: ids of the SMMUs.
    :param itses: ids of the ITSes.
    """

    def __init__(self, problems: Problems, smmus: Collection[int], itses: Collection[int]) -> None:
        self._problems = problems
        self._smmus = smmus
        self._itses = itses

    def read(self, table: HostTable) -> SystemFacts:
        """Return what a host has in addition to its hardware."""
        problems = self._problems
        return {
            "routes": self._read_routes(table.route),
            "functions": tuple(problems.each(table.function, ("host", "function"), self._function)),
            "segments": tuple(
                PciSegment(int(segment.number), segment.ats, segment.canwbs)
                for segment in table.segment
            ),
            "reserved_memory": tuple(
                problems.each(
                    table.reserved_memory, ("host", "reserved_memory"), self._reserved_memory
                )
            ),
            "table_errors": tuple(TableError(e.table, e.text) for e in table.table_error),
            "firmware": None if table.firmware is None else FIRMWARE[table.firmware],
            "missing": table.missing,
            "lists_all_functions": table.lists_all_functions,
            "unsafe_interrupts": frozenset(table.unsafe_interrupts),
            "msi_bindings": _number(table.msi_bindings),
        }

    def _read_routes(self, tables: Sequence[RouteTable]) -> tuple[PciRoute, ...]:
        """Return the routes in the order of their ranges, which do not overlap."""
        places: dict[PciRoute, KeyPath] = {}

        def read(table: RouteTable, at: KeyPath) -> PciRoute:
            route = self._route(table, at)
            places[route] = at
            return route

        routes = sorted(
            self._problems.each(tables, _ROUTES, read), key=lambda r: (r.segment, r.first)
        )
        for low, high in pairwise(routes):
            if low.segment == high.segment and high.first <= low.last:
                other = self._problems.show(places[low])
                self._problems.add(places[high], f"overlaps {other}; routes are disjoint")
        return tuple(routes)

    def _route(self, table: RouteTable, at: KeyPath) -> PciRoute:
        problems = self._problems
        first = problems.attempt(lambda: problems.address(table.first, (*at, "first")))
        last = problems.attempt(lambda: problems.address(table.last, (*at, "last")))
        valid = [
            problems.attempt(partial(problems.known, its, self._itses, place, ("host", "its")))
            for index, its in enumerate(table.its_group)
            for place in [(*at, "its_group", index)]
        ]
        if table.smmu is not None:
            problems.known(table.smmu, self._smmus, (*at, "smmu"), ("host", "smmu"))
        if first is None or last is None or not all(valid):
            raise UnusableError
        if first.segment != last.segment or last.rid < first.rid:
            problems.fail((*at, "last"), f"{last} is not behind {first} in its segment")
        device_id = first.segment << 16 | first.rid
        return PciRoute(
            segment=first.segment,
            first=first.rid,
            last=last.rid,
            smmu=_number(table.smmu),
            stream_base=first.rid if table.stream_id is None else int(table.stream_id),
            its_group=tuple(map(int, table.its_group)),
            device_base=device_id if table.device_id is None else int(table.device_id),
            one_stream=table.one_stream_id,
            one_device=table.one_device_id,
            reserved=_regions(table.reserved),
        )

    def _function(self, table: FunctionTable, at: KeyPath) -> PciFunction:
        problems = self._problems
        address = problems.address(table.address, (*at, "address"))
        problems.first(("function", address), at, "address", str(address))

        def addresses(key: str, texts: Sequence[str]) -> tuple[PciAddress, ...]:
            return tuple(
                problems.address(text, (*at, key, index)) for index, text in enumerate(texts)
            )

        physical = table.physical_function
        return PciFunction(
            address=address,
            iommu_group=_number(table.iommu_group),
            members=addresses("members", table.members),
            numa_node=_number(table.numa_node),
            driver=table.driver,
            physical_function=None
            if physical is None
            else problems.address(physical, (*at, "physical_function")),
            virtual_functions=addresses("virtual_functions", table.virtual_functions),
            smmu=None if table.smmu_base is None else Pa(table.smmu_base),
            class_code=_number(table.class_code),
            vectors=_number(table.vectors),
            ats=table.ats,
            pasid=table.pasid,
            dma_rids=tuple(map(int, table.dma_rids)),
            msi_rid=_number(table.msi_rid),
            reserved=None if table.reserved is None else _regions(table.reserved),
            vfio=table.vfio,
        )

    def _reserved_memory(self, table: ReservedMemoryTable, at: KeyPath) -> ReservedMemory:
        self._problems.known(table.smmu, self._smmus, (*at, "smmu"), ("host", "smmu"))
        self._problems.range(table.base, table.size, at, 1 << 64)
        return ReservedMemory(
            int(table.base),
            int(table.size),
            int(table.smmu),
            int(table.first_stream),
            int(table.last_stream),
            table.relaxable,
        )


def _number(value: int | None) -> int | None:
    return None if value is None else int(value)


def _regions(tables: Sequence[ReservedTable]) -> tuple[ReservedRegion, ...]:
    return tuple(ReservedRegion(int(t.base), int(t.size), t.type) for t in tables)
