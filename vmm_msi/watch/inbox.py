"""Queue the guests that a worker has to check: bounded, and without delaying the caller."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from vmm_msi.domxml.metadata import NAMESPACE_BASE
from vmm_msi.libvirt_driver.event_loop import GuestEvent

if TYPE_CHECKING:
    from vmm_msi.watch.statistics import Statistics

#: Guests that may wait at once; beyond that, every guest is checked.
LIMIT = 1024

# They change the definition, not the guest that runs.
_IGNORED = {GuestEvent.DEFINED, GuestEvent.UNDEFINED}


class WorkerCommand(Enum):
    """A command for the worker that concerns more than one guest, highest priority first."""

    STOP = auto()
    CONNECTION_LOST = auto()
    RECONCILE = auto()
    #: Reconcile because the inbox overflowed.
    OVERFLOW = auto()


@dataclass(frozen=True, slots=True)
class GuestCheck:
    """Request to check one guest.

    :param rebooted: the guest was reset since its last check.
    """

    uuid: str
    rebooted: bool


class Inbox:
    """Queue commands and guests; several events of one guest become one check."""

    def __init__(self, statistics: Statistics, limit: int = LIMIT) -> None:
        self._statistics = statistics
        self._limit = limit
        self._changed = threading.Condition()
        self._commands: dict[WorkerCommand, None] = {}
        self._guests: dict[str, bool] = {}

    def guest(self, event: GuestEvent, uuid: str, namespace: str) -> None:
        """Queue an event of a guest; see :class:`vmm_msi.libvirt_driver.event_loop.Sink`."""
        self._statistics.event(event.value)
        if event in _IGNORED:
            return
        if event is GuestEvent.METADATA_CHANGED and not namespace.startswith(NAMESPACE_BASE):
            return
        self.check(uuid, rebooted=event is GuestEvent.REBOOTED)

    def check(self, uuid: str, *, rebooted: bool = False) -> None:
        """Queue a check of one guest."""
        with self._changed:
            if len(self._guests) >= self._limit and uuid not in self._guests:
                # A reconcile detects every change of a guest except a reset.
                self._guests = {uuid: True for uuid, reset in self._guests.items() if reset}
                if len(self._guests) >= self._limit:
                    self._guests.clear()
                self._commands[WorkerCommand.OVERFLOW] = None
            self._guests[uuid] = rebooted or self._guests.get(uuid, False)
            self._changed.notify()

    def closed(self) -> None:
        """Report that the connection is lost."""
        self._command(WorkerCommand.CONNECTION_LOST)

    def reconcile(self) -> None:
        """Request a reconcile; a worker that waits to reconnect does so at once."""
        self._command(WorkerCommand.RECONCILE)

    def stop(self) -> None:
        """Request a stop."""
        self._command(WorkerCommand.STOP)

    def connected(self) -> None:
        """Drop the commands that a new connection and its first reconcile make obsolete."""
        with self._changed:
            for command in WorkerCommand:
                if command is not WorkerCommand.STOP:
                    self._commands.pop(command, None)

    def is_stopped(self) -> bool:
        """Return whether a stop was requested."""
        with self._changed:
            return WorkerCommand.STOP in self._commands

    def get(self, seconds: float | None) -> WorkerCommand | GuestCheck | None:
        """Return the next item, commands first; None when ``seconds`` passed without one.

        :param seconds: how long to wait; None to wait without a limit.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while True:
                for command in WorkerCommand:
                    if command in self._commands:
                        if command is not WorkerCommand.STOP:
                            del self._commands[command]
                        return command
                if self._guests:
                    uuid = next(iter(self._guests))
                    return GuestCheck(uuid, self._guests.pop(uuid))
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)

    def pause(self, seconds: float) -> None:
        """Wait; a stop or a reconcile ends the pause, and the reconcile with it."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._commands.keys() & {WorkerCommand.STOP, WorkerCommand.RECONCILE}:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._commands.pop(WorkerCommand.RECONCILE, None)

    def _command(self, command: WorkerCommand) -> None:
        with self._changed:
            self._commands[command] = None
            self._changed.notify()
