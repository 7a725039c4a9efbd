"""The shell on an emulated host's serial console, and a guest to compare strategies with."""

from __future__ import annotations

import base64
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


def run_script(lab_host, script, last):
    """Run a Python script on the host; return its output, which ends with ``last`` or an error."""
    text = base64.b64encode(script.encode()).decode()
    shell(lab_host, "rm -f /tmp/script.txt /tmp/output.txt")
    for begin in range(0, len(text), 512):
        shell(lab_host, f"echo {text[begin : begin + 512]} >>/tmp/script.txt")
    shell(lab_host, "busybox base64 -d /tmp/script.txt >/tmp/script.py")
    shell(lab_host, "(python3 /tmp/script.py >/tmp/output.txt 2>&1 &)")
    outputs = (shell(lab_host, "cat /tmp/output.txt; sleep 1") for _ in range(60))
    return next((text for text in outputs if last in text or "Error" in text), "")


def driver_of(lab_host, address):
    """Return a device's driver and its driver_override, as sysfs shows them."""
    folder = f"/sys/bus/pci/devices/{address}"
    words = f"$(basename $(readlink {folder}/driver))+$(cat {folder}/driver_override)"
    output = shell(lab_host, f"echo +{words}+")
    return tuple(output.rsplit("+", 3)[-3:-1])
