"""What the binder of a guest's doorbells requires of the guest and of its strategies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml.prerequisites import Check
from vmm_msi.types import BinderKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.plugins.hookspecs import Needs

#: The reason why a strategy does not work on QEMU.
QEMU_CANNOT_APPLY = "QEMU and the kernel bind doorbells by identity and cannot apply it"


def fatal_checks(binder: BinderKind, needs: Iterable[Needs]) -> set[Check]:
    """Return the checks that a guest must pass for strategies with these needs."""
    fatal = {Check.ARCH, Check.MACHINE, Check.GIC}
    if any(need.rmr for need in needs):
        fatal |= {Check.ACPI, Check.FIRMWARE}
    if binder is BinderKind.QEMU:
        fatal.add(Check.KVM)
    return fatal
