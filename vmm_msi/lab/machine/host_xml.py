"""Fill the libvirt domain XML template of the emulated host for a shape.

Each SMMU serves a PCI expander bus with a root port for every device. The test device is QEMU's
``edu`` (QEMU ``docs/specs/edu.rst``). libvirt has no element for a drive
or network that it does not manage, so devices come through ``qemu:commandline``
(https://libvirt.org/drvqemu.html), behind root ports that libvirt names ``pci.<index>``.

A host with guests has processors with EL2 and mounts two folders by 9p: its libvirt's root and its
guests' boot files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

from vmm_msi.domxml import elements
from vmm_msi.domxml.libvirt_domain import EXPANDER_BUS, ROOT_PORT, DomainXml
from vmm_msi.errors import LabError
from vmm_msi.lab.guest import its_log
from vmm_msi.lab.machine.shape import E1000E, IGB, NVME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lxml.etree import _Element as Element

    from vmm_msi.lab.machine.shape import Port, Shape

TEMPLATE = "lab-host.xml"
NAME = "lab-host"

#: Bus numbers of each expander bus: its own and one for every root port.
BUS_STEP = 16

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_FIRST_SLOT = 2  # of pcie.0; the template has the agent's channel in slot 1
_FOLDER_SLOT = 0x1E  # of pcie.0, and the next one

#: Mount tags of the folders of a host with guests.
ROOT_TAG, BOOT_TAG = "root", "boot"


@dataclass(frozen=True)
class HostFiles:
    """The emulated host's boot files, sockets and logs, as absolute paths.

    :ivar kernel: an arm64 Image.
    :ivar initrd: its initial RAM file system.
    :ivar agent: the socket of the agent's channel, created by QEMU.
    :ivar console: the socket of the serial console, created by QEMU.
    :ivar serial_log: the console's log.
    :ivar folders: the folders of a host with guests, by mount tag.
    :ivar drives: files behind its NVMe controllers, in their order.
    :ivar its_log: a line for each MSI that reaches an ITS of a host with guests.
    :ivar emulator: the QEMU of a host with several ITSes; the others use the root's.
    """

    kernel: Path
    initrd: Path
    agent: Path
    console: Path
    serial_log: Path
    folders: Mapping[str, Path] = field(default_factory=dict)
    drives: Sequence[Path] = ()
    its_log: Path | None = None
    emulator: Path | None = None


def host_xml(shape: Shape, files: HostFiles) -> DomainXml:
    """Return the XML of the emulated host.

    :raise DomainXmlError: when a path has characters that XML cannot hold.
    """
    text = resources.files("vmm_msi.templates").joinpath(TEMPLATE).read_bytes()
    domain = DomainXml.parse(text, TEMPLATE)
    root, devices = domain.root, domain.devices
    _find(root, "memory").text = str(shape.memory)
    _find(root, "vcpu").text = str(shape.vcpus)
    fill_start(domain, files)
    commandline = _find(root, f"{_QEMU}commandline")
    if shape.its_count > 1:
        _find(devices, "emulator").text = str(files.emulator)
        _arguments(commandline, "-machine", f"x-itses={shape.its_count}")
    if shape.guests:
        # libvirt has no XML for this, nor for stage=nested.
        _arguments(commandline, "-machine", "virtualization=on")
        if files.its_log is not None:
            _arguments(commandline, "-D", str(files.its_log), "-trace", its_log.EVENT)
        for slot, (tag, folder) in enumerate(files.folders.items(), _FOLDER_SLOT):
            _add(devices, "controller", _folder(tag, folder, slot))
    drives = iter(files.drives)
    port = shape.smmus  # controller indexes: 1 and up are the expander buses
    for smmu in range(shape.smmus):
        pxb = smmu + 1
        _add(devices, "controller", _expander(pxb, _FIRST_SLOT + smmu, BUS_STEP * pxb))
        for slot, place in enumerate(shape.behind(smmu)):
            port += 1
            _add(devices, "controller", _root_port(port, pxb, slot))
            for function in range(place.functions):
                _add_device(commandline, port, place, function, drives)
        driver = elements.build("driver", {"pciBus": str(pxb)})
        _add(devices, "memballoon", elements.build("iommu", {"model": "smmuv3"}, driver))
    return domain


def fill_start(domain: DomainXml, files: HostFiles) -> None:
    """Write a lab machine's boot files and sockets into its definition."""
    root, devices = domain.root, domain.devices
    _find(root, "os/kernel").text = str(files.kernel)
    _find(root, "os/initrd").text = str(files.initrd)
    _find(devices, "serial/source").set("path", str(files.console))
    _find(devices, "serial/log").set("file", str(files.serial_log))
    _find(devices, "channel/source").set("path", str(files.agent))


def _expander(index: int, slot: int, bus_nr: int) -> Element:
    return _controller(
        index, EXPANDER_BUS, elements.build("target", {"busNr": str(bus_nr)}), _address(0, slot)
    )


def _root_port(index: int, bus: int, slot: int) -> Element:
    return _controller(index, ROOT_PORT, _address(bus, slot))


def _controller(index: int, model: str, *children: Element) -> Element:
    return elements.build(
        "controller", {"type": "pci", "index": str(index), "model": model}, *children
    )


def _address(bus: int, slot: int) -> Element:
    place = {"domain": "0x0000", "bus": f"{bus:#04x}", "slot": f"{slot:#04x}", "function": "0x0"}
    return elements.build("address", {"type": "pci", **place})


def _add(devices: Element, after: str, new: Element) -> None:
    """Insert ``new`` after the last element named ``after`` or like itself."""
    alike = [*devices.iterchildren(after, str(new.tag))]
    elements.insert_after(devices, alike[-1], new)


def _folder(tag: str, folder: Path, slot: int) -> Element:
    return elements.build(
        "filesystem",
        {"type": "mount", "accessmode": "passthrough"},
        elements.build("source", {"dir": str(folder)}),
        elements.build("target", {"dir": tag}),
        elements.build("readonly", {}),
        _address(0, slot),
    )


def _add_device(
    commandline: Element, port: int, place: Port, function: int, drives: Iterator[Path]
) -> None:
    # As JSON: QEMU creates non-JSON devices before the JSON ones, such as libvirt's root ports
    # (``system/vl.c`` qemu_create_cli_devices).
    device: dict[str, object] = {
        "driver": place.driver,
        "bus": f"pci.{port}",
        "addr": f"0.{function}",
    }
    if place.driver == NVME:
        device["serial"] = f"lab-{port}"
        drive = next(drives, None)
        if drive is not None:
            device["drive"] = f"drive{port}"
            # Only this QEMU uses the file, so it needs no lock.
            node = {"driver": "file", "filename": f"{drive}", "locking": "off"}
            whole = {"driver": "raw", "node-name": device["drive"], "file": node}
            _arguments(commandline, "-blockdev", json.dumps(whole))
    if place.driver in {E1000E, IGB}:
        device["netdev"] = f"net{port}"
        network = {"type": "user", "id": device["netdev"], "restrict": True}
        _arguments(commandline, "-netdev", json.dumps(network))
    if place.functions > 1:
        device["multifunction"] = True
    _arguments(commandline, "-device", json.dumps(device))


def _arguments(commandline: Element, *values: str) -> None:
    for value in values:
        elements.insert_after(
            commandline, commandline[-1], elements.build(f"{_QEMU}arg", {"value": value})
        )


def _find(parent: Element, path: str) -> Element:
    element = parent.find(path)
    if element is None:
        raise LabError(f"filling the template {TEMPLATE}: it has no <{path}>; reinstall vmm-msi")
    return element
