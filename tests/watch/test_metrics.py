"""The metrics endpoint, over TCP and over a unix socket."""

from __future__ import annotations

import errno
import os
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from vmm_msi.errors import OutputError, UsageError
from vmm_msi.watch import metrics
from vmm_msi.watch.metrics import Endpoint, ListenAddress
from vmm_msi.watch.statistics import Statistics


@pytest.fixture
def counters():
    counters = Statistics(up=True)
    counters.event("started")
    counters.event("started")
    counters.failure("connect")
    counters.changed(binds=3, unbinds=1)
    counters.reconnected()
    counters.corrected()
    counters.corrected()
    for seconds in (0.001, 0.005, 0.05, 100):
        counters.reconciled(seconds)
    counters.guest("a", Counter(delivered=2))
    counters.guest("b", Counter({"s1-fault": 1}))
    counters.guest("c", Counter(delivered=1))
    counters.guest("c", None)
    return counters


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(params=["tcp", "unix"])
def endpoint(request, tmp_path, counters):
    if request.param == "tcp":
        address = ListenAddress.parse(f":{free_port()}")
    else:
        address = ListenAddress.parse(f"unix:{tmp_path}/socket")
    healthy = [True]
    snapshots = {"test:///x": counters.snapshot}
    with Endpoint(address, snapshots, lambda: healthy[0]) as opened:
        yield opened.address, healthy


def connected(address):
    if address.path is not None:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(address.path))
    else:
        client = socket.create_connection((address.host, address.port))
    client.settimeout(10)
    return client


def ask(address, request=b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
    with connected(address) as client:
        client.sendall(request)
        answer = b""
        while part := client.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode(), body.decode()


def test_metrics(endpoint):
    head, body = ask(endpoint[0])
    assert head.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=")
    assert f"Content-Length: {len(body)}" in head
    samples = {
        (sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "uri")): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.labels["uri"] == "test:///x"
    }
    buckets = {"0.005": 2, "0.02": 2, "0.1": 3, "0.5": 3, "2.0": 3, "10.0": 3, "60.0": 3, "+Inf": 4}
    name = "vmm_msi_watch"
    assert samples.pop((f"{name}_reconcile_seconds_sum",)) == pytest.approx(100.056)
    assert samples == {
        (f"{name}_connection_up",): 1,
        (f"{name}_guests",): 2,
        (f"{name}_devices", "delivered"): 2,
        (f"{name}_devices", "s1-fault"): 1,
        (f"{name}_events_total", "started"): 2,
        (f"{name}_failures_total", "connect"): 1,
        (f"{name}_binds_total",): 3,
        (f"{name}_unbinds_total",): 1,
        (f"{name}_reconnects_total",): 1,
        (f"{name}_corrections_total",): 2,
        (f"{name}_reconcile_seconds_count",): 4,
        **{(f"{name}_reconcile_seconds_bucket", b): count for b, count in buckets.items()},
    }


def test_health(endpoint):
    address, healthy = endpoint
    head, body = ask(address, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (head.partition("\r\n")[0], body) == ("HTTP/1.1 200 OK", "ok\n")
    healthy[0] = False
    head, body = ask(address, b"GET /healthz?x HTTP/1.0\r\n\r\n")
    assert (head.partition("\r\n")[0], body) == (
        "HTTP/1.1 503 Service Unavailable",
        "no progress\n",
    )


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"GET /metricsx HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405"),
        (b"\r\n\r\n", "400"),
        (b"x" * 20000, "400"),
    ],
)
def test_other_requests_are_refused(endpoint, request_, status):
    try:
        head, _body = ask(endpoint[0], request_)
    except ConnectionError:
        head = f"HTTP/1.1 {status}"  # the endpoint closed the connection with a part unread
    assert head.startswith(f"HTTP/1.1 {status}")
    assert ask(endpoint[0])[0].startswith("HTTP/1.1 200")


def test_an_incomplete_request_is_refused_at_the_deadline(endpoint, monkeypatch):
    monkeypatch.setattr(metrics, "_REQUEST_S", 0.3)
    begin = time.monotonic()
    with connected(endpoint[0]) as slow:
        slow.sendall(b"GET /metrics")
        assert ask(endpoint[0])[0].startswith("HTTP/1.1 200")
        assert slow.recv(100).startswith(b"HTTP/1.1 400")
    assert time.monotonic() - begin < 10


