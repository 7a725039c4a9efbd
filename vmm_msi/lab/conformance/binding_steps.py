"""Random steps of the interface for guest MSI bindings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.iommu.call_sequence import RAM_BASE
from vmm_msi.iommu.guest_msi import MsiBinding, MsiOp

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_msi.iommu.call_sequence import Argument, Ref
    from vmm_msi.lab.conformance.sequence_draft import Draft

#: IPAs where a doorbell is bound although no stage 1 leads there: two slots of the kernel's window,
#: guest RAM, past the end of stage 2.
_ODD_GDBS = (0x0800_0000, 0x0800_1000, RAM_BASE, 1 << 45)
_ODD_SHIFTS = (0, 11, 31, 1 << 15)
_LARGE_SHIFTS = (14, 16, 21, 30)
_U64 = (1 << 64) - 1
_U32 = (1 << 32) - 1


class BindingSteps:
    """Calls that bind doorbells, in any order, right or wrong.

    :param send: makes a device send its MSI.
    """

    def __init__(self, draft: Draft, send: Callable[[Draft, int], None]) -> None:
        self._draft = draft
        self._rng = draft.rng
        self._send = send
        #: File descriptor, vDEVICE and gIOVA of each binding that was made.
        self._bound: list[tuple[Ref, Argument, int]] = []
        self._calls: list[tuple[Callable[[Ref, int], None], float]] = [
            (self._bind, 6),
            (self._unbind, 4),
            (self._prepare, 3),
            (self._query, 3),
            (self._select, 1.5),
            (self._selected, 0.5),
            (self._raw, 0.7),
            (self._address, 1),
        ]

    def call(self, fd: Ref, device: int) -> None:
        """Make one call."""
        calls, weights = zip(*self._calls, strict=True)
        self._rng.choices(calls, weights)[0](fd, device)

    def select(self, fd: Ref, hwpt: Argument) -> None:
        """Select an allocator of a nest parent."""
        value: int = self._rng.choice(list(MsiBinding))
        self._draft.do("set_msi_binding", fd=fd, hwpt=hwpt, value=value)

    def bind_own(self, device: int) -> None:
        """Bind the doorbell of an attached device, as its VMM would, and make it send its MSI."""
        draft, rng = self._draft, self._rng
        fd = draft.bound.get(device)
        own = [] if fd is None else [v for v in draft.find("vdevice", fd) if v.device == device]
        if fd is None or not own:
            return
        self._do_bind(fd, own[-1].ref, self._binding())
        if rng.random() < 0.6:
            draft.do("msi_prepare", fd=fd, vdevice=own[-1].ref)
        if not draft.is_enabled(device):
            draft.do("enable", device=device)
        draft.do("msi_address", device=device)
        if draft.is_enabled(device):
            draft.do("raise_msi", device=device)

    def _binding(self) -> dict[str, int]:
        """Draw a binding that some stage 1 has."""
        rng = self._rng
        shape = rng.choice(self._draft.stage1)
        giova, ipa = rng.choice(shape.pages)
        shift = int(shape.granule).bit_length() - 1
        return {"iova": giova, "gpa": ipa, "page_shift": shift}

    def _vdevice(self, fd: Ref, device: int) -> Argument:
        """Return the vDEVICE of a device, sometimes of another one or none."""
        own = [v.ref for v in self._draft.find("vdevice", fd) if v.device == device]
        return own[-1] if own and self._rng.random() < 0.6 else self._draft.some("vdevice", fd)

    def _bind(self, fd: Ref, device: int) -> None:
        rng, binding = self._rng, self._binding()
        draw = rng.random()
        if draw < 0.15:
            binding["gpa"] = rng.choice(_ODD_GDBS)
        elif draw < 0.22:
            binding["page_shift"] = rng.choice(_ODD_SHIFTS)
        elif draw < 0.3:
            binding["page_shift"] = shift = rng.choice(_LARGE_SHIFTS)
            binding["iova"] &= -(1 << shift)
            binding["gpa"] &= -(1 << shift)
        elif draw < 0.35:
            binding[rng.choice(("iova", "gpa"))] += rng.choice((1, 0x40, 0x800))
        elif draw < 0.4:
            binding["iova"] = _U64 & -(1 << 30)
        vdevice = self._vdevice(fd, device)
        self._do_bind(fd, vdevice, binding)
        self._address(fd, device)

    def _do_bind(self, fd: Ref, vdevice: Argument, binding: dict[str, int]) -> None:
        if self._draft.do("msi_bind", fd=fd, vdevice=vdevice, **binding) is not None:
            self._bound.append((fd, vdevice, binding["iova"]))

    def _some_bound(self, fd: Ref, device: int) -> tuple[Ref, Argument, int]:
        """Return a vDEVICE and a gIOVA, usually of a binding that was made."""
        if self._bound and self._rng.random() < 0.8:
            return self._rng.choice(self._bound)
        iova = self._binding()["iova"] + self._rng.choice((0, 0, 0x1000))
        return fd, self._vdevice(fd, device), iova

    def _unbind(self, fd: Ref, device: int) -> None:
        owner, vdevice, iova = self._some_bound(fd, device)
        self._draft.do("msi_unbind", fd=owner, vdevice=vdevice, iova=iova)
        self._address(fd, device)

    def _prepare(self, fd: Ref, device: int) -> None:
        self._draft.do("msi_prepare", fd=fd, vdevice=self._vdevice(fd, device))
        self._address(fd, device)

    def _query(self, fd: Ref, device: int) -> None:
        owner, vdevice, _iova = self._some_bound(fd, device)
        index = self._rng.choice((0, 0, 0, 1, 2, _U32))
        self._draft.do("msi_query", fd=owner, vdevice=vdevice, index=index)

    def _select(self, fd: Ref, _device: int) -> None:
        hwpt = self._draft.some("parent", fd)
        if self._rng.random() < 0.85:
            self.select(fd, hwpt)
        else:
            self._draft.do("set_msi_binding", fd=fd, hwpt=hwpt, value=self._rng.choice((5, _U64)))

    def _selected(self, fd: Ref, _device: int) -> None:
        kind = self._rng.choices(("parent", "hwpt", "nested", "ioas"), (6, 2, 1, 1))[0]
        self._draft.do("msi_binding", fd=fd, hwpt=self._draft.some(kind, fd))

    def _raw(self, fd: Ref, device: int) -> None:
        """Make a call with a wrong field, or with an op that does not exist."""
        rng = self._rng
        fields = {"page_shift": 0, "index": 0, "flags": 0, "reserved": 0, "iova": 0, "gpa": 0}
        op: int = rng.choice([*MsiOp, 4, 0xFFFF])
        if op == MsiOp.BIND:
            fields |= self._binding()
        if rng.random() < 0.8:
            fields[rng.choice(list(fields))] ^= rng.choice((1, 2, 1 << 15))
        vdevice = self._vdevice(fd, device)
        self._draft.do("vdevice_msi", fd=fd, vdevice=vdevice, msi_op=op, **fields)

    def _address(self, _fd: Ref, device: int) -> None:
        """Compare the address in a device, and perhaps where its MSI lands."""
        draft = self._draft
        draft.do("msi_address", device=device)
        if draft.is_enabled(device) and self._rng.random() < 0.4:
            self._send(draft, device)


def destroy_vdevice(draft: Draft, fd: Ref, vdevice: Argument) -> None:
    """Destroy a vDEVICE while its device may be in use, and compare the device's address."""
    device = next((v.device for v in draft.find("vdevice", fd) if v.ref == vdevice), None)
    if draft.do("destroy", fd=fd, number=vdevice) is None or device is None:
        return
    draft.objects = [kept for kept in draft.objects if kept.ref != vdevice]
    draft.do("msi_address", device=device)
