"""Guests with every device and section of libvirt's domain XML, one at a time or many.

The pieces are in ``corpus/devices.txt`` and ``corpus/sections.txt``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lxml import etree

FOLDER = Path(__file__).parent / "corpus"
UUID = "6c7e5a60-2b1f-4b0e-9d53-0f6d3a7f1e07"


def pieces(name):
    """Read the named pieces of XML from a file."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    _title, *parts = re.split(r"^# (\S+)\n", text, flags=re.MULTILINE)
    return {name: xml.strip() for name, xml in zip(parts[::2], parts[1::2], strict=True)}


DEVICES = pieces("devices.txt")
SECTIONS = pieces("sections.txt")
# What some pieces cannot do without.
NEEDS = {
    "memory/": "ram/hotplug",
    "other/redirdev-": "controller/usb-qemu-xhci",
    "other/iommu-intel": "features/ioapic",
}


@dataclass(frozen=True)
class Machine:
    """The driver and machine type of the guests.

    :ivar type: libvirt's domain type.
    """

    type: str
    arch: str
    machine: str | None = None

    def __str__(self):
        return "-".join(filter(None, (self.type, self.arch, self.machine)))

    def guest(self, *names, name="corpus"):
        """Return the XML text of a guest with the named pieces."""
        needs = (
            needed
            for start, needed in NEEDS.items()
            if any(name.startswith(start) for name in names)
        )
        names = (*names, *(needed for needed in needs if needed not in names))
        machine = f" machine='{self.machine}'" if self.machine else ""
        os_type = f"<type arch='{self.arch}'{machine}>hvm</type>"
        own = {
            "memory": "<memory unit='KiB'>4194304</memory>",
            "vcpu": "<vcpu placement='static'>2</vcpu>",
            "os": f"<os>{os_type}</os>",
        }
        sections = [SECTIONS[name] for name in names if name in SECTIONS]
        for section in sections:
            for element in etree.fromstring(f"<all>{section}</all>").iterchildren("*"):
                own.pop(str(element.tag), None)
        inside = "\n".join((*own.values(), *sections)).replace("<type>hvm</type>", os_type)
        devices = "\n".join(DEVICES[name] for name in names if name in DEVICES)
        return (
            f"<domain type='{self.type}'>\n<name>{name}</name>\n<uuid>{UUID}</uuid>\n{inside}\n"
            f"<devices>\n{devices}\n</devices>\n</domain>\n"
        )


PIECES = (*SECTIONS, *DEVICES)
TEST_MACHINES = (Machine("test", "aarch64", "virt"), Machine("test", "x86_64"))
QEMU_MACHINES = (
    Machine("qemu", "aarch64", "virt"),
    Machine("qemu", "x86_64", "q35"),
    Machine("qemu", "x86_64", "pc"),
)
