"""The kernels that can be simulated.

``series-vN`` is a kernel with "SMMUv3 Nested Stage Setup", revision N: bindings are registered,
doorbells can be mapped by iommu_map() from inside the kernel, and there is no IOAS, so nothing
checks a mapping against the software MSI window. ``linux-7.2`` has iommufd. ``pre-series`` is the
kernel before the discussion of 2018: a nested attach with the allocator of that time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.errors import UsageError, did_you_mean
from vmm_msi.iommu.backend import Capability

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_IN_KERNEL = frozenset(
    {Capability.KERNEL_DOORBELL_MAP, Capability.DOORBELL_MAP, Capability.MSI_ADDRESS_WRITE}
)


@dataclass(frozen=True, slots=True)
class Profile:
    """One kernel.

    :param revision: revision of the series, 0 without the series.
    :param iommufd: the rules are iommufd's.
    """

    name: str
    capabilities: frozenset[Capability]
    revision: int = 0
    iommufd: bool = False


#: Oldest first.
PROFILES: tuple[Profile, ...] = (
    Profile("pre-series", _IN_KERNEL | {Capability.SW_MSI}),
    Profile("series-v2", _IN_KERNEL | {Capability.GUEST_BINDING_V2}, revision=2),
    Profile("series-v3", _IN_KERNEL | {Capability.GUEST_BINDING_V3}, revision=3),
    Profile(
        "series-v8",
        _IN_KERNEL | {Capability.GUEST_BINDING_V8, Capability.GUEST_UNBIND},
        revision=8,
    ),
    Profile(
        "series-v15",
        _IN_KERNEL | {Capability.GUEST_BINDING_V15, Capability.GUEST_UNBIND},
        revision=15,
    ),
    Profile(
        "linux-7.2",
        frozenset(
            {
                Capability.SW_MSI,
                Capability.SW_MSI_SLOTS,
                Capability.DOORBELL_MAP,
                Capability.MSI_ADDRESS_WRITE,
            }
        ),
        iommufd=True,
    ),
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


def newest_profile(capabilities: AbstractSet[Capability]) -> Profile | None:
    """Return the newest profile with all the capabilities; None if no profile has them."""
    return next((p for p in reversed(PROFILES) if capabilities <= p.capabilities), None)
