"""status: predictions are called so, guests that run here are measured, all guests are listed."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import json_schemas
import pytest
from described_host import load_host
from lxml import etree

from vmm_msi import samples
from vmm_msi.domxml.document import read_document
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import DomainRecord, read_record
from vmm_msi.errors import UnreadableError
from vmm_msi.explain.log_context import LogContext
from vmm_msi.host.files.kernel_log import select
from vmm_msi.recording.measure import (
    Clocks,
    Measured,
    log_time_us,
    measure,
    read_clocks,
    read_interrupts,
    start_time_us,
)
from vmm_msi.report.status import GuestStatus, lines_of, list_lines, to_json
from vmm_msi.types import Iova, PciAddress

BOARD = samples.path("eight-its-server.dtb")
A, B = "0000:01:00.0", "0001:01:00.0"
FIRST, SECOND = PciAddress(0, 1, 0, 0), PciAddress(1, 1, 0, 0)


@pytest.fixture
def node(vmm_msi, tmp_path):
    """guest0 is off and has A and B, with a free port; guest1 runs and has no device."""
    path = Path(shutil.copy(samples.path("test-driver.xml"), tmp_path / "node.xml"))
    words = ["attach", "guest0", A, B, "-c", f"test://{path}", "--host", BOARD, "--print-xml"]
    code, out, _err = vmm_msi(*words, "--spare-ports", "1")
    assert code == 0
    tree = etree.parse(path)
    old = tree.find("domain")
    domain = etree.fromstring(out)
    domain.insert(0, old[0])  # its run state
    tree.getroot().replace(old, domain)
    tree.findall("domain")[1][0].text = "1"
    tree.write(path)
    return f"test://{path}"


def test_all_guests(vmm_msi, node):
    code, out, err = vmm_msi("status", "-c", node)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "guest   state    device        strategy  free ports",
        "------  -------  ------------  --------  ----------",
        f"guest0  off      {A}  identity  1",
        f"                 {B}  identity",
        "guest1  running  -             -         0",
    ]


def test_all_guests_as_json(vmm_msi, node):
    document = json.loads(vmm_msi("status", "-c", node, "--format", "json")[1])
    assert set(document) == {"schema", "domains", "notes"}
    first, second = document["domains"]
    assert (first["domain"], first["state"], first["free_ports"]) == ("guest0", "off", 1)
    assert [device["device"] for device in first["devices"]] == [A, B]
    assert (second["state"], second["devices"]) == ("running", [])


def test_a_guest_whose_record_is_broken_does_not_hide_the_others(vmm_msi, node):
    path = Path(node.removeprefix("test://"))
    path.write_text(path.read_text().replace("/domain/1", "/domain/2"))
    code, out, _err = vmm_msi("status", "-c", node)
    assert code == 0
    assert "guest1  running" in out
    assert "note: reading the vmm-msi record of guest0: it has version '2'" in out


def test_other_devices_are_listed(vmm_msi, node):
    path = Path(node.removeprefix("test://"))
    tree = etree.parse(path)
    hostdev = tree.find("domain/devices/hostdev")
    hostdev.find("source/address").set("bus", "0x07")
    tree.write(path)
    shown = vmm_msi("status", "-c", node)[1]
    assert "0000:07:00.0  not by vmm-msi" in shown
    shown = vmm_msi("status", "guest0", "-c", node)[1]
    assert "not attached by vmm-msi: 0000:07:00.0\n" in shown


def test_a_guest_that_is_off_has_predictions_only(vmm_msi, node):
    out = vmm_msi("status", "guest0", "-c", node)[1]
    assert "guest0: off, 2 devices, 1 free port\n" in out
    assert "MSIs, as predicted\n" in out
    assert f"{A}  delivered at 0x8000040 or 0x8001040\n" in out
    assert (
        "note: the order of first use decides which: vmm-msi doctor --explain slot-order\n" in out
    )
    assert "note: the guest is off: its MSIs are as the simulator predicted at attach\n" in out
    assert max(map(len, out.splitlines())) <= 80
    document = json.loads(vmm_msi("status", "guest0", "-c", node, "--format", "json")[1])
    device = document["devices"][0]
    assert device["predicted"] == {
        "outcome": "delivered",
        "programmed_iova": None,
        "possible_iovas": ["0x8000040", "0x8001040"],
    }
    assert device["measured"] is None


def test_a_guest_that_runs_elsewhere_is_not_measured(vmm_msi, node):
    path = Path(node.removeprefix("test://"))
    tree = etree.parse(path)
    tree.find("domain")[0].text = "1"
    tree.write(path)
    out = vmm_msi("status", "guest0", "-c", node)[1]
    assert "guest0: running, 2 devices" in out
    assert "note: not measured: the guests of this connection do not run in QEMU\n" in out


# Measurements: files as the kernel has them.

INTERRUPTS = """\
           CPU0       CPU1
 55:         10        991     ITS-MSI 8912896 Edge      vfio-msix[0](0000:01:00.0)
 56:          0          7     ITS-MSI 8912897 Edge      vfio-msix[1](0000:01:00.0)
