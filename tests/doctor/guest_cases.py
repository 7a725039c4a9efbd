"""Guests for the doctor: from ``vmm-msi render``, and ways to break one part of them."""

from __future__ import annotations

from dataclasses import replace

from doctor.cases import HEALTHY, HOST, A, B

from vmm_msi.config import Choice, Config
from vmm_msi.doctor import rules
from vmm_msi.doctor.case import Guest
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.support import newest
from vmm_msi.domxml.template import nested_guest
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.provision import AttachRequest, definition_file
from vmm_msi.types import BinderKind

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
    """Return the template as rendered by ``vmm-msi render`` for the newest libvirt and QEMU."""
    choice = None if strategy is None else Choice.parse(strategy)
    binder = BinderKind.QEMU if kind == "kvm" else BinderKind.SIM
    attach = AttachRequest(GUEST, devices or (A, B), choice, **{"binder": binder, **request})
    start = DomainXml.parse(str(nested_guest(GUEST, memory=memory, kind=kind)), f"{GUEST}.xml")
    return definition_file.plan_attach(start, newest(), PLUGINS, Config(), host, attach).new


def changed(xml, *pairs):
    """Replace text of a definition that must contain it."""
    text = str(xml)
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return DomainXml.parse(text, f"{GUEST}.xml")


def case_of(xml, *, base=HEALTHY, devices=None, holders=(), **fields):
    """Return the case of a guest from a file on a healthy host."""
    hosts = tuple(dict.fromkeys(hostdev.host for hostdev in xml.hostdevs()))
    facts = {"guest": Guest(xml, xml, holders), "plugins": PLUGINS, "config": Config(), **fields}
    return replace(base, devices=hosts if devices is None else devices, **facts)


def ids(case):
    """Return severity and id of all findings, in order, without duplicates."""
    return list(
        dict.fromkeys(f"{finding.severity} {finding.id}" for finding in rules.examine(case))
    )


def only(case, name):
    """Return the only finding with an id."""
    (finding,) = [finding for finding in rules.examine(case) if finding.id == name]
    return finding
