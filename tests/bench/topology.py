"""Time reading firmware tables, alternately with iasl and dtc; ``make bench`` runs it.

vmm-msi reads bytes into a host with its routes, in process; iasl -d and dtc are whole processes
that print the same table as text. Every figure is a median.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from host.files.arm_host import arm_host
from host.firmware.acpi_builder import iort, its_group, madt, named_component, root_complex, smmu_v3
from host.shared import shared_data

from vmm_msi import samples
from vmm_msi.host.firmware.acpi import parse_acpi
from vmm_msi.host.firmware.device_tree import parse_devicetree
from vmm_msi.report.columns import columns

NODES = (26, 1_000, 10_000)
ROUNDS = 15


def server(nodes: int) -> bytes:
    """Return an IORT with ITS groups, SMMUs, two-part segments and platform devices."""
    parts = []
    for number in range(nodes // 4):
        its = len(parts)
        parts += [
            its_group(number),
            smmu_v3((0, 0xFFFF, number << 16, its, 0), base=0x2B600000 + (number << 20)),
            root_complex((0, 0x7FFF, 0, its + 1, 0), (0x8000, 0x7EFF, 0x8000, its + 1, 0),
                         segment=number),
            named_component(f"\\_SB.D{number:03X}", [(0, 0, 5, its + 1, 1)]),
        ]  # fmt: skip
    parts += [its_group(nodes + number) for number in range(nodes - len(parts))]
    return iort(*parts)


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def call_and_command(call, command: list[str], rounds: int = ROUNDS) -> tuple[float, float, float]:
    """Return the milliseconds of a call and of a command, run alternately, and their ratio."""
    call()
    pairs = [
        (
            seconds(call),
            seconds(lambda: subprocess.run(command, capture_output=True, check=True)),
        )
        for _ in range(rounds)
    ]
    own, peer = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
    return own, peer, statistics.median(command_s / call_s for call_s, command_s in pairs)


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"reading firmware tables: the peer {name} is not installed")
    return path


def bench_iort(folder: Path) -> None:
    iasl = tool("iasl")
    rows = [
        ["IORT nodes", "bytes", "routes", "ms", "growth (1.00 = linear)", "iasl -d ms", "ratio"]
    ]
    before = None
    for nodes in NODES:
        data = server(nodes)
        file = folder / f"{nodes}.aml"
        file.write_bytes(data)
        tables = (
            data,
            madt(*((number, 0x20000000 + (number << 20)) for number in range(nodes // 4))),
        )
        command = [iasl, "-d", "-p", str(folder / "out"), str(file)]
        own, peer, ratio = call_and_command(lambda t=tables: parse_acpi(*t, "bench"), command)
        growth = "-" if before is None else f"{own / before[0] / (nodes / before[1]):.2f}"
        before = own, nodes
        routes = len(parse_acpi(*tables, "bench").routes)
        rows.append([f"{nodes:,}", f"{len(data):,}", f"{routes:,}", f"{own:.2f}", growth,
                     f"{peer:.1f}", f"{ratio:.1f}"])  # fmt: skip
    version = subprocess.run([iasl, "-v"], capture_output=True, text=True, check=False).stdout
    words = version.split()
    print(f"IORT and MADT to a host with routes; iasl {words[words.index('version') + 1]}")
    print("\n".join(columns(rows)))


def bench_devicetree() -> None:
    try:
        path = shared_data("dt/hip07-d05.dtb")
    except pytest.skip.Exception:
        path = samples.path("eight-its-server.dtb")
    data = path.read_bytes()
    command = [tool("dtc"), "-q", "-I", "dtb", "-O", "dts", str(path)]
    own, peer, ratio = call_and_command(lambda: parse_devicetree(data, path.name), command)
    print(
        f"device tree {path.name}, {len(data):,} bytes: {own:.2f} ms; dtc {peer:.2f} ms, "
        f"ratio {ratio:.1f}"
    )


def bench_doctor(folder: Path) -> None:
    """Time the command on captures, alternately with Python's own start."""
    doctor = [sys.executable, "-m", "vmm_msi", "doctor"]
    rows = [["doctor on a capture of", "bytes", "ms", "python -c pass ms", "ratio"]]
    real = Path(__file__).resolve().parents[1] / "captures" / "two-smmus.tar.zst"
    synthetic = folder / "synthetic.tar.zst"
    arm_host(folder / "host", devices=100)
    capture = [*doctor[:-1], "topology", "capture", "--root", str(folder / "host"), "-o"]
    subprocess.run([*capture, str(synthetic)], capture_output=True, check=True)
    for name, file in (("17 functions, real", real), ("100 devices, synthetic", synthetic)):
        own, peer, ratio = whole([*doctor, str(file)], [sys.executable, "-c", "pass"])
        size = f"{file.stat().st_size:,}"
        rows.append([name, size, f"{own:.0f}", f"{peer:.1f}", f"{ratio:.1f}"])
    print("\n".join(columns(rows)))


def whole(command: list[str], peer: list[str]) -> tuple[float, float, float]:
    """Return the milliseconds of two commands, run alternately, and their ratio."""

    def process(program: list[str]) -> float:
        return seconds(lambda: subprocess.run(program, capture_output=True, check=False))

    process(command)
    pairs = [(process(command), process(peer)) for _ in range(ROUNDS)]
    own, other = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
    return own, other, statistics.median(own_s / peer_s for own_s, peer_s in pairs)


def main() -> None:
    # Keep the garbage collector from traversing older objects during the runs.
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as name:
        bench_iort(Path(name))
        bench_devicetree()
        bench_doctor(Path(name))


if __name__ == "__main__":
    main()
