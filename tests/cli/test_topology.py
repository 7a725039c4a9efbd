"""``vmm-msi topology show`` with one HOST of each form: the tables, the JSON and errors."""

from __future__ import annotations

import json

import pytest
from host.firmware.acpi_builder import iort, its_group, madt, root_complex, smmu_v3
from host.shared import shared_data
from lxml import etree

from vmm_msi import samples

BOARD = samples.path("eight-its-server.dtb")
TWO_ITS = samples.path("two-its.toml")


@pytest.fixture
def show(vmm_msi):
    def run(*words):
        code, out, err = vmm_msi("topology", "show", *words)
        assert (code, err) == (0, "")
        return out

    return run


@pytest.fixture
def tables(tmp_path):
    folder = tmp_path / "acpi"
    folder.mkdir()
    nodes = (
        its_group(3, 5),
        smmu_v3((0x20000, 0xFFFF, 0x30000, 0, 0), base=0x2B600000),
        root_complex((0, 0xFFFF, 0x20000, 1, 0), segment=2),
    )
    (folder / "IORT").write_bytes(iort(*nodes))
    (folder / "APIC").write_bytes(madt((3, 0x20000000), (5, 0x20020000)))
    return folder


def test_device_tree(show):
    document = json.loads(show(BOARD, "--format", "json"))
    assert set(document) == {
        *("schema", "source", "granule", "granule_known", "missing", "smmus", "itses", "routes"),
        *("devices", "segments", "reserved_memory", "functions", "iommu_groups", "disagreements"),
        *("table_errors", "msi_bindings"),
    }
    assert (document["schema"], document["source"]) == (1, str(BOARD))
    assert [smmu["base"] for smmu in document["smmus"]] == [
        "0x30000000",
        "0x20030000000",
        "0x40030000000",
        "0x60030000000",
    ]
    assert document["itses"][2] == {
        "id": 2,
        "base": "0x20020000000",
        "doorbell": "0x20020010040",
        "gicv5": False,
        "gicv2m": False,
        "pre_its": None,
        "isolated_msi": True,
    }
    assert [route["segment"] for route in document["routes"]] == list(range(8))
    assert document["routes"][3] == {
        "segment": 3,
        "first": "0003:00:00.0",
        "last": "0003:ff:1f.7",
        "smmu": 1,
        "stream_id": "0x10000",
        "one_stream_id": False,
        "its_group": [3],
        "device_id": "0x30000",
        "one_device_id": False,
    }
    assert document["devices"] == []


def test_tables(show, tables):
    document = json.loads(show(tables, "--format", "json", "--granule", "64K"))
    assert document["granule"] == "64K"
    (route,) = document["routes"]
    assert (route["segment"], route["stream_id"], route["device_id"]) == (2, "0x20000", "0x30000")
    assert route["its_group"] == [3, 5]
    lines = show(tables).splitlines()
    assert lines[0] == f"{tables}: stage 2 granule 4K"
    assert any(line.split()[:2] == ["3", "0x20000000"] for line in lines)


def test_toml(show):
    document = json.loads(show(TWO_ITS, "--format", "json"))
    assert document["routes"] == []
    first = document["devices"][0]
    assert (first["address"], first["its_group"], first["vectors"]) == ("0000:01:00.0", [0], 4)
    assert first["reserved"] == [{"base": "0x8000000", "size": "0x100000", "type": "sw-msi"}]
    text = show(TWO_ITS)
    for title in ("SMMUs (1)", "ITSes (2)", "Routes (0)", "Devices (2)"):
        assert f"\n{title}\n" in text


def cells(text):
    return [line.split() for line in text.splitlines()]


def test_tables_of_the_board(show):
    text = show(BOARD)
    assert ["3", "0x60030000000", "yes"] in cells(text)
    assert ["7", "0x60020040000", "0x60020050040"] in cells(text)
    route = "0007:00:00.0 0007:ff:1f.7 3 0x10000-0x1ffff 7 0x70000-0x7ffff"
    assert route.split() in cells(text)
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_tables_of_a_scenario(show):
    text = show(TWO_ITS)
    assert ["0000:02:00.0", "0", "0x200", "1", "0x200", "2", "4"] in cells(text)
    assert "APIC" not in text


