"""The fuzz targets: readers of untrusted data, which may refuse it only with InputError.

A target takes any bytes. It returns, or raises :class:`InputError`: any other exception is a bug,
and so is more time or memory than :mod:`fuzz.worker` allows. ACPI tables get the right length and
checksum, since otherwise nearly all would be refused; all inputs are also read unchanged.
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi import samples
from vmm_msi.domxml.attribute_values import readable
from vmm_msi.domxml.document import read_domain
from vmm_msi.domxml.nodedev import read_node_device
from vmm_msi.domxml.parse import parse
from vmm_msi.domxml.placement import Placement
from vmm_msi.errors import InputError
from vmm_msi.explain import log_lines
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.host.firmware.acpi import load_acpi_file, parse_acpi
from vmm_msi.host.firmware.device_tree import parse_devicetree
from vmm_msi.host.firmware.madt import parse_madt
from vmm_msi.host.listing import host_of_listing, read_listing
from vmm_msi.host.resolve import resolve
from vmm_msi.host.scenario import parse_host, parse_scenario
from vmm_msi.recording import recording_json
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable

TESTS = Path(__file__).resolve().parents[1]
ADDRESSES = [PciAddress(0, 0, 1, 0), PciAddress(1, 0x80, 0, 0), PciAddress(0xFFFF, 0xFF, 0x1F, 7)]


@dataclass(frozen=True)
class Target:
    """A reader, and well-formed inputs for it."""

    name: str
    call: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]

    def __call__(self, data: bytes) -> None:
        try:
            self.call(data)
        except InputError:
            return


def with_valid_header(data: bytes, signature: bytes) -> bytes:
    """Return a table whose signature, length and checksum are right."""
    table = bytearray(data.ljust(36, b"\0"))
    table[:4] = signature
    struct.pack_into("<I", table, 4, len(table))
    table[9] = 0
    table[9] = -sum(table) & 0xFF
    return bytes(table)


def resolve_devices(host) -> None:
    """Resolve a few devices, as the commands do; each may be refused."""
    for address in ADDRESSES:
        try:
            resolve(host, address)
        except InputError:
            continue


def iort(data: bytes) -> None:
    if not data or data[-1] & 1:
        resolve_devices(parse_acpi(with_valid_header(data, b"IORT"), None, "host"))
    parse_acpi(data, None, "host")


def madt(data: bytes) -> None:
    if not data or data[-1] & 1:
        parse_madt(with_valid_header(data, b"APIC"), "APIC")
    parse_madt(data, "APIC")


def acpi(data: bytes) -> None:
    """The first two bytes are the length of the IORT; the MADT follows it."""
    size = int.from_bytes(data[:2], "little")
    tables = (
        with_valid_header(data[2 : 2 + size], b"IORT"),
        with_valid_header(data[2 + size :], b"APIC"),
    )
    resolve_devices(parse_acpi(*tables, "host"))


def acpi_text(data: bytes) -> None:
    """Read a text with hex dumps; the name is not one with which others are looked for."""
    host = load_acpi_file(Path("posted"), data)
    if host is not None:
        resolve_devices(host)


def listing(data: bytes) -> None:
    """Read lspci, IOMMU groups and reserved regions."""
    posted = read_listing(BytesIO(data), "posted")
    if not posted.is_empty:
        host_of_listing(posted, "posted")


def devicetree(data: bytes) -> None:
    resolve_devices(parse_devicetree(data, "board.dtb"))


def domain_xml(data: bytes) -> None:
    domain = read_domain(data, "domain")
    for read in (
        lambda: (domain.uuid, domain.type, domain.arch, domain.machine, domain.kind),
        lambda: (domain.emulator, domain.acpi, domain.firmware, domain.gic_version),
        lambda: domain.memory,
        lambda: (domain.iommufd, domain.iommufd_fdgroup),
        domain.controllers,
        domain.iommus,
        domain.hostdevs,
        domain.assigned,
        lambda: [*Placement(domain).empty_vsmmus()],
        lambda: [*Placement(readable(domain)).empty_vsmmus()],
        domain.__str__,
    ):
        try:
            read()
        except InputError:
            continue


def node_device(data: bytes) -> None:
    read_node_device(parse(data, "device"), ADDRESSES[0])


def toml_host(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    resolve_devices(parse_host(text, "host.toml"))
    parse_scenario(text, "host.toml")


def recording(data: bytes) -> None:
    recording_json.decode(data, "run.json")


def log(data: bytes) -> None:
    explain(log_lines.decode(data, "log"), LogContext())


def _logs() -> list[bytes]:
    record = """{"__CURSOR": "s=1", "MESSAGE": "arm-smmu-v3 a: event 0x10 received:", \
"_TRANSPORT": "kernel", "SYSLOG_IDENTIFIER": "kernel", "_PID": "1", "MESSAGES": [65, 66]}"""
    event = "arm-smmu-v3 a: event 0x10 received:", *["arm-smmu-v3 a: \t0x0000018000000010"] * 4
    decoded = (
        "arm-smmu-v3 a: event: F_TRANSLATION client:\n0000:01:00.0 sid: 0x1 ssid: 0x0 iova: 0x1 "
        'ipa: 0x0\narm-smmu-v3 a: unpriv data write s1 "Input address\ncaused fault" stag: 0x0'
    )
    return [
        "\n".join(f"> [  812.113402] {line}" for line in (*event, decoded)).encode(),
        "\n".join(f"Nov 25 00:29:56 host kernel: {line}" for line in event).encode("utf-16"),
        record.replace("\\\n", "").encode(),
        record.replace("\\\n", "").replace(", ", ",\n\t").replace("{", "{\n").encode(),
        b"__CURSOR=s=1\nMESSAGE=CMDQ timeout\n_TRANSPORT=kernel\n\n",
        b"<11>1 2026-11-25T00:29:56Z host a 1 - - CMDQ timeout\r\n&quot;<br>\x1b[32m[   12.3] x",
    ]


def _iorts() -> list[bytes]:
    from host.firmware.acpi_builder import (
        iort,
        its_group,
        iwb,
        named_component,
        pmcg,
        rmr,
        root_complex,
        smmu_v2,
        smmu_v3,
    )

    every = iort(
        its_group(0, 1),
        smmu_v3((0, 0xFFFF, 0, 0, 0), (0, 0, 9, 0, 1), index=1),
        smmu_v2((0, 0xFFFF, 0, 0, 0)),
        root_complex((0, 0xFFFF, 0, 1, 0), flags=4, ats=1),
        named_component(to=[(0, 0, 5, 2, 1)]),
        pmcg((0, 0, 9, 0, 1), reference=48),
        rmr((0x8000000, 0x100000), to=[(0, 0, 0x10, 1, 0)]),
        iwb((0, 0xFF, 0x100, 0, 0)),
    )
    several = iort(
        its_group(0),
        its_group(1),
        smmu_v3((0, 0xFF, 0x100, 0, 0), (0x180, 0x7F, 0x900, 1, 0), revision=5, flags=0x10),
        root_complex((0, 0x100, 0, 2, 0), (0x100, 0x100, 0, 2, 0)),
        root_complex((7, 0, 5, 2, 1), segment=1),
    )
    return [every, several]


def _madts() -> list[bytes]:
    from host.firmware.acpi_builder import GICV5, OTHERS, madt

    return [madt((0, 0x20000000), (1, 0x20020000), extra=OTHERS), madt(extra=OTHERS + GICV5)]


def _both() -> list[bytes]:
    return [
        len(iort).to_bytes(2, "little") + iort + madt
        for iort, madt in zip(_iorts(), _madts(), strict=True)
    ]


def _acpidumps() -> list[bytes]:
    from host.firmware.acpi_texts import acpidump, hexdump, xxd

    tables = _iorts()[1], _madts()[0]
    texts = acpidump(*tables), xxd(*tables), "".join(map(hexdump, tables))
    return [text.encode() for text in texts]


def _listings() -> list[bytes]:
    from host.firmware.acpi_texts import listing

    table = _iorts()[1]
    return [listing(table).encode(), listing(table, raw=False).encode()]


def _lspci() -> list[bytes]:
    return [
        (
            b"0000:01:00.0 Ethernet controller [0200]: A B [8086:1521] (rev 01) (prog-if 00 [X])\n"
            b"\tNUMA node: 1\n\tIOMMU group: 14\n"
            b"\tCapabilities: [50] MSI: Enable+ Count=1/8 Maskable+ 64bit+\n"
            b"\tCapabilities: [b0] MSI-X: Enable+ Count=65 Masked-\n"
            b"\tCapabilities: [2a0 v1] Address Translation Service (ATS)\n"
            b"\tKernel driver in use: vfio-pci\n01:00.1 0200: 8086:1521\n"
        )
    ]


def _groups() -> list[bytes]:
    return [
        b"/sys/kernel/iommu_groups/20/devices/000f:01:00.0\n./7/devices/0004:00:00.0\n",
        b"IOMMU Group 1:\n\t[8086:1521] [R] 00:01.0 PCI bridge [0604]: A [1b36:000c]\n",
        (
            b"/sys/kernel/iommu_groups/1/devices:\n0 0000:00:01.0 -> ../x\n0000:01:00.0\n"
            b"/sys/bus/pci/devices/0000:02:00.0/iommu_group -> ../../../kernel/iommu_groups/2\n"
        ),
        (
            b"/sys/kernel/iommu_groups/1/reserved_regions:0x8000000 0x80fffff msi\n"
            b"==> /sys/kernel/iommu_groups/2/reserved_regions <==\n0x8000000 0x80fffff direct\n"
        ),
    ]


def _trees() -> list[bytes]:
    return [samples.path("eight-its-server.dtb").read_bytes()]


def _files(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(TESTS.glob(pattern))]


def _domains() -> list[bytes]:
    guest = samples.path("three-devices.xml").read_bytes()
    status = b"<domstatus state='running' pid='7'><monitor path='/m'/>%b</domstatus>" % guest
    snapshot = b"<domainsnapshot>%b<inactiveDomain/></domainsnapshot>" % guest
    words = b"""<domain xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"><name>a</name>
