"""One call of the hook, in this process and as libvirt makes it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qemuhook.helpers import UUID, descriptor, ours, plain

from vmm_msi.domxml.metadata import NAMESPACE, NAMESPACE_BASE
from vmm_msi.domxml.parse import MAX_BYTES
from vmm_msi.qemuhook import script
from vmm_msi.qemuhook.entry import REFUSED, run
from vmm_msi.qemuhook.run_records import JOURNALS, read_all

LOOKED_AT = ("prepare", "restore", "migrate")
OTHERS = ("start", "started", "stopped", "release", "reconnect", "attach")
OPERATIONS = (*LOOKED_AT, *OTHERS)
WITHOUT = str(ours()).replace("<iommufd enabled='yes'/>", "").encode()
GONE = "<iommufd enabled='yes'/> is gone from the definition"


@pytest.fixture
def call(host, tmp_path):
    """Run the hook in this process; return its exit status."""

    def hook(data, operation="prepare", mode="check", extra="-"):
        number = descriptor(data)
        try:
            words = [mode, "g", operation, "begin", extra]
            return run(words, number, host.folder, tmp_path / "journals")
        finally:
            os.close(number)

    return hook


def steps(tmp_path):
    return [
        (step.operation, step.extra, step.problems, step.refused)
        for each in read_all(tmp_path / "journals")
        for step in each.steps
    ]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_guest_that_is_not_ours(call, capfd, tmp_path, operation):
    assert call(str(plain()).encode(), operation) == 0
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "journals").exists()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_guest_in_order(call, capfd, tmp_path, operation):
    assert call(str(ours()).encode(), operation) == 0
    assert capfd.readouterr() == ("", "")
    assert steps(tmp_path) == [(operation, "-", (), False)]
    assert read_all(tmp_path / "journals")[0].uuid == UUID


@pytest.mark.parametrize("operation", LOOKED_AT)
def test_a_guest_that_would_not_work_is_refused(call, capfd, tmp_path, operation):
    assert call(WITHOUT, operation) == REFUSED
    assert capfd.readouterr() == ("", f"vmm-msi hook: guest g: {GONE}\n")
    assert steps(tmp_path) == [(operation, "-", (GONE,), True)]


@pytest.mark.parametrize("operation", OTHERS)
def test_a_guest_that_runs_is_never_touched(call, capfd, tmp_path, operation):
    """libvirt kills a guest whose hook fails at reconnect."""
    assert call(WITHOUT, operation) == 0
    assert capfd.readouterr() == ("", "")
    assert steps(tmp_path) == [(operation, "-", (), False)]


def test_mode_record(call, capfd, tmp_path):
    assert call(WITHOUT, mode="record") == 0
    assert call(WITHOUT, "release", mode="record", extra="destroyed") == 0
    assert capfd.readouterr() == ("", "")
    assert steps(tmp_path) == [
        ("prepare", "-", (GONE,), False),
        ("release", "destroyed", (), False),
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (NAMESPACE, f"{NAMESPACE_BASE}2", "it is of version '2'; this vmm-msi reads version '1'"),
        ("vmm-msi:vsmmu pxb", "vmm-msi:vsmmu pbx", "<vsmmu> lacks pxb"),
        ("index='2' ", "index='two' ", "index is 'two'; valid is a number"),
    ],
    ids=["version", "edited", "definition"],
)
def test_a_record_that_cannot_be_read(call, capfd, old, new, words):
    text = str(ours())
    assert old in text
    assert call(text.replace(old, new).encode()) == REFUSED
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "data",
    [
        NAMESPACE.encode(),
        WITHOUT[:-20],
        b"<!DOCTYPE a>" + WITHOUT,
        str(plain()).replace("<memory", f"<description>{NAMESPACE}</description><memory").encode(),
        WITHOUT + b" " * MAX_BYTES,
    ],
    ids=["bare", "cut off", "doctype", "in a description", "too large"],
)
def test_what_is_not_known_to_be_ours(call, capfd, tmp_path, data):
    assert call(data) == 0
    assert capfd.readouterr() == ("", "")
    assert steps(tmp_path) == []


def test_nothing_can_be_written_down(host, tmp_path, capfd):
    (tmp_path / "file").touch()
    for data, status in ((str(ours()).encode(), 0), (WITHOUT, REFUSED)):
        words = ["check", "g", "prepare", "begin", "-"]
        assert run(words, descriptor(data), host.folder, tmp_path / "file" / "below") == status
    assert capfd.readouterr() == ("", f"vmm-msi hook: guest g: {GONE}\n")


def test_a_closed_standard_input(host, tmp_path):
    number = descriptor(WITHOUT)
    os.close(number)
    assert run(["check", "g", "prepare", "begin", "-"], number, host.folder, tmp_path) == 0


def test_one_line_of_bounded_length(call, capfd):
    name = "a\nb\x1b[31m" + "n" * 5000
    text = WITHOUT.decode().replace("<name>g</name>", f"<name>{name}</name>").replace("\x1b", "")
    assert call(text.encode()) == REFUSED
    _, err = capfd.readouterr()
    assert err.startswith("vmm-msi hook: guest a\\nb[31mnnn")
    assert len(err) == 1001


FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(
    st.lists(st.text(max_size=20) | st.sampled_from(("check", *OPERATIONS)), max_size=7),
    st.sampled_from((b"", str(plain()).encode(), str(ours()).encode())),
)
def test_any_arguments(host, tmp_path, words, data):
    assert run(words, descriptor(data), host.folder, tmp_path / "journals") == 0


@FUZZ
@given(st.binary(max_size=300), st.integers(0, len(WITHOUT)), st.sampled_from(OPERATIONS))
def test_any_standard_input(host, tmp_path, noise, place, operation):
    """What is cut off, spoilt or something else ends in one of the two, never in an exception."""
    for data in (noise, WITHOUT[:place] + noise + WITHOUT[place:], WITHOUT[:place]):
        words = ["check", "g", operation, "begin", "-"]
        status = run(words, descriptor(data), host.folder, tmp_path / "journals")
        assert status == 0 or (operation in LOOKED_AT and status == REFUSED)


# As libvirt runs it.

ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


@pytest.fixture(scope="module")
def hook(tmp_path_factory):
    """The installed script. It writes down what it sees where it does so for real."""
    hooks = tmp_path_factory.mktemp("hooks")
    script.install(hooks, "check")
    yield script.place(hooks)
    # Only root may write there.
    with contextlib.suppress(PermissionError):
        (JOURNALS / f"{UUID}.json").unlink(missing_ok=True)


def execute(hook, data, *words, **options):
    return subprocess.run(
        [hook, *words],
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
        (str(ours()).encode(), 1, b"the host has no PCI device 0001:01:00.0"),
        (WITHOUT, 1, b"is gone from the definition; the host has no PCI device"),
        (b"<a>" + NAMESPACE.encode(), 0, b""),
    ],
    ids=["not ours", "nothing", "binary", "too large", "ours", "spoilt", "broken"],
)
def test_the_script(hook, data, code, err):
    done = execute(hook, data, *PREPARE)
    assert (done.returncode, done.stdout) == (code, b"")
    assert err in done.stderr
    assert done.stderr.count(b"\n") == code


@pytest.mark.parametrize(
    "words", [(), ("g",), (*PREPARE, "more"), ("-", "-", "-", "-"), ("$(reboot)", "'", '"', "\\")]
)
def test_the_script_with_other_arguments(hook, words):
    done = execute(hook, WITHOUT, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_script_without_a_standard_input(hook):
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" g prepare begin - <&-', hook], check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0


@pytest.mark.parametrize("mode", ["check", "record"])
def test_by_hand(hook, mode):
    command = [script.sys.executable, "-m", "vmm_msi", "hook", "run", "--mode", mode, *PREPARE]
    for data, code in ((b"", 0), (str(plain()).encode(), 0), (WITHOUT, int(mode == "check"))):
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (code, b"")
        assert done.stderr.count(b"\n") == code


@pytest.mark.parametrize("interpreter", ["/nowhere/python", "/bin/false", "/bin/cat"])
def test_an_interpreter_that_is_gone_lets_guests_start(hook, tmp_path, interpreter):
    text = hook.read_text()
    broken = tmp_path / "hook"
    broken.write_text(text.replace(script.sys.executable, interpreter))
    broken.chmod(0o755)
    assert broken.read_text() != text
    done = execute(broken, WITHOUT, *PREPARE)
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_guest_that_is_not_ours_costs_little(hook):
    """Without any Python; a bound that holds on a busy machine, of many tries the best."""
    best = 1.0
    for _ in range(10):
        start = time.perf_counter()
        assert execute(hook, str(plain()).encode(), *PREPARE).returncode == 0
        best = min(best, time.perf_counter() - start)
    assert best < 0.150
