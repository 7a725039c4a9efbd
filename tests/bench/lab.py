"""Time a batch on the emulated host and the bare boot of the same kernel: ``make lab-speed``.

The batch is the whole of ``vmm-msi lab conform``: starting libvirtd and the emulated host, the
work, and stopping both. Its peer is the work plus a bare boot: QEMU with the same machine,
firmware, kernel and user land, which powers off as soon as user space is reached.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.command import contained
from vmm_msi.lab.build.cpio import concatenate
from vmm_msi.lab.build.images import ensure_images
from vmm_msi.lab.build.package_layer import package_layer
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.build.root import ensure_root

RUNS = 3
FIRMWARE = "/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd"


def bare_boots() -> list[float]:
    """Return the seconds of several bare boots with power-off."""
    root, images = ensure_root(), ensure_images(progress=Progress(sys.stderr, "lab build"))
    qemu = [
        *("/usr/bin/qemu-system-aarch64", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-M", "virt,gic-version=3,its=on", "-cpu", "max", "-smp", "2", "-m", "1024"),
        *("-global", "arm-smmuv3.stage=nested"),
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}"),
        *("-kernel", "/mnt/Image", "-initrd", "/mnt/initrd", "-serial", "file:/dev/null"),
        *("-append", "console=ttyAMA0 rdinit=/init loglevel=6 vmm_msi.bare"),
    ]
    for number in (1, 2):
        bus = f"pxb{number}"
        qemu += ["-device", f"pxb-pcie,id={bus},bus_nr={16 * number},bus=pcie.0"]
        qemu += ["-device", f"arm-smmuv3,primary-bus={bus},id=smmu{number}"]
        for slot in range(2):
            port = f"port{number}{slot}"
            qemu += [
                "-device",
                f"pcie-root-port,id={port},bus={bus},addr={slot},chassis={number * 8 + slot}",
            ]
            qemu += ["-device", f"edu,bus={port}"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Image").write_bytes(images.kernel.read_bytes())
        layer = package_layer(root)
        Path(folder, "initrd").write_bytes(
            concatenate((images.initrd.read_bytes(), layer.read_bytes()))
        )
        tools = host_tools.require_tools(["chroot", "mount"])
        inside = [
            *contained(f"--mount-proc={root.path}/proc"),
            *(sys.executable, "-c", _ENTER, tools["mount"], folder, str(root.path)),
            *qemu,
        ]
        seconds = []
        for _ in range(RUNS):
            start = time.monotonic()
            subprocess.run(inside, check=True, stdin=subprocess.DEVNULL, timeout=120)
            seconds.append(time.monotonic() - start)
    return seconds


#: Program that binds the folder into the root, in a new mount namespace, and runs a command there.
_ENTER = """
import os, subprocess, sys
mount, folder, root, *command = sys.argv[1:]
for words in (["--bind", folder, root + "/mnt"], ["-t", "tmpfs", "tmpfs", root + "/tmp"],
              ["-t", "tmpfs", "tmpfs", root + "/var/tmp"], ["--rbind", "/dev", root + "/dev"]):
    subprocess.run([mount, *words], check=True)
os.chroot(root)
os.chdir("/")
os.execv(command[0], command)
"""


def batch(count: int, seed: int) -> tuple[float, dict[str, object]]:
    """Return the seconds of a batch, and its report."""
    command = [sys.executable, "-m", "vmm_msi", "lab", "conform", "--format", "json"]
    start = time.monotonic()
    done = subprocess.run(
        [*command, "--count", str(count), "--seed", str(seed)],
        check=False,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    seconds = time.monotonic() - start
    if done.returncode:
        sys.exit(f"lab conform exited with status {done.returncode}: {done.stdout.decode()}")
    return seconds, json.loads(done.stdout)


def main() -> None:
    """Time several bare boots and one batch, and print both."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=200, help="scenarios (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the batch (default: %(default)s)")
    args = parser.parse_args()
    bare = bare_boots()
    seconds, report = batch(args.count, args.seed)
    work = float(report["seconds"]["kernel"]) + float(report["seconds"]["model"])
    peer = statistics.median(bare) + work
    print(
        f"conformance   {report['scenarios']} scenarios, {report['steps']} steps, "
        f"{len(report['mismatches'])} mismatches"
    )
    print(f"batch         {seconds:.1f} s in all, {work:.1f} s of it work")
    print(f"bare boot     {statistics.median(bare):.1f} s with power-off, median of {len(bare)}")
    print(f"ratio         {seconds / peer:.2f} of bare boot plus work ({peer:.1f} s); aim 1.20")


if __name__ == "__main__":
    main()
