"""A real guest in the emulated host, ``vmm-msi watch`` beside it, and the kernel's bindings."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import replace

from conftest import unavailable

from vmm_msi.host.msi_bindings import parse_bindings
from vmm_msi.lab.build import images
from vmm_msi.lab.build.cpio import Archive, concatenate
from vmm_msi.lab.build.kernel_flavour import kernel_name
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.guest.host_counter import faults
from vmm_msi.lab.guest.its_log import ItsLog
from vmm_msi.lab.guest.runner import NO_RMR, Runner, RunSpec, shape_for
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.rpc.link import AgentLink

GIOVA, GDB = 0xFFFFF000, 0x8090000
READS = 20
#: A busy machine takes long for a guest in an emulated host.
PATIENCE_S = 180.0
LONG_S = 900.0
#: The initial RAM file system of a guest that starts another kernel.
KEXEC = "initrd-kexec"
#: Linux allocates no further windows for a device that is plugged in, nor waits a minute for a
#: command whose interrupt is lost.
WORDS = "pci=hpiosize=0,hpmmioprefsize=0 nvme_core.admin_timeout=1 nvme_core.io_timeout=1"


class WatchedGuest:
    """A guest with drives that ``direct`` binds.

    :param report: takes lines for the log of the test.
    :param boot: the folder with its boot files.
    """

    def __init__(self, runner, link, report, boot):
        self.runner, self.link, self.report, self.boot = runner, link, report, boot
        self.devices = runner.devices(["nvme", "nvme"])
        self.present = list(self.devices)

    def bindings(self, *commands):
        """Write commands by hand; return the kernel's bindings of each device."""
        reply = self.link.call("msi-bindings", commands=list(commands))
        assert [answer for answer in reply["answers"] if answer] == []
        content = parse_bindings(reply["text"])
        return {device: content.of(device) for device in self.devices}

    def converged(self, giova=GIOVA):
        """Return the seconds until the kernel has the right bindings alone, and uses them."""
        begun = time.monotonic()
        right = {d: [(giova, GDB, True)] if d in self.present else [] for d in self.devices}
        while time.monotonic() - begun < PATIENCE_S:
            bindings = self.bindings()
            if right == {d: [(b.giova, b.gdb, b.used) for b in bindings[d]] for d in bindings}:
                return time.monotonic() - begun
            time.sleep(0.1)
        raise AssertionError(f"the kernel has {bindings}")

    def states(self):
        """Return the state of each binding that the kernel has."""
        return [binding.state for bound in self.bindings().values() for binding in bound]

    def wait_for(self, condition):
        """Wait until a condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.bindings()
            time.sleep(0.1)

    def watch(self):
        """Start the service and wait until it is ready."""
        self.link.call("watch")
        self.wait_for(lambda: '"service-ready"' in self.link.call("watch-log"))

    def stop_watch(self, *, kill=False):
        """Stop the service and return the events of its log."""
        lines = self.link.call("stop-watch", kill=kill).splitlines()
        self.report(lines)
        return [json.loads(line) for line in lines if line.startswith("{")]

    def read(self, count=READS, device=None):
        """Read from a drive, the last one unless given; return what was counted."""
        spec = RunSpec([device or self.present[-1]], "direct", count)
        (run,) = self.runner._exercise(spec.devices, self.runner.look(), spec)
        self.report([str(run)])
        return run.done, sum(run.landed.values()), run.arrived

    def work(self, count=READS):
        """Read from each drive; every interrupt arrives once."""
        for device in self.present:
            assert self.read(count, device) == (count, count, count)

    def command(self, *words):
        """Run a command of vmm-msi for the guest; return its output."""
        verb, *rest = words
        return self.runner.command(verb, *self.runner._guest_words, *rest)

    def status(self):
        """Return the devices of ``vmm-msi status``."""
        return json.loads(self.command("status", "--format", "json"))["devices"]

    def unplug(self):
        self.command("detach", str(self.present[-1]), "--scope", "live")
        self.present.pop()

    def plug(self):
        device = self.devices[len(self.present)]
        self.command("attach", str(device), "--scope", "live", "--strategy", "direct")
        self.present.append(device)
        # Linux waits 5 s for the operator's button (drivers/pci/hotplug/pciehp_ctrl.c).
        self.wait_for(self._has_all_drives)

    def _has_all_drives(self):
        views = self.runner.locate(self.runner.look())
        return [views.get(device, {}).get("driver") for device in self.present] == [
            "nvme" for _ in self.present
        ]

    def faults(self):
        """Return the faults that the host's kernel logged, and those that the guest's logged."""
        host, guest = self.link.call("kernel-log"), self.runner.guest("kernel-log")
        return faults(host), faults(guest)

    def polled(self):
        """Return the guest's messages about drives whose interrupt did not arrive."""
        log = self.runner.guest("kernel-log").splitlines()
        return [line for line in log if "completion polled" in line or "I/O tag" in line]

    def define_with_kernel(self, *, rmr):
        """Define it with a kernel in its initrd, which it keeps: what kexec needs."""
        words = f"{WORDS} retain_initrd"
        if not rmr:
            self.link.call("start", timeout_s=LONG_S)
            self.runner.define_without_rmr(self.devices, "direct", words)
        name = NO_RMR if not rmr else "initrd"
        archive = Archive()
        archive.add_file("Image", (self.boot / "kernel").read_bytes())
        whole = (self.boot / name).read_bytes()
        # The IORT in it has to come first.
        (self.boot / KEXEC).write_bytes(concatenate((whole, archive.encode())))
        if rmr:
            self.link.call("define", initrd=KEXEC, words=words, timeout_s=LONG_S)
            self.runner.attach(self.devices, "direct")
        else:
            xml = self.link.call("definition").replace(f"/{NO_RMR}<", f"/{KEXEC}<")
            self.link.call("redefine", xml=xml, timeout_s=LONG_S)

    def restart(self):
        self.link.call("restart", timeout_s=LONG_S)

    def address(self, device):
        """Return the guest's own address of a device."""
        return self.runner.locate(self.runner.look())[device]["address"]


@contextmanager
def watched_guest(log_path):
    """Yield a guest that is defined and off."""
    kernel = kernel_name("bind")
    if images.find_images(kernel=kernel) is None:
        unavailable("no kernel with guest MSI bindings: run vmm-msi lab build --kernel bind")
    shape = replace(shape_for(["nvme", "nvme"], 1), kernel=kernel)
    with (
        log_path.open("w") as file,
        LabHost(shape) as lab,
        AgentLink(lab.agent_socket) as link,
    ):

        def report(lines):
            file.writelines(f"{line}\n" for line in lines)

        progress = Progress(file, "lab")
        runner = Runner(
            link, ItsLog(lab.its_log), lab.boot_folder, progress, lab.words, lab.board.its_base
        )
        guest = WatchedGuest(runner, link, report, lab.boot_folder)
        runner.prepare()
        link.call("define", words=WORDS, timeout_s=LONG_S)
        runner.attach(guest.devices, "direct")
        yield guest
