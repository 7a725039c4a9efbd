"""Read scenario files: a host and a guest on it, in TOML.

A file with only ``[host]`` describes a host; docs/scenario.md has the keys. Addresses and ids are
integers or hex strings (``"0x200000000"``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from vmm_msi import tomlfile
from vmm_msi.errors import InputError, ScenarioError
from vmm_msi.host.scenario_tables import ScenarioFile
from vmm_msi.types import (
    SW_MSI_WINDOW,
    DeviceId,
    Granule,
    GuestDevice,
    GuestDomain,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    MemoryRange,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Scenario,
    Smmu,
    Stage1,
    StreamId,
    Vits,
)
from vmm_msi.types.host import GICV2M_FRAME, ITS_FRAME, PA_END

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from vmm_msi.host.scenario_tables import (
        GuestDeviceTable,
        GuestDomainTable,
        HostDeviceTable,
        HostTable,
        ItsTable,
        MemoryTable,
        ReservedTable,
        VitsTable,
    )
    from vmm_msi.tomlfile import KeyPath

#: Limit of a scenario in bytes; about 10,000 devices.
MAX_SIZE = 4 << 20
#: Limit of the entries of an MSI-X table: PCI Express Base Specification, 7.7.2.2, Table Size.
MAX_VECTORS = 2048
#: KVM requires multiples of 64 KiB of a vITS too (``arch/arm64/kvm/vgic/vgic-its.c``
#: vgic_its_set_attr). A scenario may use any page, to show the refusal of a host with larger pages.
VITS_ALIGNMENT = 0x1000
#: First IOVA that a stage 1 with 48 input bits, as the simulator has, cannot translate.
STAGE1_END = 1 << 48
_ID_END = 1 << 32


class _Frame(NamedTuple):
    """The frame with a doorbell.

    :param at: the key that puts it there.
    :param value: of the key.
    """

    at: KeyPath
    value: int
    start: int
    size: int


def load_scenario(path: Path) -> Scenario:
    """Read the host and the guest in the scenario file ``path``.

    :raise ScenarioError: when the file cannot be read, is not TOML, has an unknown key or
        contradicts itself; the message names the line.
    """
    text = tomlfile.read_text(path, ScenarioError, MAX_SIZE)
    return parse_scenario(text, str(path))


def parse_scenario(text: str, source: str) -> Scenario:
    """Read the scenario ``text``.

    :param source: name of the file, for messages.
    :raise ScenarioError: as for :func:`load_scenario`.
    """
    file, check = _decode(text, source)
    if file.guest is None:
        raise ScenarioError(f"{source}: has no [guest]; a scenario has [host] and [guest]")
    host = check.host(file.host)
    guest = check.guest(file.guest, host)
    return Scenario(host, replace(guest, containers=file.vmm.containers))


def load_host_toml(path: Path) -> HostTopology:
    """Read the host in the scenario file ``path``, which need not have a guest.

    :raise ScenarioError: as for :func:`load_scenario`.
    """
    file, check = _decode(tomlfile.read_text(path, ScenarioError, MAX_SIZE), str(path))
    return check.host(file.host)


def _decode(text: str, source: str) -> tuple[ScenarioFile, _Check]:
    file = tomlfile.decode(text, ScenarioFile, source, ScenarioError, MAX_SIZE)
    return file, _Check(text, source)


@dataclass(frozen=True)
class _Check:
    """Turns the tables of one file into values and refuses contradictions."""

    text: str
    source: str

    def fail(self, path: KeyPath, message: str) -> NoReturn:
        line = tomlfile.find_line(self.text, path)
        raise ScenarioError(f"{self.source}:{line}: {tomlfile.show_path(path)}: {message}")

    def host(self, table: HostTable) -> HostTopology:
        granule = self.granule(table.granule, ("host", "granule"))
        self.unique([smmu.id for smmu in table.smmu], ("host", "smmu"), "id")
        self.unique([its.id for its in table.its], ("host", "its"), "id")
        for index, smmu in enumerate(table.smmu):
            at: KeyPath = ("host", "smmu", index)
            self.below(smmu.id, _ID_END, (*at, "id"))
            if smmu.base is not None:
                self.aligned(smmu.base, ITS_FRAME, (*at, "base"), "a 64 KiB frame")
                self.below(smmu.base, PA_END, (*at, "base"))
        smmus = tuple(
            Smmu(int(smmu.id), None if smmu.base is None else Pa(smmu.base), smmu.nested)
            for smmu in table.smmu
        )
        itses = self.itses(table.its)
        known: tuple[set[int], set[int]] = (
            {smmu.id for smmu in smmus},
            {int(its.id) for its in table.its},
        )
        devices = tuple(
            self.host_device(device, ("host", "device", index), known, granule)
            for index, device in enumerate(table.device)
        )
        self.distinct_devices(devices)
        return HostTopology(self.source, granule, smmus, itses, devices)

    def itses(self, tables: Sequence[ItsTable]) -> tuple[Its, ...]:
        """Return the ITSes that the host has: those with a base."""
        itses: list[Its] = []
        frames: list[_Frame] = []
        for index, table in enumerate(tables):
            at: KeyPath = ("host", "its", index)
            self.below(table.id, _ID_END, (*at, "id"))
            self.its_kind(table, at)
            if table.base is None:
                continue
            its = self.its(table, table.base, at)
            itses.append(its)
            key = "translate_frame" if its.is_gicv5 else "base"
            size = GICV2M_FRAME if its.gicv2m else ITS_FRAME
            value = int(its.translate_frame or its.base)
            frames.append(_Frame((*at, key), value, its.doorbell.align_down(size), size))
        self.disjoint(frames)
        return tuple(itses)

    def its_kind(self, table: ItsTable, at: KeyPath) -> None:
        """Check that an ITS is of one kind, and of none without a base."""
        values = {
            "translate_frame": table.translate_frame is not None,
            "pre_its": table.pre_its is not None,
            "gicv2m": table.gicv2m,
        }
        kinds = [name for name, given in values.items() if given]
        if len(kinds) > 1:
            self.fail((*at, kinds[1]), f"an ITS with {kinds[0]} has none")
        if kinds and table.base is None:
            self.fail((*at, kinds[0]), "an ITS without base has none")

    def its(self, table: ItsTable, base: int, at: KeyPath) -> Its:
        """Return an ITS whose frames are aligned and below the last address."""
        page = GICV2M_FRAME if table.gicv2m else ITS_FRAME
        what = "a GICv2m frame" if table.gicv2m else "a 64 KiB frame"
        self.aligned(base, page, (*at, "base"), what)
        self.below(base, PA_END - 2 * ITS_FRAME + 1, (*at, "base"))
        return Its(
            int(table.id),
            Pa(base),
            self.frame(table.translate_frame, (*at, "translate_frame")),
            self.frame(table.pre_its, (*at, "pre_its")),
            table.gicv2m,
        )

    def frame(self, value: int | None, at: KeyPath) -> Pa | None:
        """Return the address of a 64 KiB frame, if it has one."""
        if value is None:
            return None
        self.aligned(value, ITS_FRAME, at, "a 64 KiB frame")
        self.below(value, PA_END - ITS_FRAME + 1, at)
        return Pa(value)

    def host_device(
        self,
        table: HostDeviceTable,
        at: KeyPath,
        known: tuple[set[int], set[int]],
        granule: Granule,
    ) -> HostDevice:
        address = self.address(table.address, (*at, "address"))
        smmus, itses = known
        self.known(table.smmu, smmus, (*at, "smmu"), "[[host.smmu]]")
        if not table.its_group:
            self.fail((*at, "its_group"), "is empty: a device needs an ITS for its MSIs")
        for index, its in enumerate(table.its_group):
            self.known(its, itses, (*at, "its_group", index), "[[host.its]]")
        self.unique(table.its_group, (*at, "its_group"), None)
        if not 1 <= table.vectors <= MAX_VECTORS:
            self.fail((*at, "vectors"), f"{table.vectors} is not from 1 to {MAX_VECTORS}")
        if not table.streams:
            self.fail((*at, "streams"), "0 is not 1 or more")
        self.below(table.iommu_group, 1 << 31, (*at, "iommu_group"))
        stream_id = address.rid if table.stream_id is None else table.stream_id
        device_id = address.segment << 16 | address.rid
        device_id = device_id if table.device_id is None else table.device_id
        self.below(stream_id, _ID_END, (*at, "stream_id"))
        self.below(device_id, _ID_END, (*at, "device_id"))
        return HostDevice(
            address=address,
            smmu=int(table.smmu),
            stream_id=StreamId(stream_id),
            its_group=tuple(int(its) for its in table.its_group),
            device_id=DeviceId(device_id),
            iommu_group=int(table.iommu_group),
            vectors=int(table.vectors),
            streams=int(table.streams),
            reserved=self.reserved(table.reserved, (*at, "reserved"), granule),
        )

    def reserved(
        self, tables: Sequence[ReservedTable], at: KeyPath, granule: Granule
    ) -> tuple[ReservedRegion, ...]:
        regions = []
        msi: set[ReservedKind] = set()
        for index, table in enumerate(tables):
            self.range(table.base, table.size, (*at, index), 1 << 64)
            if table.type in {ReservedKind.SW_MSI, ReservedKind.HW_MSI}:
                if msi:
                    # Linux drivers/iommu/iommufd/io_pagetable.c iopt_table_enforce_dev_resv_regions
                    self.fail((*at, index), "a device has one sw-msi or hw-msi region, not two")
                msi.add(table.type)
                self.aligned(table.base, granule, (*at, index, "base"), "the host's granule")
                self.aligned(table.size, granule, (*at, index, "size"), "the host's granule")
            regions.append(ReservedRegion(int(table.base), int(table.size), table.type))
        if not msi:
            regions.append(SW_MSI_WINDOW)
        return tuple(sorted(regions, key=lambda region: region.base))

    def distinct_devices(self, devices: Sequence[HostDevice]) -> None:
        addresses: dict[PciAddress, int] = {}
        streams: dict[tuple[int | None, int], int] = {}
        ids: dict[tuple[int, int], int] = {}
        for index, device in enumerate(devices):
            at: KeyPath = ("host", "device", index)
            other = addresses.setdefault(device.address, index)
            if other != index:
                self.fail((*at, "address"), f"{device.address} is already host.device[{other}]")
            other = streams.setdefault((device.smmu, device.stream_id), index)
            if other != index:
                self.fail(
                    at,
                    f"{device.address} has StreamID {device.stream_id} on SMMU {device.smmu}, as "
                    f"{devices[other].address} has; give one of them another stream_id",
                )
            other = ids.setdefault((device.its, device.device_id), index)
            if other != index:
                self.fail(
                    at,
                    f"{device.address} has DeviceID {device.device_id} on ITS {device.its}, as "
                    f"{devices[other].address} has; give one of them another device_id",
                )

    def guest(self, table: GuestDomainTable, host: HostTopology) -> GuestDomain:
        if not table.device:
            self.fail(("guest",), "has no [[guest.device]], so there is no MSI to follow")
        self.unique([vits.id for vits in table.vits], ("guest", "vits"), "id")
        self.unique([stage1.id for stage1 in table.stage1], ("guest", "stage1"), "id")
        self.doorbells(table.vits)
        memory = self.memory(table.memory, host.granule)
        vits = tuple(Vits(int(vits.id), Ipa(vits.base)) for vits in table.vits)
        stage1 = tuple(
            Stage1(
                entry.id,
                self.granule(entry.granule, ("guest", "stage1", index, "granule")),
                entry.config,
            )
            for index, entry in enumerate(table.stage1)
        )
        for index, gdb in enumerate(entry.gdb for entry in vits):
            for ram in memory:
                if ram.base <= gdb < ram.base + ram.size:
                    self.fail(
                        ("guest", "vits", index, "base"),
                        f"the doorbell page {gdb} lies in guest RAM, {ram.size:#x} bytes from "
                        f"{ram.base}; move one of them ([[guest.memory]])",
                    )
        return GuestDomain(
            name=table.name,
            vits=vits,
            stage1=stage1,
            devices=self.guest_devices(table.device, host, vits, stage1),
            order=table.order,
            honours_rmr=table.honours_rmr,
            memory=memory,
        )

    def memory(
        self, tables: Sequence[MemoryTable] | None, granule: Granule
    ) -> tuple[MemoryRange, ...]:
        if tables is None:
            return GuestDomain.memory
        ranges: list[MemoryRange] = []
        for index, table in enumerate(tables):
            at: KeyPath = ("guest", "memory", index)
            self.range(table.base, table.size, at, PA_END)
            self.aligned(table.base, granule, (*at, "base"), "the host's granule")
            self.aligned(table.size, granule, (*at, "size"), "the host's granule")
            ranges.append(MemoryRange(Ipa(table.base), int(table.size)))
        order = sorted(range(len(ranges)), key=lambda index: ranges[index].base)
        for low, high in pairwise(order):
            if ranges[high].base < ranges[low].base + ranges[low].size:
                self.fail(("guest", "memory", high), f"overlaps guest.memory[{low}]")
        return tuple(ranges)

    def guest_devices(
        self,
        tables: Sequence[GuestDeviceTable],
        host: HostTopology,
        vits: Sequence[Vits],
        stage1: Sequence[Stage1],
    ) -> tuple[GuestDevice, ...]:
        gdbs: dict[int | str, Ipa] = {table.id: table.gdb for table in vits}
        stages: dict[int | str, Stage1] = {table.id: table for table in stage1}
        devices: dict[PciAddress, GuestDevice] = {}
        targets: dict[tuple[str, int], int] = {}
        for index, table in enumerate(tables):
            at: KeyPath = ("guest", "device", index)
            address = self.address(table.host, (*at, "host"))
            if address not in host.device_by_address:
                self.fail((*at, "host"), f"{address} is not a [[host.device]] of this file")
            if address in devices:
                self.fail((*at, "host"), f"{address} is listed twice in the guest")
            self.known(table.stage1, stages, (*at, "stage1"), "[[guest.stage1]]")
            self.known(table.vits, gdbs, (*at, "vits"), "[[guest.vits]]")
            giova = self.giova(table, stages[table.stage1], gdbs[table.vits], at)
            other = targets.setdefault((table.stage1, giova), table.vits)
            if other != table.vits and stages[table.stage1].translates:
                self.fail(
                    (*at, "giova"),
                    f"{giova:#x} of stage1 {table.stage1!r} already leads to vits {other}, "
                    f"not to {table.vits}; use another giova or stage1",
                )
            devices[address] = GuestDevice(
                address, table.stage1, int(table.vits), giova, table.vfio
            )
        return tuple(devices.values())

    def giova(self, table: GuestDeviceTable, stage1: Stage1, gdb: Ipa, at: KeyPath) -> Iova:
        """Return a device's gIOVA: where nothing translates, Linux takes gDB itself."""
        if table.vfio and not stage1.translates:
            self.fail((*at, "vfio"), f"VFIO in the guest translates, stage1 {stage1.id!r} does not")
        if table.giova is None:
            if stage1.translates:
                self.fail(at, f"has no giova, and stage1 {stage1.id!r} translates; add giova")
            return Iova(gdb)
        self.aligned(table.giova, stage1.granule, (*at, "giova"), "the granule of its stage1")
        self.below(table.giova, STAGE1_END, (*at, "giova"))
        return Iova(table.giova)

    def doorbells(self, tables: Sequence[VitsTable]) -> None:
        """Check that the base of every vITS is aligned, and that doorbell frames do not overlap."""
        frames = []
        for index, table in enumerate(tables):
            at: KeyPath = ("guest", "vits", index, "base")
            self.aligned(table.base, VITS_ALIGNMENT, at, "a page")
            self.below(table.base, PA_END - 2 * ITS_FRAME + 1, at)
            frames.append(_Frame(at, int(table.base), table.base + ITS_FRAME, ITS_FRAME))
        self.disjoint(frames)

    def disjoint(self, frames: Sequence[_Frame]) -> None:
        """Check that doorbell frames do not overlap; report the later one in the file."""
        order = sorted(enumerate(frames), key=lambda item: (item[1].start, item[0]))
        for (low, below), (high, above) in pairwise(order):
            if above.start < below.start + below.size:
                first, second = (below, above) if low < high else (above, below)
                self.fail(
                    second.at,
                    f"{second.value:#x} puts the doorbell page on that of "
                    f"{first.at[-3]}[{first.at[-2]}], {first.start:#x}",
                )

    def address(self, text: str, at: KeyPath) -> PciAddress:
        try:
            return PciAddress.parse(text)
        except InputError as failure:
            self.fail(at, tomlfile.one_line(str(failure)))

    def granule(self, text: str, at: KeyPath) -> Granule:
        try:
            return Granule.parse(text)
        except InputError as failure:
            self.fail(at, tomlfile.one_line(str(failure)))

    def aligned(self, value: int, size: int, at: KeyPath, what: str) -> None:
        if value % size:
            self.fail(at, f"{value:#x} is not a multiple of {int(size):#x}, the size of {what}")

    def below(self, value: int, end: int, at: KeyPath) -> None:
        if value >= end:
            self.fail(at, f"{value:#x} is not from 0 to {end - 1:#x}")

    def range(self, base: int, size: int, at: KeyPath, end: int) -> None:
        if not size or base + size > end:
            self.fail(
                at, f"{size:#x} bytes from {base:#x} are not a range below {end:#x} with a size"
            )

    def known(self, value: int | str, valid: Collection[int | str], at: KeyPath, what: str) -> None:
        if value not in valid:
            names = ", ".join(sorted(map(str, valid), key=lambda name: (len(name), name))) or "none"
            self.fail(at, tomlfile.one_line(f"no {what} has the id {value!r}; valid: {names}"))

    def unique(self, values: Sequence[int | str], at: KeyPath, key: str | None) -> None:
        seen: dict[int | str, int] = {}
        for index, value in enumerate(values):
            other = seen.setdefault(value, index)
            if other != index:
                where = (*at, index, key) if key else (*at, index)
                self.fail(where, tomlfile.one_line(f"{value!r} is also that of {at[-1]}[{other}]"))
