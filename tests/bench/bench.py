"""Benchmarks, printed as a table: ``make bench``.

Every figure is the median of several runs; every comparison is with a named peer that runs
alternately with it in the same process or, for whole commands, in the same loop.
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import libvirt
from bare import bare_attach, bare_detach

from vmm_msi import samples
from vmm_msi.config import Choice, Config
from vmm_msi.domxml import editor
from vmm_msi.domxml.guest_domain import virt_guest
from vmm_msi.domxml.support import XmlLayout
from vmm_msi.domxml.template import nested_guest
from vmm_msi.engine.compare import compare
from vmm_msi.host import sources
from vmm_msi.lab.build.root import ensure_root
from vmm_msi.lab.machine.daemon import LabDaemon
from vmm_msi.libvirt_driver import connect
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.provision import (
    AttachRequest,
    DetachRequest,
    attach,
    detach,
    plan_attach,
)
from vmm_msi.qemuhook import script
from vmm_msi.report import compare_json
from vmm_msi.report.columns import columns
from vmm_msi.types import (
    BinderKind,
    DeviceId,
    Granule,
    GuestPlan,
    HostDevice,
    HostTopology,
    Its,
    Pa,
    PciAddress,
    Scenario,
    Smmu,
    StreamId,
    VsmmuPlan,
)

ITSES, SMMUS, VECTORS = 8, 4, 2048
SMALL, GROWTH = 256, 10
ROUNDS = 5


def _its(number: int) -> Its:
    base = Pa(0x2_0000_0000 + number * 0x100_0000)
    return Its(number, base, base.offset(0x1_0000))


def big_scenario(devices: int) -> Scenario:
    """Return ``devices`` devices with 2,048 vectors each, spread over 8 ITSes and 4 SMMUs.

    The ITSes are of a GICv5: with a GICv3 Linux has LPIs for 28 such devices.
    """
    host_devices = []
    for number in range(devices):
        address = PciAddress.from_rid(number >> 12, (number & 0xFFF) << 3)
        its = number % ITSES
        host_devices.append(
            HostDevice(
                address=address,
                smmu=its * SMMUS // ITSES,
                stream_id=StreamId(number),
                its_group=(its,),
                device_id=DeviceId(number),
                iommu_group=number,
                vectors=VECTORS,
            )
        )
    host = HostTopology(
        source="bench",
        granule=Granule.K4,
        smmus=tuple(Smmu(i) for i in range(SMMUS)),
        itses=tuple(map(_its, range(ITSES))),
        devices=tuple(host_devices),
    )
    return Scenario(host, virt_guest("bench", [device.address for device in host_devices]))


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def bench_compare(plugins: PluginManager) -> None:
    small, large = big_scenario(SMALL), big_scenario(SMALL * GROWTH)
    # Keep the garbage collector from traversing the scenarios during the runs.
    gc.collect()
    gc.freeze()
    rows = [["strategy", "ms", "MSIs/s", f"{GROWTH} times the devices", "growth (1.00 = linear)"]]
    for choice in plugins.choices():
        pairs = []
        for _ in range(ROUNDS):
            runs = [
                seconds(lambda s=scenario: list(compare(plugins, s, [choice], "first-in-group")))  # noqa: B023
                for scenario in (small, large)
            ]
            pairs.append(runs)
        low = statistics.median(pair[0] for pair in pairs)
        high = statistics.median(pair[1] for pair in pairs)
        growth = statistics.median(pair[1] / pair[0] / GROWTH for pair in pairs)
        rate = SMALL * VECTORS / low
        rows.append(
            [
                str(choice),
                f"{low * 1e3:.1f}",
                f"{rate:,.0f}",
                f"{high * 1e3:.0f} ms",
                f"{growth:.2f}",
            ]
        )
    print(f"compare, in process: {SMALL} devices x {VECTORS} vectors = {SMALL * VECTORS:,} MSIs")
    print("\n".join(columns(rows)))
    choice = [Choice.parse("multi-its")]
    with Path(os.devnull).open("w") as out:
        took = [
            seconds(
                lambda s=s: compare_json.write(compare(plugins, s, choice, "first-in-group"), out)
            )
            for s in (small, large)
        ]
    low, high = took
    print(
        f"compare and JSON, in process, multi-its: {low:.2f} s, "
        f"{SMALL * VECTORS / low:,.0f} MSIs/s; {GROWTH} times the devices {high:.2f} s, "
        f"growth {high / low / GROWTH:.2f}"
    )
    gc.unfreeze()


def bench_command(folder: Path) -> None:
    """Time the whole command, which writes JSON."""
    lines = ["[host]", 'granule = "4K"']
    for smmu in range(SMMUS):
        lines += ["[[host.smmu]]", f"id = {smmu}"]
    scenario = big_scenario(SMALL)
    for its in scenario.host.itses:
        lines += ["[[host.its]]", f"id = {its.id}", f"base = {its.base:#x}"]
        lines += [f"translate_frame = {its.translate_frame:#x}"]
    for device in scenario.host.devices:
        lines += [
            "[[host.device]]",
            f'address = "{device.address}"',
            f"smmu = {device.smmu}",
            f"its_group = [{device.its}]",
            f"iommu_group = {device.iommu_group + 1}",
            f"vectors = {VECTORS}",
        ]
    lines += ["[guest]", "[[guest.vits]]", "id = 0", "base = 0x08080000"]
    for device in scenario.host.devices:
        lines += ["[[guest.stage1]]", f'id = "s1-{device.address}"', 'granule = "4K"']
        lines += ["[[guest.device]]", f'host = "{device.address}"']
        lines += [f'stage1 = "s1-{device.address}"', "vits = 0", "giova = 0xfffff000"]
    path = folder / "big.toml"
    path.write_text("\n".join(lines))
    out = folder / "big.json"
    command = [
        sys.executable, "-m", "vmm_msi", "compare", "--scenario", str(path), "--strategy",
        "multi-its", "--format", "json", "--force", "-o", str(out),
    ]  # fmt: skip
    took = statistics.median(seconds(lambda: subprocess.run(command, check=True)) for _ in range(3))
    rate = SMALL * VECTORS / took
    print(
        f"compare --format json, whole process, multi-its: {took:.2f} s, {rate:,.0f} MSIs/s, "
        f"{out.stat().st_size / 1e6:.0f} MB"
    )


GUEST = "guest0"
DEVICES = (PciAddress.parse("0000:01:00.0"), PciAddress.parse("0001:01:00.0"))


def bench_attach(plugins: PluginManager, uri: str, where: str, rounds: int) -> None:
    """Time attach and detach, alternately with the same libvirt calls alone."""
    host = sources.read_host([samples.path("eight-its-server.dtb")]).topology
    request = AttachRequest(GUEST, DEVICES, strategy="multi-its", binder=BinderKind.SIM)
    settings = Config()
    took: dict[str, list[tuple[float, float]]] = {"attach": [], "detach": []}
    with connect(uri) as connection:
        # The test driver has separate guests for each connection.
        raw = libvirt.open(uri)
        change = plan_attach(connection, plugins, settings, host, request)
        old, new = str(change.old), str(change.new)
        for _ in range(rounds):
            calls = (
                seconds(lambda: bare_attach(raw, GUEST, DEVICES, new)),
                seconds(lambda: bare_detach(raw, GUEST, old)),
            )
            commands = (
                seconds(lambda: attach(connection, plugins, settings, host, request)),
                seconds(lambda: detach(connection, DetachRequest(GUEST), plugins)),
            )
            for pairs, own, bare in zip(took.values(), commands, calls, strict=True):
                pairs.append((own, bare))
        raw.close()
    for command, pairs in took.items():
        own, bare = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        print(
            f"{command} of 2 devices on {where}: {own:.2f} ms; the same libvirt calls alone "
            f"{bare:.2f} ms; ratio {ratio:.2f} (aim on a daemon: at most 1.05)"
        )


def bench_attach_on_a_daemon(plugins: PluginManager) -> None:
    if os.geteuid() != 0:
        print("attach on a real daemon: skipped, requires root for the lab")
        return
    with LabDaemon(ensure_root()) as daemon, connect(daemon.uri) as connection:
        connection.define(nested_guest(GUEST, memory=1 << 30, vcpus=1, kind="qemu"))
        bench_attach(plugins, daemon.uri, "the QEMU driver of a real daemon", 60)
        connection.undefine(GUEST)


def bench_help() -> None:
    command = [str(Path(sys.executable).with_name("vmm-msi")), "--help"]
    bare = [sys.executable, "-c", "pass"]
    ratios, own, peer = [], [], []
    for _ in range(21):
        peer.append(seconds(lambda: subprocess.run(bare, check=True)))
        own.append(seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)))
        ratios.append(own[-1] / peer[-1])
    print(
        f"vmm-msi --help: {statistics.median(own) * 1e3:.1f} ms; python -c pass "
        f"{statistics.median(peer) * 1e3:.1f} ms; ratio {statistics.median(ratios):.2f} "
        "(aim: at most 3)"
    )


def bench_imports() -> None:
    """Count what commands import, and what of that only pages for browsers need."""
    host, node = samples.path("eight-its-server.dtb"), samples.path("test-driver.xml")
    attach_words = f"attach guest0 0000:01:00.0 --dry-run --host {host} --connect test://{node}"
    compare_words = f"compare --scenario {samples.path('two-its.toml')} --format html"
    for words in ("--help", attach_words, compare_words):
        command = [sys.executable, "-X", "importtime", "-m", "vmm_msi", *words.split()]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
        rooms = [name.partition(".")[0] for name in names]
        pages = [name for name in names if name.startswith("vmm_msi.pages.")]
        print(
            f"vmm-msi {words.split()[0]}: {len(names)} modules, of jinja2 "
            f"{rooms.count('jinja2')}, of markupsafe {rooms.count('markupsafe')}, of "
            f"vmm_msi.pages {len(pages)}"
        )


def bench_hook(folder: Path) -> None:
    """Time the script that libvirt runs, for guests without a UUID, so that it stores nothing."""
    hooks = folder / "hooks"
    script.install(hooks, "record")
    command = [str(script.script_path(hooks)), "bench", "prepare", "begin", "-"]
    bare = ["/bin/sh", "-c", "cat >/dev/null"]
    guest = nested_guest("bench", memory=1 << 30)
    plan = GuestPlan((VsmmuPlan(0, DEVICES),), iommufd=True)
    assignments = {device: editor.Assignment("identity", "qemu") for device in DEVICES}
    managed = editor.apply(guest, plan, XmlLayout(), assignments)
    for kind, domain in (("another guest", guest), ("a vmm-msi guest", managed)):
        xml = str(domain).encode()
        took, peer = [], []
        for _ in range(21):
            for program, times in ((command, took), (bare, peer)):
                run = partial(subprocess.run, program, input=xml, check=True)
                times.append(seconds(run))
        print(
            f"hook, {kind}: {statistics.median(took) * 1e3:.1f} ms; sh -c cat "
            f"{statistics.median(peer) * 1e3:.1f} ms (aim: at most 150)"
        )


def main() -> None:
    plugins = PluginManager.load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench_compare(plugins)
        print()
        bench_command(folder)
        node = shutil.copy(samples.path("test-driver.xml"), folder)
        bench_attach(plugins, f"test://{node}", "the test driver", 60)
        bench_attach_on_a_daemon(plugins)
        bench_help()
        bench_imports()
        bench_hook(folder)


if __name__ == "__main__":
    main()
