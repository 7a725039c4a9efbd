"""The kernels that can be simulated.

``series-vN`` is a kernel with "SMMUv3 Nested Stage Setup", revision N: bindings are registered,
doorbells can be mapped by iommu_map() from inside the kernel, and there is no IOAS, so nothing
checks a mapping against the software MSI window. ``pre-series`` is the kernel before the
discussion of 2018: a nested attach with the allocator of that time. ``linux-7.2`` has iommufd;
``linux-7.2-bind`` adds vmm-msi's own interface for guest bindings on nest parents to it. The others
add interfaces that were proposed on the mailing lists and not merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import UsageError, did_you_mean
from vmm_msi.iommu.backend import Capability
from vmm_msi.iommu.revisions import REVISIONS

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from vmm_msi.iommu.revisions import Revision

_IN_KERNEL = frozenset(
    {Capability.KERNEL_DOORBELL_MAP, Capability.DOORBELL_MAP, Capability.MSI_ADDRESS_WRITE}
)
_LINUX_72 = frozenset(
    {
        Capability.SW_MSI,
        Capability.SW_MSI_SLOTS,
        Capability.DOORBELL_MAP,
        Capability.MSI_ADDRESS_WRITE,
        Capability.IOMMUFD_FILES,
    }
)

_PROPOSED = "proposed, not merged"


@dataclass(frozen=True, slots=True)
class Profile:
    """One kernel.

    :param revision: revision of the series, 0 without the series.
    :param iommufd: the rules are iommufd's.
    :param standing: what keeps its interfaces out of a released kernel; empty if nothing does.
    :param file_window: a moved MSI window is that of the file descriptor, is not checked, and the
        driver's own stays reserved; else it is the device's.
    """

    name: str
    capabilities: frozenset[Capability]
    revision: int = 0
    iommufd: bool = False
    standing: str = ""
    file_window: bool = False

    @property
    def maps_doorbells(self) -> bool:
        """Whether the kernel itself maps doorbells for the caller."""
        return Capability.KERNEL_DOORBELL_MAP in self.capabilities

    @property
    def has_bindings(self) -> bool:
        """Whether it takes guest bindings, of any revision."""
        return not _BINDINGS.isdisjoint(self.capabilities)


_BINDING_OF = {
    rules.allocator: Capability(f"guest-binding-{rules.allocator}")
    for rules in REVISIONS
    if rules.has_bindings
}
_BINDINGS = frozenset(_BINDING_OF.values())
#: What iommufd's interface for guest MSI bindings adds to Linux 7.2.
GUEST_BINDING = _BINDINGS | {
    Capability.GUEST_BINDING_DIRECT,
    Capability.GUEST_UNBIND,
    Capability.DOORBELL_MAP,
    Capability.MSI_ADDRESS_WRITE,
}


def _before_iommufd(rules: Revision) -> Profile:
    """Return the kernel with a revision of the series."""
    capabilities = set(_IN_KERNEL)
    if rules.has_bindings:
        capabilities.add(_BINDING_OF[rules.allocator])
    else:
        capabilities.add(Capability.SW_MSI)
    if rules.can_unbind:
        capabilities.add(Capability.GUEST_UNBIND)
    name = f"series-v{rules.number}" if rules.number else "pre-series"
    standing = "posted 2018 to 2021, not merged" if rules.number else ""
    return Profile(name, frozenset(capabilities), rules.number, standing=standing)


#: A strategy runs on the last kernel here that has what the strategy needs.
PROFILES: tuple[Profile, ...] = (
    *map(_before_iommufd, REVISIONS),
    Profile(
        "linux-map-msi-page",
        _LINUX_72 | {Capability.SW_MSI_MOVE, Capability.MSI_PRESET, Capability.MSI_PAGE_MAP},
        iommufd=True,
        standing="sketched, no patch posted",
    ),
    Profile(
        "linux-vfio-msi-iova",
        _LINUX_72 | {Capability.SW_MSI_MOVE, Capability.MSI_PRESET},
        iommufd=True,
        standing=_PROPOSED,
        file_window=True,
    ),
    Profile(
        "linux-sw-msi-option",
        _LINUX_72 | {Capability.SW_MSI_MOVE},
        iommufd=True,
        standing=_PROPOSED,
    ),
    Profile(
        "linux-7.2-bind",
        _LINUX_72 | GUEST_BINDING,
        iommufd=True,
        standing="in no release",
    ),
    Profile("linux-7.2", _LINUX_72, iommufd=True),
)


def profile_named(name: str) -> Profile:
    """Return the profile called ``name``.

    :raise UsageError: when there is no such profile.
    """
    for profile in PROFILES:
        if profile.name == name:
            return profile
    names = [profile.name for profile in PROFILES]
    raise UsageError(
        f"kernel profile {name!r}: unknown; {did_you_mean(name, names)}valid: {', '.join(names)}"
    )


def default_profile(capabilities: AbstractSet[Capability]) -> Profile | None:
    """Return the last profile with all the capabilities; None if no profile has them."""
    return next((p for p in reversed(PROFILES) if capabilities <= p.capabilities), None)
