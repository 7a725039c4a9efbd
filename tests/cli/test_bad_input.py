"""Invalid input gives one line: what is wrong, where, and what is valid.

Nothing is printed on standard output, nothing is written, and there is no traceback.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from host.firmware.acpi_builder import iort, its_group, madt, root_complex, smmu_v3
from host.firmware.dt_builder import board, dtb, pci, smmu
from scenarios import A, B, Device, Sample, pair

from vmm_msi import samples

if TYPE_CHECKING:
    from pathlib import Path

TWO_ITS = samples.path("two-its.toml")
BOARD = samples.path("eight-its-server.dtb")
GUEST = samples.path("three-devices.xml")
NODE = samples.path("test-driver.xml")


@dataclass
class Place:
    """The folder with the files of a case."""

    folder: Path

    def file(self, name, content):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def tables(self, iort_table, madt_table=None):
        self.file("acpi/IORT", iort_table)
        if madt_table is not None:
            self.file("acpi/APIC", madt_table)
        return self.folder / "acpi"

    @property
    def uri(self):
        return f"test://{self.folder / 'node.xml'}"

    def scenario(self, *words, **more):
        return ["compare", "--scenario", self.file("scenario.toml", *words), *more]

    def compare(self, host, guest=GUEST):
        return ["compare", "--host", host, "--guest", guest]

    def compare_device(self, host):
        return ["compare", "--host", host, "--device", A]

    def attach(self, *words, guest="guest0", host=BOARD):
        return ["attach", guest, *words, "-c", self.uri, "--host", host]


GOOD_IORT = iort(its_group(0), smmu_v3((0, 0xFFFF, 0, 0, 0)), root_complex((0, 0xFFFF, 0, 1, 0)))
MADT = madt((0, 0x20000000))

CASES = {}


def case(code, *words):
    """Register a case: a function that takes a Place and returns a command line."""

    def register(function):
        CASES[function.__name__.replace("_", " ")] = (function, code, words)
        return function

    return register


# Host descriptions.


@case(3, "IORT: offset 0x", "truncated")
def a_truncated_iort(place):
    return place.compare(place.tables(GOOD_IORT[:70], MADT))


@case(3, "IORT: offset 0x31: node length 280, but ")
def an_iort_with_a_flipped_bit(place):
    return place.compare(place.tables(GOOD_IORT[:50] + b"\1" + GOOD_IORT[51:], MADT))


@case(3, "IORT: offset 0x", "a cycle")
def cyclic_id_mappings(place):
    table = iort(
        smmu_v3((0, 0xFF, 0, 1, 0)), smmu_v3((0, 0xFF, 0, 0, 0)), root_complex((0, 0xFF, 0, 0, 0))
    )
    return place.compare(place.tables(table, MADT))


@case(3, "IORT is missing; copy /sys/firmware/acpi/tables/IORT and APIC into one folder")
def a_folder_without_tables(place):
    return place.compare(place.folder)


@case(3, "finding 0000:01:00.0 in", "APIC is missing: copy")
def tables_without_its_bases(place):
    return place.compare_device(place.tables(GOOD_IORT))


@case(3, "APIC: offset 0x")
def a_truncated_madt(place):
    return place.compare(place.tables(GOOD_IORT, MADT[:50]))


@case(
    5, "device-missing (0001:01:00.0 and 0002:01:00.0): ", "lspci -D, in 0000:00:00.0-0000:ff:1f.7"
)
def a_device_in_no_route(place):
    return place.compare(place.tables(GOOD_IORT, MADT))


@case(5, "comparing strategies: no-its (0000:01:00.0): ", "it has no physical ITS")
def a_device_on_no_its(place):
    table = iort(
        its_group(0), smmu_v3((0x200, 0xFDFF, 0x200, 0, 0)), root_complex((0, 0xFFFF, 0, 1, 0))
    )
    return place.compare_device(place.tables(table, MADT))


@case(5, "comparing strategies: no-smmu (0000:01:00.0): ", "enable the SMMU")
def a_device_behind_no_smmu(place):
    table = iort(its_group(0), root_complex((0, 0xFFFF, 0, 0, 0)))
    return place.compare_device(place.tables(table, MADT))


@case(3, "the base of its ITS 7 is unknown: APIC (MADT) has the ITSes 0")
def an_its_without_a_base(place):
    table = iort(its_group(7), smmu_v3((0, 0xFFFF, 0, 0, 0)), root_complex((0, 0xFFFF, 0, 1, 0)))
    return place.compare_device(place.tables(table, MADT))


@case(5, "no-its (0000:01:00.0): ")
def a_device_tree_without_its(place):
    tree = board(smmu(0), pci(0, "iommu-map = <0x0 &smmu0 0x0 0x10000>;"))
    return place.compare_device(place.file("no-its.dtb", dtb(tree)))


@case(3, "half.dtb", "truncated")
def half_a_device_tree(place):
    return place.compare(place.file("half.dtb", BOARD.read_bytes()[:2000]))


@case(3, "garbage.dtb: starts with b'\\x", "a host is a TOML file with [host], a device tree blob")
def garbage_as_a_device_tree(place):
    return place.compare(place.file("garbage.dtb", GARBAGE))


@case(3, "missing.dtb: cannot be read: No such file or directory; a host is a TOML file")
def a_missing_host(place):
    return ["topology", "show", place.folder / "missing.dtb"]


@case(3, "empty.dtb: starts with b''; a host is")
def an_empty_host(place):
    return ["topology", "show", place.file("empty.dtb", b"")]


# Scenarios.

GARBAGE = b"\x93" + b"".join(bytes([number * 7 % 256]) for number in range(5000))


@case(3, "scenario.toml:", "host.its[1].base: 0x200000000 puts the doorbell page on that of its[0]")
def overlapping_doorbells(place):
    text = pair("own", pits=2).toml().replace("0x201000000", "0x200000000")
    return place.scenario(text)


@case(3, "host.device[1].address: 0000:01:00.0 is already host.device[0]")
def duplicate_addresses(place):
    return place.scenario(Sample((Device(A), Device(A, vectors=3))).toml())


@case(
    3,
    "0000:02:00.0 has StreamID 0x7 on SMMU 0, as 0000:01:00.0 has; give one of them anoth",
)
def duplicate_stream_ids(place):
    devices = (Device(A, extra="stream_id = 7"), Device(B, extra="stream_id = 7"))
    return place.scenario(Sample(devices).toml())


@case(3, "overlaps guest.memory[0]")
def overlapping_memory(place):
    ram = "[[guest.memory]]\nbase = 0x40000000\nsize = 0x10000000\n"
    return place.scenario(pair("own").toml() + ram + ram)


@case(3, "scenario.toml:2: unknown key 'granul' in [host]; did you mean granule? valid keys: ")
def an_unknown_key(place):
    return place.scenario('[host]\ngranul = "4K"\n')


@case(3, "its_group[0]: no [[host.its]] has the id 7; valid: 0")
def a_missing_its(place):
    return place.scenario(pair("own").toml().replace("its_group = [0]", "its_group = [7]", 1))


@case(3, "has no [guest]; a scenario has [host] and [guest]")
def a_scenario_without_a_guest(place):
    text = pair("own").toml()
    return place.scenario(text[: text.index("[guest]")])


@case(3, "scenario.toml: not UTF-8 at byte offset 0x0")
def garbage_as_a_scenario(place):
    return place.scenario(GARBAGE)


@case(3, "scenario.toml:1: not TOML: ")
def text_that_is_not_toml(place):
    return place.scenario("\0")


@case(3, "scenario.toml: larger than 4194304 bytes, the limit for such a file")
def an_oversized_scenario(place):
    return place.scenario(b"# comment\n" * 1_000_000)


@case(3, "nested too deeply")
def a_deeply_nested_scenario(place):
    return place.scenario("a = " + "[" * 100_000)


@case(3, "missing.toml: cannot be read: No such file or directory")
def a_missing_scenario(place):
    return ["compare", "--scenario", place.folder / "missing.toml"]


@case(3, "cannot be read: Is a directory")
def a_folder_as_a_scenario(place):
    return ["compare", "--scenario", place.folder]


# Configurations.


@case(3, "config.toml: not UTF-8 at byte offset 0x0")
def garbage_as_a_configuration(place):
    return [*place.compare(BOARD), "--config", place.file("config.toml", GARBAGE)]


@case(3, "cannot be read: Is a directory")
def a_folder_as_a_configuration(place):
    return [*place.attach(A), "--config", place.folder]


@case(3, "missing.toml: cannot be read: No such file")
def a_missing_configuration(place):
    return ["plugins", "list", "--config", place.folder / "missing.toml"]


# Domain XML.

LAUGHS = """<!DOCTYPE domain [
<!ENTITY a "haha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">
]>
<domain type='kvm'><name>&c;</name></domain>
"""
STEALS = """<!DOCTYPE domain [<!ENTITY file SYSTEM "file:///etc/passwd">]>
<domain type='kvm'><name>&file;</name></domain>
"""


@case(3, "guest.xml: line 1: a document type declaration is refused", "without <!DOCTYPE>")
def exponential_entities(place):
    return place.compare(BOARD, place.file("guest.xml", LAUGHS))


@case(3, "guest.xml: line 1: a document type declaration is refused")
def an_entity_that_reads_a_file(place):
    return place.compare(BOARD, place.file("guest.xml", STEALS))


@case(3, "guest.xml: line 1: Entity 'x' not defined")
def an_unknown_entity(place):
    return place.compare(BOARD, place.file("guest.xml", "<domain><name>&x;</name></domain>"))


@case(3, "guest.xml: too many bytes; libvirt accepts up to 4194304")
def ten_megabytes_of_xml(place):
    text = f"<domain type='kvm'><name>{'x' * 10_000_000}</name></domain>"
    return place.compare(BOARD, place.file("guest.xml", text))


@case(3, "guest.xml: line 1: ")
def deep_xml(place):
    return place.compare(BOARD, place.file("guest.xml", "<a>" * 100_000))


@case(3, "guest.xml: byte 0 is not UTF-8")
def garbage_as_xml(place):
    return place.compare(BOARD, place.file("guest.xml", GARBAGE))


@case(3, "guest.xml: line 1: ", "valid is one well-formed element")
def empty_xml(place):
    return place.compare(BOARD, place.file("guest.xml", ""))


@case(3, "the root element is <network>; valid is <domain>")
def xml_of_a_network(place):
    return place.compare(BOARD, place.file("guest.xml", "<network><name>n</name></network>"))


@case(2, "guest.xml: has no PCI device to compare strategies on")
def xml_without_devices(place):
    text = "<domain type='kvm'><name>n</name><memory>1024</memory><devices/></domain>"
    return place.compare(BOARD, place.file("guest.xml", text))


@case(5, "libvirt-refuses (guest three-devices): libvirt 12.8.0 rejects the definition")
def xml_with_an_invalid_address(place):
    text = GUEST.read_text().replace("bus='0x01'", "bus='0x100'", 1)
    return place.compare(BOARD, place.file("guest.xml", text))


@case(3, "Is a directory; use a file with a libvirt domain XML")
def a_folder_as_xml(place):
    return place.compare(BOARD, place.folder)


@case(3, "missing.xml': No such file or directory; use a file with a libvirt domain XML")
def missing_xml(place):
    return place.compare(BOARD, place.folder / "missing.xml")


# The command line.


@case(2, "lists ranges of addresses, not devices; name the guest's devices with --device ADDRESS")
def a_host_without_devices(place):
    return ["compare", "--host", BOARD]


@case(2, "--domain needs --host: a scenario has its own guest")
def a_guest_with_a_scenario(place):
    return ["compare", "--scenario", TWO_ITS, "--guest", GUEST]


@case(2, "--device needs --host: a scenario has its own devices")
def a_device_with_a_scenario(place):
    return ["compare", "--scenario", TWO_ITS, "--device", "0000:01:00.0"]


@case(2, "strategy 'direct:': not of the form NAME[:key=value,…]")
def a_malformed_strategy(place):
    return ["compare", "--scenario", TWO_ITS, "--strategy", "direct:"]


@case(2, "strategy 'nope': no such plugin; valid: coerced, direct, host-cookie")
def an_unknown_strategy(place):
    return ["compare", "--scenario", TWO_ITS, "--strategy", "nope"]


@case(3, "PCI address '0000:01:00.8': not of the form 0000:01:00.0 (segment:bus:device.function)")
def a_malformed_device_address(place):
    return place.attach("0000:01:00.8")


# libvirt.


@case(6, "looking for guest absent at test://", "no such guest; valid: guest0, guest1")
def attach_to_a_missing_guest(place):
    return place.attach(A, guest="absent")


@case(6, "looking for guest absent at test://", "no such guest; valid: guest0, guest1")
def status_of_a_missing_guest(place):
    return ["status", "absent", "-c", place.uri]


@case(5, "to guest0: held-by-domain (0000:01:00.0): Domain guest1 already has it")
def a_device_of_another_guest(place):
    hostdev = (
        "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
        "<address domain='0' bus='1' slot='0' function='0'/></source></hostdev></devices>"
    )
    head, _, tail = NODE.read_text().rpartition("</devices>")
    place.file("node.xml", head + hostdev + tail)
    return place.attach(A)


@case(6, r"looking for guest a\nb\x1b[31m at test://", "no such guest; valid: guest0, guest1")
def a_guest_with_a_line_break_in_its_name(place):
    return ["status", "a\nb\x1b[31m", "-c", place.uri]


@case(3, r"a\nb.dtb: cannot be read: No such file or directory")
def a_file_with_a_line_break_in_its_name(place):
    return ["topology", "show", place.folder / "a\nb.dtb"]


@case(5, "device-missing (0009:01:00.0): ", "lspci -D, in 0000:00:00.0-0000:ff:1f.7, ")
def a_missing_host_device(place):
    return place.attach("0009:01:00.0")


@case(2, "0000:01:00.0: named twice")
def a_repeated_device(place):
    return place.attach(A, "01:00.0")


@case(3, "removing 0000:01:00.0 from guest0: vmm-msi did not attach it; it attached no device")
def detach_of_a_device_that_is_not_attached(place):
    return ["detach", "guest0", A, "-c", place.uri]


@case(2, "detaching from guest0: vmm-msi has attached no device to it")
def detach_without_attached_devices(place):
    return ["detach", "guest0", "all", "-c", place.uri]


@case(6, "connecting to test:///no/such/node.xml: there is no file /no/such/node.xml; valid is")
def a_missing_node_file(place):
    return ["status", "guest0", "-c", "test:///no/such/node.xml"]


@case(6, "connecting to test://", "there is no file")
def a_folder_as_a_node_file(place):
    return ["status", "guest0", "-c", f"test://{place.folder}"]


@case(6, "connecting to test://")
def garbage_as_a_node_file(place):
    place.file("node.xml", GARBAGE)
    return ["status", "guest0", "-c", place.uri]


@case(6, "is the libvirt daemon of that URI running?")
def a_daemon_that_does_not_answer(place):
    socket = place.folder / "no-socket"
    return ["status", "guest0", "-c", f"qemu+unix:///system?socket={socket}"]


@case(6, "connecting to nothing://at-all: ")
def a_uri_without_a_driver(place):
    return ["status", "guest0", "-c", "nothing://at-all"]


@case(3, "reading the vmm-msi record of guest0", "version '2'; this vmm-msi reads version '1'")
def a_record_of_a_newer_version(place):
    record = "<metadata><x:domain xmlns:x='https://vmm-msi.org/xmlns/libvirt/domain/2'/></metadata>"
    text = NODE.read_text().replace("<memory", f"{record}<memory", 1)
    place.file("node.xml", text)
    return place.attach(A)


@case(3, "record of guest0: <device> lacks ", "it was edited by hand")
def a_record_edited_by_hand(place):
    record = (
        "<metadata><x:domain xmlns:x='https://vmm-msi.org/xmlns/libvirt/domain/1'>"
        "<x:device host='0000:01:00.0'/></x:domain></metadata>"
    )
    text = NODE.read_text().replace("<memory", f"{record}<memory", 1)
    place.file("node.xml", text)
    return ["status", "guest0", "-c", place.uri]


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", CASES)
def test_bad_input(vmm_msi, tmp_path, nowhere, name):
    function, code, parts = CASES[name]
    place = Place(tmp_path / "input")
    place.folder.mkdir()
    shutil.copy(NODE, place.folder / "node.xml")
    words = function(place)
    if words[0] == "compare":
        words = [*words, "-o", nowhere / "result"]
    before = files(tmp_path)
    start = time.monotonic()
    exit_code, out, err = vmm_msi(*words)
    took = time.monotonic() - start
    assert "Traceback" not in err
    assert err.endswith("\n")
    # A scenario has a line for each error.
    lines = err.splitlines()
    assert all(line.startswith(f"vmm-msi {words[0]}: ") for line in lines)
    assert len(lines) == (2 if name == "duplicate addresses" else 1)
    for part in parts:
        assert part in err
    assert exit_code == code
    assert out == ""
    assert files(tmp_path) == before
    assert took < 10
    # The message is one readable line.
    assert len(err) < 1000 + len(os.fspath(tmp_path)) * 4
