"""Print a host: its SMMUs, ITSes, routes and devices, as text for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm_msi.report import system
from vmm_msi.report.columns import Rows, section
from vmm_msi.terminal import WIDTH
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_msi.host.crosscheck import Disagreement
    from vmm_msi.report.documents import HostDeviceJson, TopologyDocument
    from vmm_msi.types import HostDevice, HostTopology, Its, PciRoute

#: Version of the JSON form; it goes up when a key changes its meaning or goes away.
SCHEMA: Final = 1


def to_json(host: HostTopology, differences: Sequence[Disagreement] = ()) -> TopologyDocument:
    """Return ``host`` as JSON of schema 1: addresses and IDs are hex strings."""
    return {
        "schema": SCHEMA,
        "source": host.source,
        "granule": str(host.granule),
        "msi_bindings": host.msi_bindings,
        "smmus": [
            {
                "id": smmu.id,
                "base": None if smmu.base is None else str(smmu.base),
                "nested": smmu.nested,
                "version": smmu.version,
            }
            for smmu in host.smmus
        ],
        "itses": [
            {
                "id": its.id,
                "base": str(its.base),
                "doorbell": str(its.doorbell),
                "gicv5": its.is_gicv5,
                "gicv2m": its.gicv2m,
                "pre_its": None if its.pre_its is None else str(its.pre_its),
                "isolated_msi": its.isolates_msis,
            }
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
        **system.json_of(host, differences),
    }


def _device_json(device: HostDevice) -> HostDeviceJson:
    return {
        "address": str(device.address),
        "smmu": device.smmu,
        "stream_id": str(device.stream_id),
        "streams": device.streams,
        "its_group": list(device.its_group),
        "device_id": str(device.device_id),
        "iommu_group": device.iommu_group,
        "vectors": device.vectors,
        "reserved": [
            {"base": f"{region.base:#x}", "size": f"{region.size:#x}", "type": str(region.kind)}
            for region in device.reserved
        ],
    }


def to_lines(host: HostTopology, width: int = WIDTH) -> Iterator[str]:
    """Yield ``host`` as lines for people."""
    version = "" if host.msi_bindings is None else f", guest MSI bindings {host.msi_bindings}"
    yield f"{host.source}: stage 2 granule {host.granule}{version}"
    yield from (f"  ({gap})" for gap in host.missing)
    yield from (f"  (warning: {error})" for error in host.table_errors)
    for rows in sections(host):
        yield from section(rows, width)


def sections(host: HostTopology) -> Iterator[Rows]:
    """Yield the parts of ``host`` as rows for people."""
    yield Rows(
        "SMMUs",
        ("id", "base", "nested"),
        [
            (str(smmu.id), "-" if smmu.base is None else str(smmu.base), _yes(smmu.nested))
            for smmu in host.smmus
        ],
        _none(host, host.smmus),
    )
    special = any(its.is_gicv5 or not its.isolates_msis for its in host.itses)
    yield Rows(
        "ITSes",
        ("id", "base", "doorbell", *(("kind",) if special else ())),
        [
            (str(its.id), str(its.base), str(its.doorbell), *((_kind(its),) if special else ()))
            for its in host.itses
        ],
        "" if host.missing else _none(host, host.itses),
    )
    yield Rows(
        "Routes",
        ("first", "last", "SMMU", "StreamIDs", "ITS group", "DeviceIDs"),
        list(_route_rows(host.routes)),
    )
    yield Rows(
        "Devices",
        ("address", "SMMU", "StreamID", "ITS group", "DeviceID", "IOMMU group", "vectors"),
        [
            (
                str(device.address),
                "-" if device.smmu is None else str(device.smmu),
                str(device.stream_id),
                group_text(device.its_group),
                str(device.device_id),
                str(device.iommu_group),
                str(device.vectors),
            )
            for device in host.devices
        ],
    )
    yield from system.sections(host)


def _none(host: HostTopology, described: Sequence[object]) -> str:
    """Return a remark if firmware describes none of something."""
    return "" if described or host.firmware is None else f"{host.firmware} has none"


def _route_rows(routes: Sequence[PciRoute]) -> Iterator[tuple[str, ...]]:
    for route in routes:
        stream = _ids(route.stream_base, route.stream_of(route.last), route.one_stream)
        device = _ids(route.device_base, route.device_of(route.last), route.one_device)
        yield (
            str(PciAddress.from_rid(route.segment, route.first)),
            str(PciAddress.from_rid(route.segment, route.last)),
            "-" if route.smmu is None else str(route.smmu),
            "-" if route.smmu is None else stream,
            group_text(route.its_group),
            device if route.its_group else "-",
        )


def _ids(first: int, last: int, one: bool) -> str:
    if one:
        return f"{first:#x} (all)"
    return f"{first:#x}-{last:#x}" if last > first else f"{first:#x}"


def group_text(ids: Iterable[int]) -> str:
    """Return the ids of an ITS group; a dash for none."""
    return ", ".join(map(str, ids)) or "-"


def _kind(its: Its) -> str:
    if its.is_gicv5:
        return "GICv5"
    if its.gicv2m:
        return "GICv2m"
    return "GICv3" if its.pre_its is None else f"GICv3 behind a pre-ITS at {its.pre_its}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
