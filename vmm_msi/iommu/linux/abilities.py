"""The receivers of MSIs on a real kernel, and what the backend can do with each."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING

from vmm_msi.iommu.backend import BackendInfo, Capability
from vmm_msi.iommu.profiles import GUEST_BINDING

if TYPE_CHECKING:
    from vmm_msi.iommu.profiles import Profile


class Doorbells(StrEnum):
    """The receiver of the MSIs."""

    #: The host's own ITS; only the kernel can map it.
    ITS = "its"
    #: A page of memory for each ITS of the host description, mapped by this process.
    WITNESS = "witness"


#: What no released kernel has, and what pages of memory do not stand in for.
_PROPOSED = frozenset({Capability.SW_MSI_MOVE, Capability.MSI_PRESET, Capability.MSI_PAGE_MAP})
#: The backend opens /dev/iommu once.
_MISSING = _PROPOSED | {Capability.IOMMUFD_FILES}


def with_witnesses(profile: Profile, *, can_write: bool) -> BackendInfo:
    """Describe the backend with a page of memory for each doorbell.

    :param profile: the kernel whose rules apply.
    :param can_write: the devices' MSI capabilities can be written.
    """
    rules = "" if profile.iommufd else f", rules of {profile.name}"
    return BackendInfo(
        "iommufd",
        f"{_kernel()}, witness doorbells{rules}",
        profile.capabilities - _MISSING if can_write else frozenset(),
        _no_proposal(profile)
        if can_write
        else "witness doorbells require writable MSI capabilities",
    )


def with_its(profile: Profile, *, can_write: bool, windows: bool, binds: bool) -> BackendInfo:
    """Describe the backend with the host's own ITS.

    :param can_write: the devices' MSI capabilities can be written.
    :param windows: every device has a software MSI window.
    :param binds: the kernel has the interface for guest MSI bindings.
    """
    capabilities: set[Capability] = set()
    if windows:
        capabilities |= {Capability.SW_MSI, Capability.SW_MSI_SLOTS}
    if can_write:
        capabilities.add(Capability.MSI_ADDRESS_WRITE)
    if binds:
        capabilities |= GUEST_BINDING
    return BackendInfo(
        "iommufd",
        f"{_kernel()}, the host's own ITS",
        frozenset(capabilities),
        _no_proposal(profile)
        or "user space cannot map an ITS, and no released kernel takes guest bindings; use "
        "witness doorbells (--doorbells witness)",
    )


def _kernel() -> str:
    return f"Linux {os.uname().release}"


def _no_proposal(profile: Profile) -> str:
    if profile.capabilities & _PROPOSED:
        return f"{profile.name} is {profile.standing}; use --backend sim"
    return ""
