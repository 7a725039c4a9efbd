"""The host in a scenario file: its tables become a topology; contradictions are recorded."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.host.scenario_problems import UnusableError
from vmm_msi.host.scenario_system import SystemReader
from vmm_msi.types import (
    SW_MSI_WINDOW,
    DeviceId,
    Granule,
    HostDevice,
    HostTopology,
    Its,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Smmu,
    StreamId,
)
from vmm_msi.types.host import GICV2M_FRAME, ITS_FRAME, PA_END

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.host.scenario_problems import Problems
    from vmm_msi.host.scenario_tables import (
        HostDeviceTable,
        HostTable,
        ItsTable,
        ReservedTable,
        SmmuTable,
    )
    from vmm_msi.tomlfile import KeyPath

#: Limit of the entries of an MSI-X table: PCI Express Base Specification, 7.7.2.2, Table Size.
MAX_VECTORS = 2048
_ID_END = 1 << 32
_SMMUS: KeyPath = ("host", "smmu")
_ITSES: KeyPath = ("host", "its")
_DEVICES: KeyPath = ("host", "device")


class Frame(NamedTuple):
    """The frame with a doorbell.

    :param at: the key that puts it there.
    :param value: of the key.
    """

    at: KeyPath
    value: int
    start: int
    size: int


class HostReader:
    """Reads ``[host]``.

    :param problems: where contradictions are recorded.
    """

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._granule = Granule.K4
        self._smmus: set[int] = set()
        self._itses: set[int] = set()
        self._free_groups: Iterator[int] = count(1)
        self._device_at: dict[PciAddress, KeyPath] = {}
        self._streams: dict[tuple[int | None, int], PciAddress] = {}
        self._device_ids: dict[tuple[int, int], PciAddress] = {}

    def read(self, table: HostTable, source: str) -> HostTopology:
        """Return the host.

        :param source: what it is from.
        """
        problems = self._problems
        if table.granule is not None:
            self._granule = problems.granule(table.granule, ("host", "granule"))
        smmus = self._read_smmus(table)
        self._smmus = {smmu.id for smmu in smmus}
        itses = self._read_itses(table.its)
        used = {device.iommu_group for device in table.device}
        used |= {function.iommu_group for function in table.function}
        self._free_groups = (number for number in count(1) if number not in used)
        devices = tuple(problems.each(table.device, _DEVICES, self._device))
        return HostTopology(
            source,
            self._granule,
            smmus,
            itses,
            devices,
            granule_known=table.granule is not None,
            **SystemReader(problems, self._smmus, self._itses).read(table),
        )

    def _read_smmus(self, table: HostTable) -> tuple[Smmu, ...]:
        """Return the SMMUs; one for devices that name none if the file has none."""
        if not table.smmu and not self._problems.is_incomplete(_SMMUS):
            is_unnamed = bool(table.device) and all(d.smmu is None for d in table.device)
            return (Smmu(0),) if is_unnamed else ()
        return tuple(self._problems.each(table.smmu, _SMMUS, self._smmu))

    def _smmu(self, table: SmmuTable, at: KeyPath) -> Smmu:
        number = int(self._problems.new_id(table.id, at))
        if table.base is not None:
            # An SMMUv3 has two 64 KiB pages (IHI 0070, 6.1), an SMMUv1 or v2 at least 4 KiB.
            is_v3 = table.version == 3
            size, what = (ITS_FRAME, "a 64 KiB frame") if is_v3 else (0x1000, "a page")
            self._problems.aligned(table.base, size, (*at, "base"), what)
            self._problems.below(table.base, PA_END, (*at, "base"))
        if table.version not in {2, 3}:
            self._problems.add((*at, "version"), f"{table.version} is not 2 or 3")
        base = None if table.base is None else Pa(table.base)
        return Smmu(number, base, table.nested, int(table.version))

    def _read_itses(self, tables: Sequence[ItsTable]) -> tuple[Its, ...]:
        """Return the ITSes that the host has: those with a base."""
        problems = self._problems
        frames: list[Frame] = []
        ids: list[int] = []

        def read(table: ItsTable, at: KeyPath) -> Its | None:
            ids.append(int(problems.new_id(table.id, at)))
            self._check_kind(table, at)
            if table.base is None:
                return None
            its = self._its(table, ids[-1], table.base, at)
            key = "translate_frame" if its.is_gicv5 else "base"
            size = GICV2M_FRAME if its.gicv2m else ITS_FRAME
            value = int(its.translate_frame or its.base)
            frames.append(Frame((*at, key), value, its.doorbell.align_down(size), size))
            return its

        itses = tuple(its for its in problems.each(tables, _ITSES, read) if its is not None)
        check_disjoint(problems, frames)
        self._itses = set(ids)
        return itses

    def _check_kind(self, table: ItsTable, at: KeyPath) -> None:
        """Check that an ITS is of one kind, and of none without a base."""
        values = {
            "translate_frame": table.translate_frame is not None,
            "pre_its": table.pre_its is not None,
            "gicv2m": table.gicv2m,
        }
        kinds = [name for name, given in values.items() if given]
        if len(kinds) > 1:
            self._problems.add((*at, kinds[1]), f"an ITS with {kinds[0]} has none")
        if kinds and table.base is None:
            self._problems.add((*at, kinds[0]), "an ITS without base has none")

    def _its(self, table: ItsTable, number: int, base: int, at: KeyPath) -> Its:
        """Return an ITS whose frames are aligned and below the last address."""
        page = GICV2M_FRAME if table.gicv2m else ITS_FRAME
        what = "a GICv2m frame" if table.gicv2m else "a 64 KiB frame"
        self._problems.aligned(base, page, (*at, "base"), what)
        self._problems.below(base, PA_END - 2 * ITS_FRAME + 1, (*at, "base"))
        return Its(
            number,
            Pa(base),
            self._frame(table.translate_frame, (*at, "translate_frame")),
            self._frame(table.pre_its, (*at, "pre_its")),
            table.gicv2m,
        )

    def _frame(self, value: int | None, at: KeyPath) -> Pa | None:
        """Return the address of a 64 KiB frame, if it has one."""
        if value is None:
            return None
        self._problems.aligned(value, ITS_FRAME, at, "a 64 KiB frame")
        self._problems.below(value, PA_END - ITS_FRAME + 1, at)
        return Pa(value)

    def _device(self, table: HostDeviceTable, at: KeyPath) -> HostDevice:
        problems = self._problems
        address = problems.attempt(lambda: problems.address(table.address, (*at, "address")))
        smmu = problems.attempt(lambda: self._smmu_of(table.smmu, at))
        its_group = self._its_group(table.its_group, at)
        reserved = self._reserved(table.reserved, (*at, "reserved"))
        if not 1 <= table.vectors <= MAX_VECTORS:
            problems.add((*at, "vectors"), f"{table.vectors} is not from 1 to {MAX_VECTORS}")
        if not table.streams:
            problems.add((*at, "streams"), "0 is not 1 or more")
        group = next(self._free_groups) if table.iommu_group is None else table.iommu_group
        problems.below(group, 1 << 31, (*at, "iommu_group"))
        if address is None:
            raise UnusableError
        stream_id = address.rid if table.stream_id is None else table.stream_id
        device_id = address.segment << 16 | address.rid
        device_id = device_id if table.device_id is None else table.device_id
        problems.below(stream_id, _ID_END, (*at, "stream_id"))
        problems.below(device_id, _ID_END, (*at, "device_id"))
        if smmu is None or not its_group:
            raise UnusableError
        device = HostDevice(
            address=address,
            smmu=smmu,
            stream_id=StreamId(stream_id),
            its_group=its_group,
            device_id=DeviceId(device_id),
            iommu_group=int(group),
            vectors=int(table.vectors),
            streams=int(table.streams),
            reserved=reserved,
        )
        self._check_distinct(device, at)
        return device

    def _smmu_of(self, smmu: int | None, at: KeyPath) -> int:
        """Return the SMMU of a device: the only one if it names none."""
        if smmu is None:
            return self._problems.only(self._smmus, at, "smmu", _SMMUS)
        self._problems.known(smmu, self._smmus, (*at, "smmu"), _SMMUS)
        return int(smmu)

    def _its_group(self, group: tuple[int, ...] | None, at: KeyPath) -> tuple[int, ...]:
        """Return the ITSes of a device: the only one if it names none.

        :return: empty if the device has none because of a problem.
        """
        problems = self._problems
        if group is None:
            only = problems.attempt(lambda: problems.only(self._itses, at, "its_group", _ITSES))
            return () if only is None else (only,)
        at = (*at, "its_group")
        if not group:
            problems.add(at, "is empty: a device needs an ITS for its MSIs")
        for index, its in enumerate(group):
            place = (*at, index)
            if not problems.attempt(partial(problems.known, its, self._itses, place, _ITSES)):
                group = ()
            elif its in group[:index]:
                first = group.index(its)
                problems.add((*at, index), f"{its} is also that of its_group[{first}]")
        return tuple(map(int, group))

    def _reserved(self, tables: Sequence[ReservedTable], at: KeyPath) -> tuple[ReservedRegion, ...]:
        problems = self._problems
        regions = []
        has_msi = False
        for index, table in enumerate(tables):
            problems.range(table.base, table.size, (*at, index), 1 << 64)
            if table.type in {ReservedKind.SW_MSI, ReservedKind.HW_MSI}:
                if has_msi:
                    # Linux drivers/iommu/iommufd/io_pagetable.c iopt_table_enforce_dev_resv_regions
                    problems.add((*at, index), "a device has one sw-msi or hw-msi region, not two")
                has_msi = True
                granule = self._granule
                problems.aligned(table.base, granule, (*at, index, "base"), "the host's granule")
                problems.aligned(table.size, granule, (*at, index, "size"), "the host's granule")
            regions.append(ReservedRegion(int(table.base), int(table.size), table.type))
        if not has_msi:
            regions.append(SW_MSI_WINDOW)
        return tuple(sorted(regions, key=lambda region: region.base))

    def _check_distinct(self, device: HostDevice, at: KeyPath) -> None:
        """Check that no device before it has the address or an ID of a device."""
        problems = self._problems
        address = device.address
        other = self._device_at.setdefault(address, at)
        if other != at:
            problems.fail((*at, "address"), f"{address} is already {problems.show(other)}")
        first = self._streams.setdefault((device.smmu, device.stream_id), address)
        if first != address:
            problems.add(
                at,
                f"{address} has StreamID {device.stream_id} on SMMU {device.smmu}, as {first} has; "
                "give one of them another stream_id",
            )
        first = self._device_ids.setdefault((device.its, device.device_id), address)
        if first != address:
            problems.add(
                at,
                f"{address} has DeviceID {device.device_id} on ITS {device.its}, as {first} has; "
                "give one of them another device_id",
            )


def check_disjoint(problems: Problems, frames: Sequence[Frame]) -> None:
    """Check that doorbell frames do not overlap; report the later one in the file."""
    order = sorted(enumerate(frames), key=lambda item: (item[1].start, item[0]))
    for position in range(1, len(order)):
        (low, below), (high, above) = order[position - 1], order[position]
        if above.start < below.start + below.size:
            first, second = (below, above) if low < high else (above, below)
            *_, table, index, _key = problems.place(first.at)
            problems.add(
                second.at,
                f"{second.value:#x} puts the doorbell page on that of "
                f"{table}[{index}], {first.start:#x}",
            )
