"""One run of a guest in the emulated host: attach, start, look from inside, make it work, count.

Every step is one that a person would take: ``vmm-msi attach`` is run in the emulated host, on its
libvirtd and its kernel.
"""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import LabError, UsageError
from vmm_msi.host.firmware.iort import parse_iort
from vmm_msi.lab.build.cpio import Archive, concatenate
from vmm_msi.lab.machine.iort_edit import OVERRIDE_PATH, without_rmrs
from vmm_msi.lab.machine.shape import E1000E, GUESTS_MEMORY, IGB, NVME, Shape
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.guest.its_log import ItsLog
    from vmm_msi.lab.rpc.link import AgentLink

#: What a guest can be given, and which device of the emulated host that takes.
VIRTUAL_FUNCTION = "igb-vf"
KINDS = {NVME: NVME, E1000E: E1000E, IGB: IGB, VIRTUAL_FUNCTION: IGB}

#: The initial RAM file system of a guest whose IORT has no RMRs.
NO_RMR = "initrd-no-rmr"

# Linux waits for an NVMe drive before it starts user space, a minute for each command whose
# interrupt does not come (``drivers/nvme/host/core.c``).
_IMPATIENT = "nvme_core.admin_timeout=1 nvme_core.io_timeout=1"

_LONG_S = 600.0
#: PCI vendor and device ids of what QEMU makes (QEMU ``include/hw/pci/pci.h``, ``pci_ids.h``).
_IDS = {(0x1B36, 0x0010): NVME, (0x8086, 0x10D3): E1000E, (0x8086, 0x10C9): IGB}


#: What can be done to a running guest.
REBOOT, UNPLUG = "reboot", "unplug"
ACTS = (REBOOT, UNPLUG)


@dataclass(frozen=True)
class RunSpec:
    """What a run is to do.

    :param devices: what the guest is given, addresses in the emulated host.
    :param strategy: as ``vmm-msi attach`` takes it; None for its default.
    :param count: pieces of work for each device.
    :param then: what is done to the guest afterwards, one of :data:`ACTS` each; each time every
        device that is left works again.
    :param rmr: the guest's IORT has the RMRs that QEMU gives it.
    :param record: a recording is made when it is done.
    """

    devices: Sequence[PciAddress]
    strategy: str | None = None
    count: int = 1000
    then: Sequence[str] = ()
    rmr: bool = True
    record: bool = False


@dataclass(frozen=True)
class Vector:
    """An MSI of a device as the guest counts it.

    :param name: what Linux calls it.
    """

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class DeviceRun:
    """What became of one device.

    :param host: its address in the emulated host.
    :param guest: its address in the guest; None where the guest does not have it.
    :param driver: the guest's driver of it.
    :param work: what it was made to do.
    :param done: how often.
    :param each: it signals one interrupt for each.
    :param landed: MSIs that reached the physical ITS from it meanwhile, by EventID.
    """

    host: PciAddress
    guest: PciAddress | None
    driver: str | None = None
    work: str = ""
    done: int = 0
    seconds: float = 0.0
    each: bool = False
    vectors: tuple[Vector, ...] = ()
    landed: Mapping[int, int] = field(default_factory=dict)

    @property
    def arrived(self) -> int:
        """Interrupts that arrived while it worked."""
        return sum(vector.after - vector.before for vector in self.vectors)

    @property
    def complete(self) -> bool:
        """It worked and the guest was told; of each piece of work where it tells of each.

        Otherwise the guest may count less than the ITS was sent: an LPI that is pending still is
        not pending twice.
        """
        if self.each:
            return 0 < self.done == self.arrived == sum(self.landed.values())
        return self.done > 0 and self.arrived > 0


@dataclass(frozen=True)
class Phase:
    """What devices did between two changes.

    :param after: what was done before: ``start``, ``reboot``, ``unplug 0000:11:00.0``.
    """

    after: str
    devices: Sequence[DeviceRun]