"""
FAULT = (
    "arm-smmu-v3 arm-smmu-v3.0.auto: event: F_TRANSLATION client: 0000:01:00.0 sid: 0x100 "
    "ssid: 0x0 iova: {:#x} ipa: 0x0"
)


@pytest.fixture
def guest(vmm_msi, node):
    text = vmm_msi(
        "attach", "guest0", A, B, "-c", node.replace("node.xml", "fresh.xml"), "--print-xml",
        "--host", BOARD,
    )[1]  # fmt: skip
    return DomainXml.parse(text, "the command")


@pytest.fixture(autouse=True)
def fresh(tmp_path):
    shutil.copy(samples.path("test-driver.xml"), tmp_path / "fresh.xml")


@pytest.fixture
def devices(tmp_path):
    """The folder in sysfs of A, which has MSI-X, and none of B."""
    space = bytearray(256)
    space[4], space[0x34], space[0x40] = 2, 0x40, 0x11
    struct.pack_into("<HI", space, 0x42, 0x8000 | 1, 0)
    folder = tmp_path / "devices" / A
    folder.mkdir(parents=True)
    (folder / "config").write_bytes(space)
    (folder / "power_state").write_text("D0")
    entries = [(0x8000040, 0), (0x8000040, 0)]
    table = b"".join(struct.pack("<QII", at, 1, control) for at, control in entries)
    (folder / "resource0").write_bytes(table)
    return folder.parent


def test_measurements(guest, devices):
    log = [FAULT.format(0x8000040), FAULT.format(0x8000040), "unrelated"]
    context = LogContext(load_host(BOARD), None, guest)
    measured, unread = measure([FIRST, SECOND], INTERRUPTS, log, context, devices)
    assert measured == {
        FIRST: Measured((Iova(0x8000040),), 1008, 2, 2),
        SECOND: Measured(None, 0, 0, 0),
    }
    (reason,) = unread
    assert B in reason
    record = read_record(guest)
    status = GuestStatus("guest0", True, record, (), measured, ["MSI address not measured: x"])
    lines = list(lines_of(status))
    assert lines[0] == "guest0: running, 2 devices, 0 free ports"
    at = lines.index("")
    assert lines[at + 1 :] == [
        "device        MSIs, as predicted  MSI address  interrupts  faults",
        "------------  ------------------  -----------  ----------  ------",
        f"{A}  delivered           0x8000040    1008        2",
        f"{B}  delivered           ?            0           0",
        "note: MSI address not measured: x",
    ]
    assert max(map(len, lines)) <= 80
    first, second = to_json(status)["devices"]
    assert first["measured"] == {
        "programmed_iovas": ["0x8000040"],
        "interrupts": 1008,
        "vectors": 2,
        "faults": 2,
    }
    assert second["measured"]["programmed_iovas"] is None


def test_devices_that_vmm_msi_did_not_attach_are_measured(guest, devices):
    measured, _unread = measure([FIRST], INTERRUPTS, [], LogContext(None, None, guest), devices)
    status = GuestStatus("guest0", True, DomainRecord(), (FIRST, SECOND), measured)
    assert list(lines_of(status)) == [
        "guest0: running, no devices attached by vmm-msi",
        f"not attached by vmm-msi: {A}, {B}",
        "",
        "device        MSIs, as predicted  MSI address  interrupts  faults",
        "------------  ------------------  -----------  ----------  ------",
        f"{A}  -                   0x8000040    1008        0",
    ]
    document = to_json(status)
    json_schemas.check("status", {"schema": 1, **document})
    assert document["other_measured"] == {
        A: {"programmed_iovas": ["0x8000040"], "interrupts": 1008, "vectors": 2, "faults": 0}
    }


def test_what_cannot_be_read_is_unknown(guest, devices):
    measured, _unread = measure([FIRST], None, None, LogContext(None, None, guest), devices)
    assert measured == {FIRST: Measured((Iova(0x8000040),), None, 0, None)}
    status = GuestStatus("g", True, read_record(guest), (), measured)
    assert any(line.endswith("0x8000040    ?           ?") for line in lines_of(status))
    with pytest.raises(UnreadableError, match="No such file"):
        read_interrupts(devices / "missing")


UUID = "5e9f2f5c-6f0e-4e0a-9a7a-3c1c5b0f3a11"


def process(proc, pid, uuid, ticks):
    """Write the files of a QEMU of libvirt as the kernel shows them."""
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "cmdline").write_bytes(b"/usr/bin/qemu-system-aarch64\0-uuid\0%b\0" % uuid.encode())
    fields = " ".join(["S", *["0"] * 18, str(ticks)])
    (folder / "stat").write_text(f"{pid} (qemu) system) {fields} 0 0")


def test_faults_count_from_the_start_of_the_guest(tmp_path):
    tick = os.sysconf("SC_CLK_TCK")
    process(tmp_path, 17, UUID, 2 * tick)
    process(tmp_path, 18, UUID.replace("5", "6"), 3 * tick)
    (tmp_path / "19").mkdir()  # it exited meanwhile
    (tmp_path / "self").mkdir()
    expected = log_time_us(2_000_000, read_clocks())
    assert start_time_us(UUID, tmp_path) == pytest.approx(expected, abs=10_000)
    records = [
        b"4,1,1999999,-;arm-smmu-v3 before\n",
        b"4,2,2000000,-;arm-smmu-v3 after\n",
        None,
    ]
    assert select(records, 2_000_000) == ["arm-smmu-v3 after"]
    assert len(select(records)) == 2


@pytest.mark.parametrize(
    ("suspended", "drift", "expected"),
    [
        (0, 0, 2_000_000_000_000),
        # After 30 days at 50 ppm the clock of the log is 2 minutes ahead of the other.
        (0, 50, 2_000_100_000_000),
        (0, -50, 1_999_900_000_000),
        (500_000, 0, 1_500_000_000_000),
        (3_000_000, 0, 0),
    ],
)
def test_times_on_the_clock_of_the_log(suspended, drift, expected):
    awake = 2_592_000 * 10**9
    raw = awake * (1_000_000 + drift) // 1_000_000
    assert log_time_us(2_000_000_000_000, Clocks(awake + suspended * 10**9, awake, raw)) == expected


def test_an_unknown_start_time_is_an_error(tmp_path):
    """Another user's process may have the same words."""
    process(tmp_path, 17, UUID, 200)
    with pytest.raises(UnreadableError, match="no QEMU that can be read has -uuid other"):
        start_time_us("other", tmp_path)
    process(tmp_path, 18, UUID, 300)
    with pytest.raises(UnreadableError, match="more than one QEMU has -uuid 5e9f"):
        start_time_us(UUID, tmp_path)
    process(tmp_path, 18, UUID, "x")
    with pytest.raises(UnreadableError, match="has an unknown form"):
        start_time_us(UUID, tmp_path)
    with pytest.raises(UnreadableError, match="No such file"):
        start_time_us(UUID, tmp_path / "missing")


