"""Run a libvirtd in the emulated host, with a guest, and forward requests to its agent.

The guest boots the same kernel and user land as the host, so the same agent runs in it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi import libvirt_driver
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import LabError
from vmm_msi.lab.agent import msi_bindings
from vmm_msi.lab.agent.watch_killer import WatchKiller
from vmm_msi.lab.build.root import read_root
from vmm_msi.lab.machine.daemon import LabDaemon
from vmm_msi.lab.machine.host_xml import BOOT_TAG, ROOT_TAG, HostFiles, fill_start
from vmm_msi.lab.machine.namespace_init import mount
from vmm_msi.lab.rpc.link import AgentLink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

TEMPLATE = "lab-guest.xml"
NAME = "lab-guest"

_FOLDER = Path("/run/host")
# 9p(5): the folder does not change; with the default message size reading takes five times as long.
_OPTIONS = "trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000"
_BOOT_TIMEOUT_S = 240.0
_LOG = "/var/log/libvirt/guest.log"  # as libvirtd sees it
_LOG_LIMIT = 1 << 18
_WATCH_LOG = Path("/run/vmm-msi-watch.log")
_ASK_EVERY_S = 0.5


class GuestHost:
    """A libvirtd in the emulated host, with one guest."""

    def __init__(self) -> None:
        msi_bindings.mount_debugfs()
        with ExitStack() as stack:
            for tag in (ROOT_TAG, BOOT_TAG):
                folder = _FOLDER / tag
                folder.mkdir(parents=True, exist_ok=True)
                if not any(folder.iterdir()):
                    mount(tag, folder, "9p", _OPTIONS)
            root = read_root(_FOLDER / ROOT_TAG)
            if root is None:
                raise LabError(f"starting libvirt: {_FOLDER / ROOT_TAG} is not a root of the lab")
            self._root = root
            self._defined = False
            lent = {BOOT_TAG: _FOLDER / BOOT_TAG}
            self._daemon = stack.enter_context(LabDaemon(root, hardware=True, lent=lent))
            self._connection = stack.enter_context(libvirt_driver.connect(self._daemon.uri))
            self._stack = stack.pop_all()
        self._watch: subprocess.Popen[bytes] | None = None
        self._killer: WatchKiller | None = None

    def signal_watch(self, number: int) -> None:
        """Send a signal to the service.

        :raise LabError: when it was not started.
        """
        if self._watch is None:
            raise LabError("vmm-msi watch does not run; start it first")
        self._watch.send_signal(number)

    @staticmethod
    def watch_log() -> str:
        """Return the log of the service, the end of a long one; empty if it was not started."""
        if not _WATCH_LOG.exists():
            return ""
        return _WATCH_LOG.read_text("utf-8", "replace")[-_LOG_LIMIT:]

    def facts(self) -> dict[str, str]:
        """Return the guest's name, its libvirtd's URI, and the releases."""
        return {
            "uri": self._daemon.uri,
            "libvirt": self._root.libvirt,
            "qemu": self._root.qemu,
            "linux": os.uname().release,
            "guest": NAME,
        }

    def define(self, initrd: str = "initrd", words: str = "") -> None:
        """Define the guest, without devices of the host.

        :param initrd: file name of its initial RAM file system.
        :param words: additions to its kernel's command line.
        """
        text = resources.files("vmm_msi.templates").joinpath(TEMPLATE).read_bytes()
        xml = DomainXml.parse(text, TEMPLATE)
        share = self._daemon.share
        files = HostFiles(
            kernel=share / BOOT_TAG / "kernel",
            initrd=share / BOOT_TAG / initrd,
            agent=self._agent,
            console=share / "console",
            serial_log=Path(_LOG),
        )
        fill_start(xml, files)
        for line in xml.root.iterfind("os/cmdline"):
            line.text = f"{line.text} {words}".strip()
        if self._defined:
            self._connection.undefine(NAME)
        self._connection.define(xml)
        self._defined = True

    def redefine(self, xml: str) -> None:
        """Replace the definition of the guest, which is off."""
        self._connection.define(DomainXml.parse(xml, "the guest's new definition"))

    def definition(self) -> str:
        """Return the XML of the running guest, or of the definition if it is off."""
        running = self._connection.is_active(NAME)
        return str(self._connection.domain_xml(NAME, inactive=not running))

    @property
    def _agent(self) -> Path:
        return self._daemon.share / "agent"

    def start(
        self, bindings: Sequence[str] = (), *, paused: bool = False
    ) -> dict[str, object] | None:
        """Start the guest, wait for its agent and return the agent's first answer.

        :param bindings: commands for the kernel's file of guest MSI bindings, written while the
            guest's firmware runs.
        :param paused: leave it before its first instruction; return None.
        :raise LabError: when it stops or exceeds the time limit, with its last output; when the
            kernel refuses a command.
        """
        begun = time.monotonic()
        self._connection.start(NAME, paused=paused)
        for command, errno in zip(bindings, msi_bindings.write(bindings), strict=True):
            if errno:
                raise LabError(f"starting the guest: {command!r} in the emulated host: {errno}")
        if paused:
            return None
        on = time.monotonic()
        hello = self.wait()
        return {**hello, "start_s": on - begun, "boot_s": time.monotonic() - on}

    def resume(self) -> dict[str, object]:
        """Resume the guest that was started paused; wait for its agent and return its answer."""
        self._connection.resume(NAME)
        return self.wait()

    def restart(self, how: str = "restart-self") -> dict[str, Any]:
        """Restart the guest from inside; return its agent's first answer afterwards.

        :param how: the request to its agent.
        """
        before = self.wait()
        with AgentLink(self._agent) as link, suppress(LabError):
            link.call(how, timeout_s=_ASK_EVERY_S)
        while True:
            after = self.wait()
            if after["boot"] != before["boot"]:
                return after
            time.sleep(_ASK_EVERY_S)

    def wait(self) -> dict[str, Any]:
        """Wait for the guest's agent and return its first answer."""
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while True:
            try:
                with AgentLink(self._agent, wait_s=_ASK_EVERY_S) as link:
                    hello: dict[str, Any] = link.call("hello", timeout_s=_ASK_EVERY_S)
                    return hello
            except LabError:
                if not self._connection.is_active(NAME):
                    raise LabError(
                        f"starting the guest: it stopped: {self._last_lines()}"
                    ) from None
                if time.monotonic() > deadline:
                    raise LabError(
                        f"starting the guest: its agent does not answer after "
                        f"{_BOOT_TIMEOUT_S:.0f} s: {self._last_lines()}"
                    ) from None
                time.sleep(_ASK_EVERY_S / 5)

    def ask(
        self,
        do: str,
        arguments: Mapping[str, object],
        timeout_s: float,
        tell: Callable[[int, int], None],
    ) -> object:
        """Send a request to the guest's agent and return the answer.

        :raise VmmMsiError: the error in the answer.
        """
        with AgentLink(self._agent) as link:
            return link.call(do, timeout_s=timeout_s, on_progress=tell, **arguments)

    def stop(self) -> None:
        """Stop the guest."""
        self._connection.destroy(NAME)

    def start_watch(self) -> None:
        """Start ``vmm-msi watch`` on this libvirtd.

        :raise ValueError: when it runs already.
        """
        if self._watch is not None:
            raise ValueError("vmm-msi watch runs already; request stop-watch first")
        command = [sys.executable, "-m", "vmm_msi", "watch", "-c", self._daemon.uri]
        with _WATCH_LOG.open("wb") as log:
            self._watch = subprocess.Popen(
                [*command, "--format", "json"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )

    def stop_watch(self, *, kill: bool = False) -> str:
        """Stop ``vmm-msi watch`` and return its log.

        :param kill: without a chance to clean up.
        """
        if self._watch is not None:
            if kill:
                self._watch.kill()
            else:
                self._watch.terminate()
                # A paused process does not see the signal.
                self._watch.send_signal(signal.SIGCONT)
            self._watch.wait()
            self._watch = None
        return _WATCH_LOG.read_text("utf-8", "replace")[-_LOG_LIMIT:]

    def start_killer(self, seed: int, giova: int, gdb: int) -> None:
        """Start the process that kills ``vmm-msi watch`` again and again.

        :param seed: of the moments.
        :param giova: with ``gdb`` the binding that each bound device is to have.
        :raise ValueError: when a service or a killer runs already.
        """
        if self._watch is not None or self._killer is not None:
            raise ValueError("vmm-msi watch runs already; stop it first")
        self._killer = WatchKiller(self._daemon.uri, seed, (giova, gdb), _WATCH_LOG)

    def killer(self) -> WatchKiller:
        """Return that process.

        :raise ValueError: when it was not started.
        """
        if self._killer is None:
            raise ValueError("nothing kills vmm-msi watch; request start-killer first")
        return self._killer

    def stop_killer(self) -> None:
        """Stop that process and its service."""
        killer, self._killer = self.killer(), None
        killer.stop()

    def logs(self) -> dict[str, str]:
        """Return the logs of the guest's console, QEMU and libvirtd, the end of long ones."""
        texts = {}
        for path in sorted(self._daemon.log.rglob("*")):
            if path.is_file():
                texts[f"{path.relative_to(self._daemon.log)}"] = path.read_text("utf-8", "replace")
        return {name: text[-_LOG_LIMIT:] for name, text in texts.items()}

    def _last_lines(self) -> str:
        texts = self.logs()
        for name in ("guest.log", f"qemu/{NAME}.log"):
            lines = [line.strip() for line in texts.get(name, "").splitlines() if line.strip()]
            if lines:
                return f"{name}: {' | '.join(lines[-3:])}"
        return "no output"

    def close(self) -> None:
        """Stop libvirtd and the guest, and ``vmm-msi watch``."""
        if self._watch is not None:
            self.stop_watch(kill=True)
        if self._killer is not None:
            self.stop_killer()
        self._stack.close()
