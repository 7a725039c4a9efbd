"""Test a guest in the emulated host: attach devices, start it, exercise them, count interrupts.

Every step is one that an operator takes: ``vmm-msi attach`` runs in the emulated host, on its
libvirtd and its kernel.
"""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import LabError, UsageError, did_you_mean
from vmm_msi.host.firmware.iort import parse_iort
from vmm_msi.lab.guest.binding_acts import REBIND, SPOILING, BindingActs
from vmm_msi.lab.guest.host_counter import HostCounter, faults, predictions, reported_counts
from vmm_msi.lab.guest.its_log import counts_of
from vmm_msi.lab.guest.result import (
    DeviceRun,
    GuestTestResult,
    Phase,
    Rmr,
    Sample,
    StatusCheck,
    Vector,
)
from vmm_msi.lab.machine.acpi_edit import with_override
from vmm_msi.lab.machine.iort_edit import without_rmrs
from vmm_msi.lab.machine.shape import E1000E, GUESTS_MEMORY, IGB, NVME, Shape
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from vmm_msi.lab.build.progress import Progress
    from vmm_msi.lab.guest.its_log import ItsLog, MsiCounts
    from vmm_msi.lab.guest.result import Prediction
    from vmm_msi.lab.rpc.link import AgentLink
    from vmm_msi.types import Pa

#: Kinds of devices for a guest, and the emulated host's device of each.
VIRTUAL_FUNCTION = "igb-vf"
KINDS = {NVME: NVME, E1000E: E1000E, IGB: IGB, VIRTUAL_FUNCTION: IGB}

#: The initial RAM file system of a guest whose IORT has no RMRs.
NO_RMR = "initrd-no-rmr"

# Linux waits for an NVMe drive before it starts user space, a minute for each command whose
# interrupt is lost (``drivers/nvme/host/core.c``).
IMPATIENT = "nvme_core.admin_timeout=1 nvme_core.io_timeout=1"
# A read whose interrupt is lost takes as long as this, not 30 s.
_IMPATIENT_READS = "nvme_core.io_timeout=2"

_LONG_S = 600.0
#: Linux's message when VFIO in the guest is refused (``drivers/iommu/iommu.c``
#: __iommu_device_set_domain).
_REFUSAL = "without a 1:1 mapping"
#: PCI vendor and device ids of QEMU's devices (QEMU ``include/hw/pci/pci.h``, ``pci_ids.h``).
_IDS = {(0x1B36, 0x0010): NVME, (0x8086, 0x10D3): E1000E, (0x8086, 0x10C9): IGB}


#: Actions on a running guest.
REBOOT, UNPLUG, VFIO, MISDIRECT = "reboot", "unplug", "vfio", "misdirect"
ACTS = (REBOOT, UNPLUG, VFIO, MISDIRECT, *SPOILING, REBIND)
#: Those that act on bindings in the kernel.
BINDING_ACTS = (*SPOILING, REBIND)
#: Rebinds in a second.
_REBINDS = 20


@dataclass(frozen=True)
class RunSpec:
    """The specification of a guest test.

    :param devices: the devices to assign, addresses in the emulated host.
    :param strategy: as for ``vmm-msi attach``; None for its default.
    :param count: operations per device.
    :param then: actions on the running guest, from :data:`ACTS`; after each, the remaining devices
        are exercised again.
    :param rmr: keep QEMU's RMRs in the guest's IORT.
    :param record: make a recording at the end.
    :param watch: have ``vmm-msi watch`` bind the guest's MSIs in the emulated host's kernel.
    """

    devices: Sequence[PciAddress]
    strategy: str | None = None
    count: int = 1000
    then: Sequence[str] = ()
    rmr: bool = True
    record: bool = False
    watch: bool = False

    @property
    def arrives(self) -> bool:
        """Whether interrupts are expected: by identity, or at the guest's own address."""
        return self.rmr or self.watch


