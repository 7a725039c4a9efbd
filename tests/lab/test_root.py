"""The lab's root in the cache, and the libvirtd that runs from it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import json_schemas
import libvirt  # noqa: TID251 - the machine's own client for the root's daemon
import libvirt_qemu  # noqa: TID251
import pytest
from conftest import SUITES, root_of
from lab_commands import inside_of
from waiting import wait_until

from vmm_msi.cli import main
from vmm_msi.errors import LabError
from vmm_msi.lab.build import host_tools, root_recipe
from vmm_msi.lab.build.cache import default_cache
from vmm_msi.lab.build.root import ensure_root
from vmm_msi.lab.machine.daemon import LabDaemon

TWO_VSMMUS = Path(__file__).with_name("two-vsmmus.xml").read_text(encoding="utf-8")


def numbers(version):
    return tuple(int(part) for part in version.split("."))


def namespace(pid, kind):
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "ns" / kind).readlink()
    return None


def contained_by(unshare):
    """Return the PID namespace of the first child of the process ``unshare``."""
    children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text(encoding="ascii")
    return namespace(children.split()[0], "pid")


def processes_in(pid_namespace):
    listed = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in listed if namespace(pid, "pid") == pid_namespace]


def snapshot(tree):
    """Return every file's path, size and change time; each write changes one of them."""
    files = []
    for folder, _, names in os.walk(tree):
        for name in names:
            status = (Path(folder) / name).lstat()
            files.append((folder, name, status.st_size, status.st_ctime_ns))
        files.append((folder, "", 0, Path(folder).lstat().st_ctime_ns))
    return sorted(files)


# The cache, with a stand-in for the build.


@pytest.fixture
def fake_build(monkeypatch):
    """Replace the build by one that only writes the files that the cache checks."""
    calls = []

    def build_tree(spec, progress):
        calls.append(spec)
        (spec.tree / "usr/sbin").mkdir(parents=True)
        (spec.tree / "usr/sbin/libvirtd").touch()
        return {"libvirt-daemon": "12.8.0-1", "qemu-system-arm": "1:11.1.2+ds-3"}

    monkeypatch.setattr(root_recipe, "build_tree", build_tree)
    monkeypatch.setattr(host_tools, "architecture", lambda: "amd64")
    monkeypatch.setattr(host_tools, "apt_mirror", lambda: "http://mirror.example/debian")
    monkeypatch.setattr(host_tools, "require_root", lambda _purpose: None)
    return calls


def test_built_once_then_cached(tmp_path, fake_build):
    first = ensure_root("forky", tmp_path)
    second = ensure_root("forky", tmp_path)
    assert (first.cached, second.cached, len(fake_build)) == (False, True, 1)
    assert (second.libvirt, second.qemu) == ("12.8.0", "11.1.2")
    assert first.path == second.path


def test_key_depends_on_suite_and_recipe(tmp_path, fake_build, monkeypatch):
    first = ensure_root("forky", tmp_path)
    monkeypatch.setattr(root_recipe, "VERSION", root_recipe.VERSION + 1)
    assert ensure_root("forky", tmp_path).path != first.path
    assert ensure_root("sid", tmp_path).path != first.path
    assert len(fake_build) == 3