@dataclass(frozen=True)
class GuestTestResult:
    """A whole run.

    :param releases: of kernel, libvirt and QEMU.
    :param rmrs: what the guest's IORT wants mapped 1:1, as base and size in bytes.
    :param groups: IOMMU groups of the guest, as it tells them.
    :param predicted: what ``vmm-msi doctor`` found before the guest was started.
    :param host_faults: what the emulated host's kernel logged of faults of its SMMUs.
    :param guest_faults: what the guest's kernel logged of those of its vSMMUs.
    :param explained: what ``vmm-msi explain`` says of both.
    :param seconds: how long each part took.
    :param recording: what ``vmm-msi record`` wrote; None where it was not asked for.
    """

    releases: Mapping[str, str]
    phases: Sequence[Phase]
    rmrs: Sequence[tuple[int, int]]
    groups: Sequence[Mapping[str, Any]]
    predicted: Sequence[Mapping[str, Any]] = ()
    host_faults: Sequence[str] = ()
    guest_faults: Sequence[str] = ()
    explained: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    recording: bytes | None = None

    @property
    def complete(self) -> bool:
        """No device lost an interrupt in any phase."""
        return all(device.complete for phase in self.phases for device in phase.devices)


class Runner:
    """Takes a guest through a run.

    :param link: to the emulated host.
    :param its_log: what reaches its ITS.
    :param boot: the folder that its guests start from.
    """

    def __init__(self, link: AgentLink, its_log: ItsLog, boot: Path, progress: Progress) -> None:
        self._link = link
        self._boot = boot
        self._its_log = its_log
        self._progress = progress
        self._facts: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def prepare(self) -> None:
        """Start a libvirtd in the emulated host and define the guest there."""
        with _Timed(self, "libvirt", "starting libvirtd in the emulated host"):
            self._facts = self._link.call("libvirt", timeout_s=_LONG_S)
            self._link.call("define", timeout_s=_LONG_S)

    def devices(self, kinds: Sequence[str]) -> list[PciAddress]:
        """Return the addresses of devices of the emulated host, one for each of ``kinds``.

        :raise LabError: when it has too few.
        """
        free = [
            (PciAddress.parse(found["address"]), _IDS.get((found["vendor"], found["device"])))
            for found in self._link.call("devices")
        ]
        chosen = []
        for kind in kinds:
            mine = next((one for one in free if one[1] == KINDS[kind]), None)
            if mine is None:
                raise LabError(f"lab guest: the emulated host has too few devices of kind {kind}")
            free.remove(mine)
            device = mine[0]
            if kind == VIRTUAL_FUNCTION:
                told = self._link.call("virtual-function", address=str(device))
                device = PciAddress.parse(told)
            chosen.append(device)
        return chosen

    def command(self, *words: str) -> str:
        """Run ``vmm-msi`` in the emulated host and return what it printed.

        :raise LabError: when it fails.
        """
        done = self._link.call("command", argv=list(words), timeout_s=_LONG_S)
        if done["status"]:
            raise LabError(
                f"vmm-msi {' '.join(words)} in the emulated host: {done['stderr'].strip()}"
            )
        return str(done["stdout"])

    def attach(self, devices: Sequence[PciAddress], strategy: str | None) -> None:
        """Attach devices to the guest's definition."""
        named = [] if strategy is None else ["--strategy", strategy]
        with _Timed(self, "attach", f"attaching {', '.join(map(str, devices))}"):
            self.command(
                "attach", self._facts["guest"], *map(str, devices), "-c", self._facts["uri"], *named
            )

    def predict(self) -> list[Mapping[str, Any]]:
        """Return what the doctor finds, with the guest as it will start."""
        with _Timed(self, "doctor", "asking the doctor"):
            done = self._link.call(
                "command",
                argv=[
                    *("doctor", "--domain", self._facts["guest"], "-c", self._facts["uri"]),
                    *("--format", "json"),
                ],
                timeout_s=_LONG_S,
            )
        if done["stderr"]:
            raise LabError(f"vmm-msi doctor in the emulated host: {done['stderr'].strip()}")
        found: list[Mapping[str, Any]] = json.loads(done["stdout"])["findings"]
        return found

    def start(self) -> None:
        """Switch the guest on and wait until its agent answers."""
        with _Timed(self, "start", "starting the guest"):
            self._link.call("start", timeout_s=_LONG_S)

    def _start_without_rmr(self, spec: RunSpec) -> dict[str, Any]:
        """Start the guest once more, with the IORT that it has now, but for the RMRs in it.

        Linux takes a table from the initial RAM file system (:mod:`vmm_msi.lab.machine.iort_edit`).
        """
        table = base64.b64decode(self.look()["iort"])
        archive = Archive()
        archive.add_file(OVERRIDE_PATH, without_rmrs(table, "the guest's IORT"))
        whole = (self._boot / "initrd").read_bytes()
        (self._boot / NO_RMR).write_bytes(concatenate((archive.encode(), whole)))
        with _Timed(self, "start without RMR", "starting the guest again, without RMRs"):
            self._link.call("stop")
            self._link.call("define", initrd=NO_RMR, words=_IMPATIENT, timeout_s=_LONG_S)
            self.attach(spec.devices, spec.strategy)
            self.start()
        return self.look()

    def look(self) -> dict[str, Any]:
        """Return what the guest sees."""
        found: dict[str, Any] = self._guest("look")
        return found

    def _guest(self, do: str, **arguments: object) -> Any:  # noqa: ANN401
        return self._link.call(
            "guest", do=do, arguments=arguments, wait_s=_LONG_S, timeout_s=_LONG_S
        )

    def place(self, seen: Mapping[str, Any]) -> dict[PciAddress, Mapping[str, Any]]:
        """Return what the guest sees of each device of the host that it was given.

        Buses behind root ports have the numbers that the firmware gave them, but the number of an
        expander bus is in the XML, and so is the slot of each root port on it.
        """
        xml = DomainXml.parse(self._link.call("definition"), "the guest's definition")
        numbers = {0: 0}
        ports = {}
        for controller in xml.controllers():
            if controller.index is None:
                continue
            if controller.bus_nr is not None:
                numbers[controller.index] = controller.bus_nr
            ports[controller.index] = controller.address
        by_port = {device["port"]: device for device in seen["devices"]}
        found = {}
        for hostdev in xml.hostdevs():
            port = None if hostdev.guest is None else ports.get(hostdev.guest.bus)
            if port is None or port.bus not in numbers:
                continue
            name = PciAddress(0, numbers[port.bus], port.device, port.function)
            if str(name) in by_port:
                found[hostdev.host] = by_port[str(name)]
        return found

    def run(self, spec: RunSpec) -> GuestTestResult:
        """Attach, start, look, work, change, work again, and return what was seen.

        :raise VmmMsiError: when a part fails.
        """
        self.attach(spec.devices, spec.strategy)
        predicted = self.predict()
        self.start()
        seen = self.look() if spec.rmr else self._start_without_rmr(spec)
        phases = [Phase("start", self.work(spec.devices, seen, spec))]
        devices = list(spec.devices)
        for act in spec.then:
            if act == REBOOT:
                with _Timed(self, "reboot", "restarting the guest"):
                    self._link.call("restart", timeout_s=_LONG_S)
                after = "reboot"
            else:
                gone = devices.pop()
                after = f"unplug {gone}"
                with _Timed(self, after, f"unplugging {gone} while the guest runs"):
                    self.command(
                        *("detach", self._facts["guest"], str(gone)),
                        *("-c", self._facts["uri"], "--scope", "live"),
                    )
            phases.append(Phase(after, self.work(devices, self.look(), spec)))
        host_faults = _faults(self._link.call("kernel-log"))
        guest_log = self._guest("kernel-log")
        guest_faults = _faults(guest_log)
        recording = None
        if spec.record:
            recording = self.record(self._facts["guest"], guest_log, rmr=spec.rmr)
        iort = seen["iort"]
        table = None if iort is None else parse_iort(base64.b64decode(iort), "the guest's IORT")
        return GuestTestResult(
            releases={name: self._facts[name] for name in ("linux", "libvirt", "qemu")},
            phases=phases,
            rmrs=() if table is None else [r for rmr in table.rmrs for r in rmr.ranges],
            groups=seen["groups"],
            predicted=predicted,
            host_faults=host_faults,
            guest_faults=guest_faults,
            explained=[
                *self._explained(host_faults),
                *self._explained(guest_faults, "--in-guest"),
            ],
            seconds=self.seconds,
            recording=recording,
        )

    def record(self, name: str, guest_log: str, *, rmr: bool) -> bytes:
        """Return a recording that ``vmm-msi record`` makes in the emulated host.

        :param guest_log: the kernel's log of the guest.
        :param rmr: the guest's kernel maps its RMRs.
        :raise LabError: when it fails.
        """
        words = ["record", name, "-c", self._facts["uri"], "-o", "run.json"]
        words += ["--guest-log", "guest.log", *([] if rmr else ["--no-rmr"])]
        with _Timed(self, "record", "recording what happened"):
            done = self._link.call(
                "command",
                argv=words,
                files={"guest.log": guest_log},
                fetch=["run.json"],
                timeout_s=_LONG_S,
            )
        if done["status"]:
            raise LabError(f"vmm-msi record in the emulated host: {done['stderr'].strip()}")
        return base64.b64decode(done["files"]["run.json"])

    def _explained(self, lines: Sequence[str], *words: str) -> list[str]:
        """Return what ``vmm-msi explain`` in the emulated host says of a log."""
        if not lines:
            return []
        where = ("--domain", self._facts["guest"], "-c", self._facts["uri"])
        with _Timed(self, "explain", "explaining the faults"):
            return self.command("explain", "\n".join(lines), *where, *words).splitlines()

    def work(
        self, devices: Sequence[PciAddress], seen: Mapping[str, Any], spec: RunSpec
    ) -> list[DeviceRun]:
        """Make every device work and return what became of it."""
        places = self.place(seen)
        runs = []
        for host in devices:
            mine = places.get(host)
            if mine is None:
                runs.append(DeviceRun(host, None))
                continue
            guest = PciAddress.parse(mine["address"])
            self._its_log.new()
            with _Timed(self, f"work {host}", f"making {host} work in the guest"):
                if spec.rmr:
                    told = self._guest("exercise", address=str(guest), count=spec.count)
                else:
                    told = self._guest("await-fault", address=str(guest))
            landed = {
                msi.event_id: number
                for msi, number in self._its_log.new().items()
                if msi.device_id == host.rid
            }
            vectors = tuple(Vector(**vector) for vector in told.pop("vectors"))
            driver = mine["driver"]
            runs.append(DeviceRun(host, guest, driver, landed=landed, vectors=vectors, **told))
        return runs


def _faults(log: str) -> list[str]:
    """Return the lines of a kernel's log that are about SMMU events."""
    lines = (line.strip() for line in log.splitlines())
    return [line for line in lines if "arm-smmu-v3" in line and " event" in line]


class _Timed:
    """Notes how long a part takes, and says that it begins."""

    def __init__(self, runner: Runner, name: str, what: str) -> None:
        self._runner, self._name = runner, name
        runner._progress.stage(what)  # noqa: SLF001

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._runner.seconds[self._name] = time.monotonic() - self._begun


def shape_for(kinds: Sequence[str], smmus: int) -> Shape:
    """Return the emulated host that has devices of those kinds for a guest.

    :raise UsageError: for a kind that there is not.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UsageError(f"lab guest: device {unknown[0]!r}; valid: {', '.join(KINDS)}")
    count = Counter(KINDS[kind] for kind in kinds)
    return Shape(
        smmus=smmus,
        devices=0,
        pairs=0,
        nvmes=count[NVME],
        e1000es=count[E1000E],
        igbs=count[IGB],
        guests=True,
        memory=GUESTS_MEMORY,
    )
