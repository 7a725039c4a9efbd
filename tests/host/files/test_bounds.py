"""Captures at the documented limits need bounded memory and time."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import zstandard
from host.files.arm_host import arm_host
from host.files.tarballs import header, member, packed, pax

from vmm_msi.errors import TopologyError, UnreadableError
from vmm_msi.host.files.archive import MAX_MEMBERS, MAX_RECORDS, MAX_TOTAL, read_archive
from vmm_msi.host.files.capture import take_capture
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.host.files.in_memory import MemoryTree
from vmm_msi.host.files.pack import pack
from vmm_msi.host.files.paths import MAX_LINKS, MAX_PARTS, MAX_STEPS, PathWalker
from vmm_msi.host.pci.config_space import read_config
from vmm_msi.host.pci.functions import read_functions
from vmm_msi.host.pci.sysfs import MAX_FUNCTIONS

READ = """
import resource, sys
from pathlib import Path
from vmm_msi.errors import InputError
from vmm_msi.host.sources import read_host
try:
    text = f"{len(read_host([Path(sys.argv[1])]).topology.functions)} functions"
except InputError as error:
    text = str(error)
# ru_maxrss would include the memory of the process that started this one.
status = Path("/proc/self/status").read_text()
peak = int(status.partition("VmHWM:")[2].split()[0])
print(peak >> 10, resource.getrusage(resource.RUSAGE_SELF).ru_utime, text)
"""
#: MiB of the process and seconds of a processor; a reader without limits needs 750 and 200.
MEMORY, SECONDS = 256, 30


def address(number):
    return b"%04x:%02x:%02x.%d" % (
        number >> 16,
        number >> 8 & 0xFF,
        number >> 3 & 0x1F,
        number & 7,
    )


def capabilities():
    """Return a configuration space with as many extended capabilities as fit."""
    space = bytearray(4096)
    space[6], space[0x34], space[0x40] = 0x10, 0x40, 0x10
    for at in range(0x100, 0x1000, 8):
        following = at + 8 if at < 0xFF8 else 0
        space[at : at + 4] = (0x0B | 1 << 16 | following << 20).to_bytes(4, "little")
    return bytes(space)


#: An extended header full of records that are not used.
JUNK = pax(*(b"k%09d=" % number + bytes(40) for number in range(MAX_RECORDS)))


def records_before_one_member():
    yield from [JUNK] * 3
    yield member(b"a")


def records_before_each_member():
    for number in range(MAX_TOTAL // (len(JUNK) + 512) - 1):
        yield JUNK
        yield header(b"%05d" % number)


def empty_headers():
    yield from [header(b"x", b"g")] * 3


def deep_paths():
    for number in range(MAX_MEMBERS // MAX_PARTS - 1):
        folders = b"/".join([b"%05d" % number, *[b"abcdef"] * (MAX_PARTS - 2)])
        yield pax(b"path=" + folders + b"/f")
        yield header(b"x")


def long_names():
    for number in range(MAX_MEMBERS - 2):
        if number < 30_000:
            yield pax(b"path=" + b"n" * 500 + b"%05d" % number)
        yield header(b"%05d" % number)


def chains_of_links():
    """Devices behind as many links as a path may have, each with a target as long as it may be."""
    for number in range(MAX_LINKS - 1):
        target = b"/" + b"d/../" * (MAX_PARTS // 2 - 2) + b"l%d" % (number + 1)
        yield pax(b"linkpath=" + target)
        yield header(b"l%d" % number, b"2")
    yield member(b"d", kind=b"5")
    for number in range(MAX_FUNCTIONS):
        name = address(number)
        target = b"../../../../l0/" + name
        yield member(b"sys/bus/pci/devices/" + name, kind=b"2", target=target)
        yield member(b"l%d/" % (MAX_LINKS - 1) + name, kind=b"5")


def lists_of_capabilities():
    space = capabilities()
    for number in range(MAX_FUNCTIONS):
        yield member(b"sys/bus/pci/devices/" + address(number) + b"/config", space)


def bridges_above_each_other():
    space = bytearray(80)
    space[6], space[0x0E], space[0x34], space[0x40], space[0x42] = 0x10, 1, 0x40, 0x10, 0x62
    above = b"pci0000:00"
    for number in range(MAX_FUNCTIONS):
        name = address(number)
        place = b"x/" + above + b"/" + name
        yield member(b"sys/bus/pci/devices/" + name, kind=b"2", target=b"/" + place)
        yield member(place + b"/config", bytes(space))
        above = name if number < 256 else above


def one_group():
    for number in range(MAX_FUNCTIONS):
        name = address(number)
        group = b"../../../../kernel/iommu_groups/1"
        yield member(b"sys/bus/pci/devices/" + name + b"/iommu_group", kind=b"2", target=group)
        yield member(b"sys/kernel/iommu_groups/1/devices/" + name, kind=b"2", target=b"x")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (records_before_one_member, "two extended headers of one kind"),
        (records_before_each_member, "0 functions"),
        (empty_headers, "two extended headers of one kind"),
        (deep_paths, "0 functions"),
        (long_names, "0 functions"),
        (chains_of_links, f"takes more than {MAX_STEPS} steps, the limit of a host's files"),
        (lists_of_capabilities, f"{MAX_FUNCTIONS} functions"),
        (bridges_above_each_other, f"{MAX_FUNCTIONS} functions"),
        (one_group, f"{MAX_FUNCTIONS} functions"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_captures_at_the_limits(tmp_path, members, expected):
    path = tmp_path / "host.tar.zst"
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    with path.open("wb") as file:
        for data in members():
            file.write(packer.compress(data))
        file.write(packer.compress(bytes(1024)) + packer.flush())
    words = [sys.executable, "-c", READ, path]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    memory, seconds, text = done.stdout.split(maxsplit=2)
    assert expected in text
    assert int(memory) < MEMORY
    assert float(seconds) < SECONDS


def refused(data):
    with pytest.raises(TopologyError) as caught:
        read_archive(io.BytesIO(data), "host.tar.zst")
    return str(caught.value)


@pytest.mark.parametrize("kind", [b"x", b"L", b"K", b"g"])
def test_one_extended_header_of_a_kind(kind):
    content = b"path\0" if kind in {b"L", b"K"} else b""
    once, other = member(b"h", content, kind), member(b"a", kind=b"2", target=b"b")
    read_archive(io.BytesIO(packed(once, other)), "host.tar.zst")
    message = "host.tar.zst: member 'h': it has two extended headers of one kind"
    assert refused(packed(once, once, other)) == message
    if kind == b"g":  # valid for all members that follow
        assert refused(packed(once, other, once, member(b"c"))) == message
    else:
        read_archive(io.BytesIO(packed(once, other, member(b"c"), pax(), member(b"d"))), "x")


def test_records_of_an_extended_header():
    records = [b"k%d=" % number for number in range(MAX_RECORDS + 1)]
    read_archive(io.BytesIO(packed(pax(*records[1:]), member(b"a"))), "x")
    reason = f"its extended header has more than {MAX_RECORDS} records"
    assert reason in refused(packed(pax(*records), member(b"a")))


def test_names_in_a_path():
    allowed = b"/".join([b"a"] * MAX_PARTS)
    read_archive(io.BytesIO(packed(pax(b"path=" + allowed), member(b"x"))), "x")
    reason = f"a path of {MAX_PARTS + 1} names; the limit is {MAX_PARTS}"
    assert reason in refused(packed(pax(b"path=" + allowed + b"/b"), member(b"x")))
    target = b"../" * MAX_PARTS + b"b"
    assert reason in refused(packed(pax(b"linkpath=" + target), member(b"x", kind=b"2")))
    manifest = b'{"schema": 1, "unreadable": {"%s": "no"}}' % (b"/a" * (MAX_PARTS + 1))
    assert "names; the limit is" in refused(packed(member(b"vmm-msi/manifest.json", manifest)))
    for files, links in (({"/a" * 65: b""}, {}), ({}, {"/a": "../" * MAX_PARTS + "b"})):
        with pytest.raises(TopologyError, match=f"a path in it has more than {MAX_PARTS} names"):
            pack(files, links, [])


def test_functions_of_a_capture():
    names = [address(number).decode() for number in range(MAX_FUNCTIONS + 1)]
    tree = MemoryTree("host", {f"/sys/bus/pci/devices/{name}/class": b"" for name in names})
    with pytest.raises(TopologyError, match=f"^host: {MAX_FUNCTIONS + 1} PCI functions; the limit"):
        read_functions(tree)


def test_steps_of_a_common_host(tmp_path):
    """A function needs 10 to 20 steps, however many of its files are read."""
    arm_host(tmp_path, devices=200)
    capture = take_capture(FolderTree(tmp_path))
    tree = MemoryTree("host", capture.files, capture.links, capture.folders)
    read_functions(tree)
    assert tree._walker.steps < 200 * 20


def test_folders_are_walked_once():
    links = {"/bus": "/devices/pci", "/devices/pci": "root/0", "/devices/root/0/up": "../../x"}
    looked_up = []

    def link_at(path):
        looked_up.append(path)
        return links.get(path)

    walker = PathWalker("host", link_at)
    assert walker.place("/bus/a/class") == "/devices/root/0/a/class"
    steps = walker.steps
    for name in ("vendor", "device", "driver"):
        assert walker.place(f"/bus/a/{name}") == f"/devices/root/0/a/{name}"
    assert walker.steps == steps
    assert walker.place("/bus/up/y") == "/devices/x/y"
    assert walker.place("/bus/up") == "/devices/x"
    assert walker.place("/bus/a/..") == "/devices/root/0"
    assert walker.place("/../..//./bus/a/") == "/devices/root/0/a"
    assert walker.place("/") == ""


def test_a_loop_is_noticed_in_any_part():
    walker = PathWalker("host", {"/loop": "loop", "/a/loop": "../loop"}.get)
    for path in ("/loop", "/loop/a", "/a/loop", "/a/loop/b"):
        with pytest.raises(UnreadableError, match=f"more than {MAX_LINKS} links"):
            walker.place(path)


def test_parts_of_a_configuration_space_that_are_read():
    space, parts = capabilities(), []

    def read(offset, size):
        parts.append(offset)
        return space[offset : offset + size]

    assert read_config(read).is_express
    assert len(parts) < 160
