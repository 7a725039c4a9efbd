"""A capture of a host gives the topology that the host itself gives."""

from __future__ import annotations

from dataclasses import replace

from host.files.arm_host import arm_host
from host.hosts import read_tree

from vmm_msi.host.files.archive import open_archive
from vmm_msi.host.files.capture import capture
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.host.sources import load_host


def test_a_host_and_its_capture_have_one_topology(tmp_path):
    arm_host(tmp_path / "host", devices=40)
    live = FolderTree(tmp_path / "host")
    target = tmp_path / "host.tar.zst"
    target.write_bytes(capture(live).packed("tests"))
    host, captured = read_tree(live), read_tree(open_archive(target))
    assert replace(captured, source="") == replace(host, source="")
    assert len(host.functions) == 41
    assert host.smmus[0].base == 0x2B400000
    assert host.functions[1].vectors == 8
    assert load_host(target).devices == host.devices
