"""A real libvirtd runs the hook when it starts and stops real guests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from lab_commands import ENVIRONMENT, inside_of
from qemuhook.helpers import A, B

from vmm_msi.domxml import editor
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import read_record, write_record
from vmm_msi.domxml.support import XmlLayout
from vmm_msi.domxml.template import nested_guest
from vmm_msi.errors import HypervisorError
from vmm_msi.lab.build import package_layer
from vmm_msi.lab.machine.daemon import LabDaemon
from vmm_msi.libvirt_driver import connect
from vmm_msi.types import GuestPlan, VsmmuPlan

pytestmark = pytest.mark.lab_root

SCRIPT = "/etc/libvirt/hooks/qemu.d/50-vmm-msi"


class Inside:
    """Run commands in the daemon's root, with a Python environment that has this package."""

    def __init__(self, daemon):
        self._daemon = daemon
        self._environment = daemon.share / "environment"
        self._install()

    def _install(self):
        """Create the layout of ``python -m venv``, with this package where pip would install it."""
        (self._environment / "bin").mkdir(parents=True)
        (self._environment / "bin/python").symlink_to("/usr/bin/python3")
        (self._environment / "pyvenv.cfg").write_text(
            "home = /usr/bin\ninclude-system-site-packages = true\n"
        )
        version = self.run("/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])")
        packages = "lib/python{}.{}/site-packages".format(*version.split())
        for name, content in package_layer._files():
            path = self._environment / packages / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def run(self, *command, code=0):
        result = subprocess.run(
            inside_of(self._daemon, *command),
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT,
        )
        assert (result.returncode, result.stderr) == (code, "")
        return result.stdout

    def hook(self, *arguments):
        python = self._environment / "bin/python"
        return json.loads(self.run(python, "-m", "vmm_msi", "hook", *arguments, "--format", "json"))

    def reload(self):
        """Have libvirtd search for hooks again, as systemctl reload does."""
        (libvirtd,) = (
            child
            for first in children(self._daemon.pid)
            for child in children(first)
            if Path(f"/proc/{child}/comm").read_text() == "libvirtd\n"
        )
        os.kill(libvirtd, signal.SIGHUP)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def daemon(lab_root):
    """Yield a daemon for this module: a hook concerns every guest of a libvirt."""
    with LabDaemon(lab_root) as own:
        yield own


@pytest.fixture(scope="module")
def inside(daemon):
    return Inside(daemon)


@pytest.fixture
def connection(daemon):
    with connect(daemon.uri) as opened:
        yield opened


@pytest.fixture
def guest(connection):
    """Return a function that defines a guest; stop and undefine the guests after the test."""
    names = []

    def define(xml):
        names.append(xml.name)
        return connection.define(xml)

    yield define
    for name in names:
        if connection.is_active(name):
            connection.destroy(name)
        connection.undefine(name)


def plain(name):
    return nested_guest(name, memory=64 << 20, kind="qemu")


def two_vsmmus(name):
    """Return a vmm-msi guest with two vSMMUs, but without their devices: the host lacks those."""
    plan = GuestPlan((VsmmuPlan(0, (A,), accelerated=False), VsmmuPlan(1, (B,), accelerated=False)))
    assignments = {device: editor.Assignment("identity", "sim") for device in (A, B)}
    domain = editor.apply(plain(name), replace(plan, iommufd=False), XmlLayout(), assignments)
    for hostdev in domain.hostdevs():
        domain.devices.remove(hostdev.element)
    write_record(domain, replace(read_record(domain), devices=()))
    return domain


def without_a_vsmmu(domain):
    copy = DomainXml.parse(str(domain), "copy")
    copy.devices.remove(copy.iommus()[1].element)
    return copy


def starts(connection, name):
    connection.start(name)
    connection.destroy(name)


def recorded(inside, name):
    """Return the calls of the hook for a guest, after libvirt's last call."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        records = [record for record in inside.hook("status")["guests"] if record["guest"] == name]
        if records and records[0]["steps"][-1]["operation"] == "release":
            return [
                (call["operation"], call["extra"], call["problems"], call["refused"])
                for call in records[0]["steps"]
            ]
        time.sleep(0.1)
    raise AssertionError(records)


@pytest.fixture
def installed(inside, connection, guest):
    """Install the hook and wait until libvirt uses it."""
    document = inside.hook("install")
    (note,) = document["notes"]
    assert "libvirt uses it after a reload or restart" in note
    assert (document["path"], document["changed"]) == (SCRIPT, True)
    inside.reload()
    guest(without_a_vsmmu(two_vsmmus("probe")))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            starts(connection, "probe")
        except HypervisorError:
            break
        time.sleep(0.1)
    yield
    inside.hook("uninstall")


def test_libvirt_runs_the_hook(inside, connection, guest, installed):
    status = inside.hook("status")
    assert status["installed"]["in_step"] is True
    assert status["installed"]["works"] is True
    assert status["installed"]["mode"] == "check"
    assert status["notes"] == []

    guest(plain("other"))
    starts(connection, "other")

    in_order = guest(two_vsmmus("in-order"))
    starts(connection, "in-order")
    assert recorded(inside, "in-order") == [
        ("prepare", "-", [], False),
        ("start", "-", [], False),
        ("started", "-", [], False),
        ("stopped", "-", [], False),
        ("release", "destroyed", [], False),
    ]

    damaged = without_a_vsmmu(in_order)
    pxb = read_record(damaged).vsmmus[1].pxb
    problem = (
        f"the <iommu model='smmuv3'> of the pcie-expander-bus with index {pxb} is gone from the "
        "definition"
    )
    connection.define(damaged)
    with pytest.raises(HypervisorError) as refused:
        connection.start("in-order")
    assert f"vmm-msi hook: guest in-order: {problem}" in str(refused.value)
    assert not connection.is_active("in-order")
    assert recorded(inside, "in-order") == [
        ("prepare", "-", [problem], True),
        ("stopped", "-", [], False),
        ("release", "failed", [], False),
    ]

    document = inside.hook("install", "--mode", "record")
    assert (document["changed"], document["notes"]) == (True, [])
    starts(connection, "in-order")
    assert recorded(inside, "in-order") == [
        ("prepare", "-", [problem], False),
        ("start", "-", [], False),
        ("started", "-", [], False),
        ("stopped", "-", [], False),
        ("release", "destroyed", [], False),
    ]
    assert "other" not in {record["guest"] for record in inside.hook("status")["guests"]}


def test_libvirt_does_not_run_the_hook_after_uninstall(inside, connection, guest, installed):
    assert inside.hook("uninstall")["done"] == "removed"
    starts(connection, "probe")
