"""Time an edit of a domain XML with many devices; virt-manager's virtinst is the peer.

``make bench`` runs it. Both parse the text, add a pcie-expander-bus, a pcie-root-port on it and a
``<hostdev>`` behind that, and print the text. vmm-msi also chooses bus numbers and slots and adds
the ``<iommu>`` and its record. virtinst comes from Debian with its dependencies, including Python
and libvirt; it is unpacked in the cache and runs in a separate process.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import libvirt
from lxml import etree

from vmm_msi.domxml import editor
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.support import XmlLayout
from vmm_msi.errors import LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.apt import PrivateApt
from vmm_msi.lab.build.progress import Progress
from vmm_msi.types import GuestPlan, PciAddress, VsmmuPlan

PACKAGES = ["python3-minimal", "virtinst"]
DEVICES, GROWTH, ROUNDS = 200, 10, 15
VARIED = 150

HOST = PciAddress(0xFFF0, 1, 0, 0)
PLAN = GuestPlan((VsmmuPlan(0, (HOST,)),), iommufd=False)
ASSIGNED = {HOST: editor.Assignment("identity", "qemu")}

# A guest has 256 PCI buses. The second and third kind use none, so a large guest has more of them.
KINDS = [
    xml.replace("\n", "")
    for xml in (
        """<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
<source file='/srv/{0}.qcow2'/><target dev='sd{1}' bus='scsi'/><serial>{0}</serial></disk>""",
        """<channel type='unix'><source mode='bind' path='/run/{0}'/>
<target type='virtio' name='org.example.{0}'/></channel>""",
        """<hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/>
<product id='0x{0:04x}'/></source></hostdev>""",
        """<interface type='bridge'><mac address='52:54:00:00:{2}'/><source bridge='br{0}'/>
<model type='virtio'/></interface>""",
        """<filesystem type='mount' accessmode='mapped'><source dir='/srv/{0}'/>
