"""Write a host, and a guest on it, as the document of a scenario file.

Reading the document gives an equal host and guest; only their source is another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_msi.host.scenario_tables import FIRMWARE
from vmm_msi.types import (
    SW_MSI_WINDOW,
    Address,
    BindOrder,
    ContainerPer,
    DeviceId,
    Granule,
    GuestDomain,
    PciAddress,
    ReservedKind,
    Stage1,
    Stage1Mode,
    StreamId,
    Vits,
)
from vmm_msi.types.guest import FIRST_GIOVA, VIRT_ITS, own_stage1

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_msi.types import (
        GuestDevice,
        HostDevice,
        HostTopology,
        Its,
        PciFunction,
        PciRoute,
        ReservedRegion,
        Scenario,
        Smmu,
    )

    #: A table of a TOML document.
    Table = dict[str, Any]


def scenario_document(scenario: Scenario, *, complete: bool = False) -> Table:
    """Return a scenario as a document of TOML.

    :param complete: with the keys whose values are their defaults.
    """
    guest = scenario.guest
    document = host_document(scenario.host, complete=complete)
    document["guest"] = _guest(guest, complete=complete)
    if complete or guest.containers is not ContainerPer.DEVICE:
        document["vmm"] = {"containers": guest.containers.value}
    return document


def host_document(host: HostTopology, *, complete: bool = False) -> Table:
    """Return a host as a document of TOML.

    :param complete: with the keys whose values are their defaults.
    """
    firmware = next((name for name, kind in FIRMWARE.items() if kind is host.firmware), None)
    table = _table(
        (
            ("granule", str(host.granule), None if host.granule_known else str(host.granule)),
            ("firmware", firmware, None),
            ("missing", list(host.missing), []),
            ("lists_all_functions", host.lists_all_functions, True),
            ("unsafe_interrupts", sorted(host.unsafe_interrupts), []),
            ("msi_bindings", host.msi_bindings, None),
            ("smmu", [_smmu(smmu, complete=complete) for smmu in host.smmus], []),
            ("its", list(_itses(host)), []),
            ("device", [_device(device, complete=complete) for device in host.devices], []),
            ("route", [_route(route) for route in host.routes], []),
            ("function", [_function(function) for function in host.functions], []),
            ("segment", [_segment(s.number, s.ats, s.canwbs) for s in host.segments], []),
            (
                "reserved_memory",
                [
                    {
                        "base": Address(memory.base),
                        "size": Address(memory.size),
                        "smmu": memory.smmu,
                        "first_stream": StreamId(memory.first_stream),
                        "last_stream": StreamId(memory.last_stream),
                        "relaxable": memory.relaxable,
                    }
                    for memory in host.reserved_memory
                ],
                [],
            ),
            ("table_error", [{"table": e.table, "text": e.text} for e in host.table_errors], []),
        )
    )
    if complete:
        table = {"granule": str(host.granule), **table}
    return {"host": table}


def left_out(host: HostTopology) -> Iterator[str]:
    """Yield a sentence for what a scenario cannot have of a host."""
    msi = {ReservedKind.SW_MSI, ReservedKind.HW_MSI}
    bare = [d for d in host.devices if not any(region.kind in msi for region in d.reserved)]
    if bare:
        yield (
            f"left out: {bare[0].address} has no MSI region, but every device of a scenario has "
            "one, the SW MSI window by default"
        )


def _table(entries: Iterable[tuple[str, object, object]], *, complete: bool = False) -> Table:
    """Return the keys whose values are not their defaults.

    :param entries: key, value and default; a value of None is left out in any case.
    :param complete: with the values that are their defaults.
    """
    return {
        key: value
        for key, value, default in entries
        if value is not None and (complete or value != default)
    }


def _smmu(smmu: Smmu, *, complete: bool) -> Table:
    return _table(
        (
            ("id", smmu.id, None),
            ("base", smmu.base, None),
            ("nested", smmu.nested, True),
            ("version", smmu.version, 3),
        ),
        complete=complete,
    )


def _itses(host: HostTopology) -> Iterator[Table]:
    """Yield the ITSes, and those that groups name and the host does not have, without a base."""
    for its in host.itses:
        yield _its(its)
    groups = [device.its_group for device in host.devices]
    groups += [route.its_group for route in host.routes]
    for number in dict.fromkeys(number for group in groups for number in group):
        if number not in host.its_by_id:
            yield {"id": number}


def _its(its: Its) -> Table:
    return _table(
        (
            ("id", its.id, None),
            ("base", its.base, None),
            ("translate_frame", its.translate_frame, None),
            ("pre_its", its.pre_its, None),
            ("gicv2m", its.gicv2m, False),
        )
    )


def _device(device: HostDevice, *, complete: bool) -> Table:
    address = device.address
    window = [region for region in device.reserved if region != SW_MSI_WINDOW]
    return _table(
        (
            ("address", str(address), None),
            ("smmu", device.smmu, None),
            ("its_group", list(device.its_group), None),
            ("iommu_group", device.iommu_group, None),
            ("vectors", device.vectors, 1),
            ("streams", device.streams, 1),
            ("stream_id", device.stream_id, StreamId(address.rid)),
            ("device_id", device.device_id, DeviceId(address.segment << 16 | address.rid)),
            ("reserved", _regions(device.reserved if complete else window), []),
        ),
        complete=complete,
    )


def _regions(regions: Iterable[ReservedRegion]) -> list[Table]:
    return [
        {"base": Address(r.base), "size": Address(r.size), "type": r.kind.value} for r in regions
    ]


def _route(route: PciRoute) -> Table:
    first = PciAddress.from_rid(route.segment, route.first)
    last = PciAddress.from_rid(route.segment, route.last)
    return _table(
        (
            ("first", str(first), None),
            ("last", str(last), None),
            ("smmu", route.smmu, None),
            ("its_group", list(route.its_group), []),
            ("stream_id", StreamId(route.stream_base), StreamId(first.rid)),
            ("device_id", DeviceId(route.device_base), DeviceId(first.segment << 16 | first.rid)),
            ("one_stream_id", route.one_stream, False),
            ("one_device_id", route.one_device, False),
            ("reserved", _regions(route.reserved), []),
        )
    )


def _function(function: PciFunction) -> Table:
    physical = function.physical_function
    code = function.class_code
    msi_rid = function.msi_rid
    return _table(
        (
            ("address", str(function.address), None),
            ("iommu_group", function.iommu_group, None),
            ("members", list(map(str, function.members)), []),
            ("numa_node", function.numa_node, None),
            ("driver", function.driver, None),
            ("physical_function", None if physical is None else str(physical), None),
            ("virtual_functions", list(map(str, function.virtual_functions)), []),
            ("smmu_base", function.smmu, None),
            ("class_code", None if code is None else Address(code), None),
            ("vectors", function.vectors, None),
            ("ats", function.ats, None),
            ("pasid", function.pasid, None),
            ("dma_rids", list(map(Address, function.dma_rids)), []),
            ("msi_rid", None if msi_rid is None else Address(msi_rid), None),
            ("reserved", None if function.reserved is None else _regions(function.reserved), None),
            ("vfio", None if function.vfio is None else function.vfio.value, None),
        )
    )


def _segment(number: int, ats: bool | None, canwbs: bool | None) -> Table:
    return _table((("number", number, None), ("ats", ats, None), ("canwbs", canwbs, None)))


def _guest(guest: GuestDomain, *, complete: bool) -> Table:
    names_stages = complete or not _has_own_stages(guest)
    vits = [{"id": entry.id, "base": entry.base} for entry in guest.vits]
    stages = [_stage1(stage1, complete=complete) for stage1 in guest.stage1]
    memory = [{"base": ram.base, "size": Address(ram.size)} for ram in guest.memory]
    default_memory = None if complete or guest.memory != GuestDomain.memory else memory
    return _table(
        (
            ("name", guest.name, None if complete else "guest"),
            ("order", guest.order.value, None if complete else BindOrder.INTERLEAVED.value),
            ("honours_rmr", guest.honours_rmr, None if complete else True),
            ("memory", memory, default_memory),
            ("vits", vits, None if complete or guest.vits != (Vits(0, VIRT_ITS),) else vits),
            ("stage1", stages if names_stages else None, None),
            (
                "device",
                [
                    _guest_device(guest, device, names_stages=names_stages, complete=complete)
                    for device in guest.devices
                ],
                None,
            ),
        )
    )


def _has_own_stages(guest: GuestDomain) -> bool:
    """Return whether every device has the stage 1 that a file gives it by default."""
    return guest.stage1 == tuple(Stage1(own_stage1(device.host)) for device in guest.devices) and (
        all(device.stage1 == own_stage1(device.host) for device in guest.devices)
    )


def _stage1(stage1: Stage1, *, complete: bool) -> Table:
    return _table(
        (
            ("id", stage1.id, None),
            ("granule", str(stage1.granule), str(Granule.K4)),
            ("config", stage1.config.value, Stage1Mode.TRANSLATE.value),
        ),
        complete=complete,
    )


def _guest_device(
    guest: GuestDomain, device: GuestDevice, *, names_stages: bool, complete: bool
) -> Table:
    stage1 = guest.stage1_by_id[device.stage1]
    is_alone = all(
        other.host == device.host or other.stage1 != device.stage1 for other in guest.devices
    )
    default = FIRST_GIOVA.align_down(stage1.granule)
    if not stage1.translates:
        default = type(default)(guest.gdb(device))
    is_default = device.giova == default and (is_alone or not stage1.translates)
    return _table(
        (
            ("host", str(device.host), None),
            ("stage1", device.stage1 if names_stages else None, None),
            ("vits", device.vits if complete or len(guest.vits) > 1 else None, None),
            ("giova", device.giova, default if is_default and not complete else None),
            ("vfio", device.vfio, None if complete else False),
        )
    )
