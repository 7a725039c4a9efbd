"""Transcripts in the documentation: output of commands that need root, a daemon or the lab.

An example that runs anywhere is a ``console`` block, which ``test_docs.py`` runs. A transcript is a
``text`` block that starts with a prompt. Each is compared with what the code prints today: in it,
the line … stands for left-out lines, and … within a line for left-out text.
"""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import doc_blocks
import pytest
import scenarios
from described_host import load_host
from doc_blocks import PAGES, ROOT
from doctor.cases import HEALTHY, with_kernel, with_option
from provision.helpers import HOST, PLUGINS, attach
from qemuhook.helpers import UUID, A, B, Host, descriptor, managed
from watch.process import Watch

from vmm_msi.cli import lab_conform, main
from vmm_msi.cli.lab_compare_guests import predictor
from vmm_msi.doctor.rules import examine
from vmm_msi.domxml import editor
from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.domxml.metadata import DeviceRecord, DomainRecord
from vmm_msi.domxml.support import XmlLayout
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import errno_name
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.lab.build import images, kernel_tree, root
from vmm_msi.lab.conformance import conform
from vmm_msi.lab.guest.cells import TableResult
from vmm_msi.lab.guest.result import (
    Counts,
    DeviceRun,
    GuestTestResult,
    Phase,
    Rmr,
    StatusCheck,
    Vector,
)
from vmm_msi.lab.guest.truth_table import COLUMNS, Cell, DeviceCell, rows
from vmm_msi.lab.machine import keeper
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.libvirt_driver import connect
from vmm_msi.qemuhook import run_records, script
from vmm_msi.qemuhook.entry import REFUSED
from vmm_msi.qemuhook.entry import run as run_hook
from vmm_msi.report import doctor as doctor_report
from vmm_msi.report import explain as explain_report
from vmm_msi.report import lab_compare_guests, lab_guest
from vmm_msi.report.columns import fitted
from vmm_msi.report.status import GuestStatus, lines_of
from vmm_msi.types import Granule, GuestPlan, Iova, Outcome, PciAddress, VsmmuPlan
from vmm_msi.watch import service_log

TRANSCRIPTS = {
    (block.page.name, block.text.splitlines()[0]): block
    for page in PAGES
    for block in doc_blocks.blocks(page)
    if block.kind == "text" and block.text.startswith(("# ", "$ "))
}
DOCTOR = ("doctor.md", "# vmm-msi doctor")
HOOK_REFUSAL = ("hook.md", "# virsh start in-order")
HOOK_STATUS = ("hook.md", "# vmm-msi hook status")
LAB_BUILD = ("lab.md", "# vmm-msi lab build")
COMPARE_GUESTS = ("README.md", "# vmm-msi lab compare-guests")
LAB_CONFORM = ("lab.md", "# vmm-msi lab conform --count 200")
LAB_ROOT = ("lab-internals.md", "# vmm-msi lab root")
LAB_UP = ("lab.md", "# vmm-msi lab up")
LAB_GUEST = (
    "lab-guest.md",
    "# vmm-msi lab guest --devices nvme,nvme --count 500 --then reboot,unplug",
)
LAB_GUEST_NO_RMR = ("lab-guest.md", "# vmm-msi lab guest --no-rmr")
LIBVIRT = (
    "libvirt.md",
    (
        "$ vmm-msi attach guest0 0000:01:00.0 0001:01:00.0 "
        "--host vmm_msi/samples/eight-its-server.dtb --strategy multi-its:mode=vsmmu"
    ),
)
WATCH = (
    "watch.md",
    "$ vmm-msi watch -c qemu:///system -c test+unix:///default --format text",
)


def test_every_transcript_has_a_test():
    assert TRANSCRIPTS.keys() == {
        DOCTOR,
        HOOK_REFUSAL,
        HOOK_STATUS,
        LAB_BUILD,
        COMPARE_GUESTS,
        LAB_CONFORM,
        LAB_GUEST,
        LAB_GUEST_NO_RMR,
        LAB_ROOT,
        LAB_UP,
        LIBVIRT,
        WATCH,
    }


