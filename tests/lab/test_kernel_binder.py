"""``vmm-msi watch`` on a kernel with guest MSI bindings: a real guest, and a killed service."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from conftest import unavailable

from vmm_msi.host.msi_bindings import parse_bindings
from vmm_msi.lab.build import images
from vmm_msi.lab.build.kernel_flavour import kernel_name
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.guest.its_log import ItsLog
from vmm_msi.lab.guest.runner import Runner, RunSpec, shape_for
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.rpc.link import AgentLink
from vmm_msi.types import Iova

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(1800)]

GIOVA, GDB = 0xFFFFF000, 0x8090000
READS = 20
#: A busy machine takes long for a guest in an emulated host.
PATIENCE_S = 120.0


class Service:
    """A guest with one drive, ``vmm-msi watch`` beside it, and the kernel's bindings."""

    def __init__(self, runner, link, progress):
        self.runner, self.link, self.progress = runner, link, progress
        (self.device,) = runner.devices(["nvme"])

    def bindings(self, *commands):
        """Write commands by hand; return the kernel's bindings of the device."""
        reply = self.link.call("msi-bindings", commands=list(commands))
        assert [answer for answer in reply["answers"] if answer] == []
        return parse_bindings(reply["text"]).of(self.device)

    def converged(self):
        """Return the seconds until the kernel has the right binding alone, and uses it."""
        begun = time.monotonic()
        while time.monotonic() - begun < PATIENCE_S:
            bindings = self.bindings()
            if [(b.giova, b.gdb, b.used) for b in bindings] == [(GIOVA, GDB, True)]:
                return time.monotonic() - begun
            time.sleep(0.2)
        raise AssertionError(f"the kernel has {[*map(str, bindings)]}")

    def stop(self, *, kill=False):
        """Stop the service and return the events of its log."""
        lines = self.link.call("stop-watch", kill=kill).splitlines()
        self.progress(lines)
        return [json.loads(line) for line in lines if line.startswith("{")]

    def work(self):
        """Read from the drive; every interrupt arrives."""
        spec = RunSpec([self.device], "direct", READS)
        (run,) = self.runner._exercise([self.device], self.runner.look(), spec)
        self.progress([str(run)])
        landed = sum(run.landed.values())
        assert (run.done, landed, run.arrived) == (READS, READS, READS)

    def status(self):
        words = ["status", *self.runner._guest_words, "--format", "json"]
        document = json.loads(self.runner.command(*words))
        (device,) = document["devices"]
        return device


@pytest.fixture
def service(lab_root, tmp_path):
    """The service beside a guest whose drive is bound by ``direct``."""
    kernel = kernel_name("bind")
    if images.find_images(kernel=kernel) is None:
        unavailable("no kernel with guest MSI bindings: run vmm-msi lab build --kernel bind")
    log = tmp_path / "log.txt"

    def report(lines):
        file.writelines(f"{line}\n" for line in lines)

    shape = replace(shape_for(["nvme"], 1), kernel=kernel)
    with (
        log.open("w") as file,
        LabHost(shape) as lab,
        AgentLink(lab.agent_socket) as link,
    ):
        progress = Progress(file, "lab")
        runner = Runner(
            link, ItsLog(lab.its_log), lab.boot_folder, progress, lab.words, lab.board.its_base
        )
        service = Service(runner, link, report)
        runner.prepare()
        runner.attach([service.device], "direct")
        link.call("watch")
        runner.start()
        yield service


def test_a_guest_is_followed_and_a_wrong_binding_is_repaired(service):
    service.converged()
    service.work()
    device = service.status()
    assert device["backend"] == "kernel"
    assert device["kernel_bindings"] == [
        {
            "giova": hex(GIOVA),
            "gdb": hex(GDB),
            "page_shift": 12,
            "hdb_page": hex(GDB),
            "state": "used",
        }
    ]
    assert device["measured"]["programmed_iovas"] == [str(Iova(GIOVA + 0x40))]
    # Withdrawn in use, another gIOVA, another gDB.
    name = service.device
    for command in (
        f"unbind {name} {GIOVA:#x}",
        f"bind {name} 0xffff0000 {GDB:#x} 12",
        f"bind {name} {GIOVA:#x} 0x8091000 12",
    ):
        service.bindings(command)
        service.converged()
    events = [(e["event"], e.get("source")) for e in service.stop() if e.get("device")]
    assert events == [
        ("bound", None),
        ("kernel-bound", "predicted"),
        ("kernel-bound", "guest"),
        ("giova-corrected", "guest"),
        ("kernel-bound", "guest"),
    ]
    # Killed while the binding is wrong: the next process repairs it.
    for moment_s in (0.5, 3.0, 6.0):
        service.link.call("watch")
        time.sleep(moment_s)
        service.bindings(f"bind {name} 0xffff0000 {GDB:#x} 12")
        service.stop(kill=True)
    service.link.call("watch")
    service.converged()
    service.work()
    service.link.call("restart", timeout_s=600)
    service.converged()
    service.work()
    service.stop()
