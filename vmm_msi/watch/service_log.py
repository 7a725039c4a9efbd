"""Write the log of the service: one line per event, as JSON or as text.

The names in :class:`LogEvent` are a stable interface; docs/watch.md describes the events and their
fields. Domain XML and secrets are never logged.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, TextIO

from vmm_msi.terminal import print_line

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("vmm_msi.watch")

# These types only, not their subclasses: an address is an int, too.
_NUMBERS = (int, float)


class LogEvent(StrEnum):
    """The name of an event in the log."""

    SERVICE_STARTED = "service-started"
    SERVICE_READY = "service-ready"
    SERVICE_STOPPING = "service-stopping"
    SERVICE_STUCK = "service-stuck"
    CONFIG_RELOADED = "config-reloaded"
    CONFIG_INVALID = "config-invalid"
    CONNECTED = "connected"
    CONNECT_FAILED = "connect-failed"
    CONNECTION_LOST = "connection-lost"
    EVENTS_OVERFLOWED = "events-overflowed"
    RECONCILED = "reconciled"
    GUEST_REBOOTED = "guest-rebooted"
    BOUND = "bound"
    NOT_DELIVERED = "not-delivered"
    UNBOUND = "unbound"
    KERNEL_BOUND = "kernel-bound"
    KERNEL_REFUSED = "kernel-refused"
    GIOVA_CORRECTED = "giova-corrected"
    FAILED = "failed"
    #: A message of another part of the program, for example about an observer that failed.
    MESSAGE = "message"


def log_event(event: LogEvent, level: int = logging.INFO, **fields: object) -> None:
    """Log ``event`` with its fields, except those that are None.

    :param fields: numbers stay numbers; every other value, addresses included, becomes text.
    """
    values = {
        name: value if type(value) in _NUMBERS else str(value)
        for name, value in fields.items()
        if value is not None
    }
    log.log(level, "%s", event.value, extra={"event": event.value, "fields": values})


class _Formatter(logging.Formatter):
    """Format a record as one line, with its time in UTC as in RFC 3339."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
        }
        event = getattr(record, "event", None)
        if event is None:
            line |= {"event": LogEvent.MESSAGE.value, "message": record.getMessage()}
        else:
            line |= {"event": event, **getattr(record, "fields", {})}
        if self._as_json:
            return json.dumps(line)
        head = [str(line.pop(name)) for name in ("time", "level", "event")]
        return " ".join([*head, *(f"{name}={_quoted(value)}" for name, value in line.items())])


class _LineHandler(logging.Handler):
    """Print each record as a line."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self._stream = stream
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print_line(self.format(record), self._stream)
            self._stream.flush()
        except Exception:  # noqa: BLE001 - as logging's own handlers do it
            self.handleError(record)


def _quoted(value: object) -> str:
    """Return a value as text on one line, in quotes unless it is a single word."""
    text = str(value)
    plain = text.isprintable() and text and not any(c in text for c in " \"'=")
    return text if plain else json.dumps(text)


@contextmanager
def logging_to(stream: TextIO, *, as_json: bool) -> Iterator[None]:
    """Write the package's log messages to ``stream`` during the ``with`` block."""
    handler = _LineHandler(stream, _Formatter(as_json=as_json))
    root = logging.getLogger("vmm_msi")
    level, propagate = root.level, root.propagate
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        root.propagate = propagate
