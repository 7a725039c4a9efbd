"""The one interface between policy and mechanism.

A strategy sees a :class:`Backend` and nothing behind it. A backend declares what it can do
(:class:`Capability`), a strategy declares what it needs, and the engine compares the two before
anything is changed. Every operation that the kernel can refuse raises
:class:`~vmm_msi.errors.BackendError` with Linux's errno and changes nothing.
"""

from __future__ import annotations

import errno

# Imported at run time, not for type checkers alone: requests to a backend in the lab are encoded by
# the annotations of Backend.
from collections.abc import Hashable  # noqa: TC003
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType, Protocol

from vmm_msi.errors import BackendError, Rule  # noqa: TC001
from vmm_msi.iommu import rules
from vmm_msi.types import (  # noqa: TC001
    Costs,
    Iova,
    Ipa,
    PciAddress,
    ReservedRegion,
    Verdict,
)

#: Identifies one stage 2 within one backend.
S2Handle = NewType("S2Handle", int)


class MsiAllocator(StrEnum):
    """What picks the doorbell addresses in a stage 2."""

    #: The kernel's own allocator: the MSI cookie, or iommufd's slots.
    KERNEL = "kernel"
    #: Nothing but the caller maps doorbells (a kernel with iommufd has its slots all the same).
    CALLER = "caller"
    #: The guest bindings of the series of 2018-2021, as in the named revision: a list; a list with
    #: a device handle; a list for devices of one MSI domain; the same, which compares granules.
    V2 = "v2"
    V4 = "v4"
    V8 = "v8"
    V15 = "v15"


