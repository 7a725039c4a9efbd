"""Several sources about one host, as one host: firmware tables, sysfs, libvirt."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from vmm_msi.types import Granule, HostTopology, PciFunction

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_msi.types import PciAddress

#: Fields that go together: they are all of one source.
_GROUP = ("iommu_group", "members")


def join(sources: Sequence[HostTopology], name: str | None = None) -> HostTopology:
    """Return what several sources say of one host.

    SMMUs, ITSes, routes and devices are those of the first source that has routes or devices, as
    their ids mean nothing elsewhere. What is told of a PCI function is put together; where two
    sources tell the same, the first is believed (:mod:`vmm_msi.host.crosscheck` compares).

    :param sources: at least one.
    :param name: what to call it in messages; the default is the names of the sources.
    """
    base = next((one for one in sources if one.routes or one.devices), None) or next(
        (one for one in sources if one.smmus), sources[0]
    )
    teller = base if base.granule_known else next((s for s in sources if s.granule_known), base)
    complete = bool(base.routes or base.devices)
    return replace(
        base,
        source=" + ".join(dict.fromkeys(one.source for one in sources)) if name is None else name,
        granule=teller.granule,
        granule_known=teller.granule_known,
        functions=_functions(function for one in sources for function in one.functions),
        missing=() if complete else tuple(gap for one in sources for gap in one.missing),
    )


def host_of_functions(
    source: str,
    functions: Iterable[PciFunction],
    granule: Granule | None = None,
    missing: tuple[str, ...] = (),
) -> HostTopology:
    """Return a host of which nothing but PCI functions is known.

    :param granule: page size of its kernel; None where that is not known.
    :param missing: what would help somebody who looks for more.
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


def _functions(functions: Iterable[PciFunction]) -> tuple[PciFunction, ...]:
    found: dict[PciAddress, PciFunction] = {}
    for function in functions:
        known = found.get(function.address)
        found[function.address] = function if known is None else _both(known, function)
    return tuple(sorted(found.values(), key=lambda function: function.address))


def _both(first: PciFunction, second: PciFunction) -> PciFunction:
    """Return what ``first`` tells, and what only ``second`` does."""
    gaps = [field.name for field in fields(PciFunction) if _is_gap(getattr(first, field.name))]
    if "iommu_group" not in gaps:
        gaps = [name for name in gaps if name not in _GROUP]
    return replace(first, **{name: getattr(second, name) for name in gaps})


def _is_gap(value: object) -> bool:
    return value is None or value == ()
