"""The service's numbers for Prometheus, over HTTP on one address or unix socket.

``GET /metrics`` and ``GET /healthz`` are answered, nothing else; one request at a time, each with
bounds on its size and its time (https://prometheus.io/docs/instrumenting/exposition_formats/).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmm_msi.errors import OutputError, UsageError
from vmm_msi.watch.statistics import BUCKETS_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client import Metric

    from vmm_msi.watch.statistics import Numbers

PREFIX = "vmm_msi_watch"

_LOOPBACK = "127.0.0.1"
_REQUEST_BYTES = 8192
_REQUEST_S = 5.0
_JOIN_S = 2.0
_FORMS = "valid is ADDRESS:PORT, :PORT for this machine alone, [IPV6]:PORT or unix:PATH"


@dataclass(frozen=True)
class Address:
    """Where to listen: on a TCP port of an IP address, or on a unix socket.

    :param path: the socket; None for TCP.
    """

    host: str = _LOOPBACK
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read what ``--metrics`` names.

        :raise UsageError: when it is neither.
        """
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:"))
            if not path.is_absolute():
                raise UsageError(f"--metrics {text}: the path is not absolute; {_FORMS}")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        digits = port.isascii() and port.isdigit() and len(port) <= len("65535")
        if not colon or not digits or not 0 < int(port) <= 0xFFFF:
            raise UsageError(f"--metrics {text}: no port is named; {_FORMS}")
        host = host.removeprefix("[").removesuffix("]") or _LOOPBACK
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                socket.inet_pton(family, host)
                return cls(host, int(port))
        raise UsageError(f"--metrics {text}: {host!r} is no IP address; {_FORMS}")

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Exposition:
    """The text that Prometheus reads, from a registry of its own.

    :param numbers: asks a connection for its numbers, by URI.
    :raise UsageError: when the library that writes the text is not installed.
    """

    def __init__(self, numbers: Mapping[str, Callable[[], Numbers]]) -> None:
        try:
            import prometheus_client
        except ImportError:
            raise UsageError(
                "--metrics: the Python package prometheus-client is not installed; install it "
                "with pip install 'vmm-msi[metrics]'"
            ) from None
        self._numbers = numbers
        self._registry = prometheus_client.CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._text = prometheus_client.generate_latest
        self.content_type = prometheus_client.CONTENT_TYPE_LATEST

    def text(self) -> bytes:
        """Return the numbers of this moment."""
        return self._text(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with the samples of every connection."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        up = GaugeMetricFamily(f"{PREFIX}_connection_up", "1 while libvirt answers", labels=["uri"])
        guests = GaugeMetricFamily(
            f"{PREFIX}_guests", "Running guests with a device that is bound", labels=["uri"]
        )
        devices = GaugeMetricFamily(
            f"{PREFIX}_devices", "Devices that are bound, by outcome", labels=["uri", "outcome"]
        )
        events = CounterMetricFamily(
            f"{PREFIX}_events", "Events of guests, by kind", labels=["uri", "kind"]
        )
        failures = CounterMetricFamily(
            f"{PREFIX}_failures", "What failed: connect or guest", labels=["uri", "what"]
        )
        binds = CounterMetricFamily(f"{PREFIX}_binds", "Devices bound", labels=["uri"])
        unbinds = CounterMetricFamily(f"{PREFIX}_unbinds", "Devices unbound", labels=["uri"])
        again = CounterMetricFamily(
            f"{PREFIX}_reconnects", "Connections made again", labels=["uri"]
        )
        times = HistogramMetricFamily(
            f"{PREFIX}_reconcile_seconds", "Time to look at every guest", labels=["uri"]
        )
        for uri, ask in self._numbers.items():
            now = ask()
            up.add_metric([uri], now.up)
            guests.add_metric([uri], now.guests)
            for outcome, count in sorted(now.outcomes.items()):
                devices.add_metric([uri, outcome], count)
            for kind, count in sorted(now.events.items()):
                events.add_metric([uri, kind], count)
            for what, count in sorted(now.failures.items()):
                failures.add_metric([uri, what], count)
            binds.add_metric([uri], now.binds)
            unbinds.add_metric([uri], now.unbinds)
            again.add_metric([uri], now.reconnects)
            bounds = [*map(str, BUCKETS_S), "+Inf"]
            buckets = list(zip(bounds, accumulate(now.buckets), strict=True))
            times.add_metric([uri], buckets, now.seconds)
        yield from (up, guests, devices, events, failures, binds, unbinds, again, times)


class Endpoint:
    """Answers, in a thread of its own, for as long as a ``with`` block.

    :param numbers: asks a connection for its numbers, by URI.
    :param healthy: tells whether the service makes progress.
    :raise UsageError: when the numbers cannot be written here.
    """

    def __init__(
        self,
        address: Address,
        numbers: Mapping[str, Callable[[], Numbers]],
        healthy: Callable[[], bool],
    ) -> None:
        self.address = address
        self._exposition = Exposition(numbers)
        self._healthy = healthy
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            self._listener = _listen(self.address)
        except OSError as error:
            raise OutputError(
                f"listening on {self.address} for --metrics: {error.strerror or error}; {_FORMS}"
            ) from error
        self._thread = threading.Thread(
            target=self._serve, args=(self._listener,), name="metrics", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._listener is not None:
            # It wakes the thread, which close() alone does not.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        if self.address.path is not None:
            self.address.path.unlink(missing_ok=True)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _peer = listener.accept()
            except OSError:
                if listener.fileno() == -1 or not _is_listening(listener):
                    return
                time.sleep(0.1)  # no descriptor is free, say
                continue
            with client, contextlib.suppress(OSError):
                self._answer(client, time.monotonic() + _REQUEST_S)

    def _answer(self, client: socket.socket, deadline: float) -> None:
        request = _read_head(client, deadline)
        method, _, rest = request.partition(b" ")
        target = rest.partition(b" ")[0].partition(b"?")[0]
        status, kind, body = "404 Not Found", "text/plain; charset=utf-8", b"see /metrics\n"
        if not request:
            status, body = "400 Bad Request", b"no HTTP request\n"
        elif method != b"GET":
            status, body = "405 Method Not Allowed", b"only GET\n"
        elif target == b"/metrics":
            status, kind, body = "200 OK", self._exposition.content_type, self._exposition.text()
        elif target == b"/healthz":
            well = self._healthy()
            status = "200 OK" if well else "503 Service Unavailable"
            body = b"ok\n" if well else b"no progress\n"
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"{'Allow: GET' + chr(13) + chr(10) if status[:3] == '405' else ''}"
            "Connection: close\r\n\r\n"
        )
        client.settimeout(max(0.1, deadline - time.monotonic()))
        client.sendall(head.encode() + body)


def _listen(address: Address) -> socket.socket:
    if address.path is None:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=16)
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_dead(address.path)
        old = os.umask(0o117)
        try:
            listener.bind(os.fspath(address.path))
        finally:
            os.umask(old)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_dead(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)


def _is_listening(listener: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return False


def _read_head(client: socket.socket, deadline: float) -> bytes:
    """Return the first line of a request whose head is complete; nothing where it is not."""
    data = b""
    while b"\r\n\r\n" not in data:
        left = deadline - time.monotonic()
        if left <= 0 or len(data) > _REQUEST_BYTES:
            return b""
        client.settimeout(left)
        try:
            part = client.recv(_REQUEST_BYTES)
        except TimeoutError:
            return b""
        if not part:
            return b""
        data += part
    return data.partition(b"\r\n")[0]
