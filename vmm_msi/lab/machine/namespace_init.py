"""Run as the first process of a lab daemon's namespaces: mount, start the daemons, clean up.

:mod:`vmm_msi.lab.machine.daemon` runs this module as PID 1 of a new PID namespace, in a new mount
namespace. Being PID 1 has two consequences:

* When it exits, the kernel kills everything else in the namespace and the mounts are gone.
* Orphans become its children. QEMU daemonizes while libvirtd probes it; a PID 1 that does not
  reap it leaves a zombie that libvirtd waits 40 s for, six times over.

Standard input is the lifeline: the caller's end closes when the caller exits, for any reason.
Standard output carries one line of JSON: that the daemons were started, or the error.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import LabError
from vmm_msi.lab.build import host_tools
from vmm_msi.terminal import print_error, print_line

if TYPE_CHECKING:
    from collections.abc import Mapping


class DaemonOptions(NamedTuple):
    """What a daemon gets in addition to its root.

    :ivar hardware: the machine's devices.
    :ivar lent: folders that it may read, by their name in its ``share``.
    """

    hardware: bool = False
    lent: Mapping[str, str] = {}


#: The caller's request to stop: it removes the run folder itself.
FAREWELL = b"end\n"
#: The caller's request to restart libvirtd; its guests keep running.
RESTART = b"restart\n"

_LIBVIRTD = "/usr/sbin/libvirtd"
_NODES = ("null", "zero", "full", "random", "urandom", "tty", "kvm")
_WRITABLE = ("etc/libvirt", "tmp", "var/cache", "var/lib/libvirt", "var/log")
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
_STOP_TIMEOUT_S = 5.0

# libvirt looks up its built-in user and group for QEMU before it reads the configured ones
# (src/qemu/qemu_conf.c virQEMUDriverConfigNew). Debian's older releases create them in a package
# that the root does not have; the number is Debian's.
_QEMU_USER = "libvirt-qemu"
_ACCOUNTS = {
    "passwd": f"{_QEMU_USER}:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n",
    "group": f"{_QEMU_USER}:x:64055:\n",
}

# libvirt's cache of QEMU's capabilities (src/qemu/qemu_capabilities.c virQEMUCapsInitialize). It is
# kept beside the cached root, since probing takes longer than starting a guest; libvirt itself
# checks that it is current, by times and versions, and ignores incomplete files.
_CAPABILITIES = "var/cache/libvirt/qemu/capabilities"
_KEPT = "capabilities"

# Only the namespaces confine libvirtd and QEMU: there is no init system, no cgroup manager and no
# security module (https://libvirt.org/drvqemu.html).
_QEMU_CONF = """\
namespaces = []
cgroup_controllers = []
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
stdio_handler = "file"
"""

_LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_group = "root"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"""


