"""Measure the processor time of the doctor on guests with many assigned devices, and how it grows.

``make bench`` runs it. The devices are without a vSMMU or behind one; of the latter, the simulator
takes the first 1,024. Growth is the ratio of two times; that of the sizes is the aim.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from vmm_msi import samples
from vmm_msi.config import Config
from vmm_msi.doctor.case_reader import Selection, read_case
from vmm_msi.doctor.rules import examine
from vmm_msi.host.sources import read_host
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.report.doctor import to_lines

SIZES = (2_000, 20_000)
PORTS, ROUNDS = 200, 3

HEAD = (
    "<domain type='kvm'><name>g</name><memory unit='GiB'>4</memory><iommufd enabled='yes'/>"
    "<vcpu>1</vcpu><os firmware='efi'><type arch='aarch64' machine='virt'>hvm</type></os>"
    "<features><acpi/><gic version='3'/></features><devices>"
)
BUSES = (
    "<controller type='pci' index='1' model='pcie-expander-bus'><target busNr='8'/></controller>"
    + "".join(
        f"<controller type='pci' index='{number + 2}' model='pcie-root-port'>"
        f"<address type='pci' bus='1' slot='{number % 32}' function='{number // 32}'/>"
        "</controller>"
        for number in range(PORTS)
    )
    + "<iommu model='smmuv3'><driver pciBus='1' accel='on'/></iommu>"
)


def guest(devices: int, *, nested: bool) -> str:
    """Return the XML of a guest with ``devices`` functions of a host, from segment 0 on."""
    parts = []
    for number in range(devices):
        address = f"bus='{number >> 8}' slot='{number >> 3 & 31}' function='{number & 7}'"
        place = f"<address type='pci' bus='{number % PORTS + 2}'/>" if nested else ""
        parts.append(f"<hostdev type='pci'><source><address {address}/></source>{place}</hostdev>")
    return HEAD + (BUSES if nested else "") + "".join(parts) + "</devices></domain>"


def main() -> None:
    host = read_host([samples.path("eight-its-server.dtb")])
    plugins = PluginManager.load()
    with tempfile.TemporaryDirectory() as folder:
        for nested in (False, True):
            took = {}
            for size in SIZES:
                file = Path(folder) / "guest.xml"
                file.write_text(guest(size, nested=nested))
                selection = Selection((), str(file), None, None, plugins, Config())
                times = []
                for _ in range(ROUNDS):
                    start = time.process_time()
                    findings = examine(read_case(host, selection))
                    lines = sum(1 for _ in to_lines("guest", findings))
                    times.append(time.process_time() - start)
                took[size] = statistics.median(times)
                assert lines
            small, large = (took[size] for size in SIZES)
            where = "behind a vSMMU" if nested else "without a vSMMU"
            print(
                f"doctor, {SIZES[0]:,} and {SIZES[1]:,} hostdevs {where}: {small:.2f} and "
                f"{large:.2f} s; growth {large / small:.1f} (aim: {SIZES[1] // SIZES[0]})"
            )


if __name__ == "__main__":
    main()