class Capability(StrEnum):
    """An ability of a backend beyond the nested attach, which all have."""

    #: The kernel takes doorbell addresses from the software MSI window itself
    #: (``drivers/iommu/dma-iommu.c`` or ``drivers/iommu/iommufd/driver.c``).
    SW_MSI = "sw-msi"
    #: As above, and the pages of the window are allocated per iommufd file descriptor.
    SW_MSI_SLOTS = "sw-msi-slots"
    #: The kernel accepts guest bindings, and its allocator is that of the named revision of the
    #: series of 2018-2021 (:class:`MsiAllocator`).
    GUEST_BINDING_V2 = "guest-binding-v2"
    GUEST_BINDING_V4 = "guest-binding-v4"
    GUEST_BINDING_V8 = "guest-binding-v8"
    GUEST_BINDING_V15 = "guest-binding-v15"
    #: The kernel accepts a guest binding for one device, and gives the device that address.
    GUEST_BINDING_DIRECT = "guest-binding-direct"
    #: A guest binding can be withdrawn.
    GUEST_UNBIND = "guest-unbind"
    #: iommu_map() of a doorbell on the IOMMU domain of a stage 2, from inside the kernel.
    KERNEL_DOORBELL_MAP = "kernel-doorbell-map"
    #: A doorbell page can be mapped at an IPA of the caller's choice, through any interface.
    DOORBELL_MAP = "doorbell-map"
    #: The MSI address in the device can be set to a value of the caller's choice.
    MSI_ADDRESS_WRITE = "msi-address-write"
    #: The software MSI window of a device can be moved: IOMMU_OPTION_SW_MSI_START and _SIZE.
    SW_MSI_MOVE = "sw-msi-move"
    #: VFIO takes the address that the kernel writes into the device: VFIO_IRQ_SET_ACTION_PREPARE.
    MSI_PRESET = "msi-preset"
    #: An ITS's page can be mapped in an IOAS: IOMMUFD_CMD_IOAS_MAP_MSI.
    MSI_PAGE_MAP = "msi-page-map"
    #: A stage 2 can have an iommufd file descriptor of its own, and so slots of its own.
    IOMMUFD_FILES = "iommufd-files"


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Name, kernel and capabilities of a backend.

    :param name: its name in messages, ``sim`` for the simulator.
    :param profile: its kernel, real or simulated, such as ``linux-7.2``.
    :param advice: what to do about a missing capability, as the end of a sentence.
    """

    name: str
    profile: str
    capabilities: frozenset[Capability]
    advice: str = ""


class Backend(Protocol):
    """Mechanism for one host and one guest.

    The signatures of a backend's methods are defined here; :mod:`vmm_msi.lab.rpc.backend_calls`
    derives the requests to a remote backend from the annotations.
    """

    @property
    def info(self) -> BackendInfo:
        """Name, kernel and capabilities."""
        ...

    @property
    def page_size(self) -> int:
        """The host kernel's PAGE_SIZE in bytes: the granule of stage 2."""
        ...

    def sw_msi_window(self, device: PciAddress) -> ReservedRegion | None:
        """Return the window from which the kernel takes doorbell addresses for ``device``."""
        ...

    def move_sw_msi_window(self, device: PciAddress, window: ReservedRegion | None) -> None:
        """Move the window from which the kernel takes doorbell addresses for ``device``.

        :param window: None for the kernel's own.
        :raise BackendError: EBUSY for an attached device, EINVAL for an unaligned window,
            EADDRINUSE if it overlaps a reserved region; EOPNOTSUPP when the kernel cannot
            move it.
        """
        ...

    def alloc_s2(
        self,
        smmu: int,
        *,
        allocator: MsiAllocator = MsiAllocator.KERNEL,
        own_file: PciAddress | None = None,
    ) -> S2Handle:
        """Allocate a stage 2 on the SMMU with id ``smmu`` and map the guest's RAM in it.

        In a kernel without iommufd, VFIO makes the stage 2 tables when devices are attached, and
        may make several.

        :param allocator: what picks doorbell addresses in it.
        :param own_file: allocate it on a new file descriptor of /dev/iommu, to which this device
            and its IOMMU group are bound, as is every device that is attached to it; None for the
            file descriptor of the guest.
        :raise BackendError: EOPNOTSUPP when the SMMU lacks a stage, or for ``own_file`` without
            the capability; EPERM when another device of the IOMMU group is attached elsewhere.
        """
        ...

    def free_s2(self, s2: S2Handle) -> None:
        """Free a stage 2 and everything mapped in it.

        :raise BackendError: EBUSY while a device is attached to it.
        """
        ...

    def attach(self, device: PciAddress, s2: S2Handle) -> S2Handle:
        """Attach ``device`` with its guest's stage 1, nested on ``s2``.

        :return: the stage 2 that it is attached to: ``s2``, or a stage 2 that VFIO made for it.
        :raise BackendError: when the kernel refuses it.
        """
        ...

    def detach(self, device: PciAddress) -> None:
        """Detach ``device`` and disable its MSIs."""
        ...

    def is_attached(self, device: PciAddress) -> bool:
        """Return whether ``device`` is attached to a stage 2."""
        ...

    def map_doorbell(self, s2: S2Handle, gdb: Ipa, its: int) -> None:
        """Map the IPA ``gdb`` to the doorbell page of the ITS with id ``its``, one S2 granule.

        :raise BackendError: EINVAL when ``gdb`` is not aligned to the granule or is reserved,
            EEXIST when it is mapped.
        """
        ...

    def unmap_doorbell(self, s2: S2Handle, gdb: Ipa) -> None:
        """Unmap the granule at ``gdb`` and invalidate cached translations of it."""
        ...

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding: stage 1 maps ``size`` bytes from ``giova`` to ``gdb``.

        :raise BackendError: when the kernel refuses it.
        """
        ...

    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """Withdraw a guest binding.

        :raise BackendError: EOPNOTSUPP when the kernel has no such call.
        """
        ...

    def preset_msi(self, device: PciAddress, giova: Iova | None) -> None:
        """Set the page that the kernel writes into ``device`` when its MSIs are enabled next.

        :param giova: an address in the page; None lets the kernel pick it again.
        :raise BackendError: EINVAL when the kernel does not take one.
        """
        ...

    def prepare_msi(self, device: PciAddress) -> Iova:
        """Enable the device's MSIs; the kernel picks the doorbell address, unless one is preset.

        :return: the address written into the device, offset within the page included.
        :raise BackendError: when the kernel has no address for it.
        """
        ...

    def program_msi(self, device: PciAddress, doorbell: Iova) -> Iova:
        """Enable the device's MSIs at ``doorbell`` plus the offset of GITS_TRANSLATER in its page.

        :return: the address written into the device, offset within the page included.
        """
        ...

    def advertise_rmr(self, window: ReservedRegion) -> None:
        """Add an RMR node for ``window`` to the guest's IORT: map it 1:1 in every stage 1."""
        ...

    def withdraw_rmr(self) -> None:
        """Remove the RMR nodes."""
        ...

    def deliver(self, device: PciAddress) -> Verdict:
        """Raise every MSI of ``device`` and return where they land."""
        ...

    def costs(self) -> Costs:
        """Return the resources in use."""
        ...

    def snapshot(self) -> Hashable:
        """Return a value that equals another snapshot if the states are equal."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


def no_own_file(kernel: str) -> BackendError:
    """Return the refusal of a stage 2 on a file descriptor of its own."""
    return rules.ONE_FILE.refusal(
        errno.EOPNOTSUPP,
        f"allocating a stage 2 on a file descriptor of its own: {kernel} opens /dev/iommu once at "
        "most",
    )


def no_window_option(
    device: PciAddress, kernel: str, advice: str = "", *, rule: Rule = rules.UNKNOWN_OPTION
) -> BackendError:
    """Return the answer of ``iommufd_option`` to IOMMU_OPTION_SW_MSI_START, which is unknown."""
    return rule.refusal(
        errno.EOPNOTSUPP,
        f"{device}: moving its MSI window: {kernel} has no IOMMU_OPTION_SW_MSI_START{advice}",
    )


def no_preset_action(
    device: PciAddress,
    giova: Iova | None,
    kernel: str,
    advice: str = "",
    *,
    rule: Rule = rules.UNKNOWN_ACTION,
) -> BackendError:
    """Return the answer of ``vfio_set_irqs_validate_and_prepare`` to an unknown action."""
    return rule.refusal(
        errno.EINVAL,
        f"{device}: presetting its MSI address to {giova}: {kernel} has no "
        f"VFIO_IRQ_SET_ACTION_PREPARE{advice}",
    )
