"""A recording against the model: the same guest is brought up there, and the two are compared."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.config import Choice
from vmm_msi.engine.session import GuestSession
from vmm_msi.engine.setup import profile_for
from vmm_msi.errors import InputError, VmmMsiError
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.provision.checks import needs_of
from vmm_msi.recording.recorder import slots_of
from vmm_msi.types import SW_MSI_WINDOW, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_msi.iommu.smmu_events import SmmuEvent
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.recording import Recording, SeenDevice, Slot
    from vmm_msi.types import GuestDomain, HostDevice, Iova, PciAddress, Verdict

_STAGE = {Outcome.S1_FAULT: 1, Outcome.S2_FAULT: 2}
#: Neither an interrupt was counted nor a fault logged; on the model those are misrouted.
LOST = "lost"
_FAULT = {1: Outcome.S1_FAULT, 2: Outcome.S2_FAULT}


@dataclass(frozen=True)
class Compared:
    """One device, as it was recorded and on the model.

    :param fault: the event that an MSI of it caused; None without one.
    :param outcome: what the recording shows of its MSIs; None where it shows nothing.
    :param slot: number of its slot in the recording.
    :param disagreements: what differs, a sentence each.
    :param notes: what could not be compared, and why.
    """

    seen: SeenDevice
    its: int
    fault: SmmuEvent | None
    outcome: str | None
    slot: int | None
    verdict: Verdict
    model_slot: int | None
    disagreements: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Replay:
    """A recording and what the model makes of it.

    :param kernel: name of the kernel profile.
    :param choices: the strategy of each device, on the model.
    :param disagreements: those that are of no single device.
    """

    recording: Recording
    kernel: str
    choices: Mapping[PciAddress, Choice]
    devices: tuple[Compared, ...]
    disagreements: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """The model says what was seen."""
        return not self.disagreements and not any(each.disagreements for each in self.devices)


def replay(
    recording: Recording, plugins: PluginManager, selector: str, choice: Choice | None = None
) -> Replay:
    """Bring the recorded guest up on the model and compare.

    :param selector: name of the ITS selector.
    :param choice: the strategy for every device; None for the recorded ones.
    :raise RefusedError: when no modelled kernel can carry the strategies out.
    :raise UsageError: for a strategy, an option or a selector that does not exist.
    :raise InputError: when the recording has a host or a guest that cannot be.
    """
    chosen = {
        device.address: choice or Choice.of(device.strategy, dict(device.options))
        for device in recording.devices
    }
    guest = _in_order(recording)
    host = recording.host
    profile = profile_for({each: needs_of(plugins, each) for each in chosen.values()})
    try:
        with closing(SimBackend(host, guest, profile)) as backend:
            run = GuestSession(plugins, host, guest, backend, chosen, selector, rehearsal=True)
            try:
                verdicts = {verdict.device: verdict for verdict in run.try_all()}
            finally:
                run.stop()
    except VmmMsiError:
        raise
    except (ValueError, LookupError, OverflowError) as error:
        raise InputError(f"replaying: the model has no such host or guest: {error}") from error
    model = _model_slots(recording, verdicts)
    return Replay(
        recording,
        profile.name,
        chosen,
        tuple(
            _compare(recording, device, verdicts[device.address], model)
            for device in recording.devices
        ),
        tuple(_slots_differ(recording.slots, model)) if _knows_addresses(recording) else (),
    )


def _knows_addresses(recording: Recording) -> bool:
    return all(device.programmed for device in recording.devices)


def _in_order(recording: Recording) -> GuestDomain:
    """Return the guest with its devices in the order in which they took slots.

    One that took none stays where it is in the guest: nothing tells when it was tried. Slots tell
    the order within one MSI window only, and on Linux there is one for all devices.
    """
    if len({device.sw_msi_window for device in recording.host.devices}) > 1:
        return recording.guest
    pages = {slot.page: number for number, slot in enumerate(recording.slots)}
    size = recording.host.granule
    first = {}
    for device in recording.devices:
        numbers = [pages.get(a.align_down(size)) for a in device.programmed]
        taken = [number for number in numbers if number is not None]
        if taken:
            first[device.address] = min(taken)
    guest = recording.guest
    placed = sorted(
        (device for device in guest.devices if device.host in first),
        key=lambda device: first[device.host],
    )
    following = iter(placed)
    devices = [next(following) if device.host in first else device for device in guest.devices]
    return replace(guest, devices=tuple(devices))


def _model_slots(recording: Recording, verdicts: Mapping[PciAddress, Verdict]) -> tuple[Slot, ...]:
    devices = []
    for device in recording.devices:
        programmed = verdicts[device.address].programmed
        vectors = (
            ()
            if programmed is None
            else tuple(replace(vector, programmed=programmed) for vector in device.vectors)
        )
        devices.append(replace(device, vectors=vectors))
    return slots_of(devices, recording.host)


def _slots_differ(seen: Sequence[Slot], model: Sequence[Slot]) -> Iterator[str]:
    known = {slot.page: slot.its for slot in model}
    for slot in seen:
        its = known.get(slot.page)
        if its is None:
            yield f"slot at {slot.page}: recorded for ITS {slot.its}; the model uses no such slot"
        elif its != slot.its:
            yield f"slot at {slot.page}: recorded for ITS {slot.its}; the model has ITS {its} there"
    recorded = {slot.page for slot in seen}
    for slot in model:
        if slot.page not in recorded:
            yield f"slot at {slot.page}: the model has ITS {slot.its} there; none is recorded"


def _slot(address: Iova | None, slots: Sequence[Slot], size: int) -> int | None:
    if address is None:
        return None
    pages = [slot.page for slot in slots]
    page = address.align_down(size)
    return pages.index(page) if page in pages else None


def _compare(
    recording: Recording, device: SeenDevice, verdict: Verdict, model: Sequence[Slot]
) -> Compared:
    host = recording.host.device_by_address[device.address]
    size = recording.host.granule
    fault, notes = _fault(recording, device, host)
    seen, more = _outcome(recording, device, fault)
    notes += more
    first = device.programmed[0] if device.programmed else None
    differ = [
        *_address_differs(device, host, verdict),
        *_outcome_differs(device, fault, seen, verdict),
    ]
    if not device.programmed:
        notes.append("no address of an MSI was read; it was not compared")
    return Compared(
        device,
        host.its,
        fault,
        seen,
        _slot(first, recording.slots, size),
        verdict,
        _slot(verdict.programmed, model, size),
        tuple(differ),
        tuple(notes),
    )


def _fault(
    recording: Recording, device: SeenDevice, host: HostDevice
) -> tuple[SmmuEvent | None, list[str]]:
    """Return the event that an MSI of a device caused, and what is to be said of the others."""
    window = host.sw_msi_window or SW_MSI_WINDOW
    guest_device = recording.guest.device_by_address[device.address]
    doorbells = {guest_device.giova, *(a.align_down(0x1000) for a in device.programmed)}
    found, notes = None, []
    for each in recording.events:
        event = each.event
        if each.device != device.address:
            continue
        page = event.iova.align_down(0x1000)
        if not event.stage or window.overlaps(event.iova, 1) or page in doorbells:
            found = found or event
        else:
            notes.append(f"{event} is of ordinary DMA; it was not compared")
    return found, notes


def _outcome(
    recording: Recording, device: SeenDevice, fault: SmmuEvent | None
) -> tuple[str | None, list[str]]:
    """Return what was seen of the MSIs of a device."""
    if fault is not None:
        return str(_FAULT.get(fault.stage, "misconfigured")), []
    if device.interrupts:
        return str(Outcome.DELIVERED), []
    if not device.vectors:
        return None, ["the guest had no MSI of it enabled; what becomes of one was not compared"]
    if recording.vlpis:
        return None, ["the host's kernel gives MSIs to guests directly (GICv4) and counted none"]
    return LOST, []


def _address_differs(device: SeenDevice, host: HostDevice, verdict: Verdict) -> Iterator[str]:
    addresses = device.programmed
    if len(addresses) > 1:
        yield (
            f"its MSIs were programmed with {', '.join(map(str, addresses))}; on the model all of "
            f"a device have one, here {verdict.programmed}"
        )
    elif addresses and verdict.programmed is None:
        yield f"it was programmed with {addresses[0]}; the model refuses it: {verdict.reason}"
    elif addresses and verdict.programmed is not None and addresses[0] != verdict.programmed:
        text = f"it was programmed with {addresses[0]}, the model's with {verdict.programmed}"
        window = host.sw_msi_window or SW_MSI_WINDOW
        if all(window.overlaps(each, 1) for each in (addresses[0], verdict.programmed)):
            text += "; a device that was unplugged before may have a slot that is not recorded"
        yield text


def _outcome_differs(
    device: SeenDevice, fault: SmmuEvent | None, seen: str | None, verdict: Verdict
) -> Iterator[str]:
    if seen is None:
        return
    model = f"on the model they are {verdict.outcome}"
    if verdict.reason:
        model += f": {verdict.reason}"
    if fault is None:
        # The host counts nothing of what another ITS was sent, or no device of that one.
        if seen != (LOST if verdict.outcome is Outcome.MISROUTED else verdict.outcome):
            what = (
                f"{device.interrupts} interrupts were counted"
                if device.interrupts
                else "no interrupt was counted and no fault logged"
            )
            yield f"{what}; {model}"
        return
    if device.interrupts:
        yield (
            f"{fault} was logged, and {device.interrupts} interrupts were counted; on the model "
            f"all MSIs of a device are alike, here {verdict.outcome}"
        )
    elif _STAGE.get(verdict.outcome) != fault.stage:
        yield f"{fault} was logged; {model}"
    elif verdict.programmed is not None and fault.iova != verdict.programmed:
        yield f"the fault was at IOVA {fault.iova}; on the model it is at {verdict.programmed}"
