"""doctor, compare and render give one answer about a host and a device, whatever it lacks."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard
from cli.test_render import GUEST, render
from host.firmware.acpi_builder import iort, root_complex, smmu_v3

from vmm_msi import samples

CAPTURES = Path(__file__).parents[1] / "captures"


def kernel(release):
    def change(folder):
        (folder / "proc/sys/kernel/osrelease").write_text(f"{release}\n")

    return change


def without_option(name):
    def change(folder):
        path = folder / "proc/config.gz"
        text = gzip.decompress(path.read_bytes()).decode()
        path.write_bytes(gzip.compress(text.replace(f"CONFIG_{name}=y\n", "").encode()))

    return change


def without_its(folder):
    tables = (smmu_v3(base=0x0C00_0000), root_complex((0, 0xFFFF, 0, 0, 0)))
    (folder / "sys/firmware/acpi/tables/IORT").write_bytes(iort(*tables))


#: What is done to a captured host that can nest, and the device; then the doctor's errors.
CASES = {
    "healthy": (None, "0000:11:00.0", set()),
    "Linux 6.1": (kernel("6.1.0-28-arm64"), "0000:11:00.0", {"kernel-too-old"}),
    "Linux 6.12": (kernel("6.12.43"), "0000:11:00.0", {"kernel-too-old"}),
    "no nesting": (
        without_option("ARM_SMMU_V3_IOMMUFD"), "0000:11:00.0", {"kernel-no-nested-smmu"},
    ),
    "neither ITS nor CANWBS": (without_its, "0000:11:00.0", {"no-its", "smmu-no-s2fwb"}),
    "root port": (None, "0000:10:00.0", {"device-is-bridge"}),
    "no such device": (None, "0000:77:00.0", {"device-missing"}),
}  # fmt: skip


def unpacked(name, folder):
    data = (CAPTURES / f"{name}.tar.zst").read_bytes()
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        archive.extractall(folder, filter="tar")
    return folder


def doctor_errors(vmm_msi, *words):
    """Return the ids of the doctor's errors, which its exit code shows, too."""
    code, out, _err = vmm_msi("doctor", *words, "--format", "json")
    ids = {item["id"] for item in json.loads(out)["findings"] if item["severity"] == "error"}
    assert (code == 8) == bool(ids)
    return ids


def check_commands(vmm_msi, host, device, expected):
    assert doctor_errors(vmm_msi, host, "--device", device) == expected
    code, _out, err = vmm_msi("compare", "--host", host, "--device", device, "--format", "json")
    if expected:
        document = json.loads(err.splitlines()[-1])
        assert (code, document["code"], set(document["findings"])) == (5, "findings", expected)
    else:
        assert (code, err) == (0, "")
    out, err = render(GUEST, "--device", device, code=5 if expected else 0, host=host)
    assert [name for name in expected if f"{name} (" not in err] == []
    return out


@pytest.mark.parametrize("case", CASES)
def test_the_three_commands_agree(vmm_msi, tmp_path, case):
    change, device, expected = CASES[case]
    host = unpacked("two-smmus", tmp_path / "host")
    if change is not None:
        change(host)
    out = check_commands(vmm_msi, host, device, expected)
    if not expected:
        path = tmp_path / "guest.xml"
        path.write_text(out)
        assert doctor_errors(vmm_msi, host, "--domain", path) == set()


def test_a_host_without_s2fwb_and_canwbs(vmm_msi):
    host = CAPTURES / "no-canwbs.tar.zst"
    check_commands(vmm_msi, host, "0000:11:00.0", {"smmu-no-s2fwb"})


#: A value of an address or an index that libvirt refuses, in a guest with a device.
REFUSED = {
    "slot": ("slot='0x00'", "slot='0x40'"),
    "bus": ("bus='0x01'", "bus='0x1ff'"),
    "no number": ("bus='0x01'", "bus='nvme'"),
    "function": ("function='0x0'", "function='9'"),
    "index": ("index='1'", "index='-4'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_value_that_libvirt_refuses(vmm_msi, tmp_path, case):
    old, new = REFUSED[case]
    text, _err = render(GUEST, "--device", "0000:01:00.0")
    assert old in text
    text = text.replace(old, new)
    path = tmp_path / "guest.xml"
    path.write_text(text)
    host = samples.path("eight-its-server.dtb")
    assert doctor_errors(vmm_msi, host, "--domain", path) == {"libvirt-refuses"}
    words = ["compare", "--host", host, "--domain", path, "--strategy", "identity"]
    code, _out, err = vmm_msi(*words, "--format", "json")
    assert (code, json.loads(err)["findings"]) == (5, ["libvirt-refuses"])
    code, out, err = vmm_msi(*words, "--allow-faults")
    assert code == 0
    assert err.startswith("note: libvirt-refuses (guest g): libvirt ")
    out, err = render(text, "--device", "0001:01:00.0", code=5)
    assert out == ""
    assert "attaching 0001:01:00.0 to g: libvirt-refuses (guest g): " in err