def mount(source: str, target: Path, kind: str | None = None, options: str | None = None) -> None:
    """Mount ``source`` on ``target``; without ``kind``, bind it there.

    :raise LabError: when mounting fails.
    """
    command = [host_tools.find_tool("mount"), "-n"]
    command += ["--bind"] if kind is None else ["-t", kind]
    command += ["-o", options] if options else []
    done = subprocess.run(
        [*command, source, str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[0]
        raise LabError(f"mounting {kind or source} on {target}: {reason}")


def lay_root(tree: Path, run: Path, layer: str) -> str:
    """Mount a writable view of ``tree`` on ``run``/root; the tree itself is not changed.

    :param layer: ``overlay``, ``tmpfs`` (only the folders that libvirt writes to are writable) or
        ``auto``, the first that the kernel supports.
    :return: the layer in use.
    """
    root = run / "root"
    # On a tmpfs of its own, since an overlay's upper layer cannot be on an overlay.
    scratch = run / "scratch"
    mount("scratch", scratch, "tmpfs", "mode=0755")
    if layer != "tmpfs":
        for name in ("lower", "upper", "work"):
            (scratch / name).mkdir()
        # Through a bind mount: commas and colons in the tree's own path would need quoting.
        mount(str(tree), scratch / "lower")
        options = ",".join(f"{name}dir={scratch / name}" for name in ("lower", "upper", "work"))
        try:
            mount("overlay", root, "overlay", options)
        except LabError:
            if layer == "overlay":
                raise
        else:
            return "overlay"
    mount(str(tree), root)
    mount(str(tree), root, options="remount,bind,ro")
    for name in _WRITABLE:
        copy = scratch / name
        shutil.copytree(tree / name, copy, symlinks=True)
        mount(str(copy), root / name)
    return "tmpfs"


def mount_system(run: Path, options: DaemonOptions) -> None:
    """Mount /proc, /sys, /dev, /run and the logs below the root."""
    root = run / "root"
    mount("proc", root / "proc", "proc")
    if options.hardware:
        # Nodes of assigned devices appear while the daemon runs.
        mount("/sys", root / "sys")
        mount("/dev", root / "dev")
        # The mounts in /dev: terminals and shared memory.
        for name in ("pts", "shm"):
            if Path("/dev", name).is_dir():
                mount(f"/dev/{name}", root / "dev" / name)
    else:
        _mount_few_devices(root)
    # Sockets, logs and shared files: the same inode on both sides.
    mount(str(run / "run"), root / "run")
    logs = root / "var/log/libvirt"
    logs.mkdir(parents=True, exist_ok=True)
    mount(str(run / "log"), logs)
    shared = root / (run / "share").relative_to("/")
    shared.mkdir(parents=True, exist_ok=True)
    mount(str(run / "share"), shared)
    for name, folder in options.lent.items():
        (shared / name).mkdir()
        mount(folder, shared / name)
        mount(folder, shared / name, options="remount,bind,ro")


def _mount_few_devices(root: Path) -> None:
    """Mount /sys read-only and a /dev without the machine's hardware."""
    try:
        mount("sysfs", root / "sys", "sysfs", "ro")
    except LabError:
        # Only the owner of the network namespace may mount a new one.
        mount("/sys", root / "sys")
    dev = root / "dev"
    mount("dev", dev, "tmpfs", "mode=0755")
    for name in _NODES:
        if Path("/dev", name).exists():
            (dev / name).touch()
            mount(f"/dev/{name}", dev / name)
    (dev / "pts").mkdir()
    mount("devpts", dev / "pts", "devpts", "newinstance,ptmxmode=0666,mode=0620")
    (dev / "ptmx").symlink_to("pts/ptmx")
    (dev / "shm").mkdir(mode=0o1777)
    (dev / "fd").symlink_to("/proc/self/fd")


def write_configuration(root: Path) -> None:
    """Write the daemons' configuration for a system without init."""
    folder = root / "etc/libvirt"
    (folder / "qemu.conf").write_text(_QEMU_CONF, encoding="utf-8")
    (folder / "libvirtd.conf").write_text(_LIBVIRTD_CONF, encoding="utf-8")


def provide_accounts(run: Path) -> None:
    """Add libvirt's user and group if the root lacks them."""
    for name, line in _ACCOUNTS.items():
        listed = run / "root/etc" / name
        text = listed.read_text(encoding="utf-8")
        if f"\n{_QEMU_USER}:" in text:
            continue
        longer = run / "scratch" / name
        longer.write_text(text + line, encoding="utf-8")
        mount(str(longer), listed)


def bring_capabilities(tree: Path, root: Path) -> None:
    """Copy QEMU's capabilities as cached by an earlier daemon of the same root."""
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(tree.parent / _KEPT, root / _CAPABILITIES, dirs_exist_ok=True)


def keep_capabilities(tree: Path, root: Path) -> None:
    """Keep libvirt's cache of QEMU's capabilities for later daemons.

    Each file is renamed into place when complete, since other daemons may use it at the same time.
    """
    kept = tree.parent / _KEPT
    with contextlib.suppress(OSError):
        for source in (root / _CAPABILITIES).glob("*.xml"):
            content = source.read_bytes()
            target = kept / source.name
            if target.is_file() and target.read_bytes() == content:
                continue
            kept.mkdir(mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=kept, prefix=".", delete=False) as file:
                try:
                    file.write(content)
                    file.flush()
                    Path(file.name).rename(target)
                except OSError:
                    Path(file.name).unlink(missing_ok=True)
                    raise


def start(root: Path, program: str, log: Path) -> int:
    """Start a program of the root under chroot and return its process id."""
    chroot = host_tools.find_tool("chroot")
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        chroot,
        [chroot, str(root), program],
        _ENVIRONMENT,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), write, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsigmask=(),
    )


