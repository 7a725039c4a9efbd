"""What a guest was given, seen from inside: tables, IOMMU groups, interrupts."""

from __future__ import annotations

import base64
from pathlib import Path

_IORT = Path("/sys/firmware/acpi/tables/IORT")
_GROUPS = Path("/sys/kernel/iommu_groups")
_DEVICES = Path("/sys/bus/pci/devices")
_INTERRUPTS = Path("/proc/interrupts")


def look() -> dict[str, object]:
    """Return what there is to see, as JSON."""
    return {
        "iort": base64.b64encode(_IORT.read_bytes()).decode() if _IORT.exists() else None,
        "groups": [_group(folder) for folder in sorted(_GROUPS.iterdir(), key=_number)],
        "devices": [_device(folder) for folder in sorted(_DEVICES.iterdir())],
        "interrupts": interrupts(),
    }


def interrupts() -> dict[int, tuple[str, int]]:
    """Return the name and the count of each MSI, such as ``nvme0q1`` and 12, by Linux's number."""
    found = {}
    head, *lines = _INTERRUPTS.read_text(encoding="ascii").splitlines()
    processors = len(head.split())
    for line in lines:
        words = line.split()
        if "ITS" in line and "MSI" in line:
            counts = map(int, words[1 : 1 + processors])
            found[int(words[0].rstrip(":"))] = (words[-1], sum(counts))
    return found


def _number(folder: Path) -> int:
    return int(folder.name)


def _group(folder: Path) -> dict[str, object]:
    return {
        "id": int(folder.name),
        "devices": sorted(device.name for device in (folder / "devices").iterdir()),
        "reserved": (folder / "reserved_regions").read_text(encoding="ascii").splitlines(),
        "type": (folder / "type").read_text(encoding="ascii").strip(),
    }


def _device(folder: Path) -> dict[str, object]:
    driver = folder / "driver"
    return {
        "address": folder.name,
        "class": (folder / "class").read_text(encoding="ascii").strip(),
        "driver": driver.resolve().name if driver.exists() else None,
        "port": folder.resolve().parent.name,
    }
