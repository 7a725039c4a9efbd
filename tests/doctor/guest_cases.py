"""Guests for the doctor: as ``vmm-msi render`` makes them, and ways to break one thing of them."""

from __future__ import annotations

from dataclasses import replace

from doctor.cases import HEALTHY, HOST, A, B

from vmm_msi.config import Choice, Config
from vmm_msi.doctor import rules
from vmm_msi.doctor.case import Guest
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.template import nested_guest
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.provision import AttachRequest, BinderKind, definition_file

PLUGINS = PluginManager.load()
GUEST = "guest0"
MIB = 1 << 20

NIC = """
    <interface type='user'>
      <mac address='52:54:00:9a:3c:00'/>
      <model type='virtio'/>
      <address type='pci' domain='0x0000' bus='{bus}' slot='0x00' function='0x0'/>
    </interface>"""


def rendered(*devices, strategy=None, kind="kvm", host=HOST, memory=4096 * MIB, **request):
    """Return what ``vmm-msi render`` makes of the template, for the newest libvirt and QEMU."""
    named = None if strategy is None else Choice.parse(strategy)
    binder = BinderKind.QEMU if kind == "kvm" else BinderKind.SIM
    wanted = AttachRequest(GUEST, devices or (A, B), named, **{"binder": binder, **request})
    start = DomainXml.parse(str(nested_guest(GUEST, memory=memory, kind=kind)), f"{GUEST}.xml")
    return definition_file.plan_attach(
        start, definition_file.newest(), PLUGINS, Config(), host, wanted
    ).new


def changed(xml, *pairs):
    """Replace text of a definition; each must be there."""
    text = str(xml)
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return DomainXml.parse(text, f"{GUEST}.xml")


def case_of(xml, *, base=HEALTHY, devices=None, holders=(), **fields):
    """Return the case of a guest from a file on a host on which everything works."""
    hosts = tuple(dict.fromkeys(hostdev.host for hostdev in xml.hostdevs()))
    told = {"guest": Guest(xml, xml, holders), "plugins": PLUGINS, "config": Config(), **fields}
    return replace(base, devices=hosts if devices is None else devices, **told)


def ids(case):
    """Return the ids of all that is found, by severity and in order, each once."""
    return list(dict.fromkeys(f"{found.severity} {found.id}" for found in rules.examine(case)))


def only(case, name):
    """Return what is found of one id; it must be there once."""
    (finding,) = [found for found in rules.examine(case) if found.id == name]
    return finding
