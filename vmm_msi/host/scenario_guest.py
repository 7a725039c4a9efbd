"""The guest in a scenario file: its tables become a guest; contradictions are recorded.

What a file does not say is what Linux does in a guest on QEMU's virt board: its one vITS, a stage 1
for each device, and the IOVAs that its allocator takes first.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from vmm_msi.errors import TopologyError
from vmm_msi.host.resolve import resolve, with_devices
from vmm_msi.host.scenario_host import Frame, check_disjoint
from vmm_msi.host.scenario_problems import UnusableError
from vmm_msi.types import (
    GuestDevice,
    GuestDomain,
    HostTopology,
    Iova,
    Ipa,
    MemoryRange,
    PciAddress,
    Scenario,
    Stage1,
    Vits,
)
from vmm_msi.types.guest import FIRST_GIOVA, VIRT_ITS, own_stage1
from vmm_msi.types.host import ITS_FRAME, PA_END

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.host.scenario_problems import Problems
    from vmm_msi.host.scenario_tables import (
        GuestDeviceTable,
        GuestDomainTable,
        GuestStage1Table,
        MemoryTable,
        VitsTable,
        VmmTable,
    )
    from vmm_msi.tomlfile import KeyPath

#: KVM requires multiples of 64 KiB of a vITS too (``arch/arm64/kvm/vgic/vgic-its.c``
#: vgic_its_set_attr). A scenario may use any page, to show the refusal of a host with larger pages.
VITS_ALIGNMENT = 0x1000
#: First IOVA that a stage 1 with 48 input bits, as the simulator has, cannot translate.
STAGE1_END = 1 << 48
_VITSES: KeyPath = ("guest", "vits")
_STAGES: KeyPath = ("guest", "stage1")
_DEVICES: KeyPath = ("guest", "device")
_MEMORY: KeyPath = ("guest", "memory")


class GuestReader:
    """Reads ``[guest]`` and ``[vmm]``.

    :param problems: where contradictions are recorded.
    :param host: the host below the guest.
    """

    def __init__(self, problems: Problems, host: HostTopology) -> None:
        self._problems = problems
        self._host = host
        self._vits: dict[int, Vits] = {}
        self._stages: dict[str, Stage1] = {}
        self._names_stages = False

    def read(self, table: GuestDomainTable, vmm: VmmTable) -> Scenario:
        """Return the host, with the guest's devices listed, and the guest."""
        problems = self._problems
        memory = self._read_memory(table.memory)
        vits = self._read_vits(table.vits, memory)
        self._vits = {entry.id: entry for entry in vits}
        stages = tuple(problems.each(table.stage1, _STAGES, self._stage1))
        self._stages = {stage1.id: stage1 for stage1 in stages}
        self._names_stages = bool(table.stage1) or problems.is_incomplete(_STAGES)
        devices = self._read_devices(table)
        guest = GuestDomain(
            name=table.name,
            vits=vits,
            stage1=tuple(self._stages.values()),
            devices=devices,
            order=table.order,
            honours_rmr=table.honours_rmr,
            memory=memory,
            containers=vmm.containers,
        )
        # Devices that the file reaches by a route are listed now.
        host = with_devices(self._host, [device.host for device in devices])
        return Scenario(host, guest)

    def _stage1(self, table: GuestStage1Table, at: KeyPath) -> Stage1:
        granule = self._problems.granule(table.granule, (*at, "granule"))
        return Stage1(str(self._problems.new_id(table.id, at)), granule, table.config)

    def _read_vits(
        self, tables: Sequence[VitsTable], memory: Sequence[MemoryRange]
    ) -> tuple[Vits, ...]:
        """Return the vITSes: that of QEMU's virt board if the file has none."""
        problems = self._problems
        frames: list[Frame] = []

        def read(table: VitsTable, at: KeyPath) -> Vits:
            base = (*at, "base")
            problems.aligned(table.base, VITS_ALIGNMENT, base, "a page")
            problems.below(table.base, PA_END - 2 * ITS_FRAME + 1, base)
            frames.append(Frame(base, int(table.base), table.base + ITS_FRAME, ITS_FRAME))
            entry = Vits(int(problems.new_id(table.id, at)), Ipa(table.base))
            check_memory(entry, base)
            return entry

        def check_memory(entry: Vits, at: KeyPath) -> None:
            for ram in memory:
                if ram.base <= entry.gdb < ram.base + ram.size:
                    problems.add(
                        at,
                        f"the doorbell page {entry.gdb} lies in guest RAM, {ram.size:#x} bytes "
                        f"from {ram.base}; move one of them ([[guest.memory]])",
                    )

        vits = tuple(problems.each(tables, _VITSES, read))
        if not tables and not problems.is_incomplete(_VITSES):
            vits = (Vits(0, VIRT_ITS),)
            check_memory(vits[0], _MEMORY)
        check_disjoint(problems, frames)
        return vits

    def _read_memory(self, tables: Sequence[MemoryTable] | None) -> tuple[MemoryRange, ...]:
        if tables is None:
            return GuestDomain.memory
        problems, granule = self._problems, self._host.granule

        def read(table: MemoryTable, at: KeyPath) -> MemoryRange:
            problems.range(table.base, table.size, at, PA_END)
            problems.aligned(table.base, granule, (*at, "base"), "the host's granule")
            problems.aligned(table.size, granule, (*at, "size"), "the host's granule")
            return MemoryRange(Ipa(table.base), int(table.size))

        ranges = tuple(problems.each(tables, _MEMORY, read))
        order = sorted(range(len(ranges)), key=lambda index: ranges[index].base)
        for low, high in pairwise(order):
            if ranges[high].base < ranges[low].base + ranges[low].size:
                problems.add((*_MEMORY, high), f"overlaps {problems.show((*_MEMORY, low))}")
        return ranges

    def _read_devices(self, table: GuestDomainTable) -> tuple[GuestDevice, ...]:
        """Return the assigned devices: all of the host if the file names none."""
        problems = self._problems
        if not table.device and not problems.is_incomplete(_DEVICES):
            if not self._host.devices and not problems.is_incomplete(("host", "device")):
                problems.add(
                    ("guest",), "has no [[guest.device]], so there is no MSI to follow; add one"
                )
            return self._all_devices()
        placed = list(problems.each(table.device, _DEVICES, self._placed))
        addresses: dict[PciAddress, None] = {}
        for at, _entry, device in placed:
            if device.host in addresses:
                problems.add((*at, "host"), f"{device.host} is listed twice in the guest")
            addresses[device.host] = None
        return tuple(self._with_giovas(placed).values())

    def _all_devices(self) -> tuple[GuestDevice, ...]:
        """Return every device of the host, each with the only stage 1 or one of its own."""
        problems = self._problems
        at: KeyPath = ("guest",)
        devices = []
        for device in self._host.devices:
            try:
                stage1 = self._stage1_of(None, device.address, at)
                vits = problems.only(self._vits, at, "[[guest.device]] with vits", _VITSES)
            except UnusableError:
                break
            devices.append(GuestDevice(device.address, stage1.id, vits, Iova(0)))
        giovas = _Giovas(self._vits)
        return tuple(
            replace(device, giova=giovas.default(device, self._stages[device.stage1]))
            for device in devices
        )

    def _placed(
        self, table: GuestDeviceTable, at: KeyPath
    ) -> tuple[KeyPath, GuestDeviceTable, GuestDevice]:
        """Return a device without its gIOVA."""
        problems = self._problems
        address = problems.attempt(lambda: self._host_device(table.host, (*at, "host")))
        vits = problems.attempt(lambda: self._vits_of(table.vits, at))
        stage1 = self._stage1_of(table.stage1, address, at)
        if table.vfio and not stage1.translates:
            problems.add(
                (*at, "vfio"), f"VFIO in the guest translates, stage1 {stage1.id!r} does not"
            )
        if address is None or vits is None:
            raise UnusableError
        return at, table, GuestDevice(address, stage1.id, vits, Iova(0), table.vfio)

    def _host_device(self, text: str, at: KeyPath) -> PciAddress:
        """Return the address of a device that the host lists, or that a route leads to."""
        problems = self._problems
        address = problems.address(text, at)
        if address in self._host.device_by_address:
            return address
        if problems.is_incomplete(("host", "device")):
            raise UnusableError  # perhaps it has a problem of its own
        if not self._host.routes:
            problems.fail(at, f"{address} is not a [[host.device]] of this file")
        try:
            resolve(self._host, address, iommu_group=0)
        except TopologyError as failure:
            problems.fail(at, str(failure))
        return address

    def _vits_of(self, vits: int | None, at: KeyPath) -> int:
        """Return the vITS of a device: the only one if it names none."""
        if vits is None:
            return self._problems.only(self._vits, at, "vits", _VITSES)
        self._problems.known(vits, self._vits, (*at, "vits"), _VITSES)
        return int(vits)

    def _stage1_of(self, name: str | None, address: PciAddress | None, at: KeyPath) -> Stage1:
        """Return the stage 1 of a device.

        If the file has none, each name stands for one, and a device without a name has its own.
        """
        problems = self._problems
        if not self._names_stages:
            if name is None and address is not None:
                name = own_stage1(address)
            if name is None:
                raise UnusableError
            return self._stages.setdefault(name, Stage1(name))
        if name is None:
            name = problems.only(self._stages, at, "stage1", _STAGES)
        problems.known(name, self._stages, (*at, "stage1"), _STAGES)
        return self._stages[name]

    def _with_giovas(
        self, placed: Sequence[tuple[KeyPath, GuestDeviceTable, GuestDevice]]
    ) -> dict[PciAddress, GuestDevice]:
        """Return the devices with their gIOVAs, those that the file gives first."""
        problems = self._problems
        giovas = _Giovas(self._vits)
        for at, table, device in placed:
            stage1 = self._stages[device.stage1]
            if table.giova is None:
                continue
            at = (*at, "giova")
            problems.aligned(table.giova, stage1.granule, at, "the granule of its stage1")
            problems.below(table.giova, STAGE1_END, at)
            other = giovas.take(device, table.giova)
            if other != device.vits and stage1.translates:
                problems.add(
                    at,
                    f"{table.giova:#x} of stage1 {stage1.id!r} already leads to vits {other}, "
                    f"not to {device.vits}; use another giova or stage1",
                )
        return {
            device.host: replace(
                device,
                giova=giovas.default(device, self._stages[device.stage1])
                if table.giova is None
                else Iova(table.giova),
            )
            for _at, table, device in placed
        }


class _Giovas:
    """The addresses at which stage 1 tables map doorbells.

    A stage 1 maps a doorbell once: its devices with one vITS share the address (Linux
    ``drivers/iommu/dma-iommu.c`` iommu_dma_get_msi_page).
    """

    def __init__(self, vits: Mapping[int, Vits]) -> None:
        self._vits = vits
        self._target: dict[tuple[str, int], int] = {}
        self._address: dict[tuple[str, int], int] = {}

    def take(self, device: GuestDevice, giova: int) -> int:
        """Use an address for a device's doorbell, and return the vITS that it leads to."""
        self._address.setdefault((device.stage1, device.vits), giova)
        return self._target.setdefault((device.stage1, giova), device.vits)

    def default(self, device: GuestDevice, stage1: Stage1) -> Iova:
        """Return the address that Linux takes, of its allocator or gDB."""
        if not stage1.translates:
            return Iova(self._vits[device.vits].gdb)
        known = self._address.get((stage1.id, device.vits))
        if known is not None:
            return Iova(known)
        giova = FIRST_GIOVA.align_down(stage1.granule)
        while (stage1.id, giova) in self._target:
            giova = giova.offset(-stage1.granule)
        self.take(device, giova)
        return giova
