"""``vmm-msi doctor``: what is read, what is printed, exit codes."""

from __future__ import annotations

import json

import pytest

from vmm_msi import samples
from vmm_msi.doctor import pages

BOARD = samples.path("eight-its-server.dtb")
TWO = samples.path("two-its.toml")

POOR = """\
[host]
granule = "4K"

[[host.smmu]]
id = 0
nested = false

[[host.its]]
id = 0
base = 0x200000000

[[host.its]]
id = 1
base = 0x200040000

[[host.device]]
address = "0000:01:00.0"
smmu = 0
its_group = [0]
iommu_group = 1

[[host.device]]
address = "0000:02:00.0"
smmu = 0
its_group = [1]
iommu_group = 1
"""


@pytest.fixture
def poor(nowhere):
    file = nowhere / "poor.toml"
    file.write_text(POOR)
    return file


def found(vmm_msi, *words):
    """Return the exit code and the JSON."""
    code, out, err = vmm_msi("doctor", *words, "--format", "json")
    assert err == ""
    return code, json.loads(out)


def test_a_host_that_is_well(vmm_msi):
    code, out, err = vmm_msi("doctor", TWO)
    assert (code, err) == (0, "")
    assert out == (
        f"{TWO}, 2 devices, its kernel not looked at: nothing found that would keep guests from "
        "working\n"
    )


def test_errors_have_an_exit_code_of_their_own(vmm_msi, poor):
    code, document = found(vmm_msi, poor)
    assert code == 8
    assert document["counts"] == {"error": 1, "warning": 1, "note": 0, "unknown": 0}
    assert [each["id"] for each in document["findings"]] == ["smmu-not-nested", "group-mixed-its"]
    assert document["devices"] == ["0000:01:00.0", "0000:02:00.0"]
    assert (document["host"], document["domain"], document["host_files"]) == (
        str(poor),
        None,
        False,
    )


def test_warnings_have_one_too(vmm_msi, poor):
    poor.write_text(POOR.replace("nested = false\n", ""))
    code, document = found(vmm_msi, poor)
    assert code == 9
    assert [each["id"] for each in document["findings"]] == ["group-mixed-its"]


def test_only_the_devices_that_are_named_are_looked_at(vmm_msi, poor):
    poor.write_text(POOR.replace("nested = false\n", ""))
    code, document = found(vmm_msi, poor, "--device", "0000:02:00.0")
    assert (code, document["devices"]) == (0, ["0000:02:00.0"])


def test_a_device_that_is_not_there(vmm_msi, poor):
    code, out, err = vmm_msi("doctor", poor, "--device", "0000:09:00.0")
    assert (code, out) == (2, "")
    assert err == (
        f"vmm-msi doctor: looking at 0000:09:00.0: {poor} has no such device; it has 0000:01:00.0 "
        "and 0000:02:00.0\n"
    )


def test_a_device_of_a_route(vmm_msi):
    code, document = found(vmm_msi, BOARD, "--device", "0001:01:00.0")
    assert (code, document["findings"]) == (0, [])


def test_ranges_stand_for_devices_where_none_is_listed(vmm_msi):
    code, out, _err = vmm_msi("doctor", BOARD)
    assert code == 0
    assert "no devices listed, 8 ranges of addresses, its kernel not looked at" in out


def test_a_page_is_printed(vmm_msi):
    code, out, err = vmm_msi("doctor", "--explain", "smmu-no-s2fwb")
    assert (code, err) == (0, "")
    assert out == pages.page("smmu-no-s2fwb")


def test_a_page_that_is_not_there_names_those_that_are_like_it(vmm_msi):
    code, out, err = vmm_msi("doctor", "--explain", "smmu-s2fwb")
    assert (code, out) == (2, "")
    assert err.startswith(
        "vmm-msi doctor: finding 'smmu-s2fwb': there is none of this id; there are"
    )
    assert "smmu-no-s2fwb" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.toml"], 3, "nowhere.toml"),
        (["nowhere.tar.zst"], 3, "nowhere.tar.zst"),
        (["--root", "nowhere"], 3, "nowhere: no folder; valid is one laid out like the host's /"),
        ([TWO, "--strategy", "no-such"], 2, "no-such"),
        ([TWO, "--device", "nonsense"], 3, "nonsense"),
    ],
)
def test_what_cannot_be_is_one_line(vmm_msi, words, code, said):
    found_code, out, err = vmm_msi("doctor", *words)
    assert (found_code, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1
