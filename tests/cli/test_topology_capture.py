"""``vmm-msi topology capture``: a complete file, or an error of one line."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
from host.files.arm_host import PORT, arm_host

from vmm_msi import samples
from vmm_msi.doctor.facts import read_software
from vmm_msi.host.files import text
from vmm_msi.host.files.archive import open_archive
from vmm_msi.host.files.capture_list import CAPTURED_PATHS
from vmm_msi.libvirt_driver import connect

THERE = (
    "is another machine, but the files are those of this one; run vmm-msi topology capture on "
    "that machine"
)
TEST = f"test://{samples.path('test-driver.xml')}"


@pytest.fixture
def take(vmm_msi):
    def run(*words):
        return vmm_msi("topology", "capture", *words)

    return run


@pytest.fixture
def host(tmp_path):
    arm_host(tmp_path / "host")
    return tmp_path / "host"


def test_a_folder_is_captured(take, host, nowhere):
    code, out, err = take("-o", "host.tar.zst", "--root", host)
    target = nowhere / "host.tar.zst"
    assert (code, out) == (0, "")
    assert err.startswith("wrote host.tar.zst: 49 files with ")
    assert err.endswith(f" bytes and 13 links in {target.stat().st_size} bytes\n")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(os.listdir(nowhere)) == ["host.tar.zst"]  # noqa: PTH208
    assert text(open_archive(target), "/vmm-msi/page-size") == "65536"


def test_this_machine_is_captured(take, nowhere):
    code, out, err = take("--output", "here.tar.zst", "-c", TEST)
    assert (code, out) == (0, "")
    assert err.startswith("wrote here.tar.zst: ")
    tree = open_archive(nowhere / "here.tar.zst")
    assert text(tree, "/proc/sys/kernel/osrelease") == os.uname().release
    assert '"driver": "TEST"' in text(tree, "/vmm-msi/software.json")


def test_releases_of_a_real_daemon(take, nowhere, lab_daemon):
    assert take("-o", "here.tar.zst", "-c", lab_daemon.uri)[:2] == (0, "")
    software = read_software(open_archive(nowhere / "here.tar.zst"))
    with connect(lab_daemon.uri) as connection:
        versions = connection.versions()
    assert (software.libvirt, software.qemu, software.driver) == (
        versions.libvirt,
        versions.hypervisor,
        "QEMU",
    )
    assert software.source == f"libvirt at {lab_daemon.uri}"


def test_a_capture_goes_to_standard_output(take, host, nowhere):
    words = [sys.executable, "-m", "vmm_msi", "topology", "capture", "-o", "-", "--root", host]
    done = subprocess.run(words, capture_output=True, check=True)
    assert done.stderr.startswith(b"wrote standard output: 49 files")
    take("-o", "host.tar.zst", "--root", host)
    assert done.stdout == (nowhere / "host.tar.zst").read_bytes()


def test_a_dry_run_prints_the_list_and_writes_nothing(take, host, nowhere):
    code, out, err = take("--dry-run", "-o", "host.tar.zst", "--root", host)
    assert (code, err) == (0, "")
    assert list(nowhere.iterdir()) == []
    for captured in CAPTURED_PATHS:
        assert captured.why in out
        assert f"  {captured.path}" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["/sys/bus/pci/devices/*/class", "3", "27", "file"] in lines
    assert ["/sys/firmware/fdt", "-", "-"] in [line[:3] for line in lines]


def test_an_existing_file_is_kept(take, host, nowhere):
    target = nowhere / "host.tar.zst"
    target.write_text("mine")
    reason = "writing host.tar.zst: it exists already; --force overwrites it"
    assert take("-o", "host.tar.zst", "--root", host) == (1, "", f"vmm-msi topology: {reason}\n")
    assert target.read_text() == "mine"
    assert take("-o", "host.tar.zst", "--root", host, "--force")[0] == 0
    assert open_archive(target).names("/sys/bus/pci/devices")


def test_a_link_is_replaced(take, host, nowhere):
    (nowhere / "real").write_text("mine")
    (nowhere / "link").symlink_to("real")
    reason = "writing link: it exists already; --force overwrites it"
    assert take("-o", "link", "--root", host) == (1, "", f"vmm-msi topology: {reason}\n")
    assert take("-o", "link", "--root", host, "--force")[0] == 0
    assert not (nowhere / "link").is_symlink()
    assert open_archive(nowhere / "link").names("/sys/bus/pci/devices")
    assert (nowhere / "real").read_text() == "mine"


def test_a_device_is_written_to(take, host):
    assert take("-o", "/dev/null", "--root", host)[0] == 0
    reason = "vmm-msi topology: writing /dev/full: No space left on device\n"
    assert take("-o", "/dev/full", "--root", host) == (1, "", reason)


def test_a_capture_under_another_name(take, vmm_msi, host):
    assert take("-o", "host.zst", "--root", host)[0] == 0
    code, out, err = vmm_msi("doctor", "host.zst")
    assert (code, out) == (3, "")
    assert err == (
        "vmm-msi doctor: host.zst: compressed with zstd like a capture, but the name of a capture "
        "ends in .tar.zst: rename it to host.tar.zst\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ([], 2, "name the file with -o, or use --dry-run, which writes none"),
        (["-o", "."], 1, "writing .: it is a folder; name a file"),
        (["-o", "no/x"], 1, "writing no/x: the folder no does not exist; create it first"),
        (["-o", "n" * 300], 1, f"writing {'n' * 300}: File name too long"),
        (
            ["-o", "x", "--root", "."],
            2,
            "--root .: none of a host's files in it; use a folder laid out like the host's /",
        ),
        (["-o", "x", "--root", "none"], 2, "--root none: not a folder"),
        (
            ["-o", "x", "--root", ".", "-c", "test:///default"],
            2,
            "--connect is for this machine, --root for the files of another; use one of them",
        ),
        (
            ["-o", "x", "-c", "qemu+ssh://other/system"],
            2,
            f"qemu+ssh://other/system {THERE}",
        ),
    ],
)
def test_an_error_leaves_no_file(take, nowhere, words, code, reason):
    assert take(*words) == (code, "", f"vmm-msi topology: {reason}\n")
    assert list(nowhere.iterdir()) == []


def test_a_missing_daemon(take, nowhere):
    code, out, err = take("-o", "x", "-c", "qemu+unix:///system?socket=/nowhere/libvirt")
    assert (code, out) == (6, "")
    assert err.startswith("vmm-msi topology: connecting to qemu+unix:///system")
    assert list(nowhere.iterdir()) == []


def test_unread_files_are_listed(take, host, monkeypatch):
    for name in ("0000:01:00.0", "0000:01:01.0"):
        config = host / PORT[1:] / name / "config"
        config.write_bytes(config.read_bytes()[:64])
    (host / "sys/firmware/fdt").write_bytes(b"x")
    lines = [
        "not read: /sys/firmware/fdt: not a device tree",
        *(
            f"only in part: {PORT}/{name}/config: its first 64 bytes; the rest requires root"
            for name in ("0000:01:00.0", "0000:01:01.0")
        ),
    ]
    for user, advice in (
        (0, []),
        (1000, ["root can read more: run sudo vmm-msi topology capture"]),
    ):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert take("--dry-run", "--root", host)[2].splitlines() == [*lines, *advice]
        code, _out, err = take("-o", "x", "--force", "--root", host)
        assert (code, err.splitlines()[1:]) == (0, [*lines, *advice])