@pytest.mark.parametrize("error", [LabError("no"), KeyboardInterrupt()])
def test_failed_build_leaves_no_entry(tmp_path, fake_build, monkeypatch, error):
    def fail(spec, progress):
        spec.tree.mkdir()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(root_recipe, "build_tree", fail)
        with pytest.raises(type(error)):
            ensure_root("forky", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert not ensure_root("forky", tmp_path).cached


def test_next_build_removes_a_killed_one(tmp_path, fake_build):
    entry = ensure_root("forky", tmp_path).path.parent
    entry.rename(tmp_path / f"{entry.name}.building")
    other = tmp_path / "root-sid-amd64-000000000000.building"
    (other / "tree").mkdir(parents=True)
    (tmp_path / "root-sid-amd64-000000000000.lock").touch()
    ensure_root("forky", tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [entry.name]


def test_running_build_of_another_root_is_left_alone(tmp_path, fake_build):
    other = tmp_path / "root-sid-amd64-000000000000.building"
    (other / "tree").mkdir(parents=True)
    with (tmp_path / "root-sid-amd64-000000000000.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ensure_root("forky", tmp_path)
    assert other.exists()


@pytest.mark.parametrize("damage", ["marker", "half a marker", "libvirtd"])
def test_damaged_entry_is_built_again(tmp_path, fake_build, damage):
    entry = ensure_root("forky", tmp_path).path.parent
    if damage == "marker":
        (entry / "root.json").unlink()
    elif damage == "half a marker":
        (entry / "root.json").write_text("{", encoding="utf-8")
    else:
        (entry / "tree/usr/sbin/libvirtd").unlink()
    assert not ensure_root("forky", tmp_path).cached


def test_only_a_build_needs_root(tmp_path, fake_build, monkeypatch):
    def refuse(purpose):
        raise LabError(f"{purpose} needs root")

    ensure_root("forky", tmp_path)
    monkeypatch.setattr(host_tools, "require_root", refuse)
    assert ensure_root("forky", tmp_path).cached
    with pytest.raises(LabError, match="needs root"):
        ensure_root("sid", tmp_path)


def test_missing_tools_are_listed_with_an_apt_command(monkeypatch):
    monkeypatch.setattr(host_tools.ownership, "find_program", lambda *_: None)
    with pytest.raises(LabError, match=r"debootstrap, unshare .*apt-get install .*debootstrap"):
        host_tools.require_tools(["unshare", "debootstrap"])


def test_cache_is_in_xdg_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "vmm-msi"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache() == Path.home() / ".cache/vmm-msi"


def test_command_prints_the_releases_in_the_root(tmp_path, fake_build, capsys):
    arguments = ["lab", "root", "--cache", str(tmp_path)]
    assert main([*arguments, "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    json_schemas.check("lab-root", facts)
    assert (facts["libvirt"], facts["qemu"], facts["cached"]) == ("12.8.0", "11.1.2", False)
    assert main(arguments) == 0
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert table["path"] == facts["path"]
    assert table["cached"] == "yes"


def test_command_refuses_an_invalid_suite(tmp_path, capsys):
    assert main(["lab", "root", "--suite", "../x", "--cache", str(tmp_path)]) == 2
    assert "'../x' is not a Debian suite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "upstream"), [("12.8.0-1", "12.8.0"), ("1:11.1.2+ds-3", "11.1.2"), ("2:9", "9")]
)
def test_upstream_version_is_extracted(version, upstream):
    assert root_recipe.upstream_version(version) == upstream


def test_older_suites_have_the_machines_own_emulator_too():
    assert root_recipe.packages("forky", "amd64") == sorted(
        {*root_recipe.PACKAGES, *root_recipe.TOOLKIT}
    )
    added = set(root_recipe.packages("bookworm", "amd64")) - set(root_recipe.PACKAGES)
    assert added == {"qemu-system-x86"}
    assert root_recipe.packages("bookworm", "arm64") == sorted(root_recipe.PACKAGES)


# The real root and its libvirtd.


@pytest.mark.lab_root
def test_root_is_current(lab_root):
    assert numbers(lab_root.libvirt) >= (12, 8)
    assert numbers(lab_root.qemu) >= (11, 1)


@pytest.mark.lab_root
def test_cached_root_is_used_within_one_second(lab_root):
    start = time.monotonic()
    assert ensure_root().cached
    assert time.monotonic() - start < 1


@pytest.mark.lab_root
@pytest.mark.parametrize("layer", ["overlay", "tmpfs"])
def test_stopped_daemon_leaves_no_trace(lab_root, layer, tmp_path):
    before = snapshot(lab_root.path)
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    with LabDaemon(lab_root, layer=layer, keep_logs=tmp_path / "logs") as daemon:
        assert daemon.layer == layer
        run = daemon.run
        inside = contained_by(daemon.pid)
        assert inside != namespace("self", "pid")
        connection = libvirt.open(daemon.uri)
        assert connection.getLibVersion() >= 12_008_000
        assert connection.getVersion() >= 11_001_000
        connection.defineXMLFlags(TWO_VSMMUS, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).create()
        connection.close()
        # The first process, virtlogd, libvirtd and QEMU.
        assert len(processes_in(inside)) >= 4
    assert not run.exists()
    assert processes_in(inside) == []
    assert Path("/proc/self/mountinfo").read_text(encoding="utf-8") == mounts
    assert snapshot(lab_root.path) == before
    assert "12.8" in (tmp_path / "logs/libvirtd.log").read_text(encoding="utf-8")
    assert "arm-smmuv3" in (tmp_path / "logs/qemu/two-vsmmus.log").read_text(encoding="utf-8")


@pytest.mark.lab_root
@pytest.mark.parametrize("layer", ["overlay", "tmpfs"])
@pytest.mark.parametrize(("release", "qemu"), [("9.0", (7, 2)), ("11.3", (10, 0))])
def test_roots_of_older_releases_run(release, qemu, layer):
    root = root_of(SUITES[release])
    assert numbers(root.libvirt)[:2] == numbers(release)
    with LabDaemon(root, layer=layer) as daemon:
        assert daemon.layer == layer
        for uri in (daemon.test_uri, daemon.uri):
            connection = libvirt.open(uri)
            version = connection.getLibVersion()
            assert (version // 1_000_000, version // 1000 % 1000) == numbers(release)
            if uri == daemon.uri:
                version = connection.getVersion()
                assert (version // 1_000_000, version // 1000 % 1000) == qemu
            connection.close()


@pytest.mark.lab_root
def test_daemon_stops_when_its_block_raises(lab_root):
    daemon = LabDaemon(lab_root)
    seen = []

    def fail():
        with daemon:
            seen.append((daemon.run, contained_by(daemon.pid)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    run, inside = seen[0]
    assert not run.exists()
    assert processes_in(inside) == []
    with pytest.raises(LabError, match="is not running"):
        _ = daemon.uri
    with pytest.raises(LabError, match="restarting a lab daemon: it is not running"):
        daemon.restart()


def pids_in(pid_namespace, name):
    """Return the processes of that name, without short-lived forks of one of them."""
    names, parents = {}, {}
    for pid in processes_in(pid_namespace):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # proc_pid_stat(5): pid (comm) state ppid …
            comm, rest = Path(f"/proc/{pid}/stat").read_text().split("(", 1)[1].rsplit(")", 1)
            names[pid], parents[pid] = comm, int(rest.split()[1])
    return [pid for pid, comm in names.items() if comm == name and names.get(parents[pid]) != name]


@pytest.mark.lab_root
def test_restart_keeps_virtlogd_running(lab_root):
    with LabDaemon(lab_root) as daemon:
        inside = contained_by(daemon.pid)
        before = {name: pids_in(inside, name) for name in ("virtlogd", "libvirtd")}
        daemon.restart()
        libvirt.open(daemon.test_uri).close()
        after = {name: pids_in(inside, name) for name in before}
        assert after["virtlogd"] == before["virtlogd"]
        assert [len(before["libvirtd"]), len(after["libvirtd"])] == [1, 1]
        assert after["libvirtd"] != before["libvirtd"]


CALLER = """
import sys, time
from pathlib import Path
from vmm_msi.lab.machine.daemon import LabDaemon
from vmm_msi.lab.build.root import ensure_root
with LabDaemon(ensure_root()) as daemon:
    print(daemon.pid, daemon.run, flush=True)
    time.sleep(60)
"""


@pytest.mark.lab_root
@pytest.mark.parametrize("victim", ["caller", "both"])
def test_daemon_stops_with_a_killed_caller(lab_root, victim):
    command = [sys.executable, "-c", CALLER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        assert select.select([caller.stdout], [], [], 30)[0]
        unshare, run = caller.stdout.readline().split()
        inside = contained_by(unshare)
        assert processes_in(inside)
        caller.kill()
        if victim == "both":
            os.kill(int(unshare), signal.SIGKILL)
    assert wait_until(lambda: not processes_in(inside))
    if victim == "both":
        # The next daemon removes the folder, since no process was left to do it.
        with LabDaemon(lab_root):
            assert not Path(run).exists()
    else:
        assert wait_until(lambda: not Path(run).exists())


@pytest.mark.lab_root
def test_two_daemons_are_independent(lab_root, lab_daemon):
    with LabDaemon(lab_root) as second:
        assert second.run != lab_daemon.run
        one, two = libvirt.open(lab_daemon.uri), libvirt.open(second.uri)
        domain = one.defineXMLFlags(TWO_VSMMUS, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        assert two.listAllDomains() == []
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        one.close()
        two.close()


@pytest.mark.lab_root
def test_failed_start_is_explained(lab_root, tmp_path):
    with (
        pytest.raises(LabError, match="longer than 107 bytes; use a shorter run folder"),
        LabDaemon(lab_root, folder=tmp_path / ("x" * 100)),
    ):
        pass
    broken = dataclasses.replace(lab_root, path=tmp_path / "nothing")
    with pytest.raises(LabError, match="starting the lab's libvirtd: mounting"), LabDaemon(broken):
        pass


@pytest.mark.lab_root
def test_share_has_the_same_path_inside_and_outside(lab_daemon):
    (lab_daemon.share / "disk").write_text("shared", encoding="utf-8")
    [libvirtd] = [
        Path("/proc") / str(pid)
        for pid in processes_in(contained_by(lab_daemon.pid))
        if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8") == "libvirtd\n"
    ]
    inside = libvirtd / "root" / (lab_daemon.share / "disk").relative_to("/")
    assert inside.read_text(encoding="utf-8") == "shared"


@pytest.mark.lab_root
def test_test_driver_uses_the_roots_libvirt(lab_daemon):
    connection = libvirt.open(lab_daemon.test_uri)
    assert connection.getType() == "TEST"
    assert connection.getLibVersion() >= 12_008_000
    text = TWO_VSMMUS.replace("type='qemu'", "type='test'", 1)
    domain = connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    assert domain.XMLDesc().count("<driver pciBus=") == 2
    domain.undefine()
    wrong = text.replace("pciBus='2'", "pciBus='two'")
    with pytest.raises(libvirt.libvirtError):
        connection.defineXMLFlags(wrong, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    connection.close()


def monitor(domain, command, **arguments):
    text = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuMonitorCommand(domain, text, 0))["return"]


@pytest.mark.lab_root
def test_two_vsmmus_run_in_qemu(lab_daemon):
    connection = libvirt.open(lab_daemon.uri)
    domain = connection.defineXMLFlags(TWO_VSMMUS, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    try:
        domain.create()
        assert domain.isActive()
        devices = monitor(domain, "qom-list", path="/machine/peripheral")
        smmus = [item["name"] for item in devices if item["type"] == "child<arm-smmuv3>"]
        assert sorted(smmus) == ["iommu0", "iommu1"]
        buses = {
            name: monitor(
                domain, "qom-get", path=f"/machine/peripheral/{name}", property="primary-bus"
            )
            for name in smmus
        }
        assert buses["iommu0"].endswith("/pci.1")
        assert buses["iommu1"].endswith("/pci.2")
    finally:
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        assert connection.listAllDomains() == []
        connection.close()


@pytest.mark.lab_root
def test_lent_folders_are_read_only(lab_root, tmp_path):
    (tmp_path / "file").write_text("lent")
    with LabDaemon(lab_root, lent={"lent": tmp_path}) as daemon:
        lent = daemon.share / "lent"

        def inside(*words):
            return subprocess.run(
                inside_of(daemon, *words), capture_output=True, text=True, check=False
            )

        assert inside("cat", lent / "file").stdout == "lent"
        assert "Read-only file system" in inside("touch", lent / "new").stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.lab_root
def test_daemon_with_hardware_has_the_machines_devices(lab_root):
    with LabDaemon(lab_root) as without, LabDaemon(lab_root, hardware=True) as with_it:
        for daemon, hardware in ((without, False), (with_it, True)):
            command = inside_of(daemon, "test", "-e", "/dev/kmsg")
            assert (subprocess.run(command, check=False).returncode == 0) is hardware
            command = inside_of(daemon, "touch", "/sys/nothing")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ("Read-only file system" in done.stderr) is not hardware
