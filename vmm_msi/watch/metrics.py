"""Serve the metrics of the service to Prometheus, and its health, over HTTP.

The endpoint listens on one TCP address or unix socket and answers ``GET /metrics`` and
``GET /healthz``. asyncio's server holds the connections and http.server parses the requests, with
bounds on the size of a request, the time of a connection and the number of connections: above it,
a new connection replaces the oldest one. Idle and slow clients therefore do not delay others. A
thread per connection would: on a busy host, 50 idle clients delayed an answer by up to a second.

prometheus-client writes the text format (escaping, histograms, content type,
https://prometheus.io/docs/instrumenting/exposition_formats/). Its own HTTP server is not used: it
has no bounds, no unix socket and no ``/healthz``.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import stat
import threading
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vmm_msi.errors import OutputError, UsageError
from vmm_msi.watch.service_log import log
from vmm_msi.watch.statistics import BUCKETS_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client import Metric

    from vmm_msi.watch.statistics import Snapshot

PREFIX = "vmm_msi_watch"

_LOOPBACK = "127.0.0.1"
_TEXT = "text/plain; charset=utf-8"
_REQUEST_BYTES = 8192
_REQUEST_S = 5.0
_MAX_CONNECTIONS = 32
_BACKLOG = 1024
_JOIN_S = 2.0
_FORMS = "valid is ADDRESS:PORT, :PORT for this machine alone, [IPV6]:PORT or unix:PATH"


@dataclass(frozen=True)
class ListenAddress:
    """The address that the endpoint listens on: a TCP port of an IP address, or a unix socket.

    :param path: path of the socket; None for TCP.
    """

    host: str = _LOOPBACK
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Parse the argument of ``--metrics``.

        :raise UsageError: when the argument is neither a TCP address nor a unix socket.
        """
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:"))
            if not path.is_absolute():
                raise UsageError(f"--metrics {text}: the path must be absolute; {_FORMS}")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        digits = port.isascii() and port.isdigit() and len(port) <= len("65535")
        if not colon or not digits or not 0 < int(port) <= 0xFFFF:
            raise UsageError(f"--metrics {text}: a port is missing; {_FORMS}")
        host = host.removeprefix("[").removesuffix("]") or _LOOPBACK
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                socket.inet_pton(family, host)
                return cls(host, int(port))
        raise UsageError(f"--metrics {text}: {host!r} is not an IP address; {_FORMS}")

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Exposition:
    """Write the metrics as text, from a registry of its own.

    :param snapshots: by the URI of a connection, a function that returns its snapshot.
    :raise UsageError: when prometheus-client is not installed.
    """

    def __init__(self, snapshots: Mapping[str, Callable[[], Snapshot]]) -> None:
        try:
            import prometheus_client
        except ImportError:
            raise UsageError(
                "--metrics: the Python package prometheus-client is not installed; install it "
                "with pip install 'vmm-msi[metrics]'"
            ) from None
        self._snapshots = snapshots
        self._registry = prometheus_client.CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._text = prometheus_client.generate_latest
        self.content_type = prometheus_client.CONTENT_TYPE_LATEST

    def text(self) -> bytes:
        """Return the current metrics in the text format of Prometheus."""
        return self._text(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with a sample for each connection."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        up = GaugeMetricFamily(f"{PREFIX}_connection_up", "1 while libvirt answers", labels=["uri"])
        guests = GaugeMetricFamily(
            f"{PREFIX}_guests", "Running guests with a bound device", labels=["uri"]
        )
        devices = GaugeMetricFamily(
            f"{PREFIX}_devices", "Bound devices, by outcome", labels=["uri", "outcome"]
        )
        events = CounterMetricFamily(
            f"{PREFIX}_events", "Guest events, by kind", labels=["uri", "kind"]
        )
        failures = CounterMetricFamily(
            f"{PREFIX}_failures", "Failures, by kind: connect or guest", labels=["uri", "what"]
        )
        binds = CounterMetricFamily(f"{PREFIX}_binds", "Devices bound", labels=["uri"])
        unbinds = CounterMetricFamily(f"{PREFIX}_unbinds", "Devices unbound", labels=["uri"])
        reconnects = CounterMetricFamily(f"{PREFIX}_reconnects", "Reconnects", labels=["uri"])
        corrections = CounterMetricFamily(
            f"{PREFIX}_corrections", "Kernel bindings with a wrong gIOVA", labels=["uri"]
        )
        times = HistogramMetricFamily(
            f"{PREFIX}_reconcile_seconds", "Time to reconcile every guest", labels=["uri"]
        )
        for uri, take_snapshot in self._snapshots.items():
            now = take_snapshot()
            up.add_metric([uri], now.up)
            guests.add_metric([uri], now.guests)
            for outcome, count in sorted(now.outcomes.items()):
                devices.add_metric([uri, outcome], count)
            for kind, count in sorted(now.events.items()):
                events.add_metric([uri, kind], count)
            for kind, count in sorted(now.failures.items()):
                failures.add_metric([uri, kind], count)
            binds.add_metric([uri], now.binds)
            unbinds.add_metric([uri], now.unbinds)
            reconnects.add_metric([uri], now.reconnects)
            corrections.add_metric([uri], now.corrections)
            bounds = [*map(str, BUCKETS_S), "+Inf"]
            buckets = list(zip(bounds, accumulate(now.buckets), strict=True))
            times.add_metric([uri], buckets, now.seconds)
        yield from (up, guests, devices, events, failures, binds, unbinds, reconnects)
        yield from (corrections, times)


class Endpoint:
    """Answer HTTP requests in a thread of its own during a ``with`` block.

    :param snapshots: by the URI of a connection, a function that returns its snapshot.
    :param healthy: returns whether the service makes progress.
    :raise UsageError: when prometheus-client is not installed.
    """

    def __init__(
        self,
        address: ListenAddress,
        snapshots: Mapping[str, Callable[[], Snapshot]],
        healthy: Callable[[], bool],
    ) -> None:
        self.address = address
        self._exposition = Exposition(snapshots)
        self._healthy = healthy
        self._server: _Server | None = None
        self._socket_file: os.stat_result | None = None

    def __enter__(self) -> Self:
        try:
            listener = _listen(self.address)
            if self.address.path is not None:
                self._socket_file = self.address.path.lstat()
        except OSError as error:
            raise OutputError(
                f"listening on {self.address} for --metrics: {error.strerror or error}; {_FORMS}"
            ) from error
        self._server = _Server(listener, self._respond)
        return self

    def __exit__(self, *_error: object) -> None:
        if self.address.path is not None and self._socket_file is not None:
            # Another process may have put its own socket in place of this one. It cannot have the
            # same inode, for as long as this one is open.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self.address.path.lstat(), self._socket_file):
                    self.address.path.unlink()
        if self._server is not None:
            self._server.stop()

    def _respond(self, method: str, target: str) -> _Response:
        """Return the response to a request; an exception becomes status 500."""
        if method != "GET":
            return _Response(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET\n")
        try:
            match target.partition("?")[0]:
                case "/metrics":
                    text = self._exposition.text()
                    return _Response(HTTPStatus.OK, text, self._exposition.content_type)
                case "/healthz" if self._healthy():
                    return _Response(HTTPStatus.OK, b"ok\n")
                case "/healthz":
                    return _Response(HTTPStatus.SERVICE_UNAVAILABLE, b"no progress\n")
        except Exception as error:  # noqa: BLE001 - the client and the log get it
            log.error("answering %s for --metrics: %r", target, error)
            return _Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error\n")
        return _Response(HTTPStatus.NOT_FOUND, b"see /metrics\n")


@dataclass(frozen=True, slots=True)
class _Response:
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT


class _Exchange(BaseHTTPRequestHandler):
    """One request and its response, in memory.

    :param head: the head of the request; empty if the client did not send a complete one.
    :param respond: returns the response to a method and a target.
    """

    protocol_version = "HTTP/1.1"
    error_content_type = _TEXT
    error_message_format = "%(message)s\n"

    def __init__(self, head: bytes, respond: Callable[[str, str], _Response]) -> None:
        # The base class's __init__ would serve a socket.
        self.rfile = io.BytesIO(head)
        self.wfile = self._response = io.BytesIO()
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline.strip():
            self.requestline = self.request_version = self.command = ""
            self.send_error(HTTPStatus.BAD_REQUEST, "no HTTP request")
        elif self.parse_request():  # which answers a request that it cannot parse
            self._send(respond(self.command, self.path))

    def response(self) -> bytes:
        """Return the response as the client receives it."""
        return self._response.getvalue()

    def _send(self, response: _Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        if response.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(response.body)

    def send_response(self, code: int, message: str | None = None) -> None:
        """Send the status line alone: no release of Python, no line in the log."""
        self.send_response_only(code, message)

    def log_message(self, *_arguments: object) -> None:
        """Log nothing: the log is about guests."""


class _Server:
    """asyncio's server in a thread, with bounds on each connection and on their number.

    :param listener: the socket to accept connections on; the server closes it.
    :param respond: returns the response to a method and a target.
    """

    def __init__(self, listener: socket.socket, respond: Callable[[str, str], _Response]) -> None:
        self._respond = respond
        self._open: dict[asyncio.StreamWriter, None] = {}  # the oldest connection first
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._log_failure)
        self._failure = ""
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete,
            args=(self._serve(listener),),
            name="metrics",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the listener and every connection."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(_JOIN_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(
            self._answer, sock=listener, limit=_REQUEST_BYTES, backlog=_BACKLOG
        )
        await self._stopped.wait()
        # Not server.close() yet: a connection that is being accepted would never be closed.
        self._loop.remove_reader(listener)
        for writer in self._open:
            writer.transport.abort()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.gather(*tasks, return_exceptions=True)
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close the connection; above the bound, abort the oldest one."""
        self._open[writer] = None
        if len(self._open) > _MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        if self._stopped.is_set():
            writer.transport.abort()
        deadline = self._loop.time() + _REQUEST_S
        try:
            head = await _read_head(reader, deadline)
            writer.write(_Exchange(head, self._respond).response())
            async with asyncio.timeout_at(max(deadline, self._loop.time() + 0.1)):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):
            pass  # the client left, or is too slow
        except Exception as error:  # noqa: BLE001 - it ends this connection only
            log.error("answering a request for --metrics: %r", error)
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    def _log_failure(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log a failure of asyncio, such as a lack of descriptors, but no repetition of it."""
        failure = repr(context.get("exception", context["message"]))
        if failure != self._failure:
            self._failure = failure
            log.error("serving --metrics: %s", failure)


async def _read_head(reader: asyncio.StreamReader, deadline: float) -> bytes:
    """Return the head of a request; nothing if the client does not send all of it in time."""
    try:
        async with asyncio.timeout_at(deadline):
            return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        return b""


def _listen(address: ListenAddress) -> socket.socket:
    """Return a socket that listens on ``address``.

    :raise OSError: when the address cannot be used.
    """
    if address.path is None:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG)
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(address.path)
        old = os.umask(0o117)
        try:
            listener.bind(os.fspath(address.path))
        finally:
            os.umask(old)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that an earlier process of this user left, and that no process listens on."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