<qemu:commandline><qemu:arg value="-device"/><qemu:arg value="vfio-pci,host=01:00.0,bus=a"/>
<qemu:arg value="-device"/><qemu:arg value='{"driver":"arm-smmuv3","primary-bus":"a"}'/>
<qemu:arg value="-device"/><qemu:arg value="pxb-pcie,id=a,,b"/></qemu:commandline></domain>"""
    return [guest, status, snapshot, words, *_files("domxml/golden/*.xml")[:6]]


NODE_DEVICE = b"""<device><name>pci_0000_01_00_0</name><path>/sys/devices/pci0000:00</path>
<driver><name>vfio-pci</name></driver>
<capability type='pci'><class>0x010802</class><domain>0</domain><bus>1</bus><slot>0</slot>
<function>0</function><product id='0x5194'>edu</product><vendor id='0x1b36'>Red Hat</vendor>
<capability type='virt_functions' maxCount='7'>
<address domain='0x0000' bus='0x01' slot='0x00' function='0x1'/></capability>
<iommuGroup number='3'><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></iommuGroup>
<numa node='1'/><pci-express><link validity='cap' port='0' speed='8' width='4'/></pci-express>
</capability></device>"""


def _hosts() -> list[bytes]:
    return [samples.path(name).read_bytes() for name in ("two-its.toml", "eight-its.toml")]


def targets() -> dict[str, Target]:
    """Return the targets by name."""
    fuzzed = [
        Target("iort", iort, _iorts),
        Target("madt", madt, _madts),
        Target("acpi", acpi, _both),
        Target("acpidump", acpi_text, _acpidumps),
        Target("iasl-listing", acpi_text, _listings),
        Target("lspci", listing, _lspci),
        Target("group-listing", listing, _groups),
        Target("devicetree", devicetree, _trees),
        Target("domain-xml", domain_xml, _domains),
        Target("node-device", node_device, lambda: [NODE_DEVICE]),
        Target("toml-host", toml_host, _hosts),
        Target("log", log, _logs),
        Target("recording", recording, lambda: _files("recording/*.json")),
    ]
    # The module of the reader of archives has target(data) and seeds().
    if importlib.util.find_spec("fuzz.archive_target") is not None:
        module = importlib.import_module("fuzz.archive_target")
        fuzzed.append(Target("archive", module.target, module.seeds))
    return {target.name: target for target in fuzzed}
