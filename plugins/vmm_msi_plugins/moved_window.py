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
    from collections.abc import Collection, Hashable, Iterator

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
    *,
    own_file: bool = False,
) -> None:
    """Move the MSI window of ``device``, and attach it to the stage 2 of ``key``.

    :param window: None leaves it where it is.
    :param own_file: see :meth:`S2Pool.attach`.
    :raise RefusedError: the kernel's refusal; the window is back.
    """
    if window is not None:
        session.backend.move_sw_msi_window(device, window)
    try:
        session.state(S2Pool).attach(session, device, key, allocator=allocator, own_file=own_file)
    except RefusedError:
        restore(session, device)
        raise


def restore(session: Session, device: PciAddress) -> None:
    """Give a detached device the kernel's own window back, where it can have another."""
    if Capability.SW_MSI_MOVE in session.backend.info.capabilities:
        session.backend.move_sw_msi_window(device, None)


class _Taken:
    """What of a guest a window must not cover, and a window that does not.

    Both are the same for all devices of a guest.
    """

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] | None = None
        self.window: ReservedRegion | None = None


def clear_of_doorbells(session: Session, device: PciAddress) -> ReservedRegion | None:
    """Return a window for ``device`` that covers neither RAM nor a doorbell of the guest.

    :return: None if its own covers none, or cannot be moved.
    """
    if Capability.SW_MSI_MOVE not in session.backend.info.capabilities:
        return None
    taken = session.state(_Taken)
    page = session.backend.page_size
    if taken.ranges is None:
        gdbs = {session.guest.gdb(guest_device) for guest_device in session.guest.devices}
        ram = ((memory.base, memory.size) for memory in session.guest.memory)
        taken.ranges = [*((gdb.align_down(page), page) for gdb in gdbs), *ram]
    own = session.backend.sw_msi_window(device)
    if own is not None and not any(own.overlaps(*covered) for covered in taken.ranges):
        return None
    if taken.window is None:
        taken.window = free_window(session, taken.ranges)
    return taken.window


def free_window(session: Session, more: Collection[tuple[int, int]] = ()) -> ReservedRegion:
    """Return room for all slots that neither guest RAM nor a reserved region of a device covers.

    It starts where QEMU's RMR does if that is free, else behind the lowest of these with room.

    :param more: base and size of further ranges to leave free.
    """
    size = -(-_SLOTS * session.backend.page_size // MIB) * MIB
    taken = {*_covered(session), *more}
    ends = sorted(-(-(base + length) // MIB) * MIB for base, length in taken)
    for base in chain((SW_MSI_WINDOW.base,), ends):
        window = ReservedRegion(base, size, ReservedKind.SW_MSI)
        if not any(window.overlaps(*other) for other in taken):
            return window
    raise RefusedError(
        f"guest {session.guest.name}: has no {size >> 20} MiB of addresses that neither RAM nor a "
        "reserved region covers, so the MSI window cannot be moved; assign fewer devices"
    )


def _covered(session: Session) -> Iterator[tuple[int, int]]:
    """Yield base and size of the guest's RAM and of the regions that its devices reserve."""
    for memory in session.guest.memory:
        yield memory.base, memory.size
    for guest_device in session.guest.devices:
        for region in session.host_device(guest_device.host).reserved:
            if region.kind not in {ReservedKind.SW_MSI, ReservedKind.DIRECT_RELAXABLE}:
                yield region.base, region.size
