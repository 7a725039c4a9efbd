"""Describe the emulated host: its SMMUs and the devices behind each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from vmm_msi.errors import UsageError
from vmm_msi.lab.build.kernel_flavour import DEBUG, STOCK
from vmm_msi.quantity import quantity
from vmm_msi.types import Granule

#: Devices behind one SMMU, at most, a pair counting once: each SMMU gets 16 bus numbers, one of
#: which is the expander bus's own.
PORTS_PER_SMMU = 15

#: Lowest and highest value of each number of a shape. QEMU's virt has wired interrupts for 16
#: SMMUs (``hw/arm/virt.c``: 64 for the platform bus); bus numbers run out first.
RANGES = {
    "smmus": (1, 8),
    "itses": (1, 16),
    "devices": (1, 32),
    "pairs": (0, 16),
    "nvmes": (0, 16),
    "e1000es": (0, 8),
    "igbs": (0, 8),
    "memory": (512, 16384),
    "vcpus": (1, 8),
}

#: Page sizes of its kernel.
GRANULES = (Granule.K4, Granule.K64)


#: QEMU's names of the test device, of an NVMe controller and of two network cards, the second of
#: which has virtual functions.
EDU, NVME, E1000E, IGB = "edu", "nvme", "e1000e", "igb"

#: RAM of a host with guests, in MiB: guest RAM is pinned; QEMU and firmware need more.
GUESTS_MEMORY = 3072


class Port(NamedTuple):
    """One root port and the device behind it.

    :ivar smmu: index of the SMMU, from 0.
    :ivar functions: functions of the device: 1, or 2 for a pair.
    :ivar driver: QEMU's name of the device.
    """

    smmu: int
    functions: int
    driver: str = EDU


@dataclass(frozen=True)
class Shape:
    """The shape of an emulated host.

    :ivar smmus: SMMUs, each with its own PCI expander bus.
    :ivar devices: test devices that have an IOMMU group of their own, dealt out to the SMMUs in
        turn.
    :ivar pairs: test devices with two functions, which share an IOMMU group, dealt out likewise.
    :ivar granule: page size of its kernel.
    :ivar memory: RAM in MiB.
    :ivar vcpus: processors.
    :ivar nvmes: NVMe controllers, dealt out likewise; with a namespace each where it has guests.
    :ivar e1000es: network cards, dealt out likewise.
    :ivar igbs: network cards with virtual functions, dealt out likewise.
    :ivar guests: it can run guests: its processors have EL2, and it has a libvirt of its own.
    :ivar kernel: its kernel's name (:mod:`vmm_msi.lab.build.kernel_flavour`); ``None`` where any
        kernel will do: a running host's, else the stock kernel.
    :ivar itses: ITSes, to which the devices send their MSIs in turn; ``None`` where any number will
        do: a running host's, else one. With more than one it runs on a QEMU that the lab builds
        (:mod:`vmm_msi.lab.build.its_emulator`).
    :raise UsageError: when a number is out of its range, or the kernel cannot run guests.
    """

    smmus: int = 2
    devices: int = 4
    pairs: int = 1
    granule: Granule = Granule.K4
    memory: int = 1024
    vcpus: int = 2
    nvmes: int = 0
    e1000es: int = 0
    igbs: int = 0
    guests: bool = False
    kernel: str | None = None
    itses: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if self.guests and name == "devices":
                low = 0
            if value is not None and not low <= value <= high:
                raise UsageError(f"lab host: {value} {name}; valid is {low} to {high}")
        if self.granule not in GRANULES:
            raise UsageError(
                f"lab host: granule {self.granule}; valid: {', '.join(map(str, GRANULES))}"
            )
        if self.guests and self.kernel == DEBUG:
            raise UsageError(
                "lab host: kernel debug runs no guests: it is built without KVM; use --kernel bind"
            )
        if not self.ports:
            raise UsageError("lab host: no device at all; valid is one or more of any kind")
        most = max(len(self.behind(smmu)) for smmu in range(self.smmus))
        if most > PORTS_PER_SMMU:
            raise UsageError(
                f"lab host: {most} devices and pairs behind one SMMU; valid is up to "
                f"{PORTS_PER_SMMU}: use more SMMUs"
            )

    @cached_property
    def ports(self) -> tuple[Port, ...]:
        """The root ports: those of single devices, those of pairs, those of NVMe controllers."""
        singles = [Port(index % self.smmus, 1) for index in range(self.devices)]
        pairs = [Port(index % self.smmus, 2) for index in range(self.pairs)]
        others = [
            Port(index % self.smmus, 1, driver)
            for driver, count in ((NVME, self.nvmes), (E1000E, self.e1000es), (IGB, self.igbs))
            for index in range(count)
        ]
        return (*singles, *pairs, *others)

    def behind(self, smmu: int) -> tuple[Port, ...]:
        """Return the root ports of one SMMU, in the order of their slots."""
        return tuple(port for port in self.ports if port.smmu == smmu)

    def with_defaults(self) -> Shape:
        """Return the shape of a host to start: the stock kernel and one ITS where any will do."""
        return replace(self, kernel=self.kernel or STOCK, itses=self.its_count)

    @property
    def its_count(self) -> int:
        """The number of ITSes, one if any number will do."""
        return self.itses or 1

    def its_of(self, smmu: int, slot: int) -> int:
        """Return the number of the ITS of a root port's device, from 0.

        Neighbours behind an SMMU have different ones, and so have the first devices of neighbouring
        SMMUs.
        """
        return (smmu + slot) % self.its_count

    def covers(self, wanted: Shape) -> bool:
        """Return whether everything that works on a host of shape ``wanted`` works on this one.

        Every SMMU of ``wanted`` has at least its devices here, under the same page size and the
        kernel that it names. With another number of ITSes its devices would have other ITSes.
        """
        if wanted.kernel not in (None, self.kernel):
            return False
        if self.granule is not wanted.granule or self.smmus < wanted.smmus:
            return False
        if wanted.itses not in (None, self.its_count) or self.guests is not wanted.guests:
            return False
        if self.memory < wanted.memory or self.vcpus < wanted.vcpus:
            return False
        return all(self.ports.count(port) >= wanted.ports.count(port) for port in wanted.ports)

    def __str__(self) -> str:
        counts = [(self.smmus, "SMMU")]
        if self.its_count > 1:
            counts.append((self.its_count, "ITS"))
        counts += [(self.devices, "device"), (self.pairs, "pair")]
        more = (
            (self.nvmes, "NVMe controller"),
            (self.e1000es, "e1000e card"),
            (self.igbs, "igb card"),
        )
        counts += [(count, noun) for count, noun in more if count]
        parts = [quantity(count, noun) for count, noun in counts]
        guests = ["with guests"] if self.guests else []
        kernel = [] if self.kernel in (None, STOCK) else [f"kernel {self.kernel}"]
        return ", ".join([*parts, f"{self.granule} pages", *guests, *kernel])