def test_a_process_has_a_start_time():
    """The forms of /proc/PID are the kernel's."""
    uuid = str(uuid4())
    code = "input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "-uuid", uuid], stdin=subprocess.PIPE
    ) as running:
        try:
            uptime_us = float(Path("/proc/uptime").read_text().split()[0]) * 1e6
            deadline = time.monotonic() + 10
            while uuid not in Path(f"/proc/{running.pid}/cmdline").read_text():
                assert time.monotonic() < deadline
            begun_us = log_time_us(int(uptime_us), read_clocks())
            assert start_time_us(uuid) == pytest.approx(begun_us, abs=10e6)
        finally:
            running.kill()


READCONFIG = """<qemu:commandline xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
<qemu:arg value="-readconfig"/><qemu:arg value="/etc/more.cfg"/></qemu:commandline></domain>"""


def test_words_that_were_not_examined_are_named(vmm_msi, guest, tmp_path):
    path = tmp_path / "guest.xml"
    path.write_text(str(guest).replace("</domain>", READCONFIG))
    note = "note: not examined: <qemu:commandline> -readconfig: the devices in that file"
    assert note in vmm_msi("status", path)[1].splitlines()


def test_a_document(vmm_msi, guest, tmp_path):
    path = tmp_path / "guest.xml"
    path.write_text(str(guest))
    out = vmm_msi("status", path)[1]
    assert out.startswith("guest0: 2 devices, 0 free ports\n")
    assert "predicted" in out
    assert read_document(str(path)).name == "guest0"


def test_no_guests():
    assert list(list_lines([], ["a note"])) == ["no guests", "note: a note"]
    empty = GuestStatus("g", False, DomainRecord())
    assert list(lines_of(empty)) == ["g: off, no devices attached by vmm-msi"]
