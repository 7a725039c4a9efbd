"""The emulated host: start, reuse, sharing, crashes and stop."""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import json_schemas
import pytest
from signals import DEFAULT_SIGNALS
from waiting import wait_until

from vmm_msi import libvirt_driver
from vmm_msi.cli import main
from vmm_msi.errors import LabError, UsageError
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.machine import emulated_host as lab_host
from vmm_msi.lab.machine import keeper
from vmm_msi.lab.machine import running as lab_running
from vmm_msi.lab.machine.emulated_host import LabHost, lab_for
from vmm_msi.lab.machine.host_xml import NAME
from vmm_msi.lab.machine.iort_edit import with_canwbs
from vmm_msi.lab.machine.parts import Parts, ensure_parts
from vmm_msi.lab.machine.running import RUN_FOLDER_VARIABLE, running
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.lab.rpc.link import AgentLink

COMMAND = [sys.executable, "-m", "vmm_msi", "lab"]
SMALL = Shape(smmus=1, devices=1, pairs=0, memory=512)
EDU = (0x1234, 0x11E8)

pytestmark = pytest.mark.lab_root


def lab(*arguments):
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def status():
    done = lab("status", "--format", "json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    json_schemas.check("lab-status", document)
    return document


def pid_namespace(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/ns/pid").readlink()
    return None


def processes():
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def named_in(folder):
    """Return the processes that have the path of ``folder`` in their arguments."""
    pids = []
    for pid in processes():
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in Path(f"/proc/{pid}/cmdline").read_bytes():
                pids.append(pid)
    return pids


def started(pid):
    """Return the start time of a process, which a later process with its id does not share.

    See proc_pid_stat(5).
    """
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return None


class LabProcesses:
    """The processes of a run folder: the keeper of a host, and all in the host's namespaces."""

    def __init__(self, folder):
        self.folder = folder
        spaces = {pid_namespace(pid) for pid in named_in(folder)} - {pid_namespace("self"), None}
        self.inside = {pid: started(pid) for pid in processes() if pid_namespace(pid) in spaces}

    def qemu(self):
        """Return the process id of QEMU; None if it does not run."""
        for pid in self.inside:
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8")
                if name.startswith("qemu-system"):
                    return pid
        return None

    def ended(self):
        return not any(started(pid) == start for pid, start in self.inside.items())

    def all_gone(self):
        return self.ended() and not named_in(self.folder)


def run_folders(folder):
    return [path for path in folder.iterdir() if path.is_dir()]


@pytest.fixture
def stale(run_folder):
    """A run folder as a killed keeper leaves it; another process has its id now."""
    state = {"pid": os.getpid(), "phase": "running", "agent_socket": str(run_folder / "x/agent")}
    (run_folder / "host.json").write_text(json.dumps(state), encoding="utf-8")
    (run_folder / "host.lock").touch()
    (run_folder / "old/share").mkdir(parents=True)
    (run_folder / "old/share/agent").touch()
    (run_folder / "old/lock").touch()
    return run_folder


def test_lab_is_started_used_and_stopped(stale):
    assert status() == {"schema": 1, "state": "off"}
    assert lab("down").stdout == "no lab is running\n"

    done = lab("up")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the lab is up after ")
    assert "starting the emulated host: 2 SMMUs, 4 devices, 1 pair, 4K pages" in done.stderr
    # The leftovers of the killed keeper are gone.
    [folder] = run_folders(stale)
    assert folder.name != "old"
    lab_processes = LabProcesses(stale)
    assert lab_processes.qemu()
    # The keeper has no terminal and no descriptor of the command that started it.
    facts = status()
    assert (facts["state"], facts["agent"], facts["shape"]["smmus"]) == ("running", "answers", 2)
    holder = Path(f"/proc/{facts['pid']}")
    assert os.getsid(facts["pid"]) == facts["pid"]
    targets = {os.path.realpath(fd) for fd in (holder / "fd").glob("[0-3]")}
    assert targets == {"/dev/null", str(stale / "host.log")}

    again = lab("up")
    assert again.returncode == 0
    assert again.stdout.startswith(f"the lab is already up since {facts['since']}")
    other = lab("up", "--smmus", "3")
    assert other.returncode == UsageError.exit_code
    assert "is running, not with 3 SMMUs" in other.stderr
    assert "stop it with vmm-msi lab down first" in other.stderr
    patched = lab("up", "--kernel", "patches/")
    assert patched.returncode == UsageError.exit_code
    assert f"pages, kernel {Path('patches').absolute()}" in patched.stderr

    host = running()
    assert host.shape == Shape(kernel="stock", itses=1)
    check_devices(host)
    check_tables(host)
    check_libvirt(host)
    check_sharing(host)
    check_console(host)

    start = time.monotonic()
    done = lab("down")
    assert (done.returncode, done.stdout) == (0, "the lab is down\n")
    assert time.monotonic() - start < 5
    assert lab_processes.all_gone()
    assert run_folders(stale) == []
    assert running() is None
    assert status() == {"schema": 1, "state": "off"}
    assert lab("console", "--log").returncode == LabError.exit_code


def check_devices(host):
    """Check that every device is where the shape says; functions of one device share a group."""
    with AgentLink(host.agent_socket) as link:
        listed = link.call("devices")
    devices = [device for device in listed if (device["vendor"], device["device"]) == EDU]
    members = collections.Counter(device["group"] for device in devices)
    assert sorted(members.values()) == [1, 1, 1, 1, 2]
    behind = collections.Counter(device["smmu"] for device in devices)
    assert sorted(behind.values()) == [2, 4]
    assert [smmu.base for smmu in host.board.topology.smmus] == sorted(
        int(name.rpartition(".")[2], 16) for name in behind
    )


def check_tables(host):
    """Check that the kernel uses the corrected IORT, and the other tables unchanged."""
    with AgentLink(host.agent_socket) as link:
        tables = {
            name: base64.b64decode(text, validate=True)
            for name, text in link.call("tables").items()
        }
    kept = {name: (host.board.folder / name).read_bytes() for name in ("IORT", "APIC")}
    assert tables["IORT"] == with_canwbs(kept["IORT"], "IORT")
    assert tables["APIC"] == kept["APIC"]


def check_libvirt(host):
    with libvirt_driver.connect(host.uri) as connection:
        assert connection.is_active(NAME)
        assert len(connection.domain_xml(NAME).iommus()) == host.shape.smmus


def check_sharing(host):
    """Check that another command uses the running lab if its shape suffices."""
    smaller = Shape(smmus=2, devices=2, pairs=0)
    with lab_for(smaller) as shared:
        assert shared == host
    with (
        AgentLink(host.agent_socket),
        pytest.raises(LabError, match="still in use by another command"),
    ):
        AgentLink(host.agent_socket, wait_s=0.1).__enter__()


def check_console(host):
    done = lab("console", "--log")
    assert done.returncode == 0
    assert done.stdout.startswith("UEFI firmware")
    assert "Linux version" in done.stdout
    # Without a terminal, the command prints the log too.
    assert lab("console").stdout.startswith("UEFI firmware")
    with terminal() as (first, process):
        read_until(first, b"Ctrl-] leaves")
        os.write(first, b"\recho $((6*7))-$(uname -m)\r")
        read_until(first, b"42-aarch64")
        with terminal() as (second, refused):
            read_until(second, b"another terminal is connected")
            assert refused.wait(10) == LabError.exit_code
        os.write(first, b"\x1d")
        read_until(first, b"lab console: left")
        assert process.wait(10) == 0
    assert "42-aarch64" in host.serial_log.read_text("utf-8", "replace")


@contextlib.contextmanager
def terminal():
    """Run the console on a new pseudoterminal."""
    controller, console = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "console"], stdin=console, stdout=console, stderr=console
    ) as process:
        os.close(console)
        try:
            yield controller, process
        finally:
            process.kill()
            os.close(controller)


