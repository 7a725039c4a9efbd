"""Merge several sources about one host: firmware tables, sysfs, libvirt."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from vmm_msi.types import Granule, HostTopology, PciFunction

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_msi.types import PciAddress


def join(sources: Sequence[HostTopology], name: str | None = None) -> HostTopology:
    """Merge several sources about one host.

    SMMUs, ITSes, routes and devices are those of the first source that has routes or devices, or
    else firmware's tables, since their ids mean nothing in another source. PCI functions are merged
    value by value; the first source that reports a value decides (:mod:`vmm_msi.host.crosscheck`
    compares them).

    :param sources: at least one, the most trusted first.
    :param name: what messages call the host; the default is the names of the sources.
    """
    base = max(sources, key=lambda s: (bool(s.routes or s.devices), s.is_described, bool(s.smmus)))
    granule_source = base
    if not base.granule_known:
        granule_source = next((source for source in sources if source.granule_known), base)
    names = dict.fromkeys(source.source for source in sources)
    return replace(
        base,
        source=" + ".join(names) if name is None else name,
        granule=granule_source.granule,
        granule_known=granule_source.granule_known,
        functions=_merged(function for source in sources for function in source.functions),
        missing=base.missing
        if base.is_described
        else tuple(gap for source in sources for gap in source.missing),
        table_errors=tuple(
            dict.fromkeys(error for source in sources for error in source.table_errors)
        ),
        lists_all_functions=any(
            source.lists_all_functions for source in sources if source.functions
        )
        or not any(source.functions for source in sources),
        unsafe_interrupts=frozenset().union(*(source.unsafe_interrupts for source in sources)),
        msi_bindings=next(
            (source.msi_bindings for source in sources if source.msi_bindings is not None), None
        ),
    )


def host_of_functions(
    source: str,
    functions: Iterable[PciFunction],
    granule: Granule | None = None,
    missing: tuple[str, ...] = (),
) -> HostTopology:
    """Return a host of which only PCI functions are known.

    :param granule: page size of its kernel; None if it is unknown.
    :param missing: what the source lacks and which HOST has it.
    """
    return HostTopology(
        source,
        Granule.K4 if granule is None else granule,
        smmus=(),
        itses=(),
        functions=tuple(functions),
        granule_known=granule is not None,
        missing=missing,
    )


def _merged(functions: Iterable[PciFunction]) -> tuple[PciFunction, ...]:
    merged: dict[PciAddress, PciFunction] = {}
    for function in functions:
        trusted = merged.get(function.address)
        merged[function.address] = function if trusted is None else _filled(trusted, function)
    return tuple(sorted(merged.values(), key=lambda function: function.address))


def _filled(function: PciFunction, other: PciFunction) -> PciFunction:
    """Return ``function`` with the values that only ``other`` has."""
    gaps = {field.name for field in fields(function) if _is_gap(getattr(function, field.name))}
    # These belong to a value that the two sources may have differently.
    if "iommu_group" not in gaps:
        gaps.discard("members")
    if "driver" not in gaps and function.driver != other.driver:
        gaps.discard("vfio")
    return replace(function, **{name: getattr(other, name) for name in gaps})


def _is_gap(value: object) -> bool:
    return value is None or value == ()
