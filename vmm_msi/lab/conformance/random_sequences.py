"""Random call sequences for the comparison of the simulator with a kernel, drawn from a seed.

A sequence leads to MSIs that are delivered through IOMMU domains of different kinds, with calls in
between that are out of order, repeated or wrong.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from vmm_msi.iommu.call_sequence import (
    RAM_BASE,
    RAM_PAGE,
    RAM_SIZE,
    WITNESSES,
    Argument,
    CallSequence,
    NestedConfig,
    Ref,
    Stage1Shape,
)
from vmm_msi.lab.conformance.binding_steps import BindingSteps, destroy_vdevice
from vmm_msi.lab.conformance.sequence_draft import INVALID_NUMBERS, Draft
from vmm_msi.types import SW_MSI_WINDOW, Granule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm_msi.iommu.sim.call_machine import SimMachine

#: Number of steps of a sequence: lowest, highest and most frequent. A kernel with the interface for
#: guest MSI bindings has the second, since those calls come on top.
LENGTHS = (12, 44, 24)
BINDING_LENGTHS = (20, 70, 40)

_WINDOW = SW_MSI_WINDOW.base
#: IPAs of witness doorbells, all multiples of 64 KiB.
_DOORBELLS = (0x0A09_0000, 0x0A0A_0000, 0x0B00_0000)
#: gIOVAs, also multiples of 64 KiB.
_GIOVAS = (0xFFFF_0000, 0xFFFE_0000, 0x1_0000_0000)
#: Another IPA for guest RAM, which no table refers to.
_ALIAS = 0x5000_0000
_NOT_MAPPED = 0x0C00_0000
_PAST_STAGE2 = 1 << 45
_PAST_STAGE1 = 1 << 50
_TRANSLATER = 0x40
_U64 = (1 << 64) - 1
#: IPAs that stage 1 tables lead to, with their weights.
_TARGETS = {_WINDOW: 5, **dict(zip(_DOORBELLS, (4, 2, 2), strict=True)), _NOT_MAPPED: 1}
_TARGETS[_PAST_STAGE2] = 1
_TARGETS_OF_BINDINGS = {**_TARGETS, _WINDOW: 2, _NOT_MAPPED: 9}


def draw_sequences(machine: SimMachine, count: int, seed: int) -> list[CallSequence]:
    """Draw sequences; the same ones for the same seed and machine."""
    return [_draw(machine, random.Random(f"{seed}/{n}")) for n in range(count)]  # noqa: S311


def _draw(machine: SimMachine, rng: random.Random) -> CallSequence:
    # Where nothing is mapped, a doorbell can be bound.
    targets = _TARGETS_OF_BINDINGS if machine.bindings else _TARGETS
    draft = Draft(machine, rng, _stage1(rng, machine.host.granule, targets))
    devices = _devices(draft)
    bindings = BindingSteps(draft, send) if machine.bindings else None
    delivery, noise = DeliverySteps(draft, bindings), Noise(draft)
    length = int(rng.triangular(*(BINDING_LENGTHS if bindings else LENGTHS)))
    while len(draft) < length:
        if rng.random() < (0.3 if draft.bound else 0.9):
            device = rng.choice(devices)
            delivery.advance(device)
            if bindings is not None:
                bindings.bind_own(device)
        elif bindings is not None and rng.random() < 0.5:
            bindings.call(draft.some_fd(), draft.some_device())
        else:
            noise.call()
    return draft.finish(length)


def _stage1(
    rng: random.Random, largest: Granule, weights: Mapping[int, int]
) -> tuple[Stage1Shape, ...]:
    """Draw stage 1 tables with pages no larger than those of stage 2.

    QEMU 11.1 translates the address of a stage 1 table by stage 2, but not that of each
    descriptor in it, so a table larger than a page of stage 2 must be contiguous in memory
    (``hw/arm/smmu-common.c`` translate_table_addr_ipa), which this process cannot ensure.
    """
    shapes = []
    for asid in range(1, rng.choice((1, 2, 2, 3)) + 1):
        granule = rng.choice([granule for granule in Granule if granule <= largest])
        giovas = rng.sample(_GIOVAS, rng.randint(1, len(_GIOVAS)))
        targets = rng.choices(list(weights), list(weights.values()), k=len(giovas))
        pages = dict(zip(giovas, targets, strict=True))
        if rng.random() < 0.5:
            pages[_WINDOW] = _WINDOW
        shapes.append(Stage1Shape(granule, 10 * asid, tuple(pages.items())))
    return tuple(shapes)


def _devices(draft: Draft) -> list[int]:
    """Return the devices of a sequence, some of them several times."""
    rng = draft.rng
    first = rng.randrange(len(draft.hosts))
    others = rng.choice((0, 0, 1, 1, 2))
    return [first, *draft.mates(first), *rng.choices(range(len(draft.hosts)), k=others)]


class DeliverySteps:
    """Steps that lead to a delivered MSI, each if its preconditions hold."""

    def __init__(self, draft: Draft, bindings: BindingSteps | None) -> None:
        self._draft = draft
        self._rng = draft.rng
        self._bindings = bindings

    def advance(self, device: int) -> None:
        """Make the next steps of a device, until one is refused."""
        draft, rng = self._draft, self._rng
        fd = self._bind(device)
        if fd not in draft.fds:
            return
        alloc_target = rng.choices((self._nested, self._ioas, self._table), (6, 2, 2))[0]
        target = alloc_target(fd, device)
        if target is None or draft.do("attach", device=device, pt_id=target) is None:
            return
        if not draft.is_enabled(device) or rng.random() < 0.2:
            draft.do("enable", device=device)
        if draft.is_enabled(device):
            for _ in range(rng.randint(1, 2)):
                send(draft, device)

    def _bind(self, device: int) -> Ref | None:
        """Return the file descriptor that a device is bound to; bind it if it is not bound."""
        draft = self._draft
        if device in draft.bound:
            return draft.bound[device]
        owners = [draft.bound[mate] for mate in draft.mates(device) if mate in draft.bound]
        if owners and self._rng.random() < 0.9:
            return draft.bind_to(owners[0], device)
        if len(draft.fds) in {1, 2} and self._rng.random() < 0.08:
            draft.open()
        return draft.bind_to(draft.some_fd(), device)

    def _existing(self, kind: str, fd: Ref, device: int, share: float) -> Ref | None:
        """Return a suitable object in a share of the calls, otherwise None."""
        smmu = None if kind == "ioas" else self._draft.hosts[device].smmu
        suitable = self._draft.find(kind, fd, smmu)
        return self._rng.choice(suitable).ref if suitable and self._rng.random() < share else None

    def _ioas(self, fd: Ref, device: int) -> Ref | None:
        """Return an IOAS, usually with guest RAM and a doorbell."""
        draft, rng = self._draft, self._rng
        existing = self._existing("ioas", fd, device, 0.75)
        if existing is not None:
            return existing
        ioas = draft.alloc("ioas", device, None, "ioas_alloc", {"fd": fd})
        if ioas is None:
            return None
        if rng.random() < 0.95:
            draft.map_at(fd, ioas, RAM_BASE, RAM_SIZE, RAM_PAGE)
        if rng.random() < 0.04:
            half = draft.page // 2
            draft.map_at(fd, ioas, _ALIAS + half, half, 1)
        for doorbell in _DOORBELLS:
            if rng.random() < 0.5:
                draft.map_at(fd, ioas, doorbell, draft.page, rng.randint(1, WITNESSES))
        return ioas

    def _table(self, fd: Ref, device: int) -> Ref | None:
        return self._hwpt(fd, device, parent=self._rng.random() < 0.5)

    def _hwpt(self, fd: Ref, device: int, *, parent: bool) -> Ref | None:
        kind = "parent" if parent else "hwpt"
        existing = self._existing(kind, fd, device, 0.75)
        if existing is not None:
            return existing
        ioas = self._ioas(fd, device)
        if ioas is None:
            return None
        hwpt = alloc_hwpt(self._draft, fd, device, ioas, parent=parent)
        if parent and hwpt is not None and self._bindings is not None:
            self._bindings.select(fd, hwpt)
        return hwpt

    def _viommu(self, fd: Ref, device: int) -> Ref | None:
        existing = self._existing("viommu", fd, device, 0.85)
        if existing is not None:
            return existing
        hwpt = self._hwpt(fd, device, parent=True)
        return None if hwpt is None else alloc_viommu(self._draft, fd, device, hwpt)

    def _nested(self, fd: Ref, device: int) -> Ref | None:
        draft, rng = self._draft, self._rng
        viommu = self._viommu(fd, device)
        if viommu is None:
            return None
        for member in (device, *draft.mates(device)):
            if any(vdevice.device == member for vdevice in draft.find("vdevice", fd)):
                continue
            if rng.random() < 0.92 and self._bind(member) == fd:
                alloc_vdevice(draft, fd, member, viommu)
        hwpts = [hwpt.ref for hwpt in draft.find("nested", fd) if hwpt.parent == viommu]
        if hwpts and rng.random() < 0.35:
            return rng.choice(hwpts)
        config = rng.choices(list(NestedConfig), (12, 3, 1, 1))[0]
        return alloc_nested(draft, fd, device, viommu, config)


def alloc_hwpt(draft: Draft, fd: Ref, device: int, ioas: Argument, *, parent: bool) -> Ref | None:
    """Allocate a HWPT for a device."""
    return draft.alloc(
        "parent" if parent else "hwpt",
        device,
        ioas,
        "hwpt_alloc",
        {"fd": fd, "dev_id": draft.number(fd, device), "ioas": ioas, "nest_parent": parent},
    )


def alloc_viommu(draft: Draft, fd: Ref, device: int, hwpt: Argument) -> Ref | None:
    """Allocate a vIOMMU for a device."""
    arguments = {"fd": fd, "dev_id": draft.number(fd, device), "hwpt": hwpt}
    return draft.alloc("viommu", device, hwpt, "viommu_alloc", arguments)


def alloc_vdevice(draft: Draft, fd: Ref, device: int, viommu: Argument) -> Ref | None:
    """Allocate a vDEVICE for a device."""
    virt_id = draft.rng.choices((0x100 + device, 0x100, (1 << 40) + device), (8, 1, 1))[0]
    number = draft.number(fd, device)
    return draft.alloc(
        "vdevice",
        device,
        viommu,
        "vdevice_alloc",
        {"fd": fd, "viommu": viommu, "dev_id": number, "virt_id": virt_id},
    )


def alloc_nested(
    draft: Draft, fd: Ref, device: int, viommu: Argument, config: NestedConfig
) -> Ref | None:
    """Allocate a nested HWPT for a device."""
    return draft.alloc(
        "nested",
        device,
        viommu,
        "hwpt_alloc_nested",
        {
            "fd": fd,
            "dev_id": draft.number(fd, device),
            "viommu": viommu,
            "config": config.value,
            "stage1": draft.rng.randrange(len(draft.stage1)),
        },
    )


def send(draft: Draft, device: int) -> None:
    """Make a device send its MSI, usually with a random address."""
    rng = draft.rng
    if rng.random() < 0.65:
        giova, ipa = rng.choice(rng.choice(draft.stage1).pages)
        bases = (giova, ipa, _WINDOW, rng.choice(_DOORBELLS), _NOT_MAPPED, _PAST_STAGE1)
        base = rng.choices(bases, (12, 4, 3, 3, 1, 1))[0]
        offset = rng.choices((_TRANSLATER, 0x44, 0x1040, 0x43), (12, 1, 1, 1))[0]
        draft.do("program", device=device, address=base + offset)
    draft.do("raise_msi", device=device)


class Noise:
    """Calls of any kind, right or wrong."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._rng = draft.rng
        self._calls: list[tuple[Callable[[Ref, int], object], float]] = [
            (self._map, 4),
            (self._unmap, 3),
            (self._alloc, 5),
            (self._attach, 4),
            (self._destroy, 4),
            (self._send, 4),
            (self._bind, 1.2),
            (self._unbind, 1.2),
            (self._close, 0.4),
            (lambda _fd, _device: draft.open(), 0.4),
            (lambda _fd, device: draft.do("detach", device=device), 3),
            (lambda _fd, device: draft.do("enable", device=device), 2),
            (lambda _fd, device: draft.do("disable", device=device), 1.5),
        ]

    def call(self) -> None:
        """Make one call."""
        calls, weights = zip(*self._calls, strict=True)
        device = self._draft.some_device()
        self._rng.choices(calls, weights)[0](self._draft.some_fd(), device)

    def _map(self, fd: Ref, _device: int) -> None:
        draft, rng, page = self._draft, self._rng, self._draft.page
        ioas = draft.some("ioas", fd)
        if rng.random() < 0.15:
            size = rng.choice((RAM_SIZE, page))
            draft.map_at(fd, ioas, rng.choice((RAM_BASE, _ALIAS)), size, RAM_PAGE)
            return
        usual = (*_DOORBELLS, _WINDOW, _WINDOW + page, _WINDOW - page, RAM_BASE + RAM_SIZE - page)
        odd = (_PAST_STAGE2, _PAST_STAGE1, (1 << 64) - page, _U64, _DOORBELLS[0] + page // 2)
        iova = rng.choice(usual if rng.random() < 0.8 else odd)
        sizes = (page, 2 * page, page // 2, 0, _U64)
        size = rng.choices(sizes, (12, 3, 1, 1, 0.5))[0]
        draft.map_at(fd, ioas, iova, size, rng.randint(1, WITNESSES - 1))

    def _unmap(self, fd: Ref, _device: int) -> None:
        draft, rng, page = self._draft, self._rng, self._draft.page
        ioas = draft.some("ioas", fd)
        areas = draft.areas.get(ioas, {}) if isinstance(ioas, Ref) else {}
        if areas and rng.random() < 0.75:
            iova, size = rng.choice(list(areas.items()))
            near = ((iova, size), (iova, size + page), (iova, page), (iova + page, size))
            iova, size = rng.choices(near, (8, 2, 1, 1))[0]
        else:
            odd = ((0, _U64), (0, _U64 - 1), (_NOT_MAPPED, page), (_U64, 1), (page, 0))
            iova, size = rng.choice((*odd, (page, _U64 - 1)))
        if draft.do("ioas_unmap", fd=fd, ioas=ioas, iova=iova, size=size) is not None:
            for start in [start for start in areas if iova <= start < iova + size]:
                del areas[start]

    def _alloc(self, fd: Ref, device: int) -> None:
        draft, rng = self._draft, self._rng
        match rng.choice(("hwpt", "viommu", "vdevice", "nested")):
            case "hwpt":
                parent = draft.some(rng.choices(("ioas", "viommu", "parent"), (6, 1, 1))[0], fd)
                alloc_hwpt(draft, fd, device, parent, parent=rng.random() < 0.6)
            case "viommu":
                parent = draft.some(rng.choices(("parent", "hwpt"), (3, 1))[0], fd)
                alloc_viommu(draft, fd, device, parent)
            case "vdevice":
                alloc_vdevice(draft, fd, device, draft.some("viommu", fd))
            case _:
                parent = draft.some(rng.choices(("viommu", "parent", "ioas"), (6, 1, 1))[0], fd)
                alloc_nested(draft, fd, device, parent, rng.choice(list(NestedConfig)))

    def _attach(self, fd: Ref, device: int) -> None:
        draft, rng = self._draft, self._rng
        fd = draft.bound.get(device, fd)
        kind = rng.choices(("nested", "ioas", "parent", "hwpt"), (4, 2, 2, 2))[0]
        attached = draft.do("attach", device=device, pt_id=draft.some(kind, fd))
        if attached is None and rng.random() < 0.3:
            # Test the reservations that a refusal leaves.
            iova = rng.choice((_WINDOW, _WINDOW + draft.page))
            draft.map_at(fd, draft.some("ioas", fd), iova, draft.page, 1)

    def _destroy(self, fd: Ref, _device: int) -> None:
        draft = self._draft
        kinds = ("vdevice", "nested", "viommu", "parent", "hwpt", "ioas", "device")
        kind = self._rng.choices(kinds, (4, 3, 2, 2, 2, 2, 1))[0]
        number = draft.some(kind, fd)
        if kind == "vdevice":
            destroy_vdevice(draft, fd, number)
        elif draft.do("destroy", fd=fd, number=number) is not None:
            draft.objects = [kept for kept in draft.objects if kept.ref != number]

    def _send(self, _fd: Ref, device: int) -> None:
        enabled = [bound for bound in self._draft.bound if self._draft.is_enabled(bound)]
        usual = enabled and self._rng.random() < 0.9
        send(self._draft, self._rng.choice(enabled) if usual else device)

    def _bind(self, fd: Ref, device: int) -> None:
        draft = self._draft
        if device not in draft.bound:
            draft.bind_to(fd, device)
        else:
            number = fd if self._rng.random() < 0.8 else INVALID_NUMBERS[-1]
            draft.do("bind", fd=number, device=device)

    def _unbind(self, _fd: Ref, device: int) -> None:
        draft = self._draft
        if draft.do("unbind", device=device) is not None:
            draft.opened.discard(device)
            draft.bound.pop(device, None)
            draft.objects = [
                kept
                for kept in draft.objects
                if kept.kind not in {"device", "vdevice"} or kept.device != device
            ]

    def _close(self, fd: Ref, _device: int) -> None:
        draft = self._draft
        if draft.do("close", fd=fd) is not None:
            draft.fds.remove(fd)
