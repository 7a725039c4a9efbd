"""What the page on render shows, with the real tools, defined on a real libvirt."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from doc_blocks import DOCS, ROOT, blocks
from lab_commands import ENVIRONMENT, inside_of

from vmm_msi.domxml import added_elements
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import read_record, record_in
from vmm_msi.domxml.placement import Placement
from vmm_msi.domxml.template import nested_guest
from vmm_msi.libvirt_driver import connect

pytestmark = pytest.mark.lab_root

PAGE = DOCS / "render.md"
A, B = "0000:01:00.0", "0001:01:00.0"
TOOLS = ("virt-install", "virsh")


@pytest.fixture
def folder(lab_daemon):
    """A folder that both sides see, with the samples where the page has them."""
    place = lab_daemon.share / "render"
    place.mkdir(exist_ok=True)
    yield place
    for file in place.glob("*.xml"):
        file.unlink()


@pytest.fixture
def shell(lab_daemon, folder):
    """Run shell commands in ``folder``; the tools of the daemon's root are in $PATH."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    there = shlex.join(inside_of(lab_daemon, "env", f"--chdir={folder}"))
    python = shlex.quote(sys.executable)
    for name in TOOLS:
        (tools / name).write_text(f'#!/bin/sh\nexec {there} /usr/bin/{name} "$@"\n')
    (tools / "vmm-msi").write_text(f'#!/bin/sh\nexec {python} -m vmm_msi "$@"\n')
    for file in tools.iterdir():
        file.chmod(0o755)
    if not (folder / "vmm_msi").is_symlink():
        (folder / "vmm_msi").symlink_to(ROOT / "vmm_msi")

    def run(script, code=0):
        environment = {**ENVIRONMENT, "PATH": f"{tools}:{ENVIRONMENT['PATH']}"}
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture
def qemu(lab_daemon):
    with connect(lab_daemon.uri) as connection:
        yield connection
        if "guest" in (domain.name() for domain in connection._raw.listAllDomains()):
            connection.undefine("guest")


def block(mark):
    (block,) = [block for block in blocks(PAGE) if block.mark == mark]
    return block.text


def check(defined, devices):
    """Check that libvirt kept all of it, and gave what had none an index of its own."""
    assert added_elements.gone(Placement(defined), record_in(defined)) == []
    assert [str(device.host) for device in read_record(defined).devices] == devices
    indexes = [controller.index for controller in defined.controllers()]
    assert None not in indexes
    assert len(indexes) == len(set(indexes))


def test_virt_install(shell, qemu, folder):
    done = shell(block("shell virt-install"))
    assert "Domain 'guest' defined from guest.xml" in done.stdout
    gic, simulated, *_warnings = done.stderr.splitlines()
    assert gic.startswith("note: the definition had no GIC version; <gic version='3'/> was added")
    assert simulated.startswith("note: the XML is real, the doorbell binding is simulated")
    defined = qemu.domain_xml("guest")
    check(defined, [A, B])
    assert len(defined.iommus()) == 1
    assert sum(c.model == "pcie-root-port" for c in defined.controllers()) > len((A, B))


def test_virt_install_with_an_installation(shell, qemu, folder):
    script = block("shell virt-install").replace("--import", "--cdrom install.iso")
    (folder / "install.iso").touch()
    try:
        done = shell(script, code=3)
        assert "it has 2 domains; use one: virt-install --print-xml 2" in done.stderr
        assert (folder / "guest.xml").read_text() == ""
        for step in "12":
            shell(script.replace("--print-xml", f"--print-xml {step}"))
            check(qemu.domain_xml("guest"), [A, B])
            qemu.undefine("guest")
    finally:
        (folder / "install.iso").unlink()


def test_terraform(shell, qemu):
    text = block("terraform main.tf")
    interpreter = re.search(r"interpreter = (\[.*\])", text)[1]
    assert interpreter == '["/bin/bash", "-euo", "pipefail", "-c"]'
    command = re.search(r"<<-EOT\n(.*?) *EOT\n", text, re.DOTALL)[1]
    assert command.rstrip().endswith("virsh start guest")
    qemu.define(nested_guest("guest", memory=64 << 20, kind="qemu"))
    # The device is not on this machine, so that libvirt cannot start the guest.
    done = shell(command, code=1)
    assert "Domain 'guest' defined from guest.xml" in done.stdout
    assert "error: Failed to start domain 'guest'" in done.stderr
    check(qemu.domain_xml("guest"), [A])


def test_kubevirt(shell, folder):
    (guest,) = [block.text for block in blocks(PAGE) if block.file_name == "guest.xml"]
    (folder / "guest.xml").write_text(guest)
    out = shell(block("shell kubevirt")).stdout
    new = DomainXml.parse(out, "out")
    assert [str(hostdev.host) for hostdev in new.hostdevs()] == [A]


def test_kubevirt_defines_what_the_hook_prints(shell, qemu, folder):
    (guest,) = [block.text for block in blocks(PAGE) if block.file_name == "guest.xml"]
    (folder / "guest.xml").write_text(
        guest.replace("kvm", "qemu").replace("host-passthrough", "maximum")
    )
    annotations = '"vmm-msi.org/devices": "0000:01:00.0", "vmm-msi.org/backend": "sim"'
    script = block("shell kubevirt").replace('"vmm-msi.org/devices": "0000:01:00.0"', annotations)
    shell(f"{script.rstrip()} >new.xml\nvirsh define --validate new.xml")
    check(qemu.domain_xml("guest"), [A])
    shell("virsh dumpxml --inactive guest | vmm-msi render --remove --device all >old.xml")
    assert DomainXml.parse((folder / "old.xml").read_text(), "old").hostdevs() == ()
