"""Every form of a HOST, and several of them as sources about one host."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from described_host import load_host
from host.files.arm_host import arm_host
from host.firmware.acpi_builder import iort, its_group, madt, root_complex, smmu_v3
from host.host_files import ACPI, HostFiles
from host.hosts import read_tree, server, tables

from vmm_msi import samples
from vmm_msi.errors import TopologyError, UsageError
from vmm_msi.host import live
from vmm_msi.host.files import THIS_MACHINE
from vmm_msi.host.files import folder as host_folder
from vmm_msi.host.files.archive import open_archive
from vmm_msi.host.files.capture import take_capture
from vmm_msi.host.files.capture_paths import MANIFEST, PAGE_SIZE
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.host.files.pack import pack
from vmm_msi.host.join import host_of_functions
from vmm_msi.host.resolve import resolve
from vmm_msi.host.sources import read_host
from vmm_msi.library.hosts import load_live
from vmm_msi.types import Granule, PciAddress, PciFunction

BOARD = samples.path("eight-its-server.dtb")


def address(text):
    return PciAddress.parse(text)


def test_other_files_are_refused(tmp_path):
    for name, text in (("host.txt", b"hello"), ("empty", b""), ("text", b"no IORT")):
        path = tmp_path / name
        path.write_bytes(text)
        with pytest.raises(
            TopologyError, match=r"a host is a TOML file .* a folder with .* a capture"
        ):
            load_host(path)
    with pytest.raises(TopologyError, match="No such file"):
        load_host(tmp_path / "none")
    with pytest.raises(TopologyError, match="not a file name"):
        load_host(tmp_path / "a\0b")
    with pytest.raises(TopologyError, match="cannot be read"):
        load_host(tmp_path / "host.txt" / "below")


def test_unreadable_hosts(tmp_path, monkeypatch):
    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "host.dtb"
    path.write_bytes(b"")
    monkeypatch.setattr(type(path), "open", denied)
    with pytest.raises(TopologyError, match="cannot be read: Permission denied"):
        load_host(path)
    (tmp_path / "IORT").touch()
    with pytest.raises(TopologyError, match="cannot be read: Permission denied"):
        load_host(tmp_path)


def test_a_folder_with_acpi_tables(tmp_path):
    nodes = (its_group(1, 0), smmu_v3((0, 0xFFFF, 0x10000, 0, 0)))
    table = iort(*nodes, root_complex((0, 0xFFFF, 0x100, 1, 0), segment=4))
    (tmp_path / "IORT").write_bytes(table)
    (tmp_path / "APIC").write_bytes(madt((0, 0x20000000), (1, 0x20040000)))
    device = resolve(load_host(tmp_path), address("0004:01:00.0"))
    assert (device.smmu, device.stream_id, device.its, device.device_id) == (0, 0x200, 1, 0x10200)


def test_a_folder_laid_out_like_the_root(tmp_path):
    root = server().write(tmp_path)
    host = load_host(root)
    assert host.source == str(root)
    assert len(read_host([root]).sources) == 2
    assert resolve(host, address("0000:01:00.0")).vectors == 129
    # A folder that has the tables themselves is read as one with ACPI tables.
    assert load_host(root / ACPI[1:]).functions == ()


def test_a_capture(tmp_path):
    files = server()
    files.files |= {PAGE_SIZE: b"65536\n", MANIFEST: b'{"schema": 1}'}
    path = tmp_path / "host.tar.zst"
    path.write_bytes(pack(files.files, files.links, files.folders))
    host = load_host(path)
    assert (host.source, host.granule) == (str(path), Granule.K64)
    assert host.functions == read_tree(files.tree()).functions
    assert resolve(host, address("0001:02:03.0")).streams == 2


def test_this_machine(monkeypatch, tmp_path):
    """Machines differ, but each is read with its own page size."""
    for source in read_host().sources:
        assert (source.granule, source.granule_known) == (os.sysconf("SC_PAGE_SIZE"), True)
    for files, error, message in (
        (
            HostFiles(),
            UsageError,
            "has neither .*: it is not an Arm host with an SMMU; name a HOST",
        ),
        (server(), None, None),
    ):
        tree = FolderTree(files.write(tmp_path / message[:3] if message else tmp_path / "server"))
        monkeypatch.setattr(host_folder, "this_machine", lambda tree=tree: tree)
        if error is None:
            assert resolve(load_live().topology, address("0000:01:00.0")).vectors == 129
        elif not (live.ACPI_TABLES / "IORT").exists():
            with pytest.raises(error, match=message):
                load_live()


def test_a_host_and_its_capture_have_one_topology(tmp_path):
    arm_host(tmp_path / "host", devices=40)
    live = FolderTree(tmp_path / "host")
    target = tmp_path / "host.tar.zst"
    target.write_bytes(take_capture(live).packed("tests"))
    host, captured = read_tree(live), read_tree(open_archive(target))
    assert replace(captured, source="") == replace(host, source="")
    assert len(host.functions) == 41
    assert host.smmus[0].base == 0x2B400000
    assert host.functions[1].vectors == 8
    assert load_host(target).devices == host.devices


def test_several_hosts_are_sources_about_one(tmp_path):
    root = server().write(tmp_path / "root")
    folder = HostFiles().tables(**tables()).write(tmp_path / "copy") / ACPI[1:]
    read = read_host([folder], root=root)
    assert [source.source for source in read.sources] == [
        f"{root}{ACPI}",
        f"{root}/sys",
        str(folder),
    ]
    assert (read.name, read.tree.source) == (f"{root} + {folder}", str(root))
    assert read.topology.source == read.name
    assert read_host([folder, root]).name == f"{folder} + {root}"
    assert read_host([BOARD]).tree is None
    assert len(read_host([root, root]).trees) == 2


def test_this_machine_is_the_default():
    read = read_host()
    assert (read.name, read.tree.source) == (THIS_MACHINE, THIS_MACHINE)


def test_a_libvirt_uri():
    function = PciFunction(PciAddress.parse("0000:01:00.0"))
    read = read_host(
        ["qemu:///system", BOARD],
        Granule.K64,
        ask_libvirt=lambda uri: host_of_functions(uri, [function]),
    )
    assert read.topology.functions == (function,)
    assert read.name == f"qemu:///system + {BOARD}"
    with pytest.raises(UsageError, match="qemu:///system: a libvirt URI; a host is"):
        read_host(["qemu:///system"])


def test_a_root_that_is_not_a_folder():
    with pytest.raises(TopologyError, match="/no/such: not a folder; use one laid out like the"):
        read_host(root=Path("/no/such"))