def clients(stack, address, count, data=b""):
    """Connect clients that send ``data`` and then wait."""
    for _ in range(count):
        client = stack.enter_context(connected(address))
        if data:
            client.sendall(data)


def assert_answers_at_once(address, times=3):
    """Ask for the health several times: in 1 s, and never after the deadline of another client.

    A busy machine may delay one answer, so the median counts.
    """
    seconds = []
    for _ in range(times):
        begin = time.monotonic()
        head, body = ask(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        seconds.append(time.monotonic() - begin)
        assert (head.partition("\r\n")[0], body) == ("HTTP/1.1 200 OK", "ok\n")
    assert statistics.median(seconds) < 1
    assert max(seconds) < metrics._REQUEST_S


@pytest.mark.parametrize("count", [50, 100])
@pytest.mark.parametrize("data", [b"", b"GET /metrics HTTP/1.1\r\nHost: "], ids=["idle", "slow"])
def test_health_despite_waiting_clients(endpoint, count, data):
    address, _healthy = endpoint
    with ExitStack() as stack:
        for _ in range(2):
            clients(stack, address, count, data)
            assert_answers_at_once(address)
    assert_answers_at_once(address)


def test_health_despite_clients_that_send_slowly(endpoint):
    """50 clients send a byte every 50 ms, so that a timeout per read would never end them."""
    address, _healthy = endpoint
    stop = threading.Event()

    def send_slowly():
        while not stop.is_set():
            with connected(address) as client, suppress(OSError):
                client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
                while not stop.wait(0.05):
                    client.sendall(b"x")

    threads = [threading.Thread(target=send_slowly) for _ in range(50)]
    for thread in threads:
        thread.start()
    try:
        assert_answers_at_once(address, times=20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_deadline_is_for_the_whole_connection(endpoint, monkeypatch):
    monkeypatch.setattr(metrics, "_REQUEST_S", 0.3)
    begin = time.monotonic()
    with connected(endpoint[0]) as client, suppress(OSError):
        while time.monotonic() - begin < 30:
            client.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - begin < 5


def test_the_number_of_connections_is_bounded(endpoint):
    address, _healthy = endpoint
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    with ExitStack() as stack:
        clients(stack, address, 200)
        assert ask(address)[0].startswith("HTTP/1.1 200")
        bound = before + 200 + metrics._MAX_CONNECTIONS
        assert wait_until(lambda: len(list(descriptors.iterdir())) <= bound)
    assert wait_until(lambda: len(list(descriptors.iterdir())) <= before)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 20000 + b"\r\n\r\n",
        b"GET /" + b"y" * 20000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
    ids=["headers", "header", "target", "number of headers"],
)
def test_large_heads_are_refused(endpoint, request_):
    try:
        head, _body = ask(endpoint[0], request_)
    except ConnectionError:
        head = "HTTP/1.1 4"  # the endpoint closed the connection with a part unread
    assert head.startswith("HTTP/1.1 4")
    assert_answers_at_once(endpoint[0])


@pytest.mark.parametrize("count", [1, 100])
def test_an_exception_in_a_response_is_status_500(tmp_path, counters, caplog, count):
    def broken():
        raise ZeroDivisionError("broken")

    address = ListenAddress.parse(f"unix:{tmp_path}/socket")
    with Endpoint(address, {"test:///x": broken}, lambda: True):
        for _ in range(count):
            head, body = ask(address)
            assert head.startswith("HTTP/1.1 500 Internal Server Error\r\n")
            assert body == "internal error\n"
        assert_answers_at_once(address)
    assert (
        caplog.messages == ["answering /metrics for --metrics: ZeroDivisionError('broken')"] * count
    )


def test_an_exception_outside_a_response_ends_one_connection(endpoint, caplog, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "_Exchange", lambda *_: 1 / 0)
        with suppress(ConnectionError):
            assert ask(endpoint[0]) == ("", "")
    assert_answers_at_once(endpoint[0])
    assert caplog.messages == [
        "answering a request for --metrics: ZeroDivisionError('division by zero')"
    ]
    assert capfd.readouterr() == ("", "")


def test_a_reset_connection_is_not_logged(endpoint, caplog, capfd):
    for data in (b"", b"GET", b"GET /metrics HTTP/1.1\r\n\r\n"):
        for _ in range(10):
            with connected(endpoint[0]) as client:
                linger = struct.pack("ii", 1, 0)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.sendall(data)
    assert_answers_at_once(endpoint[0])
    assert (caplog.messages, capfd.readouterr()) == ([], ("", ""))


def test_the_endpoint_survives_a_lack_of_descriptors(endpoint, monkeypatch, caplog):
    """accept() fails for a while; the endpoint neither exits nor keeps a processor busy."""
    address, _healthy = endpoint

    def accept(_socket):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", accept)
        with connected(address):
            begin = time.process_time()
            time.sleep(1.5)
            assert time.process_time() - begin < 0.5
    assert caplog.messages == ["serving --metrics: OSError(24, 'Too many open files')"]
    assert ask(address)[0].startswith("HTTP/1.1 200")
    assert_answers_at_once(address)


def test_only_its_own_socket_is_removed(tmp_path, counters):
    path = tmp_path / "socket"
    address = ListenAddress.parse(f"unix:{path}")
    snapshots = {"u": counters.snapshot}
    with Endpoint(address, snapshots, lambda: True):
        path.unlink()
        with Endpoint(address, snapshots, lambda: True):
            pass
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as other:
        with Endpoint(address, snapshots, lambda: True):
            path.unlink()
            other.bind(str(path))
        assert path.is_socket()
    path.unlink()
    with Endpoint(address, snapshots, lambda: True):
        path.unlink()
        path.write_text("a file of another program")
    assert path.read_text() == "a file of another program"


def test_a_stale_socket_of_another_user_stays(tmp_path, monkeypatch):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(OutputError, match="Address already in use"):
        Endpoint(ListenAddress(path=path), {}, lambda: True).__enter__()
    assert path.is_socket()


def test_a_link_at_the_path_of_the_socket_stays(tmp_path, counters):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "target"))
    path.symlink_to("target")
    with pytest.raises(OutputError, match="Address already in use"):
        Endpoint(ListenAddress(path=path), {}, lambda: True).__enter__()
    assert path.is_symlink()


