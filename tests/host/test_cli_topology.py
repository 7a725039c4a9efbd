"""``vmm-msi topology show``: the table, the JSON and errors in one line."""

from __future__ import annotations

import json

import pytest
from host.firmware.iort_builder import iort, its_group, root_complex, smmu_v3
from host.shared import shared_data

from vmm_msi import samples
from vmm_msi.cli import main


def show(capsys, *arguments):
    code = main(["topology", "show", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_table_of_the_board(capsys):
    code, out, err = show(capsys, samples.path("eight-its-server.dtb"))
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["3", "0x60030000000", "yes"] in lines
    assert ["7", "0x60020040000", "0x60020050040"] in lines
    route = "0007:00:00.0 0007:ff:1f.7 3 0x10000-0x1ffff 7 0x70000-0x7ffff"
    assert route.split() in lines
    assert not any(line.endswith(" ") for line in out.splitlines())


def test_table_of_a_scenario(capsys):
    code, out, _err = show(capsys, samples.path("two-its.toml"))
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["0000:02:00.0", "0", "0x200", "1", "0x200", "2", "4"] in rows
    assert "APIC" not in out


def test_json(capsys):
    code, out, _err = show(capsys, samples.path("two-its.toml"), "--format", "json")
    assert code == 0
    found = json.loads(out)
    assert found["schema"] == 1
    assert found["granule"] == "4K"
    assert found["smmus"] == [{"id": 0, "base": None, "nested": True, "version": 3}]
    assert found["itses"][1] == {
        "id": 1,
        "base": "0x200040000",
        "doorbell": "0x200050040",
        "gicv5": False,
        "pre_its": None,
        "isolated_msi": True,
    }
    assert found["devices"][1] == {
        "address": "0000:02:00.0",
        "smmu": 0,
        "stream_id": "0x200",
        "streams": 1,
        "its_group": [1],
        "device_id": "0x200",
        "iommu_group": 2,
        "vectors": 4,
        "reserved": [{"base": "0x8000000", "size": "0x100000", "type": "sw-msi"}],
    }


def test_json_of_routes(capsys):
    _code, out, _err = show(capsys, samples.path("eight-its-server.dtb"), "--format=json")
    assert json.loads(out)["routes"][7] == {
        "segment": 7,
        "first": "0007:00:00.0",
        "last": "0007:ff:1f.7",
        "smmu": 3,
        "stream_id": "0x10000",
        "one_stream_id": False,
        "its_group": [7],
        "device_id": "0x70000",
        "one_device_id": False,
    }


def test_no_apic_and_a_single_mapping(capsys, tmp_path):
    nodes = (its_group(0), smmu_v3((0, 0xFF, 0, 0, 0)), root_complex((0, 0, 5, 1, 1)))
    (tmp_path / "IORT").write_bytes(iort(*nodes))
    code, out, _err = show(capsys, tmp_path, "--granule", "64K")
    assert code == 0
    assert "stage 2 granule 64K" in out
    assert "APIC is missing: copy /sys/firmware/acpi/tables/APIC" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["0000:00:00.0", "0000:ff:1f.7", "0", "0x5", "(all)", "0", "0x5", "(all)"] in rows


def test_errors_are_one_line(capsys, tmp_path):
    (tmp_path / "IORT").write_bytes(b"IORT")
    code, out, err = show(capsys, tmp_path)
    assert (code, out) == (3, "")
    assert err.startswith(f"vmm-msi topology: {tmp_path}/IORT: offset 0x4: truncated")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["dt/hip07-d05.dtb", "acpi/qemu-11.1-two-smmuv3-pxb"])
def test_real_hosts(capsys, name):
    for form in ("table", "json"):
        assert show(capsys, shared_data(name), "--format", form)[0] == 0