def read_until(descriptor, text, seconds=20):
    data = b""
    deadline = time.monotonic() + seconds
    while text not in data:
        left = deadline - time.monotonic()
        assert left > 0, data
        assert select.select([descriptor], [], [], left)[0], data
        data += os.read(descriptor, 4096)
    return data


def test_up_works_after_qemu_or_the_keeper_was_killed(run_folder, tmp_path):
    cache = borrowed_cache(tmp_path)
    shape = ["--smmus", "1", "--devices", "1", "--pairs", "0", "--cache", str(cache)]

    assert lab("up", *shape).returncode == 0
    lab_processes = LabProcesses(run_folder)
    os.kill(lab_processes.qemu(), signal.SIGKILL)
    assert wait_until(lambda: running() is None)
    assert wait_until(lab_processes.all_gone)
    assert run_folders(run_folder) == []
    facts = status()
    assert facts["state"] == "off: it stopped by itself"
    assert "running the emulated host: it stopped by itself: serial.log:" in facts["error"]
    logs = Path(facts["logs"])
    assert logs.parent == cache / "lab-logs"
    assert "Linux version" in (logs / "serial.log").read_text("utf-8", "replace")
    assert "arm-smmuv3" in (logs / f"qemu/{NAME}.log").read_text("utf-8")

    assert lab("up", *shape).returncode == 0
    lab_processes = LabProcesses(run_folder)
    assert lab_processes.qemu()
    os.kill(running().pid, signal.SIGKILL)
    assert wait_until(lambda: running() is None)
    assert status()["state"] == "off"
    # At once, while the other one is still exiting.
    assert lab("up", *shape).returncode == 0
    assert wait_until(lab_processes.ended)
    assert LabProcesses(run_folder).qemu()
    assert lab("down").stdout == "the lab is down\n"
    assert LabProcesses(run_folder).all_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_up_killed_during_the_start_leaves_nothing(run_folder, number):
    with subprocess.Popen(
        [*DEFAULT_SIGNALS, *COMMAND, "up"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        try:
            assert wait_until(lambda: LabProcesses(run_folder).qemu())
            lab_processes = LabProcesses(run_folder)
            command.send_signal(number)
            errors = command.communicate()[1]
        finally:
            command.kill()
    if number == signal.SIGINT:
        assert command.returncode == 130
        assert errors.endswith("vmm-msi lab: interrupted\n")
    else:
        # When ready, the keeper notices that the command is gone.
        assert wait_until(lab_processes.all_gone, 60)
        assert wait_until(lambda: lab_running.keeper_pid() is None)
    assert lab_processes.all_gone()
    assert run_folders(run_folder) == []
    assert status() == {"schema": 1, "state": "off"}


def test_two_ups_at_once_start_one(run_folder):
    results = []

    def start():
        results.append(keeper.up(Shape()))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one, first), (other, second) = results
    assert one == other
    assert sorted((first, second)) == [False, True]
    assert len(run_folders(run_folder)) == 1


def borrowed_cache(folder):
    """Return a cache that links to the user's roots, kernels and user lands."""
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    for path in caches.default_cache().iterdir():
        if path.name.startswith(("root-", "kernel-", "userland-")):
            (cache / path.name).symlink_to(path)
    return cache


@contextlib.contextmanager
def small_file_system(folder, size):
    mount = host_tools.require_tools(["mount", "umount"])
    folder.mkdir(exist_ok=True)
    subprocess.run(
        [mount["mount"], "-t", "tmpfs", "-o", f"size={size},mode=755", "t", folder], check=True
    )
    try:
        yield
    finally:
        subprocess.run([mount["umount"], folder], check=True)


def test_full_run_folder_is_reported(run_folder, tmp_path, monkeypatch):
    full = run_folder / "full"
    cache = borrowed_cache(tmp_path)
    with small_file_system(full, "8m"):
        monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(full))
        done = lab("up", "--cache", str(cache))
        assert done.returncode == LabError.exit_code
        assert "starting the emulated host: " in done.stderr
        assert "No space left on device" in done.stderr
        assert run_folders(full) == []
        assert status() == {"schema": 1, "state": "off"}