def test_json_of_a_scenario(show):
    document = json.loads(show(TWO_ITS, "--format", "json"))
    assert document["schema"] == 1
    assert document["granule"] == "4K"
    assert document["smmus"] == [{"id": 0, "base": None, "nested": True, "version": 3}]
    assert document["itses"][1] == {
        "id": 1,
        "base": "0x200040000",
        "doorbell": "0x200050040",
        "gicv5": False,
        "gicv2m": False,
        "pre_its": None,
        "isolated_msi": True,
    }
    assert document["devices"][1] == {
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


def test_json_of_a_route(show):
    assert json.loads(show(BOARD, "--format=json"))["routes"][7] == {
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


def test_missing_apic_and_a_single_mapping(show, tmp_path):
    nodes = (its_group(0), smmu_v3((0, 0xFF, 0, 0, 0)), root_complex((0, 0, 5, 1, 1)))
    (tmp_path / "IORT").write_bytes(iort(*nodes))
    text = show(tmp_path, "--granule", "64K")
    assert "stage 2 granule 64K" in text
    assert "APIC is missing: copy /sys/firmware/acpi/tables/APIC" in text
    row = ["0000:00:00.0", "0000:ff:1f.7", "0", "0x5", "(all)", "0", "0x5", "(all)"]
    assert row in cells(text)


def test_an_error_is_one_line(vmm_msi, tmp_path):
    (tmp_path / "IORT").write_bytes(b"IORT")
    code, out, err = vmm_msi("topology", "show", tmp_path)
    assert (code, out) == (3, "")
    assert err.startswith(f"vmm-msi topology: {tmp_path}/IORT: offset 0x4: truncated")
    assert err.count("\n") == 1


# Module scope: the path is looked up before the environment of a test is cleared.
@pytest.fixture(scope="module", params=["dt/hip07-d05.dtb", "acpi/qemu-11.1-two-smmuv3-pxb"])
def real_host(request):
    return shared_data(request.param)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_real_host(show, real_host, form):
    assert show(real_host, "--format", form)


def test_a_real_host_as_a_scenario_file(show, real_host, tmp_path):
    """It is the same host to the doctor and every other reader."""
    path = tmp_path / "host.toml"
    path.write_text(show(real_host, "--format", "toml"))
    before, after = (json.loads(show(name, "--format", "json")) for name in (real_host, path))
    assert after == before | {"source": str(path)}


def test_errors_in_tables_that_linux_tolerates(show, tables):
    path = tables / "IORT"
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)
    assert (
        show(tables).splitlines()[1].startswith(f"  (warning: {path}: offset 0x9: wrong checksum: ")
    )
    (error,) = json.loads(show(tables, "--format", "json"))["table_errors"]
    assert error["table"] == str(path)
    assert error["error"].startswith("offset 0x9: wrong checksum: ")


def test_guest_msi_bindings_of_the_kernel(show, tmp_path):
    path = tmp_path / "host/sys/kernel/debug/iommufd/msi_bindings"
    path.parent.mkdir(parents=True)
    path.write_text("version 1\n")
    fdt = tmp_path / "host/sys/firmware/fdt"
    fdt.parent.mkdir(parents=True)
    fdt.write_bytes(BOARD.read_bytes())
    root = str(tmp_path / "host")
    assert json.loads(show(root, "--format", "json"))["msi_bindings"] == 1
    assert show(root).splitlines()[0].endswith(", guest MSI bindings 1")


def test_the_map_of_a_host_is_a_picture(vmm_msi):
    code, out, err = vmm_msi("topology", "show", samples.path("eight-its.toml"), "--format", "svg")
    assert (code, err) == (0, "")
    root = etree.fromstring(out)
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "ITS 7" in texts
    assert "SMMU 3, nested" in texts
    assert any(text.startswith("0007:01:00.0  group ") for text in texts)
