"""The inventory of a guest, from a folder in the place of its files."""

from __future__ import annotations

import base64

from host.host_files import ACPI, WINDOW
from host.hosts import server

from vmm_msi.host.files.folder import FolderTree
from vmm_msi.lab.guest import inventory

INTERRUPTS = """\
           CPU0       CPU1
 13:        100         20     GICv3  27 Level     arch_timer
 40:          3          4   ITS-PCI-MSI-0000:01:00.0   0 Edge      nvme0q0
 41:          0          5   ITS-PCI-MSIX-0000:01:00.0   1 Edge      nvme0q1
"""


def test_inventory(monkeypatch, tmp_path):
    files = server()
    files.files["/proc/interrupts"] = INTERRUPTS.encode()
    for number in range(6):
        files.files[f"/sys/kernel/iommu_groups/{number}/type"] = b"DMA-FQ\n"
    root = files.write(tmp_path)
    monkeypatch.setattr(inventory, "this_machine", lambda: FolderTree(root))
    listing = inventory.look()
    assert base64.b64decode(listing["iort"]) == files.files[f"{ACPI}/IORT"]
    assert [group["id"] for group in listing["groups"]] == list(range(6))
    assert listing["groups"][5] == {
        "id": 5,
        "devices": ["0001:01:00.0", "0001:02:03.0"],
        "reserved": WINDOW.splitlines(),
        "type": "DMA-FQ",
    }
    assert listing["devices"][1] == {
        "address": "0000:01:00.0",
        "class": "0x020000",
        "driver": "ice",
        "port": "0000:00:01.0",
    }
    assert listing["devices"][0]["port"] == "pci0000:00"
    assert listing["interrupts"] == {40: ("nvme0q0", 7), 41: ("nvme0q1", 5)}


def test_a_guest_without_acpi(monkeypatch, tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/interrupts").write_text(INTERRUPTS)
    monkeypatch.setattr(inventory, "this_machine", lambda: FolderTree(tmp_path))
    listing = inventory.look()
    assert (listing["iort"], listing["groups"], listing["devices"]) == (None, [], [])
