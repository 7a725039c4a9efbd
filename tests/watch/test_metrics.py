"""What Prometheus is told, over TCP and over a unix socket."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vmm_msi.errors import OutputError, UsageError
from vmm_msi.watch import metrics
from vmm_msi.watch.metrics import Address, Endpoint
from vmm_msi.watch.statistics import Statistics


@pytest.fixture
def statistics():
    made = Statistics(up=True)
    made.event("started")
    made.event("started")
    made.failure("connect")
    made.changed(binds=3, unbinds=1)
    made.reconnected()
    for seconds in (0.001, 0.005, 0.05, 100):
        made.reconciled(seconds)
    made.guest("a", Counter(delivered=2))
    made.guest("b", Counter({"s1-fault": 1}))
    made.guest("c", Counter(delivered=1))
    made.guest("c", None)
    return made


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(params=["tcp", "unix"])
def endpoint(request, tmp_path, statistics):
    if request.param == "tcp":
        address = Address.parse(f":{free_port()}")
    else:
        address = Address.parse(f"unix:{tmp_path}/socket")
    healthy = [True]
    numbers = {"test:///x": statistics.numbers}
    with Endpoint(address, numbers, lambda: healthy[0]) as opened:
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


def test_the_numbers(endpoint):
    head, body = ask(endpoint[0])
    assert head.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=")
    assert f"Content-Length: {len(body)}" in head
    found = {
        (sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "uri")): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.labels["uri"] == "test:///x"
    }
    buckets = {"0.005": 2, "0.02": 2, "0.1": 3, "0.5": 3, "2.0": 3, "10.0": 3, "60.0": 3, "+Inf": 4}
    name = "vmm_msi_watch"
    assert found.pop((f"{name}_reconcile_seconds_sum",)) == pytest.approx(100.056)
    assert found == {
        (f"{name}_connection_up",): 1,
        (f"{name}_guests",): 2,
        (f"{name}_devices", "delivered"): 2,
        (f"{name}_devices", "s1-fault"): 1,
        (f"{name}_events_total", "started"): 2,
        (f"{name}_failures_total", "connect"): 1,
        (f"{name}_binds_total",): 3,
        (f"{name}_unbinds_total",): 1,
        (f"{name}_reconnects_total",): 1,
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
def test_nothing_else_is_answered(endpoint, request_, status):
    try:
        head, _body = ask(endpoint[0], request_)
    except ConnectionResetError:
        head = f"HTTP/1.1 {status}"  # it was closed with a part unread
    assert head.startswith(f"HTTP/1.1 {status}")
    assert ask(endpoint[0])[0].startswith("HTTP/1.1 200")


def test_a_client_that_dawdles_is_given_up(endpoint, monkeypatch):
    monkeypatch.setattr(metrics, "_REQUEST_S", 0.3)
    begin = time.monotonic()
    with connected(endpoint[0]) as slow:
        slow.sendall(b"GET /metrics")
        assert ask(endpoint[0])[0].startswith("HTTP/1.1 200")
        assert slow.recv(100).startswith(b"HTTP/1.1 400")
    assert time.monotonic() - begin < 10


def test_what_was_listened_on_is_free_again(tmp_path, statistics):
    numbers = {"u": statistics.numbers}
    path = tmp_path / "socket"
    address = Address.parse(f"unix:{path}")
    for _ in range(2):
        with Endpoint(address, numbers, lambda: True):
            assert path.stat().st_mode & 0o777 == 0o660
            with pytest.raises(OutputError, match="Address already in use"):
                Endpoint(address, numbers, lambda: True).__enter__()
        assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Endpoint(address, numbers, lambda: True):
        assert ask(address)[0].startswith("HTTP/1.1 200")
    path.write_text("a file of somebody's")
    with pytest.raises(OutputError, match="Address already in use"):
        Endpoint(address, numbers, lambda: True).__enter__()
    assert path.read_text() == "a file of somebody's"


def test_a_port_that_is_taken(statistics):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OutputError, match=rf"^listening on 127\.0\.0\.1:{port} for --metrics: "
        ):
            Endpoint(Address.parse(f":{port}"), {}, lambda: True).__enter__()


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
    assert str(Address.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "9177", ":0", ":65536", "host:80", "unix:x", ":-1", "1.2.3:4"]
)
def test_what_is_no_address(text):
    with pytest.raises(UsageError, match=r"^--metrics .*valid is ADDRESS:PORT"):
        Address.parse(text)


def test_without_the_library():
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from vmm_msi.watch.metrics import Address, Endpoint\n"
        "from vmm_msi.errors import UsageError\n"
        "try: Endpoint(Address(port=1), {}, bool)\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "--metrics: the Python package prometheus-client is not installed; install it with "
        "pip install 'vmm-msi[metrics]'\n"
    )
