"""A call sequence that is being drawn: its steps so far, and the objects that steps can refer to.

Every step runs in the simulator at once. By its result, three kinds of calls are left out or rare:

- an MSI that cannot be enabled: Linux allocates the device's event in the ITS before it looks for
  an address and does not free it (``its_irq_domain_alloc``), so a device with one event gets no
  MSI again until the host reboots;
- faults that the kernel logs, since it logs at most 10 in 5 s;
- MSIs that land nowhere, since only a timeout detects them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.iommu.call_sequence import (
    NO_OBJECT,
    Argument,
    CallSequence,
    LandingKind,
    Ref,
    SequenceRunner,
    Stage1Shape,
    Step,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from vmm_msi.iommu.call_sequence import Landing
    from vmm_msi.iommu.sim.call_machine import SimMachine
    from vmm_msi.types import HostDevice

#: Numbers of no object.
INVALID_NUMBERS = (NO_OBJECT, 0, 1 << 16)

#: Share of sequences that have an MSI of each rare kind.
_QUIET_SHARE = 0.4
_LOGGED_SHARE = 0.25


class DraftObject(NamedTuple):
    """An object that exists.

    :param kind: ``ioas``, ``hwpt``, ``parent``, ``viommu``, ``vdevice``, ``nested``, ``device``.
    :param device: the device it was allocated for.
    :param parent: the object it was allocated on.
    """

    ref: Ref
    kind: str
    fd: Ref
    device: int
    parent: Ref | None


class Draft:
    """The steps of a sequence, and the objects they allocated.

    :param machine: the simulator; the draft uses it until the sequence is complete.
    """

    def __init__(
        self, machine: SimMachine, rng: random.Random, stage1: tuple[Stage1Shape, ...]
    ) -> None:
        self.rng = rng
        self.stage1 = stage1
        self.hosts: Sequence[HostDevice] = machine.host.devices
        self.page = int(machine.host.granule)
        #: Open file descriptors.
        self.fds: list[Ref] = []
        self.objects: list[DraftObject] = []
        #: Size of each mapping, by IOAS and IOVA.
        self.areas: dict[Ref, dict[int, int]] = {}
        #: File descriptor of each bound device.
        self.bound: dict[int, Ref] = {}
        #: Devices whose character device may be open.
        self.opened: set[int] = set()
        self._machine = machine
        machine.prepare(stage1)
        self._runner = SequenceRunner(machine)
        self._steps: list[Step] = []
        self._quiet = rng.random() < _QUIET_SHARE
        self._logged = rng.random() < _LOGGED_SHARE

    def __len__(self) -> int:
        return len(self._steps)

    def finish(self, length: int) -> CallSequence:
        """Return the sequence, cut to ``length`` steps."""
        self._machine.reset()
        return CallSequence(self.stage1, tuple(self._steps[:length]))

    def do(self, op: str, **arguments: Argument) -> Ref | None:
        """Make a call; return a reference to it, None if it was refused or is left out."""
        return self._call(Step(op, arguments))

    def _call(self, step: Step) -> Ref | None:
        result = self._runner.call(step)
        if step.op == "enable" and result.errno == errno.ENOSPC:
            self._machine.lost_events.clear()
            self._runner.discard_last()
            return None
        if result.landing is not None and not self._affordable(result.landing, step):
            self._runner.discard_last()
            return None
        self._steps.append(step)
        return None if result.errno else Ref(len(self._steps) - 1)

    def _affordable(self, landing: Landing, step: Step) -> bool:
        """Return whether the sequence may have one more MSI that lands like this, and count it."""
        if landing.kind is LandingKind.FAULT and not landing.guest:
            affordable, self._logged = self._logged, False
            return affordable
        device = step.arguments["device"]
        if landing.kind is LandingKind.NOWHERE and self.is_enabled(device):
            affordable, self._quiet = self._quiet, False
            return affordable
        return True

    def alloc(
        self,
        kind: str,
        device: int,
        parent: Argument | None,
        op: str,
        arguments: dict[str, Argument],
    ) -> Ref | None:
        """Allocate an object, and record it if that succeeded."""
        ref, fd = self._call(Step(op, arguments)), arguments["fd"]
        if ref is not None and isinstance(fd, Ref):
            on = parent if isinstance(parent, Ref) else None
            self.objects.append(DraftObject(ref, kind, fd, device, on))
        return ref

    def is_enabled(self, device: Argument) -> bool:
        """Return whether a device's MSI is enabled."""
        return isinstance(device, int) and self._machine.is_enabled(device)

    def mates(self, device: int) -> list[int]:
        """Return the other devices of a device's IOMMU group."""
        group = self.hosts[device].iommu_group
        return [n for n, host in enumerate(self.hosts) if host.iommu_group == group and n != device]

    def find(self, kind: str, fd: Ref, smmu: int | None = None) -> list[DraftObject]:
        """Return the objects of a kind, optionally of one SMMU."""
        return [
            candidate
            for candidate in self.objects
            if candidate.kind == kind
            and candidate.fd == fd
            and (smmu is None or self.hosts[candidate.device].smmu == smmu)
        ]

    def number(self, fd: Ref, device: int) -> Argument:
        """Return the id of a bound device."""
        refs = [bound.ref for bound in self.find("device", fd) if bound.device == device]
        return refs[-1] if refs else NO_OBJECT

    def some(self, kind: str, fd: Ref) -> Argument:
        """Return the id of an object of a kind, sometimes of another kind or of no object."""
        right = [candidate.ref for candidate in self.find(kind, fd)]
        others = [candidate.ref for candidate in self.objects if candidate.fd == fd]
        draw = self.rng.random()
        if right and draw < 0.85:
            return self.rng.choice(right)
        if others and draw < 0.95:
            return self.rng.choice(others)
        return self.rng.choice(INVALID_NUMBERS)

    def some_fd(self) -> Ref:
        """Return an open file descriptor; open one if none is open."""
        if not self.fds:
            self.open()
        return self.rng.choice(self.fds)

    def some_device(self) -> int:
        """Return a device, usually an open one."""
        if self.opened and self.rng.random() < 0.9:
            return self.rng.choice(sorted(self.opened))
        return self.rng.randrange(len(self.hosts))

    def open(self) -> None:
        """Open a file descriptor."""
        ref = self.do("open")
        if ref is not None:
            self.fds.append(ref)

    def bind_to(self, fd: Ref, device: int) -> Ref | None:
        """Bind a device; return the file descriptor if that succeeded."""
        self.opened.add(device)
        if self.alloc("device", device, None, "bind", {"fd": fd, "device": device}) is None:
            return None
        self.bound[device] = fd
        return fd

    def map_at(self, fd: Ref, ioas: Argument, iova: int, size: int, page: int) -> None:
        """Map a page, and record it if that succeeded."""
        mapped = self.do("ioas_map", fd=fd, ioas=ioas, iova=iova, size=size, page=page)
        if mapped is not None and isinstance(ioas, Ref):
            self.areas.setdefault(ioas, {})[iova] = size
