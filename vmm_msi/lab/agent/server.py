"""Run the agent: a service in the emulated host that runs requests and returns results.

It reads requests from its virtio-serial port and answers each, in order
(:mod:`vmm_msi.lab.rpc.protocol`). It never stops: an invalid line and a failing request are
answered with an error. ``hello`` closes whatever an earlier client opened.
"""

from __future__ import annotations

import base64
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm_msi.errors import BackendError, RefusedError, VmmMsiError
from vmm_msi.lab.agent import guest_requests, kernel_log
from vmm_msi.lab.rpc import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm_msi.lab.agent.guest_host import GuestHost
    from vmm_msi.lab.agent.msi_bindings import Rebinder
    from vmm_msi.lab.agent.targets import OpenBackend

    #: Reports the progress of long work: done and total.
    Tell = Callable[[int, int], None]

_PORTS = Path("/sys/class/virtio-ports")
_TABLES = Path("/sys/firmware/acpi/tables")
_CHUNK = 1 << 16
# Without a client the port reports a hang-up; poll it again after this time.
_IDLE_S = 0.02
_COMMAND_LIMIT_S = 600
_PROGRAM_LIMIT_S = 3600
_LOG_LIMIT = 1 << 20


class Agent:
    """Answer requests on an open port.

    :param port: the file descriptor.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._lines = protocol.LineReader()
        self._backend: OpenBackend | None = None
        self._host: GuestHost | None = None
        self._rebinder: Rebinder | None = None
        self._verbs: dict[str, Callable[..., Any]] = {
            "hello": self._hello,
            "tables": self._tables,
            "devices": self._devices,
            "open": self._open,
            "call": self._call,
            "close": self._close,
            "conform": self._conform,
            "command": self._command,
            "program": self._program,
            "kernel-log": self._kernel_log,
            "virtual-function": self._virtual_function,
            "msi-table": self._msi_table,
            "misdirect": self._misdirect,
            "msi-bindings": self._msi_bindings,
            "msi-addresses": self._msi_addresses,
            "libvirt": self._libvirt,
            "define": self._define,
            "definition": self._definition,
            "redefine": self._redefine,
            "start": self._start,
            "resume": self._resume,
            "restart": self._restart,
            "stop": self._stop,
            "watch": self._watch,
            "stop-watch": self._stop_watch,
            "guest": self._guest,
            "guest-logs": self._guest_logs,
            "watch-log": self._watch_log,
            "pause-watch": self._pause_watch,
            "resume-watch": self._resume_watch,
            "start-rebinding": self._start_rebinding,
            "stop-rebinding": self._stop_rebinding,
            "start-killer": self._start_killer,
            "killer": self._call_killer,
            "stop-killer": self._stop_killer,
            "power-off": self._power_off,
            **guest_requests.REQUESTS,
        }

    def serve(self) -> None:
        """Answer requests until the machine stops."""
        poll = select.poll()
        poll.register(self._port, select.POLLIN)
        while True:
            ready = poll.poll()
            if any(events & select.POLLIN for _fd, events in ready):
                data = os.read(self._port, _CHUNK)
                if data:
                    for line in self._lines.feed(data):
                        self.answer(line)
                    continue
            time.sleep(_IDLE_S)

    def answer(self, line: bytes | None) -> None:
        """Answer one line; an empty line is ignored."""
        if line == b"":
            return
        request: dict[str, Any] = {}
        try:
            if line is not None:
                request = protocol.decode(line)
            reply = {"ok": self._do(request, too_long=line is None)}
        except BackendError as error:
            reply = _failure("backend", error.reason, errno=error.errno, inside=error.inside)
        except RefusedError as error:
            reply = _failure("refused", str(error))
        except (VmmMsiError, ValueError, TypeError) as error:
            reply = _failure("request", f"{type(error).__name__}: {error}")
        except Exception:  # noqa: BLE001 - any failure: the next request is served
            reply = _failure("bug", traceback.format_exc(limit=-4))
        self._write({"id": request.get("id"), **reply})

    def _do(self, request: dict[str, Any], *, too_long: bool) -> Any:  # noqa: ANN401
        if too_long:
            raise ValueError(f"a line is longer than {protocol.MAX_LINE} bytes")
        verb, given = request.get("do"), request.get("with", {})
        if not isinstance(verb, str) or verb not in self._verbs:
            known = ", ".join(self._verbs)
            raise ValueError(f"{verb!r} is not a request of the agent: {known}")
        if not isinstance(given, dict):
            raise ValueError("'with' is a JSON object")  # noqa: TRY004

        def tell(done: int, total: int) -> None:
            self._write({"id": request.get("id"), "progress": [done, total]})

        return self._verbs[verb](tell, **given)

    def _write(self, message: dict[str, Any]) -> None:
        line = protocol.encode(message)
        if len(line) > protocol.MAX_LINE:
            text = f"the answer has {len(line)} bytes, more than the {protocol.MAX_LINE} of a line"
            line = protocol.encode({"id": message["id"], **_failure("request", text)})
        left = memoryview(line)
        while left:
            left = left[os.write(self._port, left) :]

    def _hello(self, _tell: Tell) -> dict[str, object]:
        """Return version, release and page size; close what an earlier client opened."""
        self._close_target()
        with Path("/proc/uptime").open(encoding="ascii") as uptime:
            seconds = float(uptime.read().split()[0])
        return {
            "version": protocol.VERSION,
            "release": os.uname().release,
            "page_size": os.sysconf("SC_PAGE_SIZE"),
            "uptime_s": seconds,
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
            "python": sys.version.split()[0],
        }

    def _tables(self, _tell: Tell) -> dict[str, str]:
        """Return the ACPI tables, base64."""
        return {
            table.name: base64.b64encode(table.read_bytes()).decode()
            for table in sorted(_TABLES.iterdir())
            if table.is_file()
        }

    def _devices(self, _tell: Tell) -> list[dict[str, object]]:
        """Return the PCI devices that are behind an SMMU."""
        from vmm_msi.host.files.folder import this_machine
        from vmm_msi.host.pci.sysfs import PciDevices

        pci = PciDevices(this_machine())
        devices: list[dict[str, object]] = []
        for address in pci.addresses():
            group, smmu = pci.link(address, "iommu_group"), pci.link(address, "iommu")
            if group is not None and smmu is not None:
                vendor, device = pci.ids(address)
                devices.append(
                    {
                        "address": str(address),
                        "vendor": vendor,
                        "device": device,
                        "group": int(group),
                        "smmu": smmu,
                    }
                )
        return devices

    def _open(self, _tell: Tell, **given: object) -> object:
        """Open a backend; close the previous one."""
        from vmm_msi.lab.agent.targets import OpenBackend

        self._close_target()
        self._backend = OpenBackend.open(given)
        return self._backend.facts()

    def _call(self, _tell: Tell, method: str, arguments: object) -> object:
        """Call a method of the open backend."""
        if self._backend is None:
            raise ValueError("no backend is open; open one first")
        return self._backend.call(method, arguments)

    def _close(self, _tell: Tell) -> None:
        """Close the open backend."""
        self._close_target()

    def _close_target(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def _conform(self, tell: Tell, **given: object) -> object:
        """Run scenarios step by step on the kernel."""
        from vmm_msi.lab.agent.targets import run_sequences

        self._close_target()
        return run_sequences(given, tell)

    def _command(
        self,
        _tell: Tell,
        argv: list[str],
        files: dict[str, str] | None = None,
        fetch: Sequence[str] = (),
    ) -> dict[str, object]:
        """Run ``vmm-msi`` with these arguments, as a user of this host would.

        :param files: text by name, for the folder that the command runs in.
        :param fetch: names of files in that folder to return in base64; a missing one is left out.
        """
        files = files or {}
        if not all(isinstance(word, str) for word in (*argv, *files, *files.values(), *fetch)):
            raise ValueError("argv and fetch are lists of strings, files has strings by name")
        self._close_target()
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                Path(folder, Path(name).name).write_text(text, encoding="utf-8")
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "vmm_msi", *argv],
                    capture_output=True,
                    text=True,
                    errors="replace",
                    check=False,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    timeout=_COMMAND_LIMIT_S,
                )
            except subprocess.TimeoutExpired:
                raise ValueError(
                    f"vmm-msi {' '.join(argv)}: killed after {_COMMAND_LIMIT_S} s"
                ) from None
            paths = {name: Path(folder, Path(name).name) for name in fetch}
            fetched = {
                name: base64.b64encode(path.read_bytes()).decode()
                for name, path in paths.items()
                if path.is_file()
            }
        return {
            "status": done.returncode,
            "stdout": done.stdout,
            "stderr": done.stderr,
            "files": fetched,
        }

    def _program(self, _tell: Tell, name: str, arguments: Sequence[str] = ()) -> dict[str, object]:
        """Run a program that this host was started with; ``status`` is None at the time limit."""
        program = Path("/", protocol.PROGRAMS, Path(name).name)
        if not program.is_file():
            raise ValueError(f"{name} is not a program that this host was started with")
        self._close_target()
        try:
            done = subprocess.run(
                [program, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                stdin=subprocess.DEVNULL,
                timeout=_PROGRAM_LIMIT_S,
            )
            status, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as expired:
            status, output = None, expired.stdout or b""
        return {"status": status, "output": output[-_LOG_LIMIT:].decode("utf-8", "replace")}

    def _kernel_log(self, _tell: Tell) -> str:
        """Return the kernel's log, the end of a long one."""
        return kernel_log.read()

    def _virtual_function(self, _tell: Tell, address: str) -> str:
        """Create a device's first virtual function and return its address."""
        from vmm_msi.iommu.linux.local_pci import folder_of
        from vmm_msi.lab.guest.exercise import switch_on
        from vmm_msi.types import PciAddress

        folder = folder_of(PciAddress.parse(address))
        # A virtual function has no carrier while the physical one is off.
        for interface in (folder / "net").iterdir():
            switch_on(interface.name)
        (folder / "sriov_numvfs").write_text("1", encoding="ascii")
        return (folder / "virtfn0").readlink().name

    def _msi_table(self, _tell: Tell, address: str) -> dict[str, int]:
        """Return where a device's MSI-X table is."""
        from vmm_msi.lab.guest.msi_table import locate_table

        return locate_table(address)

    def _misdirect(self, _tell: Tell, address: str) -> list[str]:
        """Write another page of the SW MSI window into a device's MSIs; return the addresses."""
        from vmm_msi.lab.guest.msi_table import misdirect

        return misdirect(address)

    def _msi_bindings(self, _tell: Tell, commands: list[str]) -> dict[str, object]:
        """Write commands to the kernel's file of guest MSI bindings; return its content, too."""
        from vmm_msi.lab.agent import msi_bindings

        return {"answers": msi_bindings.write(commands), "text": msi_bindings.read()}

    def _msi_addresses(self, _tell: Tell, address: str) -> list[int]:
        """Return the distinct addresses in the enabled MSIs of a device of this machine."""
        from vmm_msi.iommu.linux.msi_table import read_addresses

        folder = Path("/sys/bus/pci/devices", address)
        return sorted({int(programmed) for programmed in read_addresses(folder).values()})

    def _libvirt(self, _tell: Tell) -> dict[str, str]:
        """Start a libvirtd for guests unless one is running."""
        if self._host is None:
            from vmm_msi.lab.agent.guest_host import GuestHost

            self._host = GuestHost()
        return self._host.facts()

    def _running_host(self) -> GuestHost:
        if self._host is None:
            raise ValueError("no libvirtd is running here; request libvirt first")
        return self._host

    def _define(self, _tell: Tell, **given: str) -> None:
        """Define the guest."""
        self._running_host().define(**given)

    def _definition(self, _tell: Tell) -> str:
        """Return the guest's XML."""
        return self._running_host().definition()

    def _redefine(self, _tell: Tell, xml: str) -> None:
        """Replace the guest's definition."""
        self._running_host().redefine(xml)

    def _start(self, _tell: Tell, **given: Any) -> dict[str, object] | None:  # noqa: ANN401
        """Start the guest."""
        return self._running_host().start(**given)

    def _resume(self, _tell: Tell) -> dict[str, object]:
        """Resume the guest, which was started paused."""
        return self._running_host().resume()

    def _restart(self, _tell: Tell, how: str = "restart-self") -> dict[str, object]:
        """Restart the guest."""
        return self._running_host().restart(how)

    def _stop(self, _tell: Tell) -> None:
        """Stop the guest."""
        self._running_host().stop()

    def _watch(self, _tell: Tell) -> None:
        """Start ``vmm-msi watch`` on the guest's libvirtd."""
        self._running_host().start_watch()

    def _stop_watch(self, _tell: Tell, **given: bool) -> str:
        """Stop ``vmm-msi watch`` and return its log since it was started."""
        return self._running_host().stop_watch(**given)

    def _guest(self, tell: Tell, do: str, arguments: dict[str, object], wait_s: float) -> object:
        """Forward a request to the guest's agent."""
        return self._running_host().ask(do, arguments, wait_s, tell)

    def _pause_watch(self, _tell: Tell) -> None:
        """Stop the service for now."""
        self._running_host().signal_watch(signal.SIGSTOP)

    def _resume_watch(self, _tell: Tell) -> None:
        """Let the service go on."""
        self._running_host().signal_watch(signal.SIGCONT)

    def _start_rebinding(self, _tell: Tell, rounds: list[list[str]], per_second: int) -> None:
        """Write commands to the kernel's file of bindings again and again."""
        from vmm_msi.lab.agent.msi_bindings import Rebinder

        self._rebinder = Rebinder(rounds, per_second)

    def _stop_rebinding(self, _tell: Tell) -> int:
        """Stop writing; return the number of rounds."""
        if self._rebinder is None:
            raise ValueError("nothing is rebound; request start-rebinding first")
        rebinder, self._rebinder = self._rebinder, None
        return rebinder.stop()

    def _start_killer(self, _tell: Tell, **given: Any) -> None:  # noqa: ANN401
        """Start the process that kills the service again and again."""
        self._running_host().start_killer(**given)

    def _call_killer(self, _tell: Tell, what: str, minimum: int = 0) -> object:
        """Forward a request to that process."""
        return self._running_host().killer().call(what, minimum=minimum)

    def _stop_killer(self, _tell: Tell) -> None:
        """Stop that process and its service."""
        self._running_host().stop_killer()

    def _watch_log(self, _tell: Tell) -> str:
        """Return the log of the service."""
        return self._running_host().watch_log()

    def _guest_logs(self, _tell: Tell) -> dict[str, str]:
        """Return the logs of guest, QEMU and libvirtd."""
        return self._running_host().logs()

    def _power_off(self, _tell: Tell) -> None:
        """Switch the emulated host off; it has no data to write back."""
        subprocess.run(["busybox", "poweroff", "-f"], check=True)  # noqa: S607


def _failure(kind: str, text: str, **more: object) -> dict[str, Any]:
    return {"error": {"kind": kind, "text": text, **more}}


def find_port() -> Path:
    """Return the device node of the agent's port.

    :raise FileNotFoundError: when the machine has none.
    """
    for port in _PORTS.iterdir():
        if (port / "name").read_text(encoding="ascii").strip() == protocol.PORT:
            return Path("/dev", port.name)
    raise FileNotFoundError(f"no virtio-serial port named {protocol.PORT}")


def main() -> None:
    """Serve until the machine is switched off."""
    port = os.open(find_port(), os.O_RDWR | os.O_CLOEXEC)
    Agent(port).serve()


if __name__ == "__main__":
    main()