def output_of(transcript):
    """Return the output in a transcript, without its command line."""
    return TRANSCRIPTS[transcript].text.partition("\n")[2]


def is_shown_as(printed, shown):
    """Return whether ``shown`` is the text ``printed``, except for what … leaves out."""
    pattern = "".join(
        r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in shown.splitlines()
    )
    return re.fullmatch(pattern, printed) is not None


@pytest.mark.parametrize(
    ("shown", "same"),
    [
        ("a\nb\nc\n", True),
        ("a\n…\n", True),
        ("a\n…\nc\n", True),
        ("a\n…b\nc\n", True),
        ("a\nc\n", False),
        ("a\n…\nb\n", False),
        ("a…\n", False),
    ],
)
def test_only_an_ellipsis_leaves_text_out(shown, same):
    assert is_shown_as("a\nb\nc\n", shown) is same


# --- doctor and hook ---------------------------------------------------------------------------


def test_doctor_on_debians_kernel():
    release = "7.2.12+deb14-arm64"
    case = with_option(HEALTHY, "IOMMUFD", None)
    case = with_kernel(case, release=release, options_from=f"/boot/config-{release}")
    text = "\n".join(fitted(doctor_report.to_lines("this machine", examine(case))))
    assert output_of(DOCTOR) == text.partition("\n\n")[0] + "\n"


@pytest.fixture
def hook_run(tmp_path, monkeypatch, capfd):
    """Run the hook for a guest that lost a vSMMU; return its message and the folder of records."""
    host = Host(tmp_path)
    host.device(A, group=1)
    host.device(B, group=2)
    uuid, time = re.search(r"\((\S+)\)\n  (\S+)", output_of(HOOK_STATUS)).groups()
    monkeypatch.setattr(run_records, "now", lambda: time)
    guest = managed("in-order")
    lost = next(iommu for iommu in guest.iommus() if iommu.pci_bus == "3").element
    lost.getparent().remove(lost)
    folder = tmp_path / "records"
    for operation, extra, status in (
        ("prepare", "-", REFUSED),
        ("stopped", "-", 0),
        ("release", "failed", 0),
    ):
        number = descriptor(str(guest).replace(UUID, uuid).encode())
        try:
            arguments = ["check", "in-order", operation, "begin", extra]
            assert run_hook(arguments, number, host.tree, folder) == status
        finally:
            os.close(number)
    return capfd.readouterr().err, folder


def test_hook_refuses_a_guest(hook_run):
    message, _records = hook_run
    path = script.script_path(Path("/etc/libvirt/hooks"))
    last = output_of(HOOK_REFUSAL).splitlines()[-1]
    assert f"{path} in-order prepare begin -)" in last
    assert last.endswith(f" unexpected exit status 1: {message.rstrip()}")


def test_hook_status(hook_run, monkeypatch, capfd):
    _message, records = hook_run
    path = script.script_path(Path("/etc/libvirt/hooks"))
    installed = script.InstalledScript(
        path, "0.1.0", "check", "/opt/vmm-msi/bin/python", in_step=True, works=True
    )
    monkeypatch.setattr(script, "inspect", lambda _folder: installed)
    monkeypatch.setattr(run_records, "RUN_RECORDS", records)
    assert main(["hook", "status"]) == 0
    assert capfd.readouterr().out == output_of(HOOK_STATUS)


# --- the lab -----------------------------------------------------------------------------------


def stages():
    """Return patterns of the progress messages of builds, from the calls that print them."""
    for module in (ROOT / "vmm_msi" / "lab" / "build").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "stage":
                (message,) = node.args
                parts = message.values if isinstance(message, ast.JoinedStr) else [message]
                yield "".join(
                    re.escape(part.value) if isinstance(part, ast.Constant) else ".+"
                    for part in parts
                )


