"""QEMU's capabilities, once probed by a lab daemon, are cached for the next one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from lxml import etree

from vmm_msi import libvirt_driver
from vmm_msi.lab.machine import namespace_init
from vmm_msi.lab.machine.daemon import LabDaemon
from vmm_msi.lab.machine.host_xml import NAME, HostFiles, host_xml
from vmm_msi.lab.machine.shape import Shape

FILES = HostFiles(*(Path("/files", name) for name in ("kernel", "initrd", "agent", "tty", "log")))


@pytest.fixture
def entry(tmp_path):
    """An entry of the cache, and a daemon's root with probed capabilities."""
    tree, root = tmp_path / "entry/tree", tmp_path / "root"
    tree.mkdir(parents=True)
    probed = root / namespace_init._CAPABILITIES
    probed.mkdir(parents=True)
    (probed / "abc.xml").write_text("<qemuCaps/>", encoding="utf-8")
    return tree, root


def test_capabilities_are_kept_and_restored(entry, tmp_path):
    tree, root = entry
    namespace_init.keep_capabilities(tree, root)
    kept = tree.parent / "capabilities/abc.xml"
    assert [path.name for path in kept.parent.iterdir()] == ["abc.xml"]
    modified = kept.stat().st_mtime_ns
    namespace_init.keep_capabilities(tree, root)
    assert kept.stat().st_mtime_ns == modified
    later = tmp_path / "later"
    (later / "var/cache/libvirt").mkdir(parents=True)
    namespace_init.bring_capabilities(tree, later)
    assert (later / namespace_init._CAPABILITIES / "abc.xml").read_text(
        encoding="utf-8"
    ) == "<qemuCaps/>"


def test_truncated_file_is_replaced(entry):
    tree, root = entry
    kept = tree.parent / "capabilities/abc.xml"
    kept.parent.mkdir()
    kept.write_text("<qemu", encoding="utf-8")
    namespace_init.keep_capabilities(tree, root)
    assert kept.read_text(encoding="utf-8") == "<qemuCaps/>"


def test_missing_and_unwritable_caches_are_ignored(entry):
    tree, root = entry
    namespace_init.bring_capabilities(tree, root)
    (tree.parent / "capabilities").touch()
    namespace_init.keep_capabilities(tree, root)
    namespace_init.bring_capabilities(tree, root)


@pytest.mark.lab_root
def test_libvirt_ignores_unreadable_capabilities(lab_root, tmp_path):
    (tmp_path / "tree").symlink_to(lab_root.path)
    root = dataclasses.replace(lab_root, path=tmp_path / "tree")
    kept = tmp_path / "capabilities"
    for _ in range(2):
        with LabDaemon(root) as daemon, libvirt_driver.connect(daemon.uri) as connection:
            connection.define(host_xml(Shape(), FILES))
            connection.undefine(NAME)
        [file] = kept.iterdir()
        assert etree.parse(file).getroot().tag == "qemuCaps"
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
