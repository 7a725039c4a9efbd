"""Shared by the tests of watch: an observer that records events, and a running guest."""

from __future__ import annotations

from contextlib import contextmanager

from provision.helpers import HOST, HOST_FILE, A, B, attach, node, node_file

from vmm_msi.config import Config
from vmm_msi.domxml.bound_metadata import read_bound
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import NAMESPACE, PREFIX
from vmm_msi.plugins import Observer
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.watch.binder import SimBinder
from vmm_msi.watch.reconcile import Reconciler
from vmm_msi.watch.statistics import Statistics

__all__ = ["HOST", "HOST_FILE", "A", "Audit", "B", "attach", "node", "node_file", "running"]

UP = ["attach-device", "bind-doorbell", "prepare-msi"]
DOWN = ["unbind-doorbell", "detach-device"]


class Audit(Observer):
    """An observer that records events, and vetoes those of the devices in ``vetoed``."""

    name = "audit"
    summary = "records events"

    def __init__(self, *vetoed):
        self.events = []
        self.vetoed = set(vetoed)

    def vmm_msi_veto(self, event):
        return "not this one" if event.device in self.vetoed else None

    def vmm_msi_observe(self, event):
        self.events.append(event)

    def drain(self):
        """Return action and device of the events since the last call."""
        events, self.events = self.events, []
        return [(str(event.action), event.device) for event in events]


def binder(*observers, settings=None):
    plugins = PluginManager.load()
    for observer in observers:
        plugins.register(observer)
    return SimBinder(plugins, settings or Config(), HOST)


def reconciler(uri="test"):
    return Reconciler(uri, Statistics())


def ups(*devices):
    return [(action, device) for device in devices for action in UP]


def downs(*devices):
    return [(action, device) for device in devices for action in DOWN]


UUID = "5b6d4f0a-2a5e-4b0e-9d53-0f6d3a7f1e00"


def live(connection, uuid=UUID):
    return DomainXml.parse(connection.live_text(uuid), "the guest")


def bound(connection, uuid=UUID):
    return read_bound(live(connection, uuid))


def outcomes(connection, uuid=UUID):
    stored = bound(connection, uuid)
    return None if stored is None else [(d.host, str(d.outcome)) for d in stored.devices]


def write_live_record(connection, record_xml, uuid=UUID):
    """Replace the record in the live metadata, as attach and detach do in a running guest."""
    connection.set_live_metadata(uuid, NAMESPACE, PREFIX, record_xml)


@contextmanager
def running(file, *devices):
    """Yield a connection to the sample node, where guest0 runs with ``devices``."""
    with node(file) as connection:
        if devices:
            attach(connection, *devices)
        connection.start("guest0")
        yield connection
