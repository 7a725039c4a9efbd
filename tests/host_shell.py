"""The shell on an emulated host's serial console, and a guest to compare strategies with."""

from __future__ import annotations

import socket

GUEST = """\
<domain type='kvm'>
  <name>guest</name>
  <memory unit='KiB'>1048576</memory>
  <os firmware='efi'><type arch='aarch64' machine='virt'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0x{bus:02x}' slot='0x00' function='0x0'/></source>
    </hostdev>
  </devices>
</domain>
"""


def shell(lab_host, command):
    """Run a command in the shell on the serial console and return its output."""
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(30)
        console.connect(str(lab_host.console_socket))
        console.sendall(f"{command}; echo en''d\n".encode())
        output = b""
        while b"\nend" not in output:
            output += console.recv(4096)
    return output.decode(errors="replace")


def driver_of(lab_host, address):
    """Return a device's driver and its driver_override, as sysfs shows them."""
    folder = f"/sys/bus/pci/devices/{address}"
    words = f"$(basename $(readlink {folder}/driver))+$(cat {folder}/driver_override)"
    output = shell(lab_host, f"echo +{words}+")
    return tuple(output.rsplit("+", 3)[-3:-1])
