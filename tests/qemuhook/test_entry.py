"""One call of the hook, in this process and as libvirt calls it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qemuhook.helpers import UUID, descriptor, managed, plain

from vmm_msi.domxml.metadata import NAMESPACE, NAMESPACE_BASE
from vmm_msi.domxml.parse import MAX_BYTES
from vmm_msi.qemuhook import script
from vmm_msi.qemuhook.entry import REFUSED, run
from vmm_msi.qemuhook.run_records import RUN_RECORDS, read_all

CHECKED = ("prepare", "restore", "migrate")
OTHERS = ("start", "started", "stopped", "release", "reconnect", "attach")
OPERATIONS = (*CHECKED, *OTHERS)
BROKEN = str(managed()).replace("<iommufd enabled='yes'/>", "").encode()
GONE = "<iommufd enabled='yes'/> is gone from the definition"


@pytest.fixture
def call(host, tmp_path):
    """Return a function that runs the hook in this process and returns its exit status."""

    def hook(data, operation="prepare", mode="check", extra="-"):
        number = descriptor(data)
        try:
            arguments = [mode, "g", operation, "begin", extra]
            return run(arguments, number, host.tree, tmp_path / "records")
        finally:
            os.close(number)

    return hook


def calls(tmp_path):
    return [
        (call.operation, call.extra, call.problems, call.refused)
        for record in read_all(tmp_path / "records")
        for call in record.steps
    ]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_guest_of_another_program(call, capfd, tmp_path, operation):
    assert call(str(plain()).encode(), operation) == 0
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_guest_in_order(call, capfd, tmp_path, operation):
    assert call(str(managed()).encode(), operation) == 0
    assert capfd.readouterr() == ("", "")
    assert calls(tmp_path) == [(operation, "-", (), False)]
    assert read_all(tmp_path / "records")[0].uuid == UUID


@pytest.mark.parametrize("operation", CHECKED)
def test_a_guest_with_a_problem_is_refused(call, capfd, tmp_path, operation):
    assert call(BROKEN, operation) == REFUSED
    assert capfd.readouterr() == ("", f"vmm-msi hook: guest g: {GONE}\n")
    assert calls(tmp_path) == [(operation, "-", (GONE,), True)]


@pytest.mark.parametrize("operation", OTHERS)
def test_a_running_guest_is_never_refused(call, capfd, tmp_path, operation):
    """libvirt kills a guest whose hook fails at reconnect."""
    assert call(BROKEN, operation) == 0
    assert capfd.readouterr() == ("", "")
    assert calls(tmp_path) == [(operation, "-", (), False)]


def test_mode_record(call, capfd, tmp_path):
    assert call(BROKEN, mode="record") == 0
    assert call(BROKEN, "release", mode="record", extra="destroyed") == 0
    assert capfd.readouterr() == ("", "")
    assert calls(tmp_path) == [
        ("prepare", "-", (GONE,), False),
        ("release", "destroyed", (), False),
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (NAMESPACE, f"{NAMESPACE_BASE}2", "it has version '2'; this vmm-msi reads version '1'"),
        ("vmm-msi:vsmmu pxb", "vmm-msi:vsmmu pbx", "<vsmmu> lacks pxb"),
        ("index='2' ", "index='two' ", "index is 'two'; valid is a decimal number"),
    ],
    ids=["version", "edited", "definition"],
)
def test_an_unreadable_record(call, capfd, old, new, message):
    text = str(managed())
    assert old in text
    assert call(text.replace(old, new).encode()) == REFUSED
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "data",
    [
        NAMESPACE.encode(),
        BROKEN[:-20],
        b"<!DOCTYPE a>" + BROKEN,
        str(plain()).replace("<memory", f"<description>{NAMESPACE}</description><memory").encode(),
        BROKEN + b" " * MAX_BYTES,
    ],
    ids=["bare", "cut off", "doctype", "in a description", "too large"],
)
def test_unreadable_xml_is_ignored(call, capfd, tmp_path, data):
    assert call(data) == 0
    assert capfd.readouterr() == ("", "")
    assert calls(tmp_path) == []


def test_unwritable_run_records(host, tmp_path, capfd):
    (tmp_path / "file").touch()
    for data, status in ((str(managed()).encode(), 0), (BROKEN, REFUSED)):
        arguments = ["check", "g", "prepare", "begin", "-"]
        assert run(arguments, descriptor(data), host.tree, tmp_path / "file" / "below") == status
    assert capfd.readouterr() == ("", f"vmm-msi hook: guest g: {GONE}\n")


def test_a_closed_standard_input(host, tmp_path):
    number = descriptor(BROKEN)
    os.close(number)
    assert run(["check", "g", "prepare", "begin", "-"], number, host.tree, tmp_path) == 0


def test_the_message_is_one_line_of_bounded_length(call, capfd):
    name = "a\nb\x1b[31m" + "n" * 5000
    text = BROKEN.decode().replace("<name>g</name>", f"<name>{name}</name>").replace("\x1b", "")
    assert call(text.encode()) == REFUSED
    _, err = capfd.readouterr()
    assert err.startswith("vmm-msi hook: guest a\\nb[31mnnn")
    assert len(err) == 1001


FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(
    st.lists(st.text(max_size=20) | st.sampled_from(("check", *OPERATIONS)), max_size=7),
    st.sampled_from((b"", str(plain()).encode(), str(managed()).encode())),
)
def test_any_arguments(host, tmp_path, arguments, data):
    assert run(arguments, descriptor(data), host.tree, tmp_path / "records") == 0


@FUZZ
@given(st.binary(max_size=300), st.integers(0, len(BROKEN)), st.sampled_from(OPERATIONS))
def test_any_standard_input(host, tmp_path, noise, place, operation):
    """Truncated, damaged or other data results in 0 or a refusal, never in an exception."""
    for data in (noise, BROKEN[:place] + noise + BROKEN[place:], BROKEN[:place]):
        arguments = ["check", "g", operation, "begin", "-"]
        status = run(arguments, descriptor(data), host.tree, tmp_path / "records")
        assert status == 0 or (operation in CHECKED and status == REFUSED)


# The script as libvirt runs it.

ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


@pytest.fixture(scope="module")
def hook(tmp_path_factory):
    """Install the script; return its path. It stores its calls in the real folder."""
    hooks = tmp_path_factory.mktemp("hooks")
    script.install(hooks, "check")
    yield script.script_path(hooks)
    # Only root may write to the folder.
    with contextlib.suppress(PermissionError):
        (RUN_RECORDS / f"{UUID}.json").unlink(missing_ok=True)


def execute(hook, data, *arguments, **options):
    return subprocess.run(
        [hook, *arguments],
        input=data,
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
        cwd="/",
        **options,
    )


PREPARE = ("g", "prepare", "begin", "-")


@pytest.mark.parametrize(
    ("data", "code", "err"),
    [
        (str(plain()).encode(), 0, b""),
        (b"", 0, b""),
        (b"\x00\xff<", 0, b""),
        (b"x" * (MAX_BYTES * 2), 0, b""),
        (str(managed()).encode(), 1, b"the host has no PCI device 0001:01:00.0"),
        (BROKEN, 1, b"is gone from the definition; the host has no PCI device"),
        (b"<a>" + NAMESPACE.encode(), 0, b""),
    ],
    ids=["other guest", "nothing", "binary", "too large", "managed", "problem", "malformed"],
)
def test_the_script(hook, data, code, err):
    result = execute(hook, data, *PREPARE)
    assert (result.returncode, result.stdout) == (code, b"")
    assert err in result.stderr
    assert result.stderr.count(b"\n") == code


@pytest.mark.parametrize(
    "arguments",
    [(), ("g",), (*PREPARE, "more"), ("-", "-", "-", "-"), ("$(reboot)", "'", '"', "\\")],
)
def test_the_script_with_other_arguments(hook, arguments):
    result = execute(hook, BROKEN, *arguments)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_the_script_without_a_standard_input(hook):
    result = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" g prepare begin - <&-', hook], check=False, env=ENVIRONMENT
    )
    assert result.returncode == 0


@pytest.mark.parametrize("mode", ["check", "record"])
def test_hook_run(hook, mode):
    command = [script.sys.executable, "-m", "vmm_msi", "hook", "run", "--mode", mode, *PREPARE]
    for data, code in ((b"", 0), (str(plain()).encode(), 0), (BROKEN, int(mode == "check"))):
        result = subprocess.run(command, input=data, capture_output=True, check=False)
        assert (result.returncode, result.stdout) == (code, b"")
        assert result.stderr.count(b"\n") == code


@pytest.mark.parametrize("interpreter", ["/nowhere/python", "/bin/false", "/bin/cat"])
def test_guests_start_without_the_interpreter(hook, tmp_path, interpreter):
    text = hook.read_text()
    broken = tmp_path / "hook"
    broken.write_text(text.replace(script.sys.executable, interpreter))
    broken.chmod(0o755)
    assert broken.read_text() != text
    result = execute(broken, BROKEN, *PREPARE)
    assert (result.returncode, result.stdout) == (0, b"")


def test_a_guest_of_another_program_costs_little(hook):
    """It starts no Python. The best of many tries, within a bound that holds on a busy machine."""
    best = 1.0
    for _ in range(10):
        start = time.perf_counter()
        assert execute(hook, str(plain()).encode(), *PREPARE).returncode == 0
        best = min(best, time.perf_counter() - start)
    assert best < 0.150
