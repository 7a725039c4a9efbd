"""The correction of the emulated board's IORT, and the cache of its firmware tables."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from conftest import unavailable
from host.firmware.acpi_builder import iort, its_group, madt, root_complex, smmu_v3
from host.shared import shared_data
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi.errors import LabError, TopologyError
from vmm_msi.host.firmware.iort import parse_iort
from vmm_msi.lab.build.root import LabRoot
from vmm_msi.lab.machine.acpi_edit import override_path
from vmm_msi.lab.machine.board import ensure_board
from vmm_msi.lab.machine.host_xml import HostFiles, host_xml
from vmm_msi.lab.machine.iort_edit import with_canwbs
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.types import Granule, PciAddress

FILES = HostFiles(*(Path("/", name) for name in ("kernel", "initrd", "agent", "tty", "log")))
ALL_IDS = (0, 0xFFFF, 0, 0, 0)
IORT = iort(its_group(0), smmu_v3(ALL_IDS), root_complex((0, 0xFFFF, 0, 1, 0)))
MADT = madt((0, 0x8080000))
REAL = ("qemu-11.1-two-smmuv3-pxb", "qemu-11.1-smmuv3-legacy", "qemu-11.1-accel-guest-rmr")


def check_corrected(old, new):
    """Check that only the root complexes' flags, the revision and the checksum differ."""
    before, after = parse_iort(old, "old"), parse_iort(new, "new")
    assert all(root.canwbs for root in after.root_complexes)
    assert len(after.nodes) == len(before.nodes)
    for old_node, new_node in zip(before.nodes, after.nodes, strict=True):
        if old_node in before.root_complexes:
            flags = old_node.memory_flags | 4
            assert new_node == dataclasses.replace(old_node, memory_flags=flags)
        else:
            assert new_node == old_node
    changed = {offset for offset in range(len(old)) if old[offset] != new[offset]}
    flags = {root.offset + 23 for root in before.root_complexes}
    assert changed <= {9, 24, 25, 26, 27} | flags
    revisions = [struct.unpack_from("<I", table, 24)[0] for table in (old, new)]
    assert revisions[1] == revisions[0] + 1
    assert sum(new) % 256 == 0


@pytest.mark.parametrize("name", REAL)
def test_correction_changes_only_the_flag_in_real_tables(name):
    path = shared_data("acpi") / name / "IORT"
    old = path.read_bytes()
    check_corrected(old, with_canwbs(old, str(path)))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=4))
def test_correction_keeps_the_other_flags_of_root_complexes(flags):
    roots = [
        root_complex((0, 0xFFFF, 0, 1, 0), flags=value, segment=index)
        for index, value in enumerate(flags)
    ]
    old = iort(its_group(0), smmu_v3(ALL_IDS), *roots)
    new = with_canwbs(old, "built")
    check_corrected(old, new)
    after = parse_iort(new, "new").root_complexes
    assert [root.memory_flags for root in after] == [value | 4 for value in flags]


