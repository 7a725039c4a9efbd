"""The agent and its link over real sockets; both survive any input."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_msi import __version__
from vmm_msi.errors import BackendError, LabError
from vmm_msi.lab.rpc import protocol
from vmm_msi.lab.rpc.link import AgentLink

AGENT = """
import os, sys
from vmm_msi.lab.agent import server
from vmm_msi.lab.rpc import protocol
protocol.MAX_LINE = int(sys.argv[2])
protocol.PROGRAMS = os.environ["PATH"]
server._PROGRAM_LIMIT_S = 1
server.Agent(int(sys.argv[1])).serve()
"""
NO_DEVICE = {"segment": 0xFFFF, "bus": 0xFF, "device": 0x1F, "function": 7}
PATIENCE_S = 30


class RunningAgent:
    """An agent in a separate process, and a socket that connects one client at a time to it.

    As with a virtio-serial port, output without a client reaches the next client. The agent's
    ``PATH`` has a ``busybox`` that only logs its arguments.
    """

    def __init__(self, folder: Path, max_line: int = protocol.MAX_LINE) -> None:
        self.folder = folder
        self.socket = folder / "agent.sock"
        self.busybox_log = folder / "busybox.log"
        busybox = folder / "busybox"
        busybox.write_text(f'#!/bin/sh\necho "$@" >{self.busybox_log}\n')
        busybox.chmod(0o755)
        self.port, end = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT, str(end.fileno()), str(max_line)],
            pass_fds=[end.fileno()],
            env={**os.environ, "PATH": str(folder)},
        )
        end.close()
        self._stop, self._stopped = socket.socketpair()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen()
        self._relay = threading.Thread(target=self._serve)
        self._relay.start()

    def __enter__(self) -> RunningAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._stop.close()
        self._relay.join(PATIENCE_S)
        for end in (self._listener, self.port, self._stopped):
            end.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _serve(self) -> None:
        while self._listener in select.select([self._listener, self._stopped], [], [])[0]:
            client, _address = self._listener.accept()
            with client, contextlib.suppress(OSError):
                self._relay_bytes(client)

    def _relay_bytes(self, client: socket.socket) -> None:
        while True:
            ready, _, _ = select.select([client, self.port, self._stopped], [], [])
            if self._stopped in ready:
                return
            for source, sink in ((client, self.port), (self.port, client)):
                if source in ready:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    sink.sendall(data)

    def send(self, data: bytes) -> None:
        """Send bytes as a client that leaves without an answer."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.socket))
            client.sendall(data)

    def exchange(self, data: bytes, count: int = 1) -> list[dict[str, object]]:
        """Send bytes and return the next answers."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.socket))
            client.sendall(data)
            with client.makefile("rb") as lines:
                return [json.loads(lines.readline()) for _ in range(count)]


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    with RunningAgent(tmp_path_factory.mktemp("agent")) as running:
        yield running


@pytest.fixture
def link(agent):
    with AgentLink(agent.socket) as opened:
        opened.call("hello")
        yield opened


def request(number, do, /, **arguments):
    return protocol.encode({"id": number, "do": do, "with": arguments})


# The agent's requests, as far as they work on the machine of the tests.


def test_hello_returns_the_facts_of_the_host(link):
    facts = link.call("hello")
    assert facts["uptime_s"] > 0
    assert (facts["version"], facts["release"]) == (protocol.VERSION, os.uname().release)
    assert facts["page_size"] == os.sysconf("SC_PAGE_SIZE")


def test_devices_returns_a_list(link):
    assert isinstance(link.call("devices"), list)


def test_tables_returns_every_acpi_table(link):
    folder = Path("/sys/firmware/acpi/tables")
    tables = [path for path in folder.glob("*") if path.is_file()]
    if folder.is_dir() and all(os.access(table, os.R_OK) for table in tables):
        assert link.call("tables").keys() == {table.name for table in tables}
    else:
        with pytest.raises(LabError, match="emulated host, tables"):
            link.call("tables")


def test_command_returns_status_and_output(link):
    result = link.call("command", argv=["--version"])
    assert (result["status"], result["stderr"]) == (0, "")
    assert __version__ in result["stdout"]
    assert link.call("command", argv=["no-such-command"])["status"] == 2
    with pytest.raises(LabError, match="argv and fetch are lists of strings"):
        link.call("command", argv=[1])


def test_command_reads_and_returns_files(link):
    result = link.call("command", argv=["completion", "bash"], fetch=["none"])
    assert (result["status"], result["files"]) == (0, {})
    scenario = '[host]\ngranule = "4K"\n'
    result = link.call(
        "command",
        argv=["topology", "show", "host.toml"],
        files={"host.toml": scenario},
        fetch=["host.toml", "../host.toml"],
    )
    content = base64.b64encode(scenario.encode()).decode()
    assert result["files"] == {"host.toml": content, "../host.toml": content}


def test_program_returns_status_and_output(agent, link):
    program = agent.folder / "try"
    program.write_text("#!/bin/sh\necho out $1\necho error >&2\nexit 3\n")
    program.chmod(0o755)
    assert link.call("program", name="try", arguments=["once"]) == {
        "status": 3,
        "output": "out once\nerror\n",
    }
    with pytest.raises(LabError, match="none is not a program that this host was started with"):
        link.call("program", name="none")
    program.write_text("#!/bin/sh\necho begun\nexec /bin/sleep 60\n")
    assert link.call("program", name="try") == {"status": None, "output": "begun\n"}


def test_kernel_log_is_returned_or_its_error(link):
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY))
    except OSError:
        with pytest.raises(LabError, match="kernel-log"):
            link.call("kernel-log")
    else:
        assert isinstance(link.call("kernel-log"), str)


def test_power_off_calls_busybox(agent, link):
    link.call("power-off")
    assert agent.busybox_log.read_text() == "poweroff -f\n"


def test_call_without_a_backend_is_refused(link):
    with pytest.raises(LabError, match="no backend is open"):
        link.call("call", method="costs", arguments=[])
    assert link.call("close") is None


def test_kernel_error_keeps_its_errno(link):
    with pytest.raises(BackendError, match=r"ffff:ff:1f\.7: the host has no such PCI") as refusal:
        link.call("conform", devices=[NO_DEVICE], scenarios=[], expected=[])
    assert refusal.value.errno == errno.ENODEV


@pytest.mark.parametrize(
    ("do", "arguments", "message"),
    [
        ("", {}, "'' is not a request of the agent: hello, "),
        ("Hello", {}, "'Hello' is not a request"),
        ("hello", {"unasked": 1}, "TypeError: .*'unasked'"),
        ("hello", {"_tell": 1}, "TypeError: .*'_tell'"),
        ("call", {}, "TypeError: .*'method'.*'arguments'"),
        ("command", {"argv": 7}, "TypeError"),
        ("define", {}, "no libvirtd is running here; request libvirt first"),
        ("start", {}, "no libvirtd is running here; request libvirt first"),
        ("guest", {"do": "look", "arguments": {}, "wait_s": 1}, "request libvirt first"),
        ("exercise", {"address": "ffff:ff:1f.7", "count": 1}, "has no drive and no network"),
        ("open", {}, "LabError|ValidationError"),
        ("open", {"host": [], "stand_ins": []}, "ValidationError: "),
        ("conform", {"devices": "all", "scenarios": [], "expected": []}, "ValidationError: "),
        ("conform", {"devices": [], "scenarios": 7, "expected": []}, "'scenarios'"),
        ("conform", {"devices": [], "scenarios": []}, "'expected'"),
    ],
)
def test_malformed_request_is_refused_and_the_agent_goes_on(link, do, arguments, message):
    with pytest.raises((LabError, BackendError), match=message):
        link.call(do, **arguments)
    assert link.call("hello")["version"] == protocol.VERSION


# Input to the agent.

NESTED = b'{"v":1,"id":9,"do":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
MALFORMED = {
    "garbage": b"\xff\xfe\x80garbage",
    "nul": b"\0" * 100,
    "nul in a request": b'{"v":1,"id":9,\0"do":"hello"}',
    "half a request": request(9, "hello")[:-5],
    "two in one line": request(9, "hello").strip() * 2,
    "no object": b'["hello"]',
    "a number that is too long": b'{"v":1,"id":' + b"9" * 5000 + b"}",
    "no version": b'{"id":9,"do":"hello"}',
    "wrong version": b'{"v":2,"id":9,"do":"hello"}',
    "version of another type": b'{"v":"1","id":9,"do":"hello"}',
    "deep nesting": NESTED,
}


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED)
def test_malformed_line_is_refused(agent, line):
    refused, answered = agent.exchange(line + b"\n" + request(10, "hello"), 2)
    assert refused["id"] is None
    assert refused["error"]["kind"] == "request"
    assert (answered["id"], answered["ok"]["version"]) == (10, protocol.VERSION)


@pytest.mark.parametrize("fields", [{"do": 7}, {"do": ["hello"]}, {}, {"do": "hello", "with": []}])
def test_request_with_wrong_types_is_refused(agent, fields):
    (refused,) = agent.exchange(protocol.encode({"id": 9, **fields}))
    assert (refused["id"], refused["error"]["kind"]) == (9, "request")


def test_id_that_cannot_be_returned_is_refused(agent):
    """A value that can just be decoded may be nested too deeply to be encoded."""
    limit = sys.getrecursionlimit()
    for depth in (1, *range(limit - 100, limit + 10)):
        line = b'{"v":1,"do":"close","id":%b}\n' % (b"[" * depth + b"]" * depth)
        refused, answered = agent.exchange(line + request(10, "hello"), 2)
        assert (refused["id"], refused["error"]["kind"]) == (None, "request")
        assert answered["id"] == 10


def test_requests_may_arrive_in_pieces_and_together(agent):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(str(agent.socket))
        for byte in request(1, "hello") + b"\n\r\n":
            client.sendall(bytes([byte]))
        client.sendall(request(2, "close") + request(3, "close") + request(4, "close")[:9])
        client.sendall(request(4, "close")[9:])
        with client.makefile("rb") as lines:
            answers = [json.loads(lines.readline()) for _ in range(5)]
    assert [answer["id"] for answer in answers] == [1, None, 2, 3, 4]


def test_too_long_lines_are_refused(tmp_path_factory, monkeypatch):
    longest = 2000
    with RunningAgent(tmp_path_factory.mktemp("agent"), longest) as agent:
        fits = request(1, "close", pad="")
        fits = request(1, "close", pad="x" * (longest - len(fits)))
        (refused,) = agent.exchange(fits)
        assert "'pad'" in refused["error"]["text"]
        for size in (longest, longest + 1, 50 * longest):
            refused, answered = agent.exchange(b"x" * size + b"\n" + request(2, "hello"), 2)
            assert f"longer than {longest} bytes" in refused["error"]["text"]
            assert answered["id"] == 2
        agent.send(b"x" * 50 * longest)
        monkeypatch.setattr(protocol, "MAX_LINE", longest)
        with AgentLink(agent.socket) as link:
            assert link.call("hello")["version"] == protocol.VERSION
            with pytest.raises(LabError, match="exceed the 2000 bytes of one request"):
                link.call("close", pad="x" * longest)
            with pytest.raises(LabError, match=r"the answer has .* bytes, more than the 2000"):
                link.call("x" * (longest - 60))
            assert link.call("close") is None


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.text(max_size=40).map(str.encode),
            st.fixed_dictionaries(
                {"do": st.sampled_from(["hello", "close", "call", "open", "conform", "devices"])},
                optional={
                    "v": st.sampled_from([1, 2, None]),
                    "id": st.none() | st.integers() | st.floats() | st.lists(st.none()),
                    "with": st.recursive(
                        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                    )
                    | st.dictionaries(
                        st.sampled_from(["method", "arguments", "host", "devices", "stand_ins"]),
                        st.none() | st.lists(st.integers()) | st.text(max_size=5),
                    ),
                },
            ).map(lambda message: json.dumps({"v": 1, **message}).encode()),
        ),
        max_size=8,
    )
)
@settings(max_examples=200)
def test_agent_survives_any_lines(agent, lines):
    agent.send(b"\n".join(lines))
    with AgentLink(agent.socket) as link:
        assert link.call("hello", timeout_s=PATIENCE_S)["version"] == protocol.VERSION


# Clients that leave, wait, or have no agent to connect to.


def test_client_gets_only_its_own_answers(agent):
    agent.send(request(1, "command", argv=["--help"]) * 3 + request(2, "hello")[:-9])
    with AgentLink(agent.socket) as link:
        assert link.call("command", argv=["--version"])["stdout"].strip().endswith(__version__)


def test_client_after_a_timeout_of_another_is_served(agent):
    with AgentLink(agent.socket) as link, pytest.raises(LabError, match="no answer in time"):
        link.call("command", argv=["--help"], timeout_s=0.01)
    with AgentLink(agent.socket) as link:
        assert link.call("hello")["version"] == protocol.VERSION


def test_late_answer_is_not_mistaken_for_the_next(link):
    with pytest.raises(LabError, match="no answer in time"):
        link.call("command", argv=["--help"], timeout_s=0.01)
    assert link.call("hello")["version"] == protocol.VERSION


def test_concurrent_clients_are_served_one_after_another(agent):
    refusals = []

    def client(number):
        with AgentLink(agent.socket, wait_s=PATIENCE_S) as link:
            for _ in range(5):
                with pytest.raises(LabError) as refusal:
                    link.call(f"nonsense-{number}")
                refusals.append((number, f"'nonsense-{number}'" in str(refusal.value)))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(PATIENCE_S)
    assert sorted(refusals) == [(number, True) for number in range(4) for _ in range(5)]
    runs = [refusals[start : start + 5] for start in range(0, 20, 5)]
    assert all(len({number for number, _ in run}) == 1 for run in runs)


def test_client_gives_up_after_its_wait(agent, link):
    with pytest.raises(LabError, match="still in use by another command"):
        AgentLink(agent.socket, wait_s=0.1).__enter__()
    assert link.call("close") is None


def test_dead_agent_is_reported(tmp_path_factory):
    with RunningAgent(tmp_path_factory.mktemp("agent")) as agent, AgentLink(agent.socket) as link:
        link.call("hello")
        agent.kill()
        for _ in range(2):
            with pytest.raises(LabError, match="emulated host, hello: it stopped; vmm-msi lab"):
                link.call("hello")


def test_missing_agent_is_reported(tmp_path):
    for path in (tmp_path / "agent.sock", tmp_path / "no folder" / "agent.sock"):
        with pytest.raises(LabError, match="vmm-msi lab status shows"):
            AgentLink(path).__enter__()
    with pytest.raises(LabError, match="use it in its with block"):
        AgentLink(tmp_path / "agent.sock").call("hello")


@contextlib.contextmanager
def peer(path, *lines, pause_s=0.05):
    """Answer one request with ``lines``, pausing before each."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve():
        client, _address = listener.accept()
        with client, client.makefile("rwb", buffering=0) as stream:
            stream.readline()
            number = json.loads(stream.readline())["id"]
            for line in lines:
                time.sleep(pause_s)
                stream.write(
                    line if isinstance(line, bytes) else protocol.encode({"id": number} | line)
                )
            stream.readline()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)
        listener.close()