def table_of(transcript):
    """Return the output of a build without its progress, which consists of known messages."""
    title = transcript[1].removeprefix("# vmm-msi ")
    progress = re.compile(rf"{title}: \[[ \d]{{4}} s\] (.*)")
    messages = re.compile("|".join(stages()))
    lines = output_of(transcript).splitlines()
    for line in lines:
        if match := progress.fullmatch(line):
            assert messages.fullmatch(match[1]), line
    return "".join(f"{line}\n" for line in lines if line != "…" and not progress.fullmatch(line))


def values_of(transcript):
    """Return the rows of the table that a build prints."""
    lines = table_of(transcript).splitlines()
    return {line[:13].rstrip(): line[13:] for line in lines}


def sized_file(folder, value):
    """Create the file in a row such as ``/root/Image (9.5 MB)``, of that size."""
    path, megabytes = re.fullmatch(r"(\S+) \((\S+) MB\)", value).groups()
    file = folder / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.truncate(int(float(megabytes) * 1e6))
    return file


def test_lab_build(monkeypatch, capsys, tmp_path):
    row = values_of(LAB_BUILD)
    files = (sized_file(tmp_path, row[name]) for name in ("kernel", "kernel bind", "initrd"))
    stock, bind, initrd = files
    granule = Granule.parse(row["granule"])

    def built(_suite, _granule, _cache, _progress, name):
        return images.LabImages(
            {"stock": stock, "bind": bind}[name], initrd, row["release"], granule, row["suite"],
            row["built"], cached=False, flavour=name,
        )  # fmt: skip

    lab_root = root.LabRoot(Path(row["root"]), "", "", "", "", "", cached=False)
    path, size = row["objects"].split(" (")
    tree = kernel_tree.TreeFacts(Path(path), int(float(size.removesuffix(" MB)")) * 1e6))
    monkeypatch.setattr(images, "ensure_images", built)
    monkeypatch.setattr(root, "ensure_root", lambda *_: lab_root)
    monkeypatch.setattr(kernel_tree, "tree_facts", lambda *_: tree)
    assert main(["lab", "build"]) == 0
    assert capsys.readouterr().out.replace(str(tmp_path), "") == table_of(LAB_BUILD)


def test_lab_root(monkeypatch, capsys):
    row = values_of(LAB_ROOT)
    fields = (row[name] for name in ("suite", "architecture", "libvirt", "qemu", "built"))
    lab_root = root.LabRoot(Path(row["path"]), *fields, cached=False)
    monkeypatch.setattr(root, "ensure_root", lambda *_: lab_root)
    assert main(["lab", "root"]) == 0
    assert capsys.readouterr().out == table_of(LAB_ROOT)


def test_lab_up_and_down(monkeypatch, capsys):
    lab = SimpleNamespace(boot_s=3.1, release="7.2.12-vmm-msi", shape=Shape())
    monkeypatch.setattr(keeper, "up", lambda *_: (lab, True))
    monkeypatch.setattr(keeper, "down", lambda *_: True)
    commands = [line for line in TRANSCRIPTS[LAB_UP].text.splitlines() if line.startswith("# ")]
    printed = ""
    for command in commands:
        if " compare " not in command:
            assert main(shlex.split(command)[2:]) == 0
        printed += f"{command}\n{capsys.readouterr().out}"
    assert is_shown_as(printed, TRANSCRIPTS[LAB_UP].text)


def test_lab_conform(monkeypatch, capsys):
    report = conform.ConformanceReport(200, 5379, seconds={"kernel": 4.0})
    monkeypatch.setattr(lab_conform, "_compare", lambda *_: report)
    assert main(["lab", "conform", "--count", "200"]) == 0
    assert is_shown_as(capsys.readouterr().out, output_of(LAB_CONFORM))


# --- guests in the lab -------------------------------------------------------------------------

FIRST, SECOND = PciAddress(0, 0x11, 0, 0), PciAddress(0, 0x12, 0, 0)
RELEASES = {"linux": "7.2.12-vmm-msi", "libvirt": "12.8.0", "qemu": "11.1.2"}
WINDOW = Rmr(0x800_0000, 0x10_0000)


