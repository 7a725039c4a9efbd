"""``vmm-msi topology``: show what is known of a host."""

from __future__ import annotations

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
                "one_stream_id": route.one_stream,
                "its_group": list(route.its_group),
                "device_id": f"{route.device_base:#x}" if route.its_group else None,
                "one_device_id": route.one_device,
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
    for route in routes:
        stream = _ids(route.stream_base, route.stream_of(route.last), route.one_stream)
        device = _ids(route.device_base, route.device_of(route.last), route.one_device)
        yield (
            str(PciAddress.from_rid(route.segment, route.first)),
            str(PciAddress.from_rid(route.segment, route.last)),
            "-" if route.smmu is None else str(route.smmu),
            "-" if route.smmu is None else stream,
            _group(route.its_group),
            device if route.its_group else "-",
        )


def _ids(first: int, last: int, one: bool) -> str:
    if one:
        return f"{first:#x} (all)"
    return f"{first:#x}-{last:#x}" if last > first else f"{first:#x}"


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
