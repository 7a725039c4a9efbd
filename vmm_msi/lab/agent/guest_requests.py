"""Answer the requests to a guest: what it sees, what its drivers do.

The modules that do the work are imported when they are needed.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from vmm_msi.lab.agent import kernel_log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Tell = Callable[[int, int], None]


def _look(_tell: Tell) -> dict[str, object]:
    """Return the tables, groups and interrupts of this machine, a guest."""
    from vmm_msi.lab.guest import inventory

    return inventory.look()


def _exercise(tell: Tell, address: str, count: int) -> dict[str, object]:
    """Exercise a device of this machine, a guest."""
    from vmm_msi.lab.guest.exercise import exercise

    return exercise(address, count, tell)


def _await_fault(_tell: Tell, address: str) -> dict[str, object]:
    """Wait until the kernel logs an SMMU event, or until the time limit."""
    from vmm_msi.lab.guest.exercise import await_fault

    return await_fault(address, lambda: "arm-smmu-v3" in kernel_log.read())


def _reload_driver(_tell: Tell, address: str, *, enumerate_again: bool = False) -> None:
    """Take a device's driver away and give it back."""
    from vmm_msi.lab.guest.life_cycle import reload_driver

    reload_driver(address, enumerate_again=enumerate_again)


def _take(_tell: Tell, address: str, use_s: float = 0.0) -> str:
    """Take a device of this machine, a guest, with VFIO; return the errno of a refusal."""
    from vmm_msi.lab.guest.vfio import take

    return take(address, use_s)


def _restart_self(_tell: Tell) -> None:
    """Restart this machine."""
    subprocess.run(["busybox", "reboot", "-f"], check=True)  # noqa: S607


def _load_kernel(_tell: Tell, image: str, words: str) -> None:
    """Load a kernel to start in the place of this machine's."""
    from vmm_msi.lab.guest.life_cycle import load_kernel

    load_kernel(image, words)


def _start_kernel(_tell: Tell) -> None:
    """Start the loaded kernel."""
    from vmm_msi.lab.guest.life_cycle import start_kernel

    start_kernel()


#: The requests, by name.
REQUESTS: Mapping[str, Callable[..., Any]] = {
    "look": _look,
    "exercise": _exercise,
    "await-fault": _await_fault,
    "reload-driver": _reload_driver,
    "take": _take,
    "restart-self": _restart_self,
    "load-kernel": _load_kernel,
    "start-kernel": _start_kernel,
}