def disassembled(table, folder):
    folder.mkdir()
    path = folder / "IORT.aml"
    path.write_bytes(table)
    done = subprocess.run(["iasl", "-d", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Error" not in done.stderr
    listing = path.with_suffix(".dsl").read_text(encoding="utf-8")
    fields = listing[listing.index("*/") : listing.index("Raw Table Data")]
    assert "Incorrect checksum" not in fields
    return fields.splitlines()


@pytest.mark.parametrize("name", REAL)
def test_iasl_shows_only_the_flag_as_changed(name, tmp_path):
    if shutil.which("iasl") is None:
        unavailable("no iasl: apt-get install acpica-tools")
    old = (shared_data("acpi") / name / "IORT").read_bytes()
    before = disassembled(old, tmp_path / "old")
    after = disassembled(with_canwbs(old, name), tmp_path / "new")
    assert len(before) == len(after)
    differing = [
        (old_line.partition("]")[2], new_line.partition("]")[2])
        for old_line, new_line in zip(before, after, strict=True)
        if old_line != new_line
    ]
    names = {field.partition(":")[0].strip() for pair in differing for field in pair}
    roots = len(parse_iort(old, name).root_complexes)
    # An iasl older than revision E.f of the IORT does not print the flag's own name.
    names.discard("Ensured Coherency of Accesses")
    assert names == {"Checksum", "Oem Revision", "Memory Flags (decoded below)"}
    assert len(differing) >= 2 + roots


@pytest.mark.parametrize("damage", ["cut", "signature"])
def test_malformed_table_is_refused(damage):
    table = {
        "cut": IORT[:-1],
        "signature": b"APIC" + IORT[4:],
    }[damage]
    with pytest.raises(TopologyError, match=r"^IORT: offset"):
        with_canwbs(table, "IORT")


# The cache.


@pytest.fixture
def root(tmp_path):
    """A lab root with only what a board reads: the versions of its packages."""
    entry = tmp_path / "root"
    (entry / "tree").mkdir(parents=True)
    versions = {"qemu-system-arm": "1:11.1", "qemu-efi-aarch64": "2026.08", "bash": "5.3"}
    (entry / "root.json").write_text(json.dumps({"packages": versions}))
    return LabRoot(entry / "tree", "forky", "amd64", "12.8.0", "11.1.2", "now")


class Firmware:
    """Return an emulated host's tables when called, and count the calls."""

    def __init__(self, **tables):
        self.calls = 0
        self.tables = {"IORT": IORT, "APIC": MADT, "DSDT": b"anything", **tables}

    def __call__(self):
        self.calls += 1
        return {name: base64.b64encode(data).decode() for name, data in self.tables.items()}


def board(root, firmware, tmp_path, shape=None, **options):
    shape = shape or Shape()
    xml = host_xml(shape, FILES)
    return ensure_board(xml, root, shape, firmware, tmp_path / "cache", **options)


def test_tables_are_read_once_for_each_board_and_version(root, tmp_path):
    firmware = Firmware()
    first = board(root, firmware, tmp_path)
    assert board(root, firmware, tmp_path).folder == first.folder
    # The tables do not depend on the kernel.
    assert board(root, firmware, tmp_path, Shape(granule=Granule.K64)).folder == first.folder
    assert firmware.calls == 1
    board(root, firmware, tmp_path, Shape(smmus=1))
    assert firmware.calls == 2
    marker = root.path.parent / "root.json"
    marker.write_text(marker.read_text().replace("5.3", "5.4"))
    board(root, firmware, tmp_path)
    assert firmware.calls == 2
    marker.write_text(marker.read_text().replace("1:11.1", "1:11.2"))
    board(root, firmware, tmp_path)
    assert firmware.calls == 3


def test_board_has_the_topology_and_the_override(root, tmp_path):
    cached = board(root, Firmware(), tmp_path, Shape(granule=Granule.K64))
    topology = cached.topology
    assert topology.granule is Granule.K64
    assert [its.base for its in topology.itses] == [0x8080000]
    assert len(topology.smmus) == 1
    assert (cached.folder / "IORT").read_bytes() == IORT
    # Uncompressed, with the file name that Linux looks for.
    assert cached.override.startswith(b"070701")
    assert override_path("IORT").encode() + b"\0" in cached.override
    assert with_canwbs(IORT, "IORT") in cached.override


def test_topology_is_that_of_the_tables_that_the_kernel_gets(root, tmp_path):
    for canwbs in (True, False):
        cached = board(root, Firmware(), tmp_path, canwbs=canwbs)
        assert [segment.canwbs for segment in cached.topology.segments] == [canwbs]
        assert bool(cached.override) is canwbs


def test_devices_of_a_board_with_several_itses_have_each_of_them(root, tmp_path):
    shape = Shape(smmus=2, devices=6, pairs=1, itses=3)
    cached = board(root, Firmware(), tmp_path, shape, emulator="10.2.2")
    topology = cached.topology
    bases = [0x808_0000, 0xB00_0000, 0xB02_0000]
    assert [its.base for its in topology.itses] == bases
    for smmu in range(shape.smmus):
        for slot in range(len(shape.behind(smmu))):
            for function in (0, 1):
                device = PciAddress(0, 16 * (smmu + 1) + 1 + slot, 0, function)
                assert cached.its_of(device).base == bases[(smmu + slot) % 3]
    # Root ports and devices without an SMMU keep the ITS that they had.
    for device in (PciAddress(0, 0, 1, 0), PciAddress(0, 16, 1, 0), PciAddress(0, 40, 0, 0)):
        assert cached.its_of(device).base == bases[0]
    for name in ("IORT", "APIC"):
        assert override_path(name).encode() + b"\0" in cached.override
    assert [segment.canwbs for segment in topology.segments] == [True]


def test_board_of_another_emulator_has_tables_of_its_own(root, tmp_path):
    firmware = Firmware()
    folders = {
        board(root, firmware, tmp_path, Shape(itses=2), emulator=version).folder
        for version in ("10.2.2", "11.1.3")
    }
    assert len(folders) == firmware.calls == 2


def test_device_without_an_its_is_named(root, tmp_path):
    table = iort(its_group(0), root_complex((0, 0xFF, 0, 0, 0)))
    cached = board(root, Firmware(IORT=table), tmp_path)
    with pytest.raises(LabError, match=r"they lead 0000:01:00.0 to no ITS"):
        cached.its_of(PciAddress(0, 1, 0, 0))


@pytest.mark.parametrize(
    ("tables", "error"),
    [
        ({"IORT": IORT[:-4]}, "the emulated host's IORT: offset 0x4"),
        ({"APIC": b""}, "the emulated host's APIC: offset 0x0: truncated"),
    ],
)
def test_bad_tables_are_not_kept(root, tmp_path, tables, error):
    with pytest.raises(TopologyError, match=error):
        board(root, Firmware(**tables), tmp_path)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    assert board(root, Firmware(), tmp_path).topology


@pytest.mark.parametrize("tables", [{}, {"IORT": "no base64!", "APIC": ""}])
def test_answer_without_tables_is_an_error(root, tmp_path, tables):
    with pytest.raises(LabError, match="IORT is missing or not base64"):
        board(root, lambda: tables, tmp_path)


def test_missing_table_is_named_and_read_again(root, tmp_path):
    cached = board(root, Firmware(), tmp_path)
    (cached.folder / "IORT").unlink()
    with pytest.raises(LabError, match="IORT is gone"):
        _ = cached.override
    # The next start reads the tables again.
    firmware = Firmware()
    assert board(root, firmware, tmp_path).override
    assert firmware.calls == 1


def test_root_without_its_marker_is_named(root, tmp_path):
    (root.path.parent / "root.json").unlink()
    with pytest.raises(LabError, match=r"root\.json: .*vmm-msi lab root"):
        board(root, Firmware(), tmp_path)