<target dir='t{0}'/></filesystem>""",
    )
]


def guest(devices: int) -> str:
    """Return libvirt's XML of a guest with ``devices`` devices."""
    elements = []
    for number in range(devices):
        letters, rest = "", number
        for _ in range(3):
            rest, letter = divmod(rest, 26)
            letters = chr(ord("a") + letter) + letters
        mac = f"{number >> 8:02x}:{number & 255:02x}"
        kinds = KINDS if number < VARIED else KINDS[1:3]
        elements.append(kinds[number % len(kinds)].format(number, letters, mac))
    text = (
        "<domain type='test'><name>bench</name><memory>4194304</memory><os>"
        "<type arch='aarch64' machine='virt'>hvm</type></os><devices>"
        f"<controller type='pci' index='0' model='pcie-root'/>{''.join(elements)}"
        "</devices></domain>"
    )
    connection = libvirt.open("test:///default")
    with contextlib.closing(connection):
        return str(connection.defineXML(text).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def edited(text: str) -> str:
    domain = DomainXml.parse(text, "bench")
    return str(editor.apply(domain, PLAN, XmlLayout(), ASSIGNED))


def ensure_virtinst() -> Path:
    """Return the folder with virtinst and its dependencies; fetch them if not cached."""
    architecture = host_tools.architecture()
    title = "virt-manager's virtinst"
    key = {"suite": DEFAULT_SUITE, "architecture": architecture, "packages": PACKAGES}
    place = caches.entry(None, "virtinst", title, (DEFAULT_SUITE, architecture), key)
    progress = Progress(sys.stderr, "virtinst")

    def read() -> Path | None:
        return place.path if (place.path / "usr/share/virt-manager/virtinst").is_dir() else None

    def build(work: Path) -> Path:
        progress.stage(f"fetching {' '.join(PACKAGES)} of Debian {DEFAULT_SUITE}, about 60 MB")
        apt = PrivateApt(work / "apt", DEFAULT_SUITE, architecture, place.log, progress)
        apt.update()
        for package in apt.download(PACKAGES):
            subprocess.run(
                [host_tools.find_tool("dpkg"), "--extract", package, work / "tree"], check=True
            )
        return work / "tree"

    return caches.fill(place, read, build, progress)[0]


class Virtinst:
    """A process that edits with virtinst; a context manager."""

    def __init__(self, tree: Path, result: Path) -> None:
        [libraries] = {path.parent for path in (tree / "usr/lib").glob("*-linux-gnu/libc.so.6")}
        [linker] = libraries.glob("ld-linux-*.so.*")
        paths = [tree / "usr/lib/python3/dist-packages", tree / "usr/share/virt-manager"]
        # ld.so(8): use the tree's libraries for the interpreter and all that it loads.
        program = [linker, "--library-path", libraries, tree / "usr/bin/python3"]
        self._process = subprocess.Popen(
            [*program, Path(__file__).with_name("virtinst_edit.py"), result],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                "LC_ALL": "C.UTF-8",
                "HOME": os.devnull,
                "PATH": "/usr/bin:/bin",
                "PYTHONHOME": str(tree / "usr"),
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "GI_TYPELIB_PATH": str(libraries / "girepository-1.0"),
            },
        )
        self.about = self._read()

    def _read(self) -> dict[str, object]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("virtinst exited; its message is above")
        return json.loads(line)

    def edit(self, file: Path, bus_nr: int) -> float:
        print(bus_nr, file, file=self._process.stdin, flush=True)
        return self._read()["seconds"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def controllers(text: str):
    return DomainXml.parse(text, "bench").controllers()


def assigned_devices(text: str) -> list[tuple[object, ...]]:
    """Return the PCI controllers and assigned devices of a domain XML."""
    hostdevs = DomainXml.parse(text, "bench").hostdevs()
    buses = [(c.index, c.model, c.bus_nr, c.address) for c in controllers(text)]
    return [*buses, *((device.host, device.guest, device.managed) for device in hostdevs)]


def untouched(old: str, new: str) -> str:
    before = etree.fromstring(old).xpath("count(devices/*)")
    after = etree.fromstring(new).xpath("count(devices/*)")
    lines = set(new.splitlines())
    same = sum(line in lines for line in old.splitlines())
    return f"{after - before:+.0f} devices, {same} of {len(old.splitlines())} lines unchanged"


def main() -> None:
    try:
        tree = ensure_virtinst()
    except LabError as error:
        raise SystemExit(f"editing with virtinst: {error}") from None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = folder / "edited.xml"
        with Virtinst(tree, result) as virtinst:
            medians = {}
            for devices in (DEVICES, DEVICES * GROWTH):
                text = guest(devices)
                file = folder / f"{devices}.xml"
                file.write_text(text, encoding="utf-8")
                own = edited(text)
                [bus_nr] = (c.bus_nr for c in controllers(own) if c.bus_nr is not None)
                virtinst.edit(file, bus_nr)
                peer = result.read_text(encoding="utf-8")
                if assigned_devices(own) != assigned_devices(peer):
                    raise SystemExit("the two edits differ")
                pairs = []
                for _ in range(ROUNDS):
                    start = time.perf_counter()
                    edited(text)
                    pairs.append((time.perf_counter() - start, virtinst.edit(file, bus_nr)))
                medians[devices] = [statistics.median(side) for side in zip(*pairs, strict=True)]
                ratio = statistics.median(peer_s / own_s for own_s, peer_s in pairs)
                own_ms, peer_ms = (median * 1e3 for median in medians[devices])
                aim = " (aim: 5)" if devices == DEVICES else ""
                print(
                    f"edit of a domain XML with {devices:,} devices, {len(text) / 1e3:.0f} kB: "
                    f"{own_ms:.2f} ms; virtinst {virtinst.about['version']} {peer_ms:.1f} ms; "
                    f"{ratio:.1f} times faster{aim}"
                )
                print(f"  vmm-msi {untouched(text, own)}; virtinst {untouched(text, peer)}")
    growth = [
        large / small / GROWTH
        for small, large in zip(medians[DEVICES], medians[DEVICES * GROWTH], strict=True)
    ]
    print(
        f"  {GROWTH} times the devices: growth {growth[0]:.2f}, virtinst {growth[1]:.2f} "
        f"(1.00 = linear); Python {sys.version.split()[0]}, virtinst's "
        f"{virtinst.about['python']}"
    )


if __name__ == "__main__":
    main()