def drive(address, name, rate):
    """Return the run of an NVMe drive with 500 reads and as many interrupts."""
    vectors = (Vector(f"{name}q0", 10, 10), Vector(f"{name}q1", 1, 501))
    work = f"reads of {name}n1"
    checks = tuple(
        StatusCheck(counts, (counts, counts))
        for counts in (Counts((Iova(0x8000040),), number, 0) for number in (9, 509))
    )
    return DeviceRun(
        address, address, "nvme", work, 500, 500 / rate, True, vectors, {1: 500}, checks
    )


def group(number, address):
    reserved = "0x0000000008000000 0x00000000080fffff direct"
    return {"id": number, "devices": [str(address)], "reserved": [reserved, "…"]}


def finding(name, subject):
    return {"severity": "note", "id": name, "subject": subject}


def text_of(result):
    return "".join(f"{line}\n" for line in fitted(lab_guest.to_lines(result)))


def test_lab_guest_with_two_drives():
    first, second = drive(FIRST, "nvme0", 653), drive(SECOND, "nvme1", 762)
    predicted = [
        finding("host-driver", str(FIRST)),
        finding("host-driver", str(SECOND)),
        finding("rmr-needed", "guest lab-guest"),
        finding("rmr-direct", "guest lab-guest"),
        finding("no-migration", "guest lab-guest"),
    ]
    phases = [
        Phase("start", [first, second]),
        Phase("reboot", [first, second]),
        Phase(f"unplug {SECOND}", [first]),
    ]
    groups = [group(2, FIRST), group(3, SECOND)]
    devices = tuple(
        DeviceRecord(address, "identity", "qemu", 3, port, 0, 0)
        for address, port in ((FIRST, 4), (SECOND, 5))
    )
    status = GuestStatus("lab-guest", True, DomainRecord(devices=devices))
    lines = list(lines_of(status))
    result = GuestTestResult(RELEASES, phases, [WINDOW] * 2, groups, predicted, status=lines)
    assert result.complete
    assert result.status_agrees
    severities = doc_blocks.finding_ids()
    assert all("note" in severities[finding["id"]] for finding in predicted)
    assert is_shown_as(text_of(result), output_of(LAB_GUEST))


def explained_fault(line):
    """Return the explanation of a line in the log of a guest in the lab."""
    host = load_host(ROOT / "tests" / "captures" / "two-smmus.tar.zst")
    guest = nested_guest("lab-guest", memory=1 << 30)
    plan = GuestPlan((VsmmuPlan(0, (FIRST,)),), iommufd=True)
    assignments = {FIRST: editor.Assignment("identity", "qemu")}
    xml = editor.apply(guest, plan, XmlLayout(), assignments)
    report = explain(line, LogContext(host, guest_from_xml(xml), xml, in_guest=True))
    return list(explain_report.to_lines(report))


def test_lab_guest_without_rmr():
    smmu = "arm-smmu-v3 arm-smmu-v3.0.auto"
    fault = (
        f"{smmu}: event: F_TRANSLATION client: 0000:11:00.0 sid: 0x1100 ssid: 0x0 "
        "iova: 0x8000040 ipa: 0x0"
    )
    access = f'{smmu}: unpriv data write s1 "Input address caused fault" stag: 0x0'
    vectors = (Vector("nvme0q0", 0, 0), Vector("nvme0q1", 0, 0))
    device = DeviceRun(FIRST, FIRST, "nvme", "its driver's start", 1, 20, True, vectors)
    result = GuestTestResult(RELEASES, [Phase("start", [device])], [], [group(2, FIRST)])
    result = replace(result, guest_faults=[fault, access] * 16, explained=explained_fault(fault))
    assert is_shown_as(text_of(result), output_of(LAB_GUEST_NO_RMR))


