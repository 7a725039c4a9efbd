"""Act on the bindings of a running guest: spoil them, have them repaired, rebind under load."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.lab.rpc.link import AgentLink
    from vmm_msi.types import PciAddress

WRONG_GDB, WRONG_GIOVA, WITHDRAW, REBIND = "wrong-gdb", "wrong-giova", "withdraw", "rebind"
#: Actions that spoil the bindings, which ``vmm-msi watch`` repairs.
SPOILING = (WRONG_GDB, WRONG_GIOVA, WITHDRAW)

# Another page, and an IOVA that the guest's stage 1 does not map: Linux takes the highest ones.
_NEXT_PAGE = 0x1000
_LOW_IOVA = 0x10_0000
_REPAIR_S = 60.0
_READY_S = 240.0
_POLL_S = 0.2
#: Keys of an event of ``vmm-msi watch`` that are the same in all, or not wanted.
_NOT_SHOWN = {"time", "level", "event", "uri", "domain"}


class Binding(NamedTuple):
    """A binding in the kernel's file.

    :param used: the device is programmed with it.
    """

    device: str
    iova: int
    gpa: int
    used: bool


class BindingActs:
    """Acts on the bindings of a guest that ``vmm-msi watch`` follows.

    :param link: the link to the emulated host's agent.
    """

    def __init__(self, link: AgentLink) -> None:
        self._link = link

    def start_watch(self) -> None:
        """Start ``vmm-msi watch`` in the emulated host and wait until it is ready.

        :raise LabError: when it is not ready in time.
        """
        self._link.call("watch")
        deadline = time.monotonic() + _READY_S
        while '"service-ready"' not in self._link.call("watch-log"):
            if time.monotonic() > deadline:
                raise LabError(f"starting vmm-msi watch: {self._link.call('watch-log').strip()}")
            time.sleep(_POLL_S)

    def events(self) -> list[str]:
        """Return what ``vmm-msi watch`` logged of devices, without time and guest."""
        shown = []
        for line in self._link.call("watch-log").splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if "device" in event:
                values = (f"{k}={v}" for k, v in event.items() if k not in _NOT_SHOWN)
                shown.append(" ".join([event["event"], *values]))
        return shown

    def lines(self) -> list[str]:
        """Return the lines of the kernel's file that are about devices."""
        text = self._link.call("msi-bindings", commands=[])["text"]
        return [line for line in text.splitlines() if not line.startswith("version ")]

    def bindings(self, devices: Sequence[PciAddress]) -> list[Binding]:
        """Return the bindings that the kernel has for devices."""
        names = set(map(str, devices))
        return [
            Binding(words[1], int(words[3], 16), int(words[5], 16), words[-1] == "used")
            for words in map(str.split, self.lines())
            if words[0] == "binding" and words[1] in names
        ]

    @contextmanager
    def spoiled(self, act: str, devices: Sequence[PciAddress]) -> Iterator[None]:
        """Spoil the bindings of devices while the service is paused; then have it repair them.

        :raise LabError: when the kernel refuses, or the service does not repair them in time.
        """
        right = self.bindings(devices)
        self._link.call("pause-watch")
        commands = [command for binding in right for command in _commands(act, binding)]
        answers = self._link.call("msi-bindings", commands=commands)["answers"]
        for command, errno in zip(commands, answers, strict=True):
            if errno:
                raise LabError(f"lab guest: {command!r} in the emulated host: {errno}")
        yield
        self._link.call("resume-watch")
        deadline = time.monotonic() + _REPAIR_S
        while set(self.bindings(devices)) != set(right):
            if time.monotonic() > deadline:
                raise LabError(
                    f"lab guest: vmm-msi watch has not repaired the bindings after "
                    f"{_REPAIR_S:.0f} s: {self.bindings(devices)}; before: {right}"
                )

    @contextmanager
    def rebinding(self, devices: Sequence[PciAddress], per_second: int) -> Iterator[list[int]]:
        """Unbind and bind devices again and again, while the service is paused.

        :return: a list that has the number of rebinds at the end.
        """
        bindings = self.bindings(devices)
        self._link.call("pause-watch")
        rounds = [
            [f"unbind {b.device} {b.iova:#x}", f"bind {b.device} {b.iova:#x} {b.gpa:#x} 12"]
            for b in bindings
        ]
        self._link.call("start-rebinding", rounds=rounds, per_second=per_second)
        numbers: list[int] = []
        try:
            yield numbers
        finally:
            numbers.append(self._link.call("stop-rebinding"))
            self._link.call("resume-watch")


def _commands(act: str, binding: Binding) -> list[str]:
    """Return the commands that spoil a binding; a direct binding replaces the one before."""
    if act == WITHDRAW:
        return [f"unbind {binding.device} {binding.iova:#x}"]
    iova = _LOW_IOVA if act == WRONG_GIOVA else binding.iova
    gpa = binding.gpa + (_NEXT_PAGE if act == WRONG_GDB else 0)
    return [f"bind {binding.device} {iova:#x} {gpa:#x} 12"]
