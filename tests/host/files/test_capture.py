"""A capture has the files on the list and reads like the host itself."""

from __future__ import annotations

import io
import os
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from host.files.arm_host import PORT, PRIVATE, RELEASE, arm_host, packed_config
from host.files.tarballs import member, packed
from host.firmware.dt_builder import dtb

from vmm_msi.host.files import UnreadableError, number, text
from vmm_msi.host.files.archive import open_archive, read_archive
from vmm_msi.host.files.capture import added_files, take_capture
from vmm_msi.host.files.capture_list import CAPTURED_PATHS
from vmm_msi.host.files.folder import FolderTree

DEVICE = "/sys/bus/pci/devices/0000:01:00.0"


def capture_of(folder):
    """Return a capture and the files in its archive."""
    capture = take_capture(FolderTree(folder))
    return capture, read_archive(io.BytesIO(capture.packed("tests")), "host.tar.zst")


def paths(folder):
    """Yield each path of a folder, links not followed."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield "/" + os.path.relpath(f"{place}/{name}", folder)


@pytest.fixture
def host(tmp_path):
    arm_host(tmp_path)
    return tmp_path


def test_a_capture_reads_as_the_host_does(host):
    capture, tree = capture_of(host)
    live = FolderTree(host)
    assert (capture.unreadable, capture.partial) == ({}, {})
    for path in capture.links:
        assert tree.link(path) == live.link(path)
    reduced = {
        "/proc/cmdline",
        "/proc/meminfo",
        "/proc/812/limits",
        f"/boot/config-{RELEASE}",
        f"/usr/lib/modules/{RELEASE}/modules.alias",
    }
    kinds = Counter()
    for path in capture.files:
        same = tree.read(path) == live.read(path)
        whole = path not in reduced and not path.endswith("/config")
        kinds[whole, same] += 1
        assert not whole or same or path.startswith(("/dev/", f"{PORT}/0000")), path
    for path in (DEVICE, f"{DEVICE}/msi_irqs", "/sys/class/iommu", "/sys/kernel/iommu_groups/7"):
        assert tree.exists(path)
    assert tree.names("/sys/bus/pci/devices") == live.names("/sys/bus/pci/devices")
    assert tree.names(f"{DEVICE}/msi_irqs") == ("40",)
    assert tree.exists(f"{DEVICE}/vfio-dev")
    assert text(tree, f"{DEVICE}/iommu_group/reserved_regions") == (
        "0x0000000008000000 0x00000000080fffff msi"
    )
    assert number(tree, f"{DEVICE}/vendor") == 0x8086
    assert tree.read_part(f"{DEVICE}/config", 0x150, 4) == b"\x0f\x00\x01\x16"
    assert tree.exists("/sys/firmware/efi")
    assert not tree.exists("/dev/kvm")
    assert text(tree, "/vmm-msi/page-size") == "65536"


def test_nothing_private_leaves_the_host(host):
    (host / "sys/firmware/fdt").write_bytes(
        dtb(f'/dts-v1/; / {{ chosen {{ bootargs = "{PRIVATE}"; }}; }};')
    )
    (host / "proc/config.gz").write_bytes(packed_config())
    capture, tree = capture_of(host)
    data = zstandard.ZstdDecompressor().decompress(capture.packed("tests"))
    assert PRIVATE.encode() not in data
    assert PRIVATE.encode() not in b"".join(capture.files.values())
    assert b"CONFIG_IOMMUFD=m" in tree.read(f"/boot/config-{RELEASE}")
    assert tree.read("/proc/cmdline") == b"iommu.passthrough=1\n"
    assert tree.exists("/sys/firmware/fdt")
    assert tree.exists("/proc/config.gz")
    for path in ("/sys/module/wifi", "/sys/firmware/acpi/tables/DSDT", "/proc/812/environ"):
        assert not tree.exists(path)


def test_only_files_on_the_list(host):
    """Each file of a capture is on the list, links followed."""
    capture, _tree = capture_of(host)
    listed = {captured.path.rpartition("/")[2] for captured in CAPTURED_PATHS}
    for path in capture.files:
        name = path.rpartition("/")[2]
        is_listed = name in listed or name == f"config-{RELEASE}"
        assert is_listed or path.split("/")[-2] in {"parameters", "msi_irqs"}, path
    total = sum(count for count, _size in capture.taken.values())
    assert total == len(capture.files) + len(
        [path for path in capture.links if "devices" in path or "class" in path]
    ) + len(capture.folders)


def test_two_captures_of_a_host_are_identical(host):
    assert capture_of(host)[0].packed("tests") == capture_of(host)[0].packed("tests")


def test_a_capture_of_an_unpacked_capture_is_identical(host, tmp_path_factory):
    data = capture_of(host)[0].packed("tests")
    again = tmp_path_factory.mktemp("again")
    tar = zstandard.ZstdDecompressor().decompress(data)
    subprocess.run(["tar", "-x", "-C", again], input=tar, check=True)
    assert capture_of(again)[0].packed("tests") == data


def test_an_empty_host_has_an_empty_capture(tmp_path):
    capture, tree = capture_of(tmp_path)
    assert (capture.files, capture.links, capture.unreadable) == ({}, {}, {})
    assert tree.names("/") == ("vmm-msi",)


def test_a_capture_records_unreadable_files(host):
    """As another user, since root may read every file."""
    if os.geteuid() == 0:
        for folder in (host, *host.parents):
            if folder != Path("/tmp"):  # noqa: S108
                folder.chmod(folder.stat().st_mode | 0o055)
    for path in ("sys/firmware/acpi/tables/IORT", "proc/812", "sys/kernel/iommu_groups"):
        (host / path).chmod(0)
    (host / "sys/firmware/fdt").write_bytes(b"no device tree")
    (host / "proc/config.gz").write_bytes(b"no gzip")
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(into, take_capture(FolderTree(host)).packed("tests"))
        finally:
            os._exit(0)
    os.close(into)
    with open(out, "rb") as pipe:  # noqa: PTH123
        tree = read_archive(pipe, "host.tar.zst")
    os.waitpid(child, 0)
    for path, reason in (
        ("/sys/firmware/acpi/tables/IORT", "Permission denied"),
        ("/proc/812/limits", "Permission denied"),
        ("/sys/firmware/fdt", "not a device tree"),
        ("/proc/config.gz", "cannot be decompressed: Error -3"),
    ):
        with pytest.raises(UnreadableError) as caught:
            tree.read(path)
        assert caught.value.reason.startswith(reason)
    with pytest.raises(UnreadableError, match="Permission denied"):
        tree.names("/sys/kernel/iommu_groups")
    assert tree.read("/sys/firmware/acpi/tables/APIC") is not None


def test_a_capture_records_a_partial_configuration_space(host):
    config = host / PORT[1:] / "0000:01:00.0" / "config"
    config.write_bytes(config.read_bytes()[:64])
    capture, tree = capture_of(host)
    path = f"{PORT}/0000:01:00.0/config"
    assert capture.partial == {path: "its first 64 bytes; the rest requires root"}
    assert len(tree.read(path)) == 64


def test_this_machine_is_captured(tmp_path):
    live = FolderTree(Path("/"))
    capture = take_capture(live, added_files(live))
    (tmp_path / "host.tar.zst").write_bytes(capture.packed("tests"))
    tree = open_archive(tmp_path / "host.tar.zst")
    assert number(tree, "/vmm-msi/page-size") == os.sysconf("SC_PAGE_SIZE")
    assert text(tree, "/proc/sys/kernel/osrelease") == os.uname().release
    assert tree.names("/sys/bus/pci/devices") == live.names("/sys/bus/pci/devices")
    for path in capture.unreadable:
        with pytest.raises(UnreadableError):
            tree.read(path)
    host_name = os.uname().nodename.encode()
    assert len(host_name) < 4 or host_name not in b"".join(capture.files.values())


def test_a_capture_of_a_hundred_devices_is_small_and_quick(tmp_path, counts):
    arm_host(tmp_path, devices=100)
    began = time.perf_counter()
    data = take_capture(FolderTree(tmp_path)).packed("tests")
    captured = time.perf_counter()
    tree = read_archive(io.BytesIO(data), "host.tar.zst")
    read = time.perf_counter()
    counts["ms to capture 100 devices from a folder"] = round((captured - began) * 1000)
    counts["ms to read a capture of 100 devices"] = round((read - captured) * 1000)
    counts["bytes of a capture of 100 devices"] = len(data)
    assert len(tree.names("/sys/bus/pci/devices")) == 101
    assert len(data) < 60_000
    assert read - captured < 0.5


def test_reading_is_linear():
    def seconds(members):
        data = packed(*(member(b"d/%d" % number) for number in range(members)))
        began = time.process_time()
        read_archive(io.BytesIO(data), "x")
        return time.process_time() - began

    assert seconds(20_000) < 15 * seconds(4_000)