def as_predicted(row, column):
    """Return a cell in which both devices of a guest did what the simulator predicts."""
    sample = scenarios.pair(
        row.guest.sharing.value, order=row.order.value, honours_rmr=row.guest.rmr
    )
    a, b = sample.devices
    sample = replace(sample, devices=(a, replace(b, smmu=row.guest.vsmmus - 1)))
    scenario = parse_scenario(sample.toml(), "the row")
    predicted = predictor(scenario.host)(scenario.guest, column.strategy)
    cells = []
    for verdict in predicted:
        is_refused = verdict.outcome is Outcome.REFUSED
        arrives = row.guest.rmr if is_refused else verdict.outcome is Outcome.DELIVERED
        count = 50 if arrives else 0
        address = Iova(0x8000040) if is_refused else verdict.programmed
        number = verdict.errno_inside or verdict.errno
        errno = errno_name(number) if is_refused and number is not None else ""
        cells.append(
            DeviceCell(verdict.device, verdict.outcome, errno, (address,), count or 1, count, count)
        )
    return Cell(row, column, scenario.guest, cells, predicted)


def test_table_of_real_guests_is_what_the_simulator_predicts():
    cells = [as_predicted(row, column) for row in rows() for column in COLUMNS]
    releases = {**RELEASES, "linux": f"{RELEASES['linux']}-bind"}
    lines = lab_compare_guests.to_lines(TableResult(releases, cells, 0.0))
    shown = re.sub(
        r"simulator, \d+ s$", "simulator, 0 s", output_of(COMPARE_GUESTS), flags=re.MULTILINE
    )
    assert is_shown_as("".join(f"{line}\n" for line in lines), shown)
    assert max(map(len, shown.splitlines())) <= 80


# --- real daemons ------------------------------------------------------------------------------


@pytest.mark.lab_root
def test_libvirt_attach_and_detach(lab_daemon):
    block = TRANSCRIPTS[LIBVIRT]
    with connect(lab_daemon.uri) as connection:
        connection.define(nested_guest("guest0", memory=128 << 20, kind="qemu"))
        try:
            printed = doc_blocks.run_example(block, LIBVIRT_DEFAULT_URI=lab_daemon.uri)
        finally:
            connection.undefine("guest0")
    assert printed == block.text


def logged_lines():
    """Return time, level, event and fields of each line of the watch transcript."""
    for line in output_of(WATCH).splitlines():
        time, level, event, *fields = shlex.split(line)
        yield time, level, event, dict(field.split("=", 1) for field in fields)


def test_watch_log_has_the_documented_format():
    """An error has … in place of libvirt's own message, which the log would escape."""
    stream = io.StringIO()
    with service_log.logging_to(stream, as_json=False):
        for _time, level, event, fields in logged_lines():
            number = service_log.logging.getLevelNamesMapping()[level.upper()]
            service_log.log_event(service_log.LogEvent(event), number, **fields)
    time = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", re.MULTILINE)
    printed = stream.getvalue().replace(r"\u2026", "…")
    assert time.sub("", printed) == time.sub("", output_of(WATCH))
    assert len(time.findall(output_of(WATCH))) == output_of(WATCH).count("\n")


@pytest.mark.lab_root
def test_watch_logs_the_documented_events(lab_daemon, tmp_path):
    missing = f"qemu+unix:///system?socket={tmp_path}/missing"
    with connect(lab_daemon.test_uri) as connection:
        connection.define(nested_guest("guest0", memory=128 << 20, kind="test"))
        attach(connection, A, guest="guest0", host=HOST, plugins=PLUGINS)
        connection.start("guest0")
        try:
            with Watch("-c", missing, "-c", lab_daemon.test_uri) as watch:
                watch.wait_for("service-ready")
                connection.destroy("guest0")
                watch.wait_for("unbound")
                watch.signal(signal.SIGTERM)
                assert watch.process.wait(30) == 0
        finally:
            connection.undefine("guest0")
    vary = {"uri", "error", "retry_seconds", "seconds"}
    for _time, level, event, fields in logged_lines():
        line = watch.logged(event)[0]
        assert list(line) == ["time", "level", "event", *fields]
        assert line["level"] == level
        for name in fields.keys() - vary:
            assert str(line[name]) == fields[name], event
        if "error" in fields:
            assert line["error"].startswith(f"connecting to {missing}: ")
