"""Create guests from a template that ships: parsed XML that is filled node by node."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from vmm_msi.domxml import elements
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import DomainXmlError

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

NESTED_GUEST = "nested-guest.xml"

# CPU mode for each type: TCG cannot pass through the host's CPU, the test driver has no CPU.
_CPU_MODES = {"kvm": "host-passthrough", "qemu": "maximum", "test": None}


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """The files that libvirt boots instead of a disk; paths on the host.

    https://libvirt.org/formatdomain.html#direct-kernel-boot
    """

    kernel: str
    initrd: str | None = None
    cmdline: str | None = None


def nested_guest(
    name: str, *, memory: int, vcpus: int = 1, kind: str = "kvm", boot: DirectBoot | None = None
) -> DomainXml:
    """Return the XML of a new aarch64 guest that meets the prerequisites of nested vSMMUs.

    :param memory: RAM in bytes, a multiple of 1024.
    :param kind: libvirt's domain type: ``kvm``, ``qemu`` (emulated) or ``test``.
    :raise DomainXmlError: when one of the values is invalid.
    """
    if kind not in _CPU_MODES:
        raise DomainXmlError(
            f"creating guest {name}: type {kind!r} is unknown; valid: {', '.join(_CPU_MODES)}"
        )
    if memory <= 0 or memory % 1024 or vcpus < 1:
        raise DomainXmlError(
            f"creating guest {name}: {memory} bytes and {vcpus} vCPUs are invalid; use memory in "
            "whole KiB and at least 1 vCPU"
        )
    text = resources.files("vmm_msi.templates").joinpath(NESTED_GUEST).read_bytes()
    domain = DomainXml.parse(text, NESTED_GUEST)
    root = domain.root
    root.set("type", kind)
    _set(root, "name", name)
    _set(root, "memory", str(memory // 1024))
    _set(root, "vcpu", str(vcpus))
    mode = _CPU_MODES[kind]
    cpu = root.find("cpu")
    if cpu is not None:
        if mode is None:
            elements.remove(cpu)
        else:
            cpu.set("mode", mode)
    os = root.find("os")
    if boot is not None and os is not None:
        for tag in ("kernel", "initrd", "cmdline"):
            value = getattr(boot, tag)
            if value is not None:
                elements.insert_after(os, os[-1], elements.build(tag, {}))
                _set(os, tag, value)
    return DomainXml(root, NESTED_GUEST)


def _set(parent: Element, tag: str, value: str) -> None:
    element = parent.find(tag)
    if element is None:
        return
    try:
        element.text = value
    except ValueError:
        raise DomainXmlError(
            f"creating a guest: <{tag}> {value!r} contains characters that XML does not allow; "
            "use printable text"
        ) from None
