"""A real libvirtd that runs the hook when it starts and stops real guests."""

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
    """Commands in the daemon's root, with a Python environment that this package is in."""

    def __init__(self, daemon):
        self._daemon = daemon
        self._environment = daemon.share / "environment"
        self._install()

    def _install(self):
        """Lay out what ``python -m venv`` does, and this package where pip would put it."""
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

    def run(self, *words, code=0):
        done = subprocess.run(
            inside_of(self._daemon, *words),
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT,
        )
        assert (done.returncode, done.stderr) == (code, "")
        return done.stdout

    def hook(self, *words):
        python = self._environment / "bin/python"
        return json.loads(self.run(python, "-m", "vmm_msi", "hook", *words, "--format", "json"))

    def reload(self):
        """Have libvirtd look for hooks again, as systemctl reload does."""
        (libvirtd,) = (
            child
            for first in children(self._daemon.pid)
            for child in children(first)
            if Path(f"/proc/{child}/comm").read_text() == "libvirtd\n"
        )
        os.kill(libvirtd, signal.SIGHUP)


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def daemon(lab_root):
    """A daemon of this module's own: hooks are for every guest of a libvirt."""
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
    """Define a guest; stop and undefine those that a test leaves."""
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
    """Return a guest of ours with two vSMMUs; the devices behind them are not on this machine."""
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
    """Return what the hook saw of a guest, once libvirt has called it for the last time."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [each for each in inside.hook("status")["guests"] if each["guest"] == name]
        if found and found[0]["steps"][-1]["operation"] == "release":
            return [
                (step["operation"], step["extra"], step["problems"], step["refused"])
                for step in found[0]["steps"]
            ]
        time.sleep(0.1)
    raise AssertionError(found)


@pytest.fixture
def installed(inside, connection, guest):
    """The hook in libvirt's folder, seen by libvirt."""
    said = inside.hook("install")
    (note,) = said["notes"]
    assert "libvirt sees this one when it is told to reload or is restarted" in note
    assert (said["path"], said["changed"]) == (SCRIPT, True)
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
    shown = inside.hook("status")
    assert shown["installed"]["in_step"] is True
    assert shown["installed"]["works"] is True
    assert shown["installed"]["mode"] == "check"
    assert shown["notes"] == []

    guest(plain("stranger"))
    starts(connection, "stranger")

    in_order = guest(two_vsmmus("in-order"))
    starts(connection, "in-order")
    assert recorded(inside, "in-order") == [
        ("prepare", "-", [], False),
        ("start", "-", [], False),
        ("started", "-", [], False),
        ("stopped", "-", [], False),
        ("release", "destroyed", [], False),
    ]

    spoilt = without_a_vsmmu(in_order)
    pxb = read_record(spoilt).vsmmus[1].pxb
    problem = (
        f"the <iommu model='smmuv3'> of the pcie-expander-bus with index {pxb} is gone from the "
        "definition"
    )
    connection.define(spoilt)
    with pytest.raises(HypervisorError) as refused:
        connection.start("in-order")
    assert f"vmm-msi hook: guest in-order: {problem}" in str(refused.value)
    assert not connection.is_active("in-order")
    assert recorded(inside, "in-order") == [
        ("prepare", "-", [problem], True),
        ("stopped", "-", [], False),
        ("release", "failed", [], False),
    ]

    said = inside.hook("install", "--mode", "record")
    assert (said["changed"], said["notes"]) == (True, [])
    starts(connection, "in-order")
    assert recorded(inside, "in-order") == [
        ("prepare", "-", [problem], False),
        ("start", "-", [], False),
        ("started", "-", [], False),
        ("stopped", "-", [], False),
        ("release", "destroyed", [], False),
    ]
    assert "stranger" not in {each["guest"] for each in inside.hook("status")["guests"]}


def test_taken_out_it_is_not_run(inside, connection, guest, installed):
    assert inside.hook("uninstall")["done"] == "removed"
    starts(connection, "probe")
