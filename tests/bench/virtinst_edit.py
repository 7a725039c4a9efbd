"""Edit domain XML with virt-manager's virtinst; ``domxml.py`` runs this in Debian's own Python.

Each line on standard input has the number of the new bus and the name of a file. The edited file is
written to the file that is the argument, the seconds are printed as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import virtinst
from virtinst.buildconfig import BuildConfig


def edit(connection, text, bus_nr):
    """Add an expander bus, a root port on it and an assigned device behind that."""
    guest = virtinst.Guest(connection, parsexml=text)
    taken = [int(c.index) for c in guest.devices.controller if c.type == "pci"]
    bus = virtinst.DeviceController(connection)
    bus.type, bus.model, bus.index = "pci", "pcie-expander-bus", max(taken) + 1
    bus.target_busNr = bus_nr
    guest.add_device(bus)
    port = virtinst.DeviceController(connection)
    port.type, port.model, port.index = "pci", "pcie-root-port", bus.index + 1
    place(port.address, bus.index)
    guest.add_device(port)
    device = virtinst.DeviceHostdev(connection)
    device.mode, device.type, device.managed = "subsystem", "pci", True
    device.domain, device.bus, device.slot, device.function = 0xFFF0, 1, 0, 0
    place(device.address, port.index)
    guest.add_device(device)
    return guest.get_xml()


def place(address, bus):
    address.type = "pci"
    address.domain, address.bus, address.slot, address.function = 0, bus, 0, 0


def main():
    connection = virtinst.VirtinstConnection("test:///default")
    connection.open(lambda *_: None, None)
    print(
        json.dumps({"version": BuildConfig.version, "python": sys.version.split()[0]}), flush=True
    )
    for line in sys.stdin:
        bus_nr, file = line.strip().split(" ", 1)
        text = Path(file).read_text(encoding="utf-8")
        start = time.perf_counter()
        edited = edit(connection, text, int(bus_nr))
        took = time.perf_counter() - start
        Path(sys.argv[1]).write_text(edited, encoding="utf-8")
        print(json.dumps({"seconds": took}), flush=True)


if __name__ == "__main__":
    main()
