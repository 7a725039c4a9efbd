"""Run the emulated Arm host, a libvirt domain with a real kernel, within a ``with`` block.

::

    with LabHost(Shape()) as lab, AgentLink(lab.agent_socket) as link:
        link.call("hello")

The host's files are in the run folder of its own :class:`LabDaemon`, and QEMU is in that daemon's
namespace: both end with the daemon. The host keeps no state between starts, so stopping the daemon
stops it; asking libvirt first would only add 0.2 s of waiting for QEMU.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar

from vmm_msi import libvirt_driver
from vmm_msi.errors import HypervisorError, LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.cache import default_cache
from vmm_msi.lab.build.cpio import Archive, concatenate
from vmm_msi.lab.build.package_layer import package_layer
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.build.root import ensure_root
from vmm_msi.lab.machine.board import ensure_board
from vmm_msi.lab.machine.daemon import LabDaemon
from vmm_msi.lab.machine.host_xml import BOOT_TAG, NAME, ROOT_TAG, HostFiles, host_xml
from vmm_msi.lab.machine.parts import EMULATOR_TAG, Parts, ensure_parts
from vmm_msi.lab.machine.running import RunningLab, run_folder, running
from vmm_msi.lab.rpc.link import AgentLink
from vmm_msi.lab.rpc.protocol import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from vmm_msi.lab.machine.board import Board
    from vmm_msi.lab.machine.shape import Shape

__all__ = ["LabHost", "RunningLab", "lab_for", "logs_folder", "running"]

#: Time limit from start until the agent answers; a busy machine emulates slowly.
BOOT_TIMEOUT_S = 300.0

_SERIAL_LOG = "serial.log"
_ITS_LOG = "its.log"
#: Number of failed hosts whose logs are kept.
_LOGS_KEPT = 10
#: Matches the names of logs_folder.
_LOGS = "[0-9]*T[0-9]*Z"

_STARTING = "starting the emulated host"
# Placeholders for paths in the key of a board's cache entry, which must not depend on them.
_ANYWHERE = HostFiles(
    kernel=Path("/kernel"),
    initrd=Path("/initrd"),
    agent=Path("/agent"),
    console=Path("/console"),
    serial_log=Path("/log"),
    emulator=Path("/emulator"),
)
_ASK_EVERY_S = 0.25
_POLL_S = 0.02
_LAST_LINES = 3
# Linux prints this before it stops, kernel/panic.c; a trace and registers follow.
_PANIC = "Kernel panic - not syncing"

#: Bytes of a drive behind an NVMe controller.
_DRIVE_SIZE = 64 << 20

T = TypeVar("T")


class _MoreFiles(TypedDict, total=False):
    emulator: Path
    folders: Mapping[str, Path]
    drives: Sequence[Path]
    its_log: Path


class LabHost:
    """A running emulated host; a context manager.

    :param shape: its SMMUs and devices.
    :param suite: the Debian suite of libvirt, QEMU, kernel and user land.
    :param cache: the folder of the cache; this user's when ``None``.
    :param progress: progress output; silent when ``None``.
    :param keep_logs: a folder for copies of the logs of the serial console, QEMU and libvirtd,
        written whenever the block ends.
    :param crash_logs: the same, only when the host did not start or stopped by itself.
    :param canwbs: override the IORT with one that sets CANWBS (:mod:`vmm_msi.lab.machine.board`);
        with QEMU's own the kernel offers no vIOMMU.
    :param programs: static Arm programs by name, for the agent's request ``program``.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        suite: str = DEFAULT_SUITE,
        cache: Path | None = None,
        progress: Progress | None = None,
        keep_logs: Path | None = None,
        crash_logs: Path | None = None,
        canwbs: bool = True,
        programs: Mapping[str, bytes] | None = None,
    ) -> None:
        self.shape = shape.with_defaults()
        #: Duration of each part of the start, in seconds.
        self.timings: dict[str, float] = {}
        #: The agent's first answer: its kernel's release and page size.
        self.hello: dict[str, Any] = {}
        self._suite = suite
        self._cache = cache
        self._progress = progress or Progress(None)
        self._keep_logs = keep_logs
        self._crash_logs = crash_logs
        self._canwbs = canwbs
        self._programs = programs or {}
        self._stack = ExitStack()
        self._daemon: LabDaemon | None = None
        self._connection: libvirt_driver.Connection | None = None
        self._board: Board | None = None
        self._layer: Path | None = None

    @property
    def agent_socket(self) -> Path:
        """The socket for :class:`vmm_msi.lab.rpc.link.AgentLink`."""
        return self.daemon.share / "agent"

    @property
    def console_socket(self) -> Path:
        """The socket of the serial console; it serves one client at a time."""
        return self.daemon.share / "console"

    @property
    def serial_log(self) -> Path:
        """The log of the serial console."""
        return self.daemon.log / _SERIAL_LOG

    @property
    def its_log(self) -> Path:
        """The log of MSIs at the ITS of a host with guests (:mod:`vmm_msi.lab.guest.its_log`)."""
        return self.daemon.log / _ITS_LOG

    @property
    def boot_folder(self) -> Path:
        """The folder with its guests' boot files."""
        return self.daemon.share / BOOT_TAG

    @property
    def board(self) -> Board:
        """The tables of its board, and the topology they describe."""
        return _running(self._board)

    @property
    def layer(self) -> Path:
        """The archive with its agent's package."""
        return _running(self._layer)

    @property
    def daemon(self) -> LabDaemon:
        """The libvirtd that runs it."""
        return _running(self._daemon)

    def words(self, address: int, count: int) -> list[int]:
        """Return words of 32 bits of its physical memory, which includes devices.

        QEMU reads them (``hmp-commands.hx`` xp).

        :raise HypervisorError: when QEMU refuses.
        """
        command = {"command-line": f"xp /{count}wx {address:#x}"}
        text = _running(self._connection).monitor(NAME, "human-monitor-command", command)
        lines = str(text).splitlines()
        return [int(word, 16) for line in lines for word in line.partition(":")[2].split()]

    @property
    def boot_s(self) -> float:
        """Seconds from its start until its agent answered."""
        return self.timings["firmware"] + self.timings["kernel"]

    def __enter__(self) -> Self:
        parts = ensure_parts(self.shape, self._suite, self._cache, self._progress)
        with ExitStack() as stack:
            stack.callback(self._forget)
            begun = time.monotonic()
            self._layer = parts.layer
            self._daemon = stack.enter_context(
                LabDaemon(parts.root, self._keep_logs, folder=run_folder(), lent=parts.lent)
            )
            stack.push(self._on_error)
            self.timings["daemon"] = time.monotonic() - begun
            self._connection = stack.enter_context(libvirt_driver.connect(self._daemon.uri))
            self._boot(self._connection, self._daemon, parts)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def check(self) -> None:
        """Check that it runs.

        :raise LabError: when it stopped; the message has its last output.
        """
        try:
            alive = _running(self._connection).is_active(NAME)
        except HypervisorError as error:
            raise LabError(f"running the emulated host: {error}") from error
        if not alive:
            raise LabError(f"running the emulated host: it stopped by itself: {self.last_words()}")

    def last_words(self) -> str:
        """Return the last lines of the serial console, or of QEMU's log if there are none."""
        for path in (self.serial_log, self.daemon.log / "qemu" / f"{NAME}.log"):
            with contextlib.suppress(OSError):
                lines = path.read_text("utf-8", "replace").split("\n")
                printed = [" ".join(line.split()) for line in lines if line.strip()]
                if printed:
                    last = [line for line in printed if _PANIC in line] or printed[-_LAST_LINES:]
                    return f"{path.name}: {' | '.join(last)}"
        return "no output"

    def _boot(self, connection: libvirt_driver.Connection, daemon: LabDaemon, parts: Parts) -> None:
        """Start the host with its corrected tables."""
        files = HostFiles(
            kernel=daemon.share / "kernel",
            initrd=daemon.share / "initrd",
            agent=self.agent_socket,
            console=self.console_socket,
            # libvirtd has another path for its log folder.
            serial_log=Path("/var/log/libvirt", _SERIAL_LOG),
            **self._more_files(daemon.share, parts),
        )
        try:
            shutil.copyfile(parts.images.kernel, files.kernel)
            self._lay_out(files, parts)
        except OSError as error:
            raise _cannot_start(error, files.kernel) from error

        def capture() -> dict[str, object]:
            self._progress.stage("reading the tables of a new board in a first start")
            self._start(connection, parts, files, b"")
            with AgentLink(self.agent_socket) as link:
                tables: dict[str, object] = link.call("tables")
            connection.destroy(NAME)
            connection.undefine(NAME)
            return tables

        self._board = ensure_board(
            # QEMU's tables have one ITS, whatever their number.
            host_xml(replace(self.shape, itses=min(self.shape.its_count, 2)), _ANYWHERE),
            parts.root,
            self.shape,
            capture,
            self._cache,
            emulator=None if parts.emulator is None else parts.emulator.version,
            canwbs=self._canwbs,
        )
        self._progress.stage(f"{_STARTING}: {self.shape}")
        self._start(connection, parts, files, self._board.override)
        self._progress.clear()

    def _more_files(self, share: Path, parts: Parts) -> _MoreFiles:
        """Return the additional files of a host with guests or several ITSes."""
        files: _MoreFiles = {}
        if parts.emulator is not None:
            files["emulator"] = share / EMULATOR_TAG / parts.emulator.path.name
        if self.shape.guests:
            files["folders"] = {ROOT_TAG: share / ROOT_TAG, BOOT_TAG: share / BOOT_TAG}
            files["drives"] = [share / f"drive{number}" for number in range(self.shape.nvmes)]
            files["its_log"] = Path("/var/log/libvirt", _ITS_LOG)
        return files

    @staticmethod
    def _lay_out(files: HostFiles, parts: Parts) -> None:
        """Write the guests' boot files and empty drives.

        :raise OSError: when the disk is full.
        """
        for drive in files.drives:
            with drive.open("wb") as file:
                file.truncate(_DRIVE_SIZE)
        boot = files.folders.get(BOOT_TAG)
        if boot is not None and parts.guest_kernel is not None:
            boot.mkdir()
            shutil.copyfile(parts.guest_kernel, boot / files.kernel.name)
            archives = (parts.images.initrd.read_bytes(), parts.layer.read_bytes())
            (boot / files.initrd.name).write_bytes(concatenate(archives))

    def _start(
        self,
        connection: libvirt_driver.Connection,
        parts: Parts,
        files: HostFiles,
        override: bytes,
    ) -> None:
        """Start the host and wait for its agent.

        :param override: an archive with tables, or empty.
        """
        programs = Archive()
        for name, content in self._programs.items():
            programs.add_file(f"{PROGRAMS}/{name}", content, 0o755)
        try:
            archives = [override, parts.images.initrd.read_bytes(), parts.layer.read_bytes()]
            files.initrd.write_bytes(concatenate([*archives, programs.encode()]))
        except OSError as error:
            raise _cannot_start(error, files.initrd) from error
        begun = time.monotonic()
        connection.define(host_xml(self.shape, files))
        connection.start(NAME)
        on = time.monotonic()
        self.hello = self._await_agent()
        up = time.monotonic() - on
        kernel = min(up, float(self.hello["uptime_s"]))
        self.timings |= {"libvirt": on - begun, "firmware": up - kernel, "kernel": kernel}

    def _await_agent(self) -> dict[str, Any]:
        """Return the agent's first answer.

        :raise LabError: when the host stops, or exceeds the time limit.
        """
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        with AgentLink(self.agent_socket) as link:
            while True:
                try:
                    hello: dict[str, Any] = link.call("hello", timeout_s=_ASK_EVERY_S)
                except LabError:
                    self.check()
                    if time.monotonic() > deadline:
                        raise LabError(
                            f"{_STARTING}: its agent does not answer after {BOOT_TIMEOUT_S:.0f} s: "
                            f"{self.last_words()}"
                        ) from None
                    self._progress.step(self.last_words())
                    time.sleep(_POLL_S)
                else:
                    return hello

    def _on_error(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Keep the logs of a failed host.

        :raise LabError: the failure, with the path of the logs.
        """
        if self._crash_logs is None or not isinstance(error, (LabError, HypervisorError)):
            return
        if keep_logs(self.daemon.log, self._crash_logs):
            raise LabError(f"{error}; its logs are in {self._crash_logs}") from error

    def _forget(self) -> None:
        self._daemon = self._connection = self._board = self._layer = None


def keep_logs(logs: Path, place: Path) -> bool:
    """Copy a host's logs to a folder of :func:`logs_folder` and remove the oldest ones.

    Failing to copy is not an error: the host's own failure matters more.

    :return: whether the logs were copied.
    """
    with contextlib.suppress(OSError, shutil.Error, LabError):
        shutil.copytree(logs, place, dirs_exist_ok=True)
        for old in sorted(place.parent.glob(_LOGS))[:-_LOGS_KEPT]:
            host_tools.remove_folder(old)
        return True
    return False


def logs_folder(cache: Path | None = None) -> Path:
    """Return the path of a new cache folder for the logs of a host that fails now."""
    now = dt.datetime.now(dt.UTC)
    return (cache or default_cache()).absolute() / "lab-logs" / f"{now:%Y%m%dT%H%M%S.%fZ}"


@contextlib.contextmanager
def lab_for(
    shape: Shape,
    *,
    suite: str = DEFAULT_SUITE,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[RunningLab | LabHost]:
    """Yield an emulated host for a command: the running one if it fits, else a new one.

    :param shape: what the command needs; a host with more fits too.
    :param progress: progress output; standard error when ``None``.
    :raise LabError: when it cannot be started.
    """
    progress = progress or Progress(sys.stderr)
    current = running()
    if current is not None:
        why = _unfit(current, shape, suite, cache)
        if why is None:
            progress.stage(f"using the running lab: {current.shape}")
            yield current
            return
        progress.stage(f"the running lab {why}: starting another one for this command")
    host = LabHost(
        shape, suite=suite, cache=cache, progress=progress, crash_logs=logs_folder(cache)
    )
    with host as lab:
        yield lab


def _unfit(lab: RunningLab, shape: Shape, suite: str, cache: Path | None) -> str | None:
    """Return why the running host does not fit, None if it fits."""
    if lab.suite != suite:
        return f"is from {lab.suite}, not from {suite}"
    if not lab.shape.covers(shape):
        return f"has {lab.shape}; required: {shape}"
    if lab.layer != package_layer(ensure_root(suite, cache), cache):
        return "has another version of vmm-msi"
    return None


def _cannot_start(error: OSError, path: Path) -> LabError:
    return LabError(f"{_STARTING}: {error.filename or path}: {error.strerror}")


def _running(part: T | None) -> T:
    """Return a part that exists only while the host runs."""
    if part is None:
        raise LabError("using the emulated host: it is not running; use it inside its with block")
    return part