def test_full_cache_is_reported(run_folder, tmp_path):
    full = tmp_path / "cache"
    with small_file_system(full, "16m"):
        borrowed_cache(tmp_path)
        ensure_parts(SMALL, cache=full)
        with (full / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 12))
        with (
            pytest.raises(LabError, match="No space left on device"),
            LabHost(SMALL, cache=full, crash_logs=lab_host.logs_folder(full)),
        ):
            pass
        assert not [path for path in full.glob("board-*") if path.is_dir()]
    assert run_folders(run_folder) == []
    assert named_in(run_folder) == []


def test_kernel_panic_is_reported_and_logs_are_kept(run_folder, tmp_path, monkeypatch):
    parts = ensure_parts(SMALL)
    empty = tmp_path / "empty"
    empty.touch()
    unbootable = Parts(parts.root, dataclasses.replace(parts.images, initrd=empty), empty)
    monkeypatch.setattr(lab_host, "ensure_parts", lambda *_: unbootable)
    logs = tmp_path / "logs"
    start = time.monotonic()
    with (
        pytest.raises(LabError, match=r"serial.log: Kernel panic.*; its logs are in"),
        LabHost(SMALL, cache=borrowed_cache(tmp_path), crash_logs=logs),
    ):
        pass
    assert time.monotonic() - start < 60
    assert "Kernel panic" in (logs / "serial.log").read_text("utf-8", "replace")
    assert run_folders(run_folder) == []


