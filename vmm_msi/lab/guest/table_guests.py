"""Start the guests of the truth table in the emulated host, one after the other.

Linux gives the MSI page the highest free IOVA of a stage 1 below 4 GiB, 0xfffff000, so two devices
with a stage 1 each have the same gIOVA (``drivers/iommu/dma-iommu.c`` iommu_dma_alloc_iova). An RMR
of the megabyte below 4 GiB for the first device's StreamID moves its MSI page to 0xffeff000.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.parse import serialise
from vmm_msi.errors import LabError
from vmm_msi.host.firmware.iort import parse_iort
from vmm_msi.lab.guest.runner import IMPATIENT
from vmm_msi.lab.guest.truth_table import Sharing, TableGuest
from vmm_msi.lab.machine.acpi_edit import with_override
from vmm_msi.lab.machine.iort_edit import with_rmr, without_rmrs
from vmm_msi.types import (
    SW_MSI_WINDOW,
    GuestDevice,
    GuestDomain,
    Iova,
    PciAddress,
    Stage1,
    Vits,
)
from vmm_msi.types.guest import VIRT_ITS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from vmm_msi.lab.guest.runner import Runner
    from vmm_msi.lab.rpc.link import AgentLink

#: The megabyte below 4 GiB.
_TOP, _TOP_SIZE = 0xFFF0_0000, 0x10_0000
#: gIOVA of the MSI page: Linux's choice, and its choice where the megabyte is reserved.
GIOVA, GIOVA_BELOW = Iova(0xFFFF_F000), Iova(0xFFEF_F000)
GDB = Vits(0, VIRT_ITS).gdb
_PAGE_SHIFT = 12
_SOURCE = "the guest's IORT"
_LONG_S = 600.0


@dataclass(frozen=True)
class RunningGuest:
    """A guest of the table that runs, as measured.

    :param domain: its stage 1 tables, gIOVAs and RMR.
    :param views: the guest's address of each device.
    """

    domain: GuestDomain
    views: Mapping[PciAddress, PciAddress]


class TableGuests:
    """The guests of the table, of which one runs at a time.

    :param boot: the folder with the guests' boot files.
    :param pairs: the two devices of guests with so many vSMMUs; where the gIOVAs differ, that of
        the first is moved.
    """

    def __init__(
        self,
        runner: Runner,
        link: AgentLink,
        boot: Path,
        pairs: Mapping[int, Sequence[PciAddress]],
    ) -> None:
        self._runner = runner
        self._link = link
        self._boot = boot
        self._pairs = pairs
        self._xml: dict[int, str] = {}
        self._iort: dict[int, bytes] = {}
        self._runs = False

    def start(self, guest: TableGuest) -> RunningGuest:
        """Stop the guest that runs and start another; return what it is.

        :raise LabError: when it does not start, or is not what it should be.
        """
        devices = self._pairs[guest.vsmmus]
        if guest.vsmmus not in self._xml:
            self._attach(guest.vsmmus)
        if guest.vsmmus not in self._iort:
            plain = TableGuest(guest.vsmmus, Sharing.OWN_SAME, rmr=True)
            if guest != plain:
                self.start(plain)
        table = self._table(guest)
        initrd = "initrd"
        if table is not None:
            # A name of its own: the emulated host caches the content of a file in this folder.
            initrd = f"initrd-{guest.vsmmus}-{guest.sharing}-{guest.rmr}"
            whole = (self._boot / "initrd").read_bytes()
            (self._boot / initrd).write_bytes(with_override(whole, "IORT", table))
        self.stop()
        self._link.call("redefine", xml=self._definition(guest, initrd), timeout_s=_LONG_S)
        # Without the RMR nothing serves before the guest's MSIs are bound.
        giovas = self._giovas(guest)
        binds = [f"bind {d} {giovas[d]} {GDB} {_PAGE_SHIFT}" for d in devices]
        self._link.call("start", bindings=[] if guest.rmr else binds, timeout_s=_LONG_S)
        self._runs = True
        seen = self._runner.look()
        self._iort.setdefault(guest.vsmmus, base64.b64decode(seen["iort"]))
        if not guest.rmr:
            # Of two ITSes behind one gDB in one stage 2 the kernel bound one: ENOENT for the other.
            unbinds = [f"unbind {device} {giovas[device]}" for device in devices]
            self.kernel(unbinds, accepted=("ENOENT",))
        return self._measured(guest, seen)

    def stop(self) -> None:
        """Stop the guest that runs."""
        if self._runs:
            self._link.call("stop")
            self._runs = False

    def kernel(self, commands: Sequence[str], accepted: Collection[str] = ()) -> None:
        """Write commands to the kernel's file of guest MSI bindings.

        :param accepted: names of errnos that are not errors.
        :raise LabError: when the kernel refuses one.
        """
        answers = self._link.call("msi-bindings", commands=list(commands))["answers"]
        for command, errno in zip(commands, answers, strict=True):
            if errno and errno not in accepted:
                raise LabError(f"lab compare-guests: {command!r} in the emulated host: {errno}")

    def _attach(self, vsmmus: int) -> None:
        self.stop()
        self._link.call("define", words=IMPATIENT, timeout_s=_LONG_S)
        self._runner.attach(self._pairs[vsmmus], None)
        self._xml[vsmmus] = self._link.call("definition")

    def _table(self, guest: TableGuest) -> bytes | None:
        """Return the IORT of a guest; None for QEMU's own."""
        own = guest.sharing is Sharing.OWN
        if guest.rmr and not own:
            return None
        table = self._iort[guest.vsmmus]
        keep: tuple[int, ...] = ()
        if own:
            moved, keep = self._pairs[guest.vsmmus][0], (_TOP,)
            # On this board the StreamID in the guest is that of the host.
            table = with_rmr(table, _SOURCE, moved.rid, _TOP, _TOP_SIZE)
        return table if guest.rmr else without_rmrs(table, _SOURCE, keep)

    def _definition(self, guest: TableGuest, initrd: str) -> str:
        xml = DomainXml.parse(self._xml[guest.vsmmus], "the guest's definition")
        for path in xml.root.iterfind("os/initrd"):
            path.text = f"{path.text}".removesuffix("initrd") + initrd
        if guest.sharing is Sharing.SHARED:
            first, second = (
                hostdev.element.find("address")
                for device in self._pairs[guest.vsmmus]
                for hostdev in xml.hostdevs()
                if hostdev.host == device
            )
            if first is None or second is None:
                raise LabError("lab compare-guests: the guest's definition has no address")
            for name in ("domain", "bus", "slot"):
                second.set(name, first.get(name, "0"))
            first.set("multifunction", "on")
            second.set("function", "0x1")
        return serialise(xml.root)

    def _giovas(self, guest: TableGuest) -> dict[PciAddress, Iova]:
        first, second = self._pairs[guest.vsmmus]
        return {first: GIOVA_BELOW if guest.sharing is Sharing.OWN else GIOVA, second: GIOVA}

    def _measured(self, guest: TableGuest, seen: Mapping[str, Any]) -> RunningGuest:
        """Return the guest that runs; its gIOVAs are those in its own MSI-X tables.

        :raise LabError: when it is not the guest of the row.
        """
        views = {
            device: PciAddress.parse(view["address"])
            for device, view in self._runner.locate(seen).items()
        }
        groups = {member: group["id"] for group in seen["groups"] for member in group["devices"]}
        iort = parse_iort(base64.b64decode(seen["iort"]), _SOURCE)
        bases = {base for node in iort.rmrs for base, _size in node.ranges}
        devices = []
        for device in self._pairs[guest.vsmmus]:
            addresses = self._runner.guest("msi-addresses", address=str(views[device]))
            (giova,) = {Iova(address & ~0xFFF) for address in addresses}
            group = groups[str(views[device])]
            devices.append(GuestDevice(device, f"group {group}", 0, giova))
        stage1 = [Stage1(name) for name in dict.fromkeys(device.stage1 for device in devices)]
        domain = GuestDomain(
            "lab-guest",
            (Vits(0, VIRT_ITS),),
            tuple(stage1),
            tuple(devices),
            honours_rmr=int(SW_MSI_WINDOW.base) in bases,
        )
        giovas = {device.host: device.giova for device in devices}
        own = Sharing.OWN_SAME if len(set(giovas.values())) == 1 else Sharing.OWN
        sharing = Sharing.SHARED if len(stage1) == 1 else own
        measured = TableGuest(len(iort.smmus), sharing, domain.honours_rmr)
        if measured != guest or giovas != self._giovas(guest):
            raise LabError(
                f"lab compare-guests: the guest that was started has {measured}: "
                f"gIOVAs {', '.join(str(d.giova) for d in devices)}; the row needs {guest}"
            )
        return RunningGuest(domain, views)
