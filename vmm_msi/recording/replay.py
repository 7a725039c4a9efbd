"""Replay a recording: bring the guest up in the simulator and compare the results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmm_msi.config import Choice
from vmm_msi.engine.setup import simulate
from vmm_msi.errors import InputError, VmmMsiError
from vmm_msi.quantity import quantity
from vmm_msi.recording.recorder import slots_of
from vmm_msi.types import SW_MSI_WINDOW, Outcome, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm_msi.iommu.smmu_events import SmmuEvent
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.recording import RecordedDevice, Recording, Slot
    from vmm_msi.types import GuestDomain, HostDevice, Iova, PciAddress, Verdict

_STAGE = {Outcome.S1_FAULT: 1, Outcome.S2_FAULT: 2}
#: No interrupt was counted and no fault was logged; in the simulator such MSIs are misrouted.
LOST = "lost"
_FAULT = {1: Outcome.S1_FAULT, 2: Outcome.S2_FAULT}


@dataclass(frozen=True)
class DeviceComparison:
    """One device in the recording and in the simulator.

    :param its: id of its ITS on the host.
    :param fault: the recorded event that one of its MSIs caused; None without one.
    :param outcome: the recorded outcome of its MSIs; None if the recording does not show it.
    :param slot: number of its slot in the recording.
    :param verdict: the result in the simulator.
    :param simulated_slot: number of its slot in the simulator.
    :param disagreements: the differences, a sentence each.
    :param notes: the facts that could not be compared, with the reason.
    """

    recorded: RecordedDevice
    its: int
    fault: SmmuEvent | None
    outcome: str | None
    slot: int | None
    verdict: Verdict
    simulated_slot: int | None
    disagreements: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Replay:
    """A recording and its replay in the simulator.

    :param kernel: name of the simulated kernel's profile.
    :param choices: the strategy of each device in the simulator.
    :param disagreements: the differences that do not belong to a single device.
    """

    recording: Recording
    kernel: str
    choices: Mapping[PciAddress, Choice]
    devices: tuple[DeviceComparison, ...]
    disagreements: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Return whether the simulator's results equal the recording."""
        return not self.disagreements and not any(device.disagreements for device in self.devices)


def replay(
    recording: Recording, plugins: PluginManager, selector: str, choice: Choice | None = None
) -> Replay:
    """Bring the recorded guest up in the simulator and compare.

    :param selector: name of the ITS selector.
    :param choice: the strategy for every device; None for the recorded strategies.
    :raise RefusedError: when no simulated kernel supports the strategies.
    :raise UsageError: for a strategy, an option or a selector that does not exist.
    :raise InputError: when the host or the guest in the recording is impossible.
    """
    choices = {
        device.address: choice or Choice.of(device.strategy, dict(device.options))
        for device in recording.devices
    }
    guest = _in_order(recording)
    host = recording.host
    try:
        simulation = simulate(plugins, Scenario(host, guest), choices, selector, plan=False)
    except VmmMsiError:
        raise
    except (ValueError, LookupError, OverflowError) as error:
        raise InputError(
            f"replaying: the simulator cannot have this host or guest: {error}"
        ) from error
    verdicts = {verdict.device: verdict for verdict in simulation.verdicts}
    slots = _simulated_slots(recording, verdicts)
    return Replay(
        recording,
        simulation.kernel,
        choices,
        tuple(
            _compare(recording, device, verdicts[device.address], slots)
            for device in recording.devices
        ),
        tuple(_slot_differences(recording.slots, slots)) if _has_addresses(recording) else (),
    )


def _has_addresses(recording: Recording) -> bool:
    return all(device.programmed for device in recording.devices)


def _in_order(recording: Recording) -> GuestDomain:
    """Return the guest with its devices in the order in which they got slots.

    A device whose addresses were not read keeps its place, because its order is unknown. If others
    move, a device that had no MSI enabled is last: it got no slot, and if it was refused because of
    another device of its IOMMU group, it must not come before that one here. Slots show the order
    within one MSI window only; Linux has one for all devices.
    """
    if len({device.sw_msi_window for device in recording.host.devices}) > 1:
        return recording.guest
    pages = {slot.page: number for number, slot in enumerate(recording.slots)}
    size = recording.host.granule
    first = {}
    for device in recording.devices:
        numbers = [pages.get(a.align_down(size)) for a in device.programmed]
        slots = [number for number in numbers if number is not None]
        if slots:
            first[device.address] = min(slots)
    guest = recording.guest
    placed = [device for device in guest.devices if device.host in first]
    ordered = sorted(placed, key=lambda device: first[device.host])
    if ordered == placed:
        return guest
    idle = {device.address for device in recording.devices if not device.vectors}
    following = iter(ordered)
    active = (device for device in guest.devices if device.host not in idle)
    devices = [next(following) if device.host in first else device for device in active]
    devices += (device for device in guest.devices if device.host in idle)
    return replace(guest, devices=tuple(devices))


def _simulated_slots(
    recording: Recording, verdicts: Mapping[PciAddress, Verdict]
) -> tuple[Slot, ...]:
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