class Runner:
    """Run a guest test.

    :param link: the link to the emulated host's agent.
    :param its_log: the log of MSIs at its ITSes.
    :param boot: the folder with its guests' boot files.
    :param words: reads words of its physical memory: address and number.
    :param its_of: returns the base of a device's own ITS.
    """

    def __init__(
        self,
        link: AgentLink,
        its_log: ItsLog,
        boot: Path,
        progress: Progress,
        words: Callable[[int, int], Sequence[int]],
        its_of: Callable[[PciAddress], Pa],
    ) -> None:
        self._link = link
        self._counter = HostCounter(link, words)
        self._boot = boot
        self._its_log = its_log
        self._its_of = its_of
        self._progress = progress
        self._facts: dict[str, str] = {}
        self._expected: dict[PciAddress, Prediction] = {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _timed(self, name: str, what: str) -> Iterator[None]:
        """Print that a part begins, and record its duration."""
        self._progress.stage(what)
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - begun

    def prepare(self) -> None:
        """Start a libvirtd in the emulated host and define the guest there."""
        with self._timed("libvirt", "starting libvirtd in the emulated host"):
            self._facts = self._link.call("libvirt", timeout_s=_LONG_S)
            self._link.call("define", timeout_s=_LONG_S)

    @property
    def releases(self) -> dict[str, str]:
        """The releases of the emulated host's kernel, libvirt and QEMU."""
        return {name: self._facts[name] for name in ("linux", "libvirt", "qemu")}

    def devices(self, kinds: Sequence[str]) -> list[PciAddress]:
        """Return the addresses of devices of the emulated host, one for each of ``kinds``.

        :raise LabError: when it has too few.
        """
        free = [
            (PciAddress.parse(pci["address"]), _IDS.get((pci["vendor"], pci["device"])))
            for pci in self._link.call("devices")
        ]
        chosen = []
        for kind in kinds:
            match = next((entry for entry in free if entry[1] == KINDS[kind]), None)
            if match is None:
                raise LabError(f"lab guest: the emulated host has too few devices of kind {kind}")
            free.remove(match)
            device = match[0]
            if kind == VIRTUAL_FUNCTION:
                function = self._link.call("virtual-function", address=str(device))
                device = PciAddress.parse(function)
            chosen.append(device)
        return chosen

    def command(self, *words: str) -> str:
        """Run ``vmm-msi`` in the emulated host and return its standard output.

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
        with self._timed("attach", f"attaching {', '.join(map(str, devices))}"):
            text = self.command(
                *("attach", self._facts["guest"], *map(str, devices), "-c", self._facts["uri"]),
                *(*named, "--format", "json"),
            )
        self._expected = predictions(text)

    def predict(self) -> list[Mapping[str, Any]]:
        """Return the doctor's findings for the guest that is about to start."""
        with self._timed("doctor", "running the doctor"):
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
        findings: list[Mapping[str, Any]] = json.loads(done["stdout"])["findings"]
        return findings

    def start(self) -> None:
        """Start the guest and wait until its agent answers."""
        with self._timed("start", "starting the guest"):
            self._link.call("start", timeout_s=_LONG_S)

    def _start_without_rmr(self, spec: RunSpec) -> dict[str, Any]:
        """Start the guest again, with its current IORT without the RMRs."""
        with self._timed("start without RMR", "starting the guest again, without RMRs"):
            self.define_without_rmr(spec.devices, spec.strategy)
            self.start()
        return self.look()

    def define_without_rmr(
        self, devices: Sequence[PciAddress], strategy: str | None, words: str = IMPATIENT
    ) -> None:
        """Stop the guest and define it with its current IORT, but without the RMRs.

        Linux reads a replacement table from the initial RAM file system
        (:mod:`vmm_msi.lab.machine.iort_edit`).

        :param words: additions to its kernel's command line.
        """
        table = base64.b64decode(self.look()["iort"])
        table = without_rmrs(table, "the guest's IORT")
        whole = (self._boot / "initrd").read_bytes()
        (self._boot / NO_RMR).write_bytes(with_override(whole, "IORT", table))
        self._link.call("stop")
        self._link.call("define", initrd=NO_RMR, words=words, timeout_s=_LONG_S)
        self.attach(devices, strategy)

    def look(self) -> dict[str, Any]:
        """Return the guest's inventory, as seen from inside."""
        inventory: dict[str, Any] = self.guest("look")
        return inventory

    def guest(self, do: str, **arguments: object) -> Any:  # noqa: ANN401
        """Return the answer of the guest's agent to a request."""
        return self._link.call(
            "guest", do=do, arguments=arguments, wait_s=_LONG_S, timeout_s=_LONG_S
        )

    def locate(self, seen: Mapping[str, Any]) -> dict[PciAddress, Mapping[str, Any]]:
        """Return the guest's view of each assigned device, by host address.

        The firmware numbers the buses behind root ports, but the XML has the number of an expander
        bus and the slot of each root port on it.
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
        by_place = {
            (device["port"], PciAddress.parse(device["address"]).function): device
            for device in seen["devices"]
        }
        views = {}
        for hostdev in xml.hostdevs():
            port = None if hostdev.guest is None else ports.get(hostdev.guest.bus)
            if hostdev.guest is None or port is None or port.bus not in numbers:
                continue
            name = PciAddress(0, numbers[port.bus], port.device, port.function)
            view = by_place.get((str(name), hostdev.guest.function))
            if view is not None:
                views[hostdev.host] = view
        return views

    def run(self, spec: RunSpec) -> GuestTestResult:
        """Attach, start, exercise, apply each action, exercise again; return the result.

        :raise VmmMsiError: when a part fails.
        """
        if {MISDIRECT, *SPOILING} & set(spec.then):
            self._link.call("define", words=_IMPATIENT_READS, timeout_s=_LONG_S)
        self.attach(spec.devices, spec.strategy)
        predicted = self.predict()
        if spec.watch:
            with self._timed("watch", "starting vmm-msi watch in the emulated host"):
                BindingActs(self._link).start_watch()
        self.start()
        seen = self.look() if spec.rmr else self._start_without_rmr(spec)
        phases = [Phase("start", self.work(spec.devices, seen, spec))]
        devices = list(spec.devices)
        for act in spec.then:
            if act == REBOOT:
                with self._timed("reboot", "restarting the guest"):
                    self._link.call("restart", timeout_s=_LONG_S)
                after = "reboot"
            elif act == VFIO:
                after = self._take(devices[-1])
            elif act == MISDIRECT:
                moved = self._link.call("misdirect", address=str(devices[-1]))
                after = f"misdirect {devices[-1]}: {', '.join(moved)}"
                spec = replace(spec, count=1)
            elif act in SPOILING:
                with BindingActs(self._link).spoiled(act, devices):
                    runs = self.work(devices, self.look(), replace(spec, count=1))
                    phases.append(Phase(act, runs))
                after = f"repair of {act}"
            elif act == REBIND:
                phases.append(self._rebind(devices, spec))
                continue
            else:
                gone = devices.pop()
                after = f"unplug {gone}"
                with self._timed(after, f"unplugging {gone} while the guest runs"):
                    self.command(
                        *("detach", self._facts["guest"], str(gone)),
                        *("-c", self._facts["uri"], "--scope", "live"),
                    )
            phases.append(Phase(after, self.work(devices, self.look(), spec)))
        host_faults = faults(self._link.call("kernel-log"))
        guest_log = self.guest("kernel-log")
        guest_faults = faults(guest_log)
        guest_refusals = [line for line in guest_log.splitlines() if _REFUSAL in line]
        recording = None
        if spec.record:
            recording = self.record(self._facts["guest"], guest_log, rmr=spec.rmr)
        acts = BindingActs(self._link) if spec.watch else None
        iort = seen["iort"]
        table = None if iort is None else parse_iort(base64.b64decode(iort), "the guest's IORT")
        return GuestTestResult(
            releases=self.releases,
            phases=phases,
            rmrs=[
                Rmr(base, size, node.remap_permitted)
                for node in (() if table is None else table.rmrs)
                for base, size in node.ranges
            ],
            groups=seen["groups"],
            predicted=predicted,
            expected=self._expected,
            host_faults=host_faults,
            guest_faults=guest_faults,
            explained=[
                *self._explained(host_faults),
                *self._explained([*guest_faults, *guest_refusals], "--in-guest"),
            ],
            status=self.command("status", *self._guest_words).splitlines(),
            seconds=self.seconds,
            bindings=[] if acts is None else acts.lines(),
            watch=[] if acts is None else acts.events(),
            recording=recording,
        )

    def _rebind(self, devices: Sequence[PciAddress], spec: RunSpec) -> Phase:
        """Exercise devices whose MSIs are unbound and bound again meanwhile."""
        seen = self.look()
        with BindingActs(self._link).rebinding(devices, _REBINDS) as rebinds:
            runs = self._exercise(devices, seen, spec)
        return Phase(f"rebind {rebinds[0]} times", runs)

    def _take(self, device: PciAddress) -> str:
        """Take a device with VFIO inside the guest; return what happened."""
        view = self.locate(self.look()).get(device)
        if view is None:
            raise LabError(f"lab guest: {device} is not in the guest")
        with self._timed("vfio", f"taking {device} with VFIO inside the guest"):
            refused = self.guest("take", address=view["address"])
        return f"vfio {device}: {refused or 'permitted'}"

    def record(self, name: str, guest_log: str, *, rmr: bool) -> bytes:
        """Return the recording that ``vmm-msi record`` makes in the emulated host.

        :param guest_log: the kernel's log of the guest.
        :param rmr: the guest's kernel maps its RMRs.
        :raise LabError: when it fails.
        """
        words = ["record", name, "-c", self._facts["uri"], "-o", "run.json"]
        words += ["--guest-log", "guest.log", *([] if rmr else ["--no-rmr"])]
        with self._timed("record", "recording the guest's MSIs"):
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
        """Return the output of ``vmm-msi explain`` for a log, run in the emulated host."""
        if not lines:
            return []
        where = ("--domain", self._facts["guest"], "-c", self._facts["uri"])
        with self._timed("explain", "explaining the faults"):
            return self.command("explain", "\n".join(lines), *where, *words).splitlines()

    def work(
        self, devices: Sequence[PciAddress], seen: Mapping[str, Any], spec: RunSpec
    ) -> list[DeviceRun]:
        """Exercise every device and return the results, with checks of ``vmm-msi status``."""
        before = self._check_status(devices)
        runs = self._exercise(devices, seen, spec)
        after = self._check_status(devices)
        return [replace(run, checks=(before[run.host], after[run.host])) for run in runs]

    @property
    def _guest_words(self) -> tuple[str, ...]:
        """The arguments that name the guest."""
        return self._facts["guest"], "-c", self._facts["uri"]

    def _check_status(self, devices: Sequence[PciAddress]) -> dict[PciAddress, StatusCheck]:
        """Run ``vmm-msi status`` in the emulated host, and count there without it."""
        with self._timed("status", "measuring the guest's MSIs with vmm-msi status"):
            low = self._counter.counts(devices)
            text = self.command("status", *self._guest_words, "--format", "json")
            high = self._counter.counts(devices)
        reported = reported_counts(text)
        return {
            device: StatusCheck(reported.get(device), (low[device], high[device]))
            for device in devices
        }

    def _exercise(
        self, devices: Sequence[PciAddress], seen: Mapping[str, Any], spec: RunSpec
    ) -> list[DeviceRun]:
        places = self.locate(seen)
        runs = []
        for host in devices:
            view = places.get(host)
            if view is None:
                runs.append(DeviceRun(host, None))
                continue
            guest = PciAddress.parse(view["address"])
            self.new_msis(host)
            with self._timed(f"work {host}", f"exercising {host} in the guest"):
                if spec.arrives:
                    work = self.guest("exercise", address=str(guest), count=spec.count)
                else:
                    work = self.guest("await-fault", address=str(guest))
            counts = self.new_msis(host)
            vectors = tuple(Vector(**vector) for vector in work.pop("vectors"))
            runs.append(
                DeviceRun(
                    host,
                    guest,
                    view["driver"],
                    its=self._its_of(host),
                    vectors=vectors,
                    samples=tuple(Sample(*sample) for sample in work.pop("samples", ())),
                    landed=counts.landed,
                    misrouted=counts.misrouted,
                    **work,
                )
            )
        return runs

    def new_msis(self, device: PciAddress) -> MsiCounts:
        """Return the number of a device's MSIs at its own ITS and at others, since the last call.

        Those of other devices are forgotten, too.
        """
        # On this board a DeviceID is a RequesterID.
        return counts_of(device.rid, self._its_of(device), self._its_log.new())


def shape_for(kinds: Sequence[str], smmus: int, itses: int | None = None) -> Shape:
    """Return the shape of an emulated host with devices of the given kinds.

    :raise UsageError: for an unknown kind.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UsageError(
            f"lab guest: device {unknown[0]!r}; {did_you_mean(unknown[0], KINDS)}valid: "
            f"{', '.join(KINDS)}"
        )
    count = Counter(KINDS[kind] for kind in kinds)
    return Shape(
        smmus=smmus,
        itses=itses,
        devices=0,
        pairs=0,
        nvmes=count[NVME],
        e1000es=count[E1000E],
        igbs=count[IGB],
        guests=True,
        memory=GUESTS_MEMORY,
    )