class Keeper:
    """Reap every child and track which daemons still run.

    :param daemons: process id and name.
    """

    def __init__(self, daemons: Mapping[int, str]) -> None:
        self.running = dict(daemons)
        self.ended: str | None = None
        self._wake, writer = socket.socketpair()
        self._wake.setblocking(False)
        writer.setblocking(False)
        self._writer = writer
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def wait(self, lifeline: int | None, timeout: float | None = None) -> bool:
        """Wait for a child or the lifeline; reap children.

        :param lifeline: the descriptor whose other end is the caller's; ``None`` to ignore it.
        :return: whether the lifeline is readable or closed.
        """
        watched = [self._wake.fileno()] + ([] if lifeline is None else [lifeline])
        ready, _, _ = select.select(watched, [], [], timeout)
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while (child := os.waitpid(-1, os.WNOHANG))[0]:
                name = self.running.pop(child[0], None)
                if name is not None and self.ended is None:
                    self.ended = f"{name} exited with {os.waitstatus_to_exitcode(child[1])}"
        return lifeline in ready

    def end(self, name: str) -> None:
        """Stop one daemon and wait until it has exited."""
        (number,) = (pid for pid, each in self.running.items() if each == name)
        os.kill(number, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while number in self.running and time.monotonic() < deadline:
            self.wait(None, 1.0)
        if number in self.running:
            raise LabError(f"stopping {name}: it did not exit within {_STOP_TIMEOUT_S:.0f} s")
        self.ended = None

    def stop(self) -> None:
        """Stop the daemons, then kill the remaining processes in the namespace."""
        for pid in self.running:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while self.running and (left := deadline - time.monotonic()) > 0:
            self.wait(None, left)
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)


def serve(tree: Path, run: Path, layer: str, options: DaemonOptions) -> None:
    """Run the daemons until the caller requests a stop or is gone.

    :raise LabError: when a mount or a start fails, or a daemon exits by itself.
    """
    used = lay_root(tree, run, layer)
    mount_system(run, options)
    root = run / "root"
    write_configuration(root)
    provide_accounts(run)
    bring_capabilities(tree, root)
    daemons = {}
    for program in ("/usr/sbin/virtlogd", _LIBVIRTD):
        if (root / program.lstrip("/")).exists():
            name = Path(program).name
            daemons[start(root, program, run / "log" / f"{name}.out")] = name
    lifeline = sys.stdin.fileno()
    keeper = Keeper(daemons)
    _report({"started": sorted(daemons.values()), "layer": used})
    request = RESTART
    while keeper.ended is None and request == RESTART:
        if keeper.wait(lifeline):
            request = os.read(lifeline, len(RESTART))
            if request == RESTART:
                name = Path(_LIBVIRTD).name
                keeper.end(name)
                keeper.running[start(root, _LIBVIRTD, run / "log" / f"{name}.out")] = name
                _report({"restarted": name})
    crash = keeper.ended
    farewell = b"" if crash else request
    keeper.stop()
    keep_capabilities(tree, root)
    if crash:
        raise LabError(f"running libvirt in {run}: {crash}; see {run / 'log'}")
    if farewell != FAREWELL:
        # The caller is gone, so remove it here.
        host_tools.remove_folder(run)


def _report(message: Mapping[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):
        print_line(json.dumps(message))
        sys.stdout.flush()


def main() -> int:
    """Serve as the namespaces' first process, started by :mod:`vmm_msi.lab.machine.daemon`."""
    if os.getpid() != 1:
        print_error(
            "vmm_msi.lab.machine.namespace_init: only for the first process of a PID namespace"
        )
        return 2
    tree, run, layer, lock, options = sys.argv[1:]
    # Held as long as this process lives, by no other process.
    os.set_inheritable(int(lock), False)
    try:
        serve(Path(tree), Path(run), layer, DaemonOptions(**json.loads(options)))
    except (LabError, OSError) as error:
        _report({"error": str(error)})
        print_error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