def test_progress_keeps_a_call_alive(tmp_path):
    progress = []
    steps = [{"progress": [done, 4]} for done in range(1, 5)]
    lines = [*steps, {"ok": "done"}]
    with peer(tmp_path / "a", *lines, pause_s=0.3), AgentLink(tmp_path / "a") as link:
        answer = link.call("conform", timeout_s=1, on_progress=lambda *step: progress.append(step))
    assert (answer, progress) == ("done", [(1, 4), (2, 4), (3, 4), (4, 4)])


def test_noise_before_the_answer_is_ignored(tmp_path):
    noise = b'\xff\0junk\n[]\n{"v":2}\n' + protocol.encode({"id": 7, "ok": "another's"})
    with peer(tmp_path / "a", noise, {"ok": None}), AgentLink(tmp_path / "a") as link:
        assert link.call("close", timeout_s=5) is None


@pytest.mark.parametrize(
    "line", [{"error": None}, {"error": {}}, {"error": "no"}, {"progress": None}, {"progress": [1]}]
)
def test_malformed_answer_is_an_error(tmp_path, line):
    with (
        peer(tmp_path / "a", line),
        AgentLink(tmp_path / "a") as link,
        pytest.raises(LabError, match="emulated host, close: "),
    ):
        link.call("close", timeout_s=0.5, on_progress=lambda *_: None)


def test_agent_does_not_spin_without_a_client(tmp_path_factory):
    """A read of a port without a client returns 0 bytes at once."""
    with RunningAgent(tmp_path_factory.mktemp("agent")) as agent:
        agent.exchange(request(1, "hello"))
        agent.port.shutdown(socket.SHUT_WR)

        def ticks():
            fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])

        before = ticks()
        time.sleep(0.5)
        assert agent.process.poll() is None
        assert ticks() - before < 0.2 * os.sysconf("SC_CLK_TCK")
