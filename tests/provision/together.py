"""A process that attaches and detaches devices while others do, and keeps track of its own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from provision.helpers import HOST, HOST_FILE, PLUGINS

from vmm_msi import provision
from vmm_msi.config import Config
from vmm_msi.errors import RefusedError
from vmm_msi.libvirt_driver import connect
from vmm_msi.provision import AttachRequest, DetachRequest
from vmm_msi.types import BinderKind, PciAddress

GUESTS = ("together0", "together1", "together2")
DEVICES = tuple(PciAddress(segment, 1, 0, 0) for segment in range(6))


def by_command(uri, command, guest, device):
    """Run the command; return whether it changed the guest; refusals have one line."""
    words = [command, "--connect", uri, guest, str(device)]
    if command == "attach":
        words += ["--host", str(HOST_FILE), "--backend", "sim"]
    environment = {key: text for key, text in os.environ.items() if key != "VMM_MSI_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-m", "vmm_msi", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode == 0:
        return ": already attached: " not in done.stdout
    if done.returncode != RefusedError.exit_code or done.stderr.count("\n") != 1 or done.stdout:
        raise AssertionError(f"{words}: {done.returncode}: {done.stdout}{done.stderr}")
    return False


def by_call(connection, command, guest, device):
    """Do the same in this process."""
    if command == "detach":
        provision.detach(connection, DetachRequest(guest, (device,)), PLUGINS)
        return True
    request = AttachRequest(guest, (device,), binder=BinderKind.SIM)
    try:
        return not provision.attach(connection, PLUGINS, Config(), HOST, request).is_empty
    except RefusedError:
        return False


def work(number, uri, folder, rounds, commands):
    """Attach and detach at random, ``rounds`` times.

    :param commands: run the command in a process per change; else use one connection.
    :return: the devices that it has attached at the end, and how often another process had the
        device, be it in the requested way.
    """
    rng = random.Random(number)  # noqa: S311
    attached, refused = {}, 0
    Path(folder, str(number)).touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    with connect(uri) as connection:

        def change(command, guest, device):
            if commands:
                return by_command(uri, command, guest, device)
            return by_call(connection, command, guest, device)

        for _round in range(rounds):
            if attached and rng.random() < 0.5:
                device = rng.choice(sorted(attached))
                if not change("detach", attached.pop(device), device):
                    raise AssertionError(f"{number}: {device} could not be detached")
            else:
                guest, device = rng.choice(GUESTS), rng.choice(DEVICES)
                if change("attach", guest, device):
                    if device in attached:
                        raise AssertionError(f"{number}: was given {device} twice")
                    attached[device] = guest
                else:
                    refused += 1
            # Only this process removes or moves its devices.
            held = connection.assigned()
            for device, guest in attached.items():
                if [holder for held_device, holder in held if held_device == device] != [guest]:
                    raise AssertionError(f"{number}: {device} is not in {guest} alone: {held}")
    return attached, refused
