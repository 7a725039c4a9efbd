"""Facts about a host's kernel and software, from live and captured files."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import pytest
from host.files.arm_host import FEATURES, LOG, RELEASE, SMMU_BASE, arm_host, packed_config

from vmm_msi.doctor.case import KernelFacts, SmmuHardware, Software
from vmm_msi.doctor.facts import NO_LIMIT, read_kernel, read_software
from vmm_msi.doctor.finding import Evidence
from vmm_msi.doctor.software import decode, encode, query_emulator, query_libvirt
from vmm_msi.domxml.support import Version
from vmm_msi.errors import TopologyError
from vmm_msi.host.files.archive import read_archive
from vmm_msi.host.files.capture import take_capture
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.host.files.in_memory import MemoryTree
from vmm_msi.libvirt_driver import connect
from vmm_msi.types import Granule, HostTopology, Its, Pa, Smmu

OPTIONS = {"IOMMUFD": "m", "ARM_SMMU_V3": "y", "NR_CPUS": "512", "PHYSICAL_START": "0x1000000"}
LOG_FILE = "/vmm-msi/kernel-log"


def topology(*bases):
    smmus = tuple(
        Smmu(number, None if base is None else Pa(base)) for number, base in enumerate(bases)
    )
    return HostTopology("test", Granule.K4, smmus, (Its(0, Pa(0x20000000)),))


@pytest.fixture(params=["folder", "capture"])
def tree(request, tmp_path):
    """The same host as a folder and as a capture of it."""
    arm_host(tmp_path)
    if request.param == "folder":
        return FolderTree(tmp_path)
    data = take_capture(FolderTree(tmp_path)).packed("tests")
    return read_archive(io.BytesIO(data), "host.tar.zst")


def test_kernel(tree):
    unreadable = []
    kernel = read_kernel(tree, topology(None, SMMU_BASE), unreadable)
    assert unreadable == []
    assert kernel.release == RELEASE
    assert {name: kernel.options.get(name) for name in OPTIONS} == OPTIONS
    assert "ARM_SMMU_V3_IOMMUFD" not in kernel.options
    assert kernel.options_from == f"/boot/config-{RELEASE}"
    assert kernel.parameters == {
        "vfio_iommu_type1.allow_unsafe_interrupts": "N",
        "iommufd.allow_unsafe_interrupts": "Y",
        "vfio.enable_unsafe_noiommu_mode": "N",
    }
    assert kernel.log == LOG
    assert kernel.cmdline == "iommu.passthrough=1"
    assert kernel.dev_iommu is True
    assert kernel.smmus == {
        1: SmmuHardware(
            stage1=True,
            stage2=True,
            nested=True,
            s2fwb=True,
            coherent=True,
            evidence=(Evidence(LOG_FILE, FEATURES),),
        )
    }


def test_software(tree):
    assert read_software(tree) == Software(
        Version(12, 8, 0),
        Version(11, 1, 0),
        "QEMU",
        source="libvirt",
        daemon_locked_memory=67108864,
    )


def test_without_a_topology_no_smmu_features(tree):
    assert read_kernel(tree, None).smmus == {}
    assert read_kernel(tree, topology(0x1000)).smmus == {}


# --- configuration -----------------------------------------------------------------------------


def test_the_running_kernels_own_configuration_takes_precedence(tmp_path):
    host = arm_host(tmp_path)
    host.file("/proc/config.gz", gzip.compress(b"CONFIG_IOMMUFD=y\n"))
    kernel = read_kernel(FolderTree(tmp_path), None)
    assert (kernel.options, kernel.options_from) == ({"IOMMUFD": "y"}, "/proc/config.gz")


def test_a_configuration_next_to_the_modules_is_read(tmp_path):
    host = arm_host(tmp_path)
    (tmp_path / "boot" / f"config-{RELEASE}").unlink()
    assert read_kernel(FolderTree(tmp_path), None).options is None
    host.file(f"/usr/lib/modules/{RELEASE}/config", 'CONFIG_VFIO=y\nCONFIG_CC="gcc"\n')
    kernel = read_kernel(FolderTree(tmp_path), None)
    assert kernel.options == {"VFIO": "y", "CC": "gcc"}
    assert kernel.options_from == f"/lib/modules/{RELEASE}/config"


def test_a_damaged_configuration_is_reported_and_the_next_is_read(tmp_path):
    host = arm_host(tmp_path)
    host.file("/proc/config.gz", packed_config()[:-9])
    unreadable = []
    kernel = read_kernel(FolderTree(tmp_path), None, unreadable)
    assert kernel.options_from == f"/boot/config-{RELEASE}"
    assert unreadable == [Evidence("/proc/config.gz", "damaged or larger than 4194304 bytes")]


def test_unreadable_files_are_reported():
    path = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    reasons = {path: "Permission denied", LOG_FILE: "/dev/kmsg: Operation not permitted"}
    unreadable = []
    kernel = read_kernel(MemoryTree("x", {}, unreadable=reasons), None, unreadable)
    assert kernel == KernelFacts()
    assert {(evidence.where, evidence.what) for evidence in unreadable} == set(reasons.items())


def test_an_empty_tree_gives_no_facts():
    tree = MemoryTree("x", {})
    assert (read_kernel(tree, topology(1)), read_software(tree)) == (KernelFacts(), Software())


# --- SMMUs -------------------------------------------------------------------------------------

LINE = "arm-smmu-v3 {}: {}oas 48-bit (features {:#010x})"
S1, S2, NESTING, S2FWB = 1 << 9, 1 << 10, 1 << 19, 1 << 23
FEATURE_NAMES = ("stage1", "stage2", "nested", "s2fwb", "coherent")


def smmus_of(features, release="7.2.0", device="x.iommu", ias=""):
    name = "smmu3.0x0000000000002000"
    files = {
        LOG_FILE: LINE.format(device, ias, features).encode(),
        "/proc/sys/kernel/osrelease": release.encode(),
    }
    links = {f"/sys/class/iommu/{name}": f"../../devices/platform/x.iommu/iommu/{name}"}
    return read_kernel(MemoryTree("x", files, links), topology(0x1000, 0x2000)).smmus


def features_of(smmus):
    return {name: getattr(smmus[1], name) for name in FEATURE_NAMES}


@pytest.mark.parametrize("release", ["4.2.0", "5.14.0-503.el9", "6.12.6-arm64"])
def test_before_linux_6_13_the_log_does_not_show_nesting(release):
    features = features_of(smmus_of(S1 | S2 | NESTING | S2FWB, release, ias="ias 44-bit, "))
    assert features == {
        "stage1": True,
        "stage2": True,
        "nested": None,
        "s2fwb": None,
        "coherent": False,
    }


def test_with_an_unknown_release_nesting_is_unknown():
    assert features_of(smmus_of(S1, "next"))["s2fwb"] is None


@pytest.mark.parametrize("release", ["6.13.0", "6.14.2"])
def test_linux_6_13_and_6_14_do_not_detect_s2fwb(release):
    smmu = smmus_of(S1 | S2 | NESTING, release)[1]
    assert (smmu.nested, smmu.s2fwb) == (True, False)
    assert smmu.evidence[1].where == "/proc/sys/kernel/osrelease"
    assert smmu.evidence[1].what.startswith(
        f"{release}: Linux 6.13 and 6.14, except late updates of 6.14, do not detect S2FWB"
    )
    assert len(smmus_of(S2FWB, release)[1].evidence) == 1


def test_from_linux_6_15_on_the_log_shows_every_feature():
    smmu = smmus_of(S1 | S2 | NESTING, "6.15.0")[1]
    assert (smmu.nested, smmu.s2fwb, len(smmu.evidence)) == (True, False, 1)
    smmu = smmus_of(S1 | S2 | S2FWB, "6.15.0")[1]
    assert (smmu.nested, smmu.s2fwb) == (False, True)
    assert features_of(smmus_of(0, "10.1")) == dict.fromkeys(FEATURE_NAMES, False)


def test_an_smmu_without_a_known_address_is_skipped():
    assert smmus_of(S1, device="other.iommu") == {}


def test_other_names_in_sysfs_are_skipped():
    files = {LOG_FILE: FEATURES.encode(), "/proc/sys/kernel/osrelease": b"7.2.0"}
    links = {
        f"/sys/class/iommu/{name}": f"../../devices/platform/arm-smmu-v3.0.auto/iommu/{name}"
        for name in ("smmu3.rubbish", "smmu.0x1000", "dmar0")
    }
    assert read_kernel(MemoryTree("x", files, links), topology(0x1000)).smmus == {}


# --- software ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "bytes_"), [("unlimited", NO_LIMIT), ("8388608  ", 8388608), ("rubbish", None)]
)
def test_locked_memory_limit_of_the_daemon(limit, bytes_):
    files = {
        "/run/libvirtd.pid": b"7\n",
        "/proc/7/comm": b"libvirtd\n",
        "/proc/7/limits": f"Max locked memory       {limit}       {limit}   bytes\n".encode(),
    }
    assert read_software(MemoryTree("x", files)).daemon_locked_memory == bytes_
    files["/proc/7/comm"] = b"bash\n"
    assert read_software(MemoryTree("x", files)).daemon_locked_memory is None


def test_releases_from_libvirt_survive_a_capture():
    with connect("test:///default") as connection:
        releases = query_libvirt(connection)
    assert (releases.driver, releases.qemu, releases.source) == (
        "TEST",
        None,
        "libvirt at test:///default",
    )
    assert decode(encode(releases), "x") == releases
    assert decode(encode(Software()), "x") == Software()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"libvirt": "new"}', "x: 'new' is not a release; use one such as 12.8.0"),
        (b'{"qemu": 11}', "x: .*qemu"),
        (b"", "x: ."),
        (b'{"qemu": "\xff"}', "x: ."),
        (b'{"a":' + b"[" * 100_000, "x: ."),
    ],
)
def test_malformed_releases_in_a_capture(data, message):
    """The message names the file; only that about a release has wording of our own."""
    with pytest.raises(TopologyError, match=f"^{message}"):
        decode(data, "x")


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 'QEMU emulator version 11.1.0 (Debian 1:11.1.0+ds-2)'", Version(11, 1, 0)),
        ("echo 'QEMU emulator version 11.2'", Version(11, 2, 0)),
        ("echo something else", None),
        ("exit 1", None),
        ("exec yes something", None),
    ],
)
def test_release_of_the_emulator(tmp_path, monkeypatch, script, version):
    program = tmp_path / "qemu-system-aarch64"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    software = query_emulator()
    assert software.qemu == version
    assert software.source == (f"{program} --version" if version else "")


def test_an_emulator_that_hangs_is_killed(tmp_path, monkeypatch):
    program = tmp_path / "qemu-system-aarch64"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr("vmm_msi.doctor.software._TIMEOUT_S", 0.3)
    assert query_emulator() == Software()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert query_emulator() == Software()


# --- this machine ------------------------------------------------------------------------------


def test_this_machine():
    unreadable = []
    kernel = read_kernel(FolderTree(Path("/")), None, unreadable)
    assert kernel.release == os.uname().release
    assert kernel.dev_iommu is Path("/dev/iommu").exists()
    assert all(isinstance(evidence, Evidence) for evidence in unreadable)
