"""Run a libvirtd of the lab's root in its own namespaces, within a ``with`` block.

::

    with LabDaemon(ensure_root()) as daemon:
        connection = connect(daemon.uri)

A daemon's run-time files are in one folder, ``/run/vmm-msi/<name>``: ``run`` is its /run (with the
sockets), ``log`` its /var/log/libvirt, ``share`` is for files that both sides use. The root in the
cache is never written to. docs/lab-internals.md describes the containment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import vmm_msi
from vmm_msi.errors import LabError
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.machine.namespace_init import FAREWELL, RESTART, DaemonOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import BinaryIO

    from vmm_msi.lab.build.root import LabRoot

Layer = Literal["auto", "overlay", "tmpfs"]

#: The folder of running daemons' folders. Short, since a socket's path has at most 107 bytes.
RUN_FOLDER = Path("/run/vmm-msi")

#: Overrides the folder of the state and of daemons' run folders. It must be short, since sockets'
#: paths contain it.
RUN_FOLDER_VARIABLE = "VMM_MSI_RUN"

_STARTING = "starting the lab's libvirtd"
_LOCK = "lock"
_SOCKET = "run/libvirt/libvirt-sock"
_SOCKET_PATH_LIMIT = 107  # sizeof(sockaddr_un.sun_path) without the final NUL, unix(7)
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
_POLL_S = 0.02


class LabDaemon:
    """A running libvirtd of a lab root; a reusable context manager.

    :param root: the root with libvirt and QEMU.
    :param keep_logs: a folder for copies of libvirtd's and QEMU's logs, written whenever the block
        ends; created when missing.
    :param layer: what protects the cached root from writes: an ``overlay``, ``tmpfs`` over the
        folders that libvirt writes to, or the first of the two that the kernel supports.
    :param folder: the parent of the run folder.
    :param hardware: give it this machine's devices, for its guests too; else only /dev/kvm.
    :param lent: folders that it and its guests can read, by their name in ``share``.
    """

    def __init__(
        self,
        root: LabRoot,
        keep_logs: Path | None = None,
        layer: Layer = "auto",
        folder: Path = RUN_FOLDER,
        *,
        hardware: bool = False,
        lent: Mapping[str, Path] | None = None,
    ) -> None:
        self.root = root
        #: The layer in use, once it runs.
        self.layer: str = layer
        self._keep_logs = keep_logs
        self._wanted = layer
        self._folder = folder
        self._options = DaemonOptions(hardware, {k: f"{v}" for k, v in (lent or {}).items()})
        self._run: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def run(self) -> Path:
        """The folder with the daemon's ``run``, ``log`` and ``share``.

        :raise LabError: when the daemon is not running.
        """
        if self._run is None:
            raise LabError("using a lab daemon: it is not running; use it inside its with block")
        return self._run

    @property
    def socket(self) -> Path:
        """The path of libvirtd's socket, on the caller's side."""
        return self.run / _SOCKET

    @property
    def uri(self) -> str:
        """The libvirt URI of its QEMU driver."""
        return f"qemu+unix:///system?socket={self.socket}"

    @property
    def test_uri(self) -> str:
        """The libvirt URI of its test driver: its parser and validation, no hypervisor."""
        return f"test+unix:///default?socket={self.socket}"

    @property
    def share(self) -> Path:
        """A folder for files that both sides use, with the same path on both."""
        return self.run / "share"

    @property
    def log(self) -> Path:
        """The folder with libvirtd's and QEMU's logs, on the caller's side."""
        return self.run / "log"

    @property
    def pid(self) -> int:
        """The process id of ``unshare``, the parent of the namespaces' first process.

        :raise LabError: when the daemon is not running.
        """
        if self._process is None:
            raise LabError("using a lab daemon: it is not running; use it inside its with block")
        return self._process.pid

    def __enter__(self) -> Self:
        if self._process is not None:
            raise LabError("starting a lab daemon: it is already running; create another LabDaemon")
        host_tools.require_root("running the lab's libvirtd (chroot and mounts of its own)")
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def restart(self) -> None:
        """Stop and start libvirtd, as an upgrade of its package does.

        Guests of the QEMU driver keep running; those of the test driver are lost.

        :raise LabError: when it is not running, or does not restart.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise LabError(
                "restarting a lab daemon: it is not running; use it inside its with block"
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(RESTART)
            process.stdin.flush()
        self._answer(process, deadline)
        self._wait_for_socket(process, deadline)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _start(self) -> None:
        tools = host_tools.require_tools(["unshare", "chroot", "mount", "umount"])
        try:
            self._run, lock = _new_run_folder(self._folder)
        except OSError as error:
            raise LabError(f"{_STARTING}: {error.filename}: {error.strerror}") from error
        with lock, (self.log / "inside.err").open("wb") as stderr:
            if len(os.fsencode(self.socket)) > _SOCKET_PATH_LIMIT:
                raise LabError(
                    f"{_STARTING}: the socket's path {self.socket} is longer than "
                    f"{_SOCKET_PATH_LIMIT} bytes; use a shorter run folder such as {RUN_FOLDER}"
                )
            self._process = subprocess.Popen(
                [
                    *(tools["unshare"], "--mount", "--pid", "--fork", "--kill-child"),
                    *(sys.executable, "-P", "-m", "vmm_msi.lab.machine.namespace_init"),
                    *(f"{self.root.path}", f"{self._run}", self._wanted, f"{lock.fileno()}"),
                    json.dumps(self._options._asdict()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=(lock.fileno(),),
                cwd="/",
                env={**os.environ, "PYTHONPATH": f"{Path(vmm_msi.__file__).parents[1]}"},
                # The terminal's Ctrl-C is for the caller, which then stops the daemon.
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        self.layer = self._hear(self._process, deadline)
        self._wait_for_socket(self._process, deadline)

    def _hear(self, process: subprocess.Popen[bytes], deadline: float) -> str:
        """Return the layer that the first process reports after starting the daemons."""
        return str(self._answer(process, deadline)["layer"])

    def _answer(self, process: subprocess.Popen[bytes], deadline: float) -> dict[str, object]:
        """Return the next report of the first process."""
        line = b""
        if process.stdout is not None:
            wait = max(0.0, deadline - time.monotonic())
            if select.select([process.stdout], [], [], wait)[0]:
                line = process.stdout.readline()
        try:
            report: dict[str, object] = json.loads(line)
        except ValueError:
            raise LabError(f"{_STARTING}: {self._last_words()}") from None
        if "error" in report:
            raise LabError(f"{_STARTING}: {report['error']}")
        return report

    def _wait_for_socket(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(os.fspath(self.socket))
                return
            time.sleep(_POLL_S)
        raise LabError(f"{_STARTING}: {self.socket} does not answer: {self._last_words()}")

    def _last_words(self) -> str:
        """Return the last line of the first log that is not empty."""
        for name in ("inside.err", "libvirtd.out", "libvirtd.log"):
            with contextlib.suppress(OSError):
                lines = (self.log / name).read_text("utf-8", "replace").strip().splitlines()
                if lines:
                    return f"{name}: {lines[-1]}"
        return "its logs are empty"

    def _end(self) -> None:
        """Stop all started processes and remove the run folder."""
        process, self._process = self._process, None
        if process is not None:
            _stop(process)
        run, self._run = self._run, None
        if run is None:
            return
        try:
            if self._keep_logs is not None:
                shutil.copytree(run / "log", self._keep_logs, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise LabError(f"copying the lab's logs to {self._keep_logs}: {error}") from error
        finally:
            with _locked(self._folder):
                host_tools.remove_folder(run)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the first process to stop; if it does not, kill it and with it the namespaces."""
    with process:
        try:
            with contextlib.suppress(BrokenPipeError):
                if process.stdin is not None:
                    process.stdin.write(FAREWELL)
                    process.stdin.close()
            process.wait(_STOP_TIMEOUT_S)
        except BaseException as error:
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise


def check_run_folder(folder: Path) -> None:
    """Check that no other user may change the parent of run folders; a missing one is accepted.

    :raise LabError: when another user may.
    """
    instead = f"unset {RUN_FOLDER_VARIABLE}, or set it to another"
    host_tools.check_folder(folder, "using the lab's run folder", instead)


def _new_run_folder(base: Path) -> tuple[Path, BinaryIO]:
    """Create a run folder and return it with its lock, held.

    Folders of daemons that were killed with their first process are removed first.
    """
    base.mkdir(mode=0o711, parents=True, exist_ok=True)
    check_run_folder(base)
    with _locked(base):
        for old in base.iterdir():
            if old.is_dir() and not old.is_symlink():
                _remove_if_dead(old)
        run = Path(tempfile.mkdtemp(prefix="", dir=base))
        for name in ("root", "scratch", "run", "log", "share"):
            (run / name).mkdir()
        lock = host_tools.open_lock(run / _LOCK)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return run, lock


def _remove_if_dead(run: Path) -> None:
    """Remove a run folder whose lock is free."""
    with contextlib.suppress(FileNotFoundError), (run / _LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        host_tools.remove_folder(run)


@contextlib.contextmanager
def _locked(base: Path) -> Iterator[None]:
    """Lock the creation and removal of run folders."""
    with host_tools.open_lock(base / f".{_LOCK}") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
