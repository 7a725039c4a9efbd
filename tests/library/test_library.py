"""The library as its page shows it: the caller's own connection and threads, nothing global."""

from __future__ import annotations

import contextlib
import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import doc_blocks
import libvirt  # noqa: TID251 - the caller's own connection is what is tested
import pytest
from provision.helpers import DEVICES, HOST, HOST_FILE, A, node_file, texts

import vmm_msi
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import HypervisorError, RefusedError

EXAMPLES = [block.text for block in doc_blocks.blocks(doc_blocks.DOCS / "api.md")]


def test_every_name_is_documented_and_loaded_late():
    for name in vmm_msi.__all__:
        value = getattr(vmm_msi, name)
        assert name == "__version__" or inspect.getdoc(value)
    page = (doc_blocks.DOCS / "api.md").read_text()
    assert [name for name in vmm_msi.__all__ if name not in page] == ["__version__"]
    code = "import sys, vmm_msi; print(*(m for m in sys.modules if m.startswith('vmm_msi.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    with pytest.raises(AttributeError, match="module 'vmm_msi' has no attribute 'nothing'"):
        vmm_msi.nothing  # noqa: B018
    assert dir(vmm_msi) == vmm_msi.__all__


def test_the_first_example(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"test://{node_file(tmp_path)}"
    names = {"URI": uri, "HOST": HOST_FILE}
    exec(EXAMPLES[0], names)  # noqa: S102
    out = capsys.readouterr().out.splitlines()
    assert out == ["0000:01:00.0 delivered 0x8000040", f"[{A!r}] ()"]
    # The connection is still the caller's.
    assert names["raw"].isAlive()
    assert vmm_msi.Connection(names["raw"]).uri == uri
    names["raw"].close()


def test_the_example_of_results(capsys):
    exec(EXAMPLES[1], {"HOST": str(HOST_FILE)})  # noqa: S102
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "4 SMMUs"
    assert out[1].endswith(" False")
    assert out[2:] == ["direct delivered", "identity delivered", "irq-nobody-cared", "input 3"]


@contextlib.contextmanager
def own(uri):
    raw = libvirt.open(uri)
    try:
        yield vmm_msi.Connection(raw)
    finally:
        raw.close()


@pytest.mark.lab_root
def test_threads_with_connections_of_their_own(lab_daemon):
    """Each thread takes its device in and out of its guest; plugins and host are shared."""
    plugins, settings = vmm_msi.PluginManager.load(), vmm_msi.Config()
    failures = []

    def work(number, device):
        try:
            with own(lab_daemon.test_uri) as mine:
                name = f"guest{number}"
                before = str(mine.domain_xml(name))
                for _ in range(5):
                    request = vmm_msi.AttachRequest(name, (device,))
                    vmm_msi.attach(mine, plugins, settings, HOST, request)
                    record = vmm_msi.status(mine, name).record
                    assert [recorded.host for recorded in record.devices] == [device]
                    vmm_msi.detach(mine, vmm_msi.DetachRequest(name))
                assert str(mine.domain_xml(name)) == before
        except BaseException as failure:
            failures.append(failure)
            raise

    with own(lab_daemon.test_uri) as connection:
        for number in range(len(DEVICES)):
            connection.define(nested_guest(f"guest{number}", memory=1 << 30, kind="test"))
        threads = [
            threading.Thread(target=work, args=(number, device))
            for number, device in enumerate(DEVICES)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert connection.assigned() == []
        for number in range(len(DEVICES)):
            connection.undefine(f"guest{number}")


def test_connections_are_independent(tmp_path):
    """Connections to the test driver have guests of their own, and do not see the other's."""
    uri = f"test://{node_file(tmp_path)}"
    plugins, settings = vmm_msi.PluginManager.load(), vmm_msi.Config()
    with own(uri) as one, own(uri) as other:
        before = texts(other)
        vmm_msi.attach(one, plugins, settings, HOST, vmm_msi.AttachRequest("guest0", (A,)))
        assert texts(other) == before != texts(one)


# Passing /dev/iommu.


@pytest.fixture
def qemu(lab_daemon):
    """The daemon's QEMU driver with a guest that names a group of files."""
    text = str(nested_guest("guest0", memory=256 << 20, kind="qemu"))
    with own(lab_daemon.uri) as connection:
        xml = text.replace("<os ", "<iommufd enabled='yes' fdgroup='iommu'/><os ")
        connection._raw.defineXML(xml)
        yield connection
        if connection.is_active("guest0"):
            connection.destroy("guest0")
        connection.undefine("guest0")


def open_in_qemu(uuid):
    """Return what the QEMU process of a guest has open."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and uuid.encode() in (process / "cmdline").read_bytes():
                files = [str(link.readlink()) for link in (process / "fd").iterdir()]
                if b"qemu-system" in (process / "cmdline").read_bytes().split(b"\0")[0]:
                    return files
    pytest.fail("there is no QEMU with that UUID")


@pytest.mark.lab_root
def test_qemu_gets_the_file_that_was_passed(qemu):
    """A file in memory stands for /dev/iommu, which this machine need not have."""
    with pytest.raises(HypervisorError, match=r"starting guest guest0 .*'iommu'"):
        qemu.start("guest0")
    fd = os.memfd_create("passed")
    vmm_msi.pass_iommufd(qemu, "guest0", fd)
    os.close(fd)
    qemu.start("guest0")
    assert any("memfd:passed" in name for name in open_in_qemu(qemu.domain_xml("guest0").uuid))
    with pytest.raises(RefusedError, match="it is running already; shut it down first"):
        vmm_msi.pass_iommufd(qemu, "guest0", 0)


def test_a_guest_without_a_group(tmp_path):
    words = "no <iommufd fdgroup>; attach its devices with --fdgroup NAME"
    with (
        own(f"test://{node_file(tmp_path)}") as connection,
        pytest.raises(RefusedError, match=words),
    ):
        vmm_msi.pass_iommufd(connection, "guest0", 0)


def test_a_missing_iommufd(tmp_path):
    from vmm_msi.provision.fd_passing import open_iommufd

    with pytest.raises(
        HypervisorError, match="No such file or directory; it requires a kernel with"
    ):
        open_iommufd(tmp_path / "iommu")
    (tmp_path / "iommu").touch()
    fd = open_iommufd(tmp_path / "iommu")
    assert not os.get_inheritable(fd)
    os.close(fd)
