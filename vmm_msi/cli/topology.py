"""``vmm-msi topology``: show what is known of a host."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format, add_granule, load_host, print_json
from vmm_msi.model import PciAddress
from vmm_msi.report.columns import aligned

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_msi.model import HostDevice, HostTopology, PciRoute

#: Version of the JSON form; it goes up when a key changes its meaning or goes away.
SCHEMA = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vmm-msi topology``."""
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    summary = "show SMMUs, ITSes, routes and devices of a host"
    show = actions.add_parser("show", help=summary, description=summary, allow_abbrev=False)
    show.add_argument(
        "host",
        metavar="HOST",
        type=Path,
        help="a .toml file with [host], a device tree blob, or a folder with the ACPI tables IORT "
        "and APIC",
    )
    add_format(show)
    add_granule(show)


def run(args: argparse.Namespace) -> int:
    """Do what ``args`` say and return the exit code."""
    host = load_host(args)
    if args.format == "json":
        print_json(to_json(host))
    else:
        print("\n".join(to_lines(host)))
    return 0


def to_json(host: HostTopology) -> dict[str, object]:
    """Return ``host`` as JSON of schema 1: addresses and IDs are hex strings."""
    return {
        "schema": SCHEMA,
        "source": host.source,
        "granule": str(host.granule),
        "smmus": [
            {
                "id": smmu.id,
                "base": None if smmu.base is None else str(smmu.base),
                "nested": smmu.nested,
            }
            for smmu in host.smmus
        ],
        "itses": [
            {"id": its.id, "base": str(its.base), "doorbell": str(its.doorbell)}
            for its in host.itses
        ],
        "routes": [
            {
                "segment": route.segment,
                "first": str(PciAddress.from_rid(route.segment, route.first)),
                "last": str(PciAddress.from_rid(route.segment, route.last)),
                "smmu": route.smmu,
                "stream_id": None if route.smmu is None else f"{route.stream_base:#x}",
                "its_group": list(route.its_group),
                "device_id": f"{route.device_base:#x}" if route.its_group else None,
            }
            for route in host.routes
        ],
        "devices": [_device_json(device) for device in host.devices],
    }


def _device_json(device: HostDevice) -> dict[str, object]:
    return {
        "address": str(device.address),
        "smmu": device.smmu,
        "stream_id": str(device.stream_id),
        "its_group": list(device.its_group),
        "device_id": str(device.device_id),
        "iommu_group": device.iommu_group,
        "vectors": device.vectors,
        "reserved": [
            {"base": f"{region.base:#x}", "size": f"{region.size:#x}", "type": str(region.kind)}
            for region in device.reserved
        ],
    }


def to_lines(host: HostTopology) -> Iterator[str]:
    """Yield ``host`` as lines for people."""
    yield f"{host.source}: stage 2 granule {host.granule}"
    yield from _table(
        "SMMUs",
        ("id", "base", "nested"),
        [
            (str(smmu.id), "-" if smmu.base is None else str(smmu.base), _yes(smmu.nested))
            for smmu in host.smmus
        ],
    )
    yield from _table(
        "ITSes",
        ("id", "base", "doorbell"),
        [(str(its.id), str(its.base), str(its.doorbell)) for its in host.itses],
    )
    if host.routes and not host.itses:
        yield "  (APIC is missing: copy /sys/firmware/acpi/tables/APIC next to IORT)"
    yield from _table(
        "Routes",
        ("first", "last", "SMMU", "StreamIDs", "ITS group", "DeviceIDs"),
        list(_route_rows(host.routes)),
    )
    yield from _table(
        "Devices",
        ("address", "SMMU", "StreamID", "ITS group", "DeviceID", "IOMMU group", "vectors"),
        [
            (
                str(device.address),
                "-" if device.smmu is None else str(device.smmu),
                str(device.stream_id),
                _group(device.its_group),
                str(device.device_id),
                str(device.iommu_group),
                str(device.vectors),
            )
            for device in host.devices
        ],
    )


def _route_rows(routes: Sequence[PciRoute]) -> Iterator[tuple[str, ...]]:
    """Yield one row per route; neighbours that share all their IDs share a row."""
    for run in _constant_runs(routes):
        low, high = run[0], run[-1]
        yield (
            str(PciAddress.from_rid(low.segment, low.first)),
            str(PciAddress.from_rid(high.segment, high.last)),
            "-" if low.smmu is None else str(low.smmu),
            "-" if low.smmu is None else _ids(low.stream_base, run),
            _group(low.its_group),
            _ids(low.device_base, run) if low.its_group else "-",
        )


def _constant_runs(routes: Sequence[PciRoute]) -> Iterator[list[PciRoute]]:
    """Group the routes of single RequesterIDs that follow each other and have equal IDs."""

    def key(item: tuple[int, PciRoute]) -> tuple[object, ...]:
        index, route = item
        single = route.first == route.last
        return (
            route.segment,
            route.first - index if single else -1 - index,
            route.smmu,
            route.stream_base,
            route.its_group,
            route.device_base,
        )

    for _key, items in groupby(enumerate(routes), key):
        yield [route for _index, route in items]


def _ids(base: int, run: Sequence[PciRoute]) -> str:
    if len(run) > 1:
        return f"{base:#x} (all)"
    last = base + run[0].last - run[0].first
    return f"{base:#x}-{last:#x}" if last > base else f"{base:#x}"


def _group(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids)) or "-"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield ""
    yield f"{title} ({len(rows)})"
    if not rows:
        return
    yield from (f"  {line}" for line in aligned([head, *rows]))
