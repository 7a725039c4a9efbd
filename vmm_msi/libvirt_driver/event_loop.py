"""Run libvirt's event loop and pass on events of guests and connections.

https://libvirt.org/html/libvirt-libvirt-event.html: one loop serves the whole process, and only
connections that are opened after its registration use it. Callbacks run in the loop's thread: a
callback that waits blocks every connection and its keepalive. The callbacks here pass a value on
and return.
"""

from __future__ import annotations

import contextlib
import threading
import time
from contextlib import contextmanager
from enum import StrEnum
from functools import cache, partial
from typing import TYPE_CHECKING, Protocol, Self

import libvirt

from vmm_msi.libvirt_driver.libvirt_errors import ignore, translated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.libvirt_driver.connection import Connection

#: Seconds between two ticks, which show that the loop runs.
TICK_S = 2.0
#: Seconds between two keepalive messages, and the number that may remain unanswered.
KEEPALIVE = (5, 3)

_JOIN_S = 5.0
_PAUSE_S = 0.1


class GuestEvent(StrEnum):
    """A kind of event of a guest."""

    DEFINED = "defined"
    UNDEFINED = "undefined"
    STARTED = "started"
    STOPPED = "stopped"
    CRASHED = "crashed"
    REBOOTED = "rebooted"
    DEVICE_ADDED = "device-added"
    DEVICE_REMOVED = "device-removed"
    METADATA_CHANGED = "metadata-changed"


_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: GuestEvent.DEFINED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: GuestEvent.UNDEFINED,
    libvirt.VIR_DOMAIN_EVENT_STARTED: GuestEvent.STARTED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: GuestEvent.STOPPED,
    libvirt.VIR_DOMAIN_EVENT_CRASHED: GuestEvent.CRASHED,
}
_OTHERS = {
    libvirt.VIR_DOMAIN_EVENT_ID_REBOOT: GuestEvent.REBOOTED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: GuestEvent.DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: GuestEvent.DEVICE_REMOVED,
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE: GuestEvent.METADATA_CHANGED,
}


class Sink(Protocol):
    """The receiver of events; it is called in the loop's thread, so it must not wait."""

    def guest(self, event: GuestEvent, uuid: str, namespace: str) -> None:
        """Receive an event; ``namespace`` is that of changed metadata, else empty."""
        ...

    def closed(self) -> None:
        """Receive the loss of the connection."""
        ...


class EventLoop:
    """libvirt's default event loop in a thread, during a ``with`` block.

    Enter it before opening the connections to subscribe to.
    """

    def __init__(self) -> None:
        self._stopping = False
        self._timer = -1
        self._alive = time.monotonic()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        libvirt.registerErrorHandler(ignore, None)
        _register()
        self._timer = libvirt.virEventAddTimeout(int(TICK_S * 1000), self._tick, None)
        self._thread = threading.Thread(target=self._run, name="libvirt-events", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping = True
        libvirt.virEventUpdateTimeout(self._timer, 0)
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        libvirt.virEventRemoveTimeout(self._timer)

    def age(self) -> float:
        """Return the seconds since the last tick of the loop."""
        return time.monotonic() - self._alive

    def _tick(self, _timer: int, _opaque: object) -> None:
        self._alive = time.monotonic()

    def _run(self) -> None:
        while not self._stopping:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError:
                time.sleep(_PAUSE_S)


@cache
def _register() -> None:
    """Register the loop once; a process has one."""
    with translated("registering libvirt's event loop"):
        libvirt.virEventRegisterDefaultImpl()


@contextmanager
def subscribed(connection: Connection, sink: Sink) -> Iterator[None]:
    """Pass events of the connection and its guests to ``sink``, during the ``with`` block.

    :raise HypervisorError: when the driver has no lifecycle events; it may lack other events.
    """
    raw = connection._raw  # noqa: SLF001 - the same package
    registered = []
    # A driver within this process has no keepalive.
    with contextlib.suppress(libvirt.libvirtError):
        raw.setKeepAlive(*KEEPALIVE)
    with contextlib.suppress(libvirt.libvirtError):
        raw.registerCloseCallback(_closed, sink)
    try:
        with translated(f"asking {connection.uri} for the events of its guests"):
            kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
            registered.append(raw.domainEventRegisterAny(None, kind, _lifecycle, sink))
        for kind, event in _OTHERS.items():
            with contextlib.suppress(libvirt.libvirtError):
                callback = partial(_other, event)
                registered.append(raw.domainEventRegisterAny(None, kind, callback, sink))
        yield
    finally:
        for number in registered:
            with contextlib.suppress(libvirt.libvirtError):
                raw.domainEventDeregisterAny(number)
        with contextlib.suppress(libvirt.libvirtError):
            raw.unregisterCloseCallback()


def _lifecycle(
    _raw: object, domain: libvirt.virDomain, event: int, _detail: int, sink: Sink
) -> None:
    known = _LIFECYCLE.get(event)
    if known is not None:
        sink.guest(known, domain.UUIDString(), "")


def _other(event: GuestEvent, _raw: object, domain: libvirt.virDomain, *rest: object) -> None:
    *details, sink = rest
    changed = event is GuestEvent.METADATA_CHANGED
    namespace = str(details[1]) if changed and details[1] is not None else ""
    sink.guest(event, domain.UUIDString(), namespace)  # type: ignore[attr-defined]


def _closed(_raw: object, _reason: int, sink: Sink) -> None:
    sink.closed()
