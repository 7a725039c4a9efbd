"""Helpers of the tests of attach and detach: the sample host and calls in one line."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

from described_host import load_host

from vmm_msi import provision, samples
from vmm_msi.config import Choice, Config
from vmm_msi.libvirt_driver import connect
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.provision import AttachRequest, DetachRequest
from vmm_msi.types import PciAddress

#: One device per PCI segment of the sample host: A and B are behind SMMU 0, C behind SMMU 1, each
#: has an ITS of its own. libvirt's sample node knows these three.
A, B, C = DEVICES = tuple(PciAddress(segment, 1, 0, 0) for segment in range(3))
#: Behind SMMU 0 and on A's ITS; unknown to the sample node.
A2 = PciAddress(0, 2, 0, 0)
GUESTS = ("guest0", "guest1")
#: The guest of a real daemon.
GUEST = "nested"

HOST_FILE = samples.path("eight-its-server.dtb")
HOST = load_host(HOST_FILE)
PLUGINS = PluginManager.load()


def node_file(folder):
    """Copy the sample node of libvirt's test driver into ``folder``."""
    return shutil.copy(samples.path("test-driver.xml"), folder / "node.xml")


@contextmanager
def node(file):
    """Connect to libvirt's test driver with the node in ``file``."""
    with connect(f"test://{file}") as connection:
        yield connection


def plan(connection, *devices, strategy=None, guest="guest0", settings=None, plugins=PLUGINS,
         host=HOST, **request):  # fmt: skip
    named = None if strategy is None else Choice.parse(strategy)
    attach_request = AttachRequest(guest, devices, named, **request)
    return provision.plan_attach(connection, plugins, settings or Config(), host, attach_request)


def attach(connection, *devices, plugins=PLUGINS, **options):
    change = plan(connection, *devices, plugins=plugins, **options)
    provision.apply_change(connection, change, plugins)
    return change


def detach(connection, *devices, guest="guest0", plugins=PLUGINS):
    change = provision.plan_detach(connection, DetachRequest(guest, devices))
    provision.apply_change(connection, change, plugins)
    return change


def texts(connection):
    """Return the definition of every guest of the connection."""
    names = [domain.name() for domain in connection._raw.listAllDomains()]
    return {name: str(connection.domain_xml(name)) for name in sorted(names)}


def holders(connection, device):
    return [guest for assigned, guest in connection.assigned() if assigned == device]