def test_the_address_can_be_used_again(tmp_path, counters):
    snapshots = {"u": counters.snapshot}
    path = tmp_path / "socket"
    address = ListenAddress.parse(f"unix:{path}")
    for _ in range(2):
        with Endpoint(address, snapshots, lambda: True):
            assert path.stat().st_mode & 0o777 == 0o660
            with pytest.raises(OutputError, match="Address already in use"):
                Endpoint(address, snapshots, lambda: True).__enter__()
        assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Endpoint(address, snapshots, lambda: True):
        assert ask(address)[0].startswith("HTTP/1.1 200")
    path.write_text("a file of another program")
    with pytest.raises(OutputError, match="Address already in use"):
        Endpoint(address, snapshots, lambda: True).__enter__()
    assert path.read_text() == "a file of another program"


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            OutputError, match=rf"^listening on 127\.0\.0\.1:{port} for --metrics: "
        ):
            Endpoint(ListenAddress.parse(f":{port}"), {}, lambda: True).__enter__()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (":9177", "127.0.0.1:9177"),
        ("0.0.0.0:80", "0.0.0.0:80"),
        ("[::1]:80", "[::1]:80"),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_addresses(text, shown):
    assert str(ListenAddress.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "9177", ":0", ":65536", "host:80", "unix:x", ":-1", "1.2.3:4"]
)
def test_invalid_addresses(text):
    with pytest.raises(UsageError, match=r"^--metrics .*valid is ADDRESS:PORT"):
        ListenAddress.parse(text)


def test_without_the_library():
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from vmm_msi.watch.metrics import ListenAddress, Endpoint\n"
        "from vmm_msi.errors import UsageError\n"
        "try: Endpoint(ListenAddress(port=1), {}, bool)\n"
        "except UsageError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == (
        "--metrics: the Python package prometheus-client is not installed; install it with "
        "pip install 'vmm-msi[metrics]'\n"
    )