def test_host_runs_the_kernel_bind_and_programs(run_folder):
    """Its release and its interface show the kernel."""
    script = b"#!/usr/bin/busybox sh\nuname -r\nhead -n 1 /sys/kernel/debug/iommufd/msi_bindings\n"
    bind = dataclasses.replace(SMALL, kernel="bind")
    with (
        LabHost(bind, programs={"facts": script}) as lab,
        AgentLink(lab.agent_socket) as link,
    ):
        result = link.call("program", name="facts")
        assert lab.hello["release"].endswith("-vmm-msi-bind")
    assert result == {"status": 0, "output": f"{lab.hello['release']}\nversion 1\n"}


def test_guests_run_the_stock_kernel(lab_root, lab_images):
    parts = ensure_parts(Shape(devices=0, pairs=0, nvmes=1, guests=True, kernel="bind"))
    assert parts.images.flavour == "bind"
    assert parts.guest_kernel == lab_images.kernel != parts.images.kernel


def test_host_for_one_command_stops_with_it(run_folder, tmp_path, capsys):
    with lab_for(SMALL) as own:
        assert isinstance(own, LabHost)
        lab_processes = LabProcesses(run_folder)
        assert lab_processes.qemu()
        assert running() is None
        assert own.hello["page_size"] == 4096
        assert 0 < own.boot_s < 120
        assert set(own.timings) == {"daemon", "libvirt", "firmware", "kernel"}
        own.check()
        folder = own.daemon.run
    assert "starting the emulated host: 1 SMMU, 1 device, 0 pairs" in capsys.readouterr().err
    assert lab_processes.all_gone()
    assert not folder.exists()
    with pytest.raises(LabError, match="it is not running"):
        _ = own.agent_socket


def test_logs_are_kept_on_request(run_folder, tmp_path):
    logs = tmp_path / "logs"
    with pytest.raises(ZeroDivisionError), LabHost(SMALL, keep_logs=logs):
        raise ZeroDivisionError
    assert "Linux version" in (logs / "serial.log").read_text("utf-8", "replace")
    assert (logs / "libvirtd.log").exists()
    assert named_in(run_folder) == []


def test_unsuitable_lab_is_left_running(run_folder, tmp_path, monkeypatch, capsys):
    keeper.up(SMALL)
    host = running()
    reason = lab_host._unfit
    assert reason(host, SMALL, "forky", None) is None
    assert "is from forky, not from sid" in reason(host, SMALL, "sid", None)
    assert "; required: 2 SMMUs" in reason(host, Shape(), "forky", None)
    monkeypatch.setattr(lab_host, "package_layer", lambda _root, _cache: tmp_path / "newer")
    assert "another version of vmm-msi" in reason(host, SMALL, "forky", None)
    assert keeper.down(Progress(None))
    assert main(["lab", "status"]) == 0
    assert capsys.readouterr().out == "state           off\n"


def test_console_without_a_lab_is_refused(run_folder, capsys):
    assert main(["lab", "console"]) == LabError.exit_code
    assert "no lab is running; start one with vmm-msi lab up" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--smmus", "9"], ["--devices", "0"], ["--pairs", "-1"]])
def test_up_refuses_numbers_out_of_range(arguments, capsys):
    assert main(["lab", "up", *arguments]) == UsageError.exit_code
    assert "valid is " in capsys.readouterr().err
