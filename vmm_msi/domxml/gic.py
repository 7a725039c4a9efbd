"""Add the GIC version that an ITS needs to a definition without one, and remove it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.domxml import elements
from vmm_msi.domxml.support import ARCH

if TYPE_CHECKING:
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.domxml.metadata import DomainRecord

_VERSION = "3"


def with_version(definition: DomainXml) -> tuple[DomainXml, str]:
    """Return the definition with a GICv3, if it does not name a version.

    libvirt adds a version when a guest is defined: with KVM the newest of the host, emulated
    version 2 (``src/qemu/qemu_domain.c`` qemuDomainDefEnableDefaultFeatures).

    :return: also what was added: ``gic``, ``gic-version`` or nothing. The record needs it, so that
        :func:`remove` undoes it.
    """
    edited = definition.copy()
    features = edited.root.find("features")
    if features is None or edited.gic_version is not None or edited.arch != ARCH:
        return definition, ""
    element = features.find("gic")
    if element is None:
        last = features[-1] if len(features) else None
        elements.insert_after(features, last, elements.build("gic", {"version": _VERSION}))
        return edited, "gic"
    element.set("version", _VERSION)
    return edited, "gic-version"


def remove(domain: DomainXml, record: DomainRecord) -> None:
    """Remove what :func:`with_version` added, unless the user changed it since."""
    element = domain.root.find("features/gic")
    if element is None or element.get("version") != _VERSION:
        return
    if record.gic_added:
        elements.remove(element)
    elif record.gic_version_added:
        del element.attrib["version"]
