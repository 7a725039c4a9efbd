"""One rule for how every command names a guest: by its libvirt name, as a file, or on stdin."""

import io
import os
import shutil
import threading
from types import SimpleNamespace

import pytest

from vmm_msi import samples

BOARD = samples.path("eight-its-server.dtb")
GUEST = samples.path("three-devices.xml").read_bytes()
LOG = "arm-smmu-v3: event 0x10 received"

#: The commands that read a guest, up to its name.
COMMANDS = {
    "doctor": ("doctor", BOARD, "--guest"),
    "doctor --domain": ("doctor", BOARD, "--domain"),
    "compare": ("compare", "--host", BOARD, "--strategy", "identity", "--guest"),
    "compare --domain": ("compare", "--host", BOARD, "--strategy", "identity", "--domain"),
    "explain": ("explain", "--host", BOARD, LOG, "--guest"),
    "explain --domain": ("explain", "--host", BOARD, LOG, "--domain"),
    "status": ("status",),
}
EVERY = pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())


@pytest.fixture
def node(tmp_path):
    return f"test://{shutil.copy(samples.path('test-driver.xml'), tmp_path / 'node.xml')}"


@EVERY
def test_a_file_and_standard_input(vmm_msi, nowhere, monkeypatch, words):
    (nowhere / "saved").write_bytes(b"<domstatus state='running'>%b</domstatus>" % GUEST)
    (nowhere / "guest.XML").write_bytes(GUEST)
    results = [vmm_msi(*words, "./saved"), vmm_msi(*words, "guest.XML")]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(GUEST)))
    results.append(vmm_msi(*words, "-"))
    reading, writing = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(writing, GUEST), os.close(writing)))
    writer.start()
    results.append(vmm_msi(*words, f"/dev/fd/{reading}"))
    writer.join()
    os.close(reading)
    for code, out, err in results:
        assert code in {0, 1, 9}, err
        assert "connecting" not in err
        assert code == results[0][0]
        assert out


@EVERY
def test_a_name_in_libvirt(vmm_msi, nowhere, node, words):
    code, out, err = vmm_msi(*words, "guest9", "-c", node)
    assert (code, out) == (6, "")
    assert "no such guest" in err
    assert "./guest9" not in err
    (nowhere / "guest9").write_bytes(GUEST)
    code, out, err = vmm_msi(*words, "guest9", "-c", node)
    assert (code, out) == (6, "")
    assert err.endswith("; to read the file guest9 in this folder, use ./guest9\n")
    assert err.count("\n") == 1


@EVERY
def test_what_libvirt_has_is_not_read_from_a_file(vmm_msi, nowhere, node, words):
    (nowhere / "guest0").write_bytes(b"no XML")
    code, _out, err = vmm_msi(*words, "guest0", "-c", node)
    assert "XML" not in err
    if words[0] != "compare":  # this guest has no device
        assert code in {0, 1, 8, 9}, err


@pytest.mark.parametrize("command", ["attach", "detach"])
@pytest.mark.parametrize("guest", ["-", "./guest0", "guest0.xml"])
def test_a_file_is_not_changed_in_libvirt(vmm_msi, node, command, guest):
    code, out, err = vmm_msi(command, "-c", node, "--", guest, "0000:01:00.0")
    assert (code, out) == (2, "")
    assert "not the name of a libvirt domain; to edit XML in a file, use vmm-msi render" in err


def test_standard_input_is_read_once(vmm_msi):
    code, out, err = vmm_msi("explain", "--guest", "-")
    assert (code, out) == (2, "")
    assert "--domain -: standard input has the text; use a file, or pass TEXT" in err
