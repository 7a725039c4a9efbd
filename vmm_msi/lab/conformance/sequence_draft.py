"""A scenario that is being drawn: its steps so far, and what there is to refer to.

Every step runs on the model at once. Three kinds of calls are kept out or rare, by what it says:

- an MSI that cannot be enabled: Linux takes the device's event in the ITS before it asks for an
  address and does not give it back (``its_irq_domain_alloc``), so that a device with one event
  gets no MSI any more until the host reboots;
- faults that the kernel logs, since it logs 10 in 5 s;
- MSIs that nobody is told of, since it takes a while to be sure of that.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.iommu.call_sequence import (
    NO_OBJECT,
    Argument,
    Course,
    LandingKind,
    Ref,
    Scenario,
    Stage1Shape,
    Step,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from vmm_msi.iommu.call_sequence import Landing
    from vmm_msi.iommu.sim.call_machine import SimMachine
    from vmm_msi.types import HostDevice

#: Numbers that are no object's.
NUMBERS_OF_NONE = (NO_OBJECT, 0, 1 << 16)

#: How many scenarios have an MSI of each kind that is rare.
_QUIET_SHARE = 0.4
_LOGGED_SHARE = 0.25


class Made(NamedTuple):
    """An object that is there.

    :param kind: ``ioas``, ``hwpt``, ``parent``, ``viommu``, ``vdevice``, ``nested``, ``device``.
    :param device: the device it was made for.
    :param on: the object it was made on.
    """

    ref: Ref
    kind: str
    fd: Ref
    device: int
    on: Ref | None


class Draft:
    """The steps of a scenario, and the objects they made.

    :param machine: the model; it is the draft's until the scenario is complete.
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
        self.made: list[Made] = []
        #: Size of what is mapped, by IOAS and IOVA.
        self.areas: dict[Ref, dict[int, int]] = {}
        #: File descriptor of each bound device.
        self.bound: dict[int, Ref] = {}
        #: Devices whose character device may be open.
        self.opened: set[int] = set()
        self._machine = machine
        machine.prepare(stage1)
        self._course = Course(machine)
        self._steps: list[Step] = []
        self._quiet = rng.random() < _QUIET_SHARE
        self._logged = rng.random() < _LOGGED_SHARE

    def __len__(self) -> int:
        return len(self._steps)

    def finish(self, length: int) -> Scenario:
        """Return the scenario, cut to ``length`` steps."""
        self._machine.reset()
        return Scenario(self.stage1, tuple(self._steps[:length]))

    def do(self, op: str, **arguments: Argument) -> Ref | None:
        """Make a call; return a reference to it where it was not refused and is kept."""
        return self._call(Step(op, arguments))

    def _call(self, step: Step) -> Ref | None:
        result = self._course.make(step)
        if step.op == "enable" and result.errno == errno.ENOSPC:
            self._machine.lost_events.clear()
            self._course.take_back()
            return None
        if result.landing is not None and not self._affordable(result.landing, step):
            self._course.take_back()
            return None
        self._steps.append(step)
        return None if result.errno else Ref(len(self._steps) - 1)

    def _affordable(self, landing: Landing, step: Step) -> bool:
        """Tell whether the scenario may have one more MSI that ends like this, and count it."""
        if landing.kind is LandingKind.FAULT and not landing.guest:
            affordable, self._logged = self._logged, False
            return affordable
        device = step.arguments["device"]
        if landing.kind is LandingKind.NOWHERE and self.is_enabled(device):
            affordable, self._quiet = self._quiet, False
            return affordable
        return True

    def make(
        self, kind: str, device: int, on: Argument | None, op: str, arguments: dict[str, Argument]
    ) -> Ref | None:
        """Make an object, and remember it where that worked."""
        ref, fd = self._call(Step(op, arguments)), arguments["fd"]
        if ref is not None and isinstance(fd, Ref):
            self.made.append(Made(ref, kind, fd, device, on if isinstance(on, Ref) else None))
        return ref

    def is_enabled(self, device: Argument) -> bool:
        """Tell whether a device's MSI is enabled."""
        return isinstance(device, int) and self._machine.is_enabled(device)

    def mates(self, device: int) -> list[int]:
        """Return the other devices of a device's IOMMU group."""
        group = self.hosts[device].iommu_group
        return [n for n, host in enumerate(self.hosts) if host.iommu_group == group and n != device]

    def find(self, kind: str, fd: Ref, smmu: int | None = None) -> list[Made]:
        """Return the objects of a kind, of one SMMU where that is given."""
        return [
            made
            for made in self.made
            if made.kind == kind
            and made.fd == fd
            and (smmu is None or self.hosts[made.device].smmu == smmu)
        ]

    def number(self, fd: Ref, device: int) -> Argument:
        """Return the id of a bound device."""
        found = [made.ref for made in self.find("device", fd) if made.device == device]
        return found[-1] if found else NO_OBJECT

    def some(self, kind: str, fd: Ref) -> Argument:
        """Return the id of an object of a kind, or now and then another one or none."""
        right = [made.ref for made in self.find(kind, fd)]
        others = [made.ref for made in self.made if made.fd == fd]
        draw = self.rng.random()
        if right and draw < 0.85:
            return self.rng.choice(right)
        if others and draw < 0.95:
            return self.rng.choice(others)
        return self.rng.choice(NUMBERS_OF_NONE)

    def some_fd(self) -> Ref:
        """Return an open file descriptor; open one where there is none."""
        if not self.fds:
            self.open()
        return self.rng.choice(self.fds)

    def some_device(self) -> int:
        """Return a device, most often an open one."""
        if self.opened and self.rng.random() < 0.9:
            return self.rng.choice(sorted(self.opened))
        return self.rng.randrange(len(self.hosts))

    def open(self) -> None:
        """Open a file descriptor."""
        ref = self.do("open")
        if ref is not None:
            self.fds.append(ref)

    def bind_to(self, fd: Ref, device: int) -> Ref | None:
        """Bind a device; return the file descriptor where that worked."""
        self.opened.add(device)
        if self.make("device", device, None, "bind", {"fd": fd, "device": device}) is None:
            return None
        self.bound[device] = fd
        return fd

    def map_at(self, fd: Ref, ioas: Argument, iova: int, size: int, page: int) -> None:
        """Map a page, and remember it where that worked."""
        done = self.do("ioas_map", fd=fd, ioas=ioas, iova=iova, size=size, page=page)
        if done is not None and isinstance(ioas, Ref):
            self.areas.setdefault(ioas, {})[iova] = size
