"""Attach and detach 10,000 times on libvirt's test driver: memory and time per cycle stay flat.

A second process makes the same libvirt calls alone in the same run, which shows what libvirt itself
keeps. ``make bench`` runs it. Times are CPU times, independent of other processes.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import tempfile
import time
import tracemalloc
from pathlib import Path
from shutil import copy
from typing import TYPE_CHECKING

import libvirt  # noqa: TID251 - the calls alone are the peer
from bare import bare_attach, bare_detach

from vmm_msi import provision, samples
from vmm_msi.config import Choice, Config
from vmm_msi.host import sources
from vmm_msi.libvirt_driver import Connection, connect
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.provision import AttachRequest, DetachRequest
from vmm_msi.report.columns import columns
from vmm_msi.types import BinderKind, PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection as Pipe

CYCLES = 10_000
TRACED = 300
GUEST = "guest0"
DEVICES = (PciAddress.parse("0000:01:00.0"), PciAddress.parse("0001:01:00.0"))
REQUEST = AttachRequest(GUEST, DEVICES, strategy=Choice.parse("multi-its"), binder=BinderKind.SIM)


def commands(connection: Connection) -> Callable[[], None]:
    """Return one cycle of vmm-msi."""
    plugins = PluginManager.load()
    settings = Config()
    host = sources.read_host([samples.path("eight-its-server.dtb")]).topology

    def cycle() -> None:
        provision.attach(connection, plugins, settings, host, REQUEST)
        provision.detach(connection, DetachRequest(GUEST), plugins)

    return cycle


def bare(connection: Connection) -> Callable[[], None]:
    """Return the libvirt calls of one cycle."""
    host = sources.read_host([samples.path("eight-its-server.dtb")]).topology
    change = provision.plan_attach(connection, PluginManager.load(), Config(), host, REQUEST)
    old, new = str(change.old), str(change.new)
    raw = libvirt.open(connection.uri)

    def cycle() -> None:
        bare_attach(raw, GUEST, DEVICES, new)
        bare_detach(raw, GUEST, old)

    return cycle


def resident() -> int:
    """Return the resident set of this process in KiB (proc_pid_status(5))."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


def measure(kind: str, file: str, cycles: int, answer: Pipe) -> None:
    """Run the cycles; send the CPU seconds and the resident KiB after each tenth of them.

    Last, send the growth of Python's allocations in bytes per cycle.
    """
    with connect(f"test://{file}") as connection:
        cycle = {"vmm-msi": commands, "bare": bare}[kind](connection)
        cycle()
        tenths = []
        for _tenth in range(10):
            start = time.process_time()
            for _ in range(cycles // 10):
                cycle()
            tenths.append((time.process_time() - start, resident()))
        gc.collect()
        tracemalloc.start()
        cycle()
        gc.collect()
        before, _peak = tracemalloc.get_traced_memory()
        for _ in range(min(TRACED, cycles)):
            cycle()
        gc.collect()
        after, _peak = tracemalloc.get_traced_memory()
    answer.send((tenths, (after - before) / min(TRACED, cycles)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=CYCLES)
    cycles = parser.parse_args().cycles
    spawn = multiprocessing.get_context("spawn")
    rows = [["", "ms a cycle", "last tenth", "growth", "RSS by tenths, MiB", "Python"]]
    with tempfile.TemporaryDirectory() as folder:
        file = copy(samples.path("test-driver.xml"), folder)
        running = []
        for kind in ("vmm-msi", "bare"):
            receiver, sender = spawn.Pipe(duplex=False)
            process = spawn.Process(target=measure, args=(kind, file, cycles, sender))
            process.start()
            sender.close()
            running.append((kind, receiver, process))
        for kind, receiver, process in running:
            tenths, grown = receiver.recv()
            process.join()
            (first, _rss), (last, _end) = tenths[0], tenths[-1]
            rows.append(
                [
                    kind if kind == "vmm-msi" else "the same libvirt calls alone",
                    f"{first / (cycles // 10) * 1e3:.2f}",
                    f"{last / (cycles // 10) * 1e3:.2f}",
                    f"{last / first:.2f}",
                    " ".join(f"{rss / 1024:.1f}" for _took, rss in tenths),
                    f"{grown:+.0f} bytes a cycle",
                ]
            )
    print(f"{cycles:,} cycles of attach and detach on the test driver, CPU time, first tenth first")
    print("\n".join(columns(rows)))


if __name__ == "__main__":
    main()