def _slot_differences(recorded: Sequence[Slot], simulated: Sequence[Slot]) -> Iterator[str]:
    its_by_page = {slot.page: slot.its for slot in simulated}
    for slot in recorded:
        its = its_by_page.get(slot.page)
        if its is None:
            yield f"slot at {slot.page}: recorded for ITS {slot.its}, unused in the simulator"
        elif its != slot.its:
            yield (
                f"slot at {slot.page}: recorded for ITS {slot.its}, in the simulator for ITS {its}"
            )
    pages = {slot.page for slot in recorded}
    for slot in simulated:
        if slot.page not in pages:
            yield f"slot at {slot.page}: not recorded, in the simulator for ITS {slot.its}"


def _slot(address: Iova | None, slots: Sequence[Slot], size: int) -> int | None:
    if address is None:
        return None
    pages = [slot.page for slot in slots]
    page = address.align_down(size)
    return pages.index(page) if page in pages else None


def _compare(
    recording: Recording, device: RecordedDevice, verdict: Verdict, slots: Sequence[Slot]
) -> DeviceComparison:
    host = recording.host.device_by_address[device.address]
    size = recording.host.granule
    fault, notes = _fault(recording, device, host)
    outcome, outcome_notes = _outcome(recording, device, fault)
    notes += outcome_notes
    address = device.programmed[0] if device.programmed else None
    disagreements = [
        *_address_differences(device, host, verdict),
        *_outcome_differences(device, fault, outcome, verdict),
    ]
    if not device.programmed:
        notes.append("no address of an MSI was read, so none is compared")
    return DeviceComparison(
        device,
        host.its,
        fault,
        outcome,
        _slot(address, recording.slots, size),
        verdict,
        _slot(verdict.programmed, slots, size),
        tuple(disagreements),
        tuple(notes),
    )


def _fault(
    recording: Recording, device: RecordedDevice, host: HostDevice
) -> tuple[SmmuEvent | None, list[str]]:
    """Return the event that an MSI of a device caused, and notes about its other events."""
    window = host.sw_msi_window or SW_MSI_WINDOW
    guest_device = recording.guest.device_by_address[device.address]
    doorbells = {guest_device.giova, *(a.align_down(0x1000) for a in device.programmed)}
    fault, notes = None, []
    for recorded in recording.events:
        event = recorded.event
        if recorded.device != device.address:
            continue
        page = event.iova.align_down(0x1000)
        if not event.stage or window.overlaps(event.iova, 1) or page in doorbells:
            fault = fault or event
        else:
            notes.append(f"{event} is from ordinary DMA and is not compared")
    return fault, notes


def _outcome(
    recording: Recording, device: RecordedDevice, fault: SmmuEvent | None
) -> tuple[str | None, list[str]]:
    """Return the recorded outcome of the MSIs of a device, and notes about it."""
    if fault is not None:
        return str(_FAULT.get(fault.stage, "misconfigured")), []
    if device.interrupts:
        return str(Outcome.DELIVERED), []
    if not device.vectors:
        return None, ["the guest had enabled no MSI of the device, so its outcome is not compared"]
    if recording.vlpis:
        return None, [
            "the host delivers MSIs to the guest directly (GICv4), so its kernel counts none"
        ]
    return LOST, []


def _address_differences(
    device: RecordedDevice, host: HostDevice, verdict: Verdict
) -> Iterator[str]:
    addresses = device.programmed
    if len(addresses) > 1:
        yield (
            f"its MSIs were programmed with {', '.join(map(str, addresses))}; in the simulator all "
            f"MSIs of a device have one address, here {verdict.programmed}"
        )
    elif addresses and verdict.programmed is None:
        yield f"programmed with {addresses[0]}, refused in the simulator: {verdict.reason}"
    elif addresses and verdict.programmed is not None and addresses[0] != verdict.programmed:
        text = f"programmed with {addresses[0]}, in the simulator with {verdict.programmed}"
        window = host.sw_msi_window or SW_MSI_WINDOW
        if all(window.overlaps(address, 1) for address in (addresses[0], verdict.programmed)):
            text += "; an unplugged device may still hold a slot that is not recorded"
        elif window.overlaps(addresses[0], 1) and not device.bindings:
            text += "; the kernel had no binding of its doorbell: see vmm-msi status"
        yield text


def _outcome_differences(
    device: RecordedDevice, fault: SmmuEvent | None, outcome: str | None, verdict: Verdict
) -> Iterator[str]:
    if outcome is None:
        return
    simulated = f"in the simulator its MSIs are {verdict.outcome}"
    if verdict.reason:
        simulated += f": {verdict.reason}"
    if fault is None:
        # The host counts no MSI that went to another ITS, or to another device of its own.
        if outcome != (LOST if verdict.outcome is Outcome.MISROUTED else verdict.outcome):
            yield f"{_counted(device)}; {simulated}"
        return
    if device.interrupts:
        yield (
            f"{fault} was logged, but {_counted(device)}; in the simulator all MSIs of a device "
            f"have one outcome, here {verdict.outcome}"
        )
    elif _STAGE.get(verdict.outcome) != fault.stage:
        yield f"{fault} was logged; {simulated}"
    elif verdict.programmed is not None and fault.iova != verdict.programmed:
        yield f"the fault was at IOVA {fault.iova}, in the simulator it is at {verdict.programmed}"


def _counted(device: RecordedDevice) -> str:
    if device.interrupts == 0:
        return "no interrupt was counted and no fault was logged"
    verb = "was" if device.interrupts == 1 else "were"
    return f"{quantity(device.interrupts, 'interrupt')} {verb} counted"
