"""Where the host's software MSI window can be moved, and devices attached with a moved one.

The kernel takes its doorbell addresses from the window and keeps it free of all else, so a window
that covers guest RAM or the guest's doorbell is in the way of both.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from vmm_msi.plugins import (
    SW_MSI_WINDOW,
    Capability,
    MsiAllocator,
    PciAddress,
    RefusedError,
    ReservedKind,
    ReservedRegion,
    S2Pool,
    Session,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

#: What IOMMU_OPTION_SW_MSI_START and _SIZE are multiples of.
MIB = 1 << 20
#: Slots of one iommufd file descriptor: ``drivers/iommu/iommufd/driver.c`` iommufd_sw_msi_get_map.
_SLOTS = 64


def attach(
    session: Session,
    device: PciAddress,
    window: ReservedRegion | None,
    key: Hashable,
    allocator: MsiAllocator = MsiAllocator.KERNEL,
) -> None:
    """Move the MSI window of ``device``, and attach it to the stage 2 of ``key``.

    :param window: None leaves it where it is.
    :raise RefusedError: the kernel's refusal; the window is back.
    """
    if window is not None:
        session.backend.move_sw_msi_window(device, window)
    try:
        session.state(S2Pool).attach(session, device, key, allocator=allocator)
    except RefusedError:
        restore(session, device)
        raise


def restore(session: Session, device: PciAddress) -> None:
    """Give a detached device the kernel's own window back, where it can have another."""
    if Capability.SW_MSI_MOVE in session.backend.info.capabilities:
        session.backend.move_sw_msi_window(device, None)


def clear_of_doorbells(session: Session, device: PciAddress) -> ReservedRegion | None:
    """Return a window for ``device`` that covers neither RAM nor a doorbell of the guest.

    :return: None if its own covers none, or cannot be moved.
    """
    if Capability.SW_MSI_MOVE not in session.backend.info.capabilities:
        return None
    own = session.backend.sw_msi_window(device)
    page = session.backend.page_size
    doorbells = [(session.guest.gdb(d).align_down(page), page) for d in session.guest.devices]
    ram = [(memory.base, memory.size) for memory in session.guest.memory]
    if own is not None and not any(own.overlaps(*taken) for taken in chain(doorbells, ram)):
        return None
    return free_window(session, doorbells)


def free_window(session: Session, doorbells: Sequence[tuple[int, int]] = ()) -> ReservedRegion:
    """Return room for all slots that neither guest RAM nor a reserved region of a device covers.

    It starts where QEMU's RMR does if that is free, else behind the lowest of these with room.

    :param doorbells: base and size of further ranges to leave free.
    """
    size = -(-_SLOTS * session.backend.page_size // MIB) * MIB
    taken = [*_taken(session), *doorbells]
    ends = sorted(-(-(base + length) // MIB) * MIB for base, length in taken)
    for base in chain((SW_MSI_WINDOW.base,), ends):
        window = ReservedRegion(base, size, ReservedKind.SW_MSI)
        if not any(window.overlaps(*other) for other in taken):
            return window
    raise RefusedError(
        f"guest {session.guest.name}: has no {size >> 20} MiB of addresses that neither RAM nor a "
        "reserved region covers, so the MSI window cannot be moved; assign fewer devices"
    )


def _taken(session: Session) -> Iterator[tuple[int, int]]:
    """Yield base and size of the guest's RAM and of the regions that its devices reserve."""
    for memory in session.guest.memory:
        yield memory.base, memory.size
    for guest_device in session.guest.devices:
        for region in session.host_device(guest_device.host).reserved:
            if region.kind not in {ReservedKind.SW_MSI, ReservedKind.DIRECT_RELAXABLE}:
                yield region.base, region.size
