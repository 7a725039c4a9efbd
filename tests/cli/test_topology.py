"""``vmm-msi topology show``: JSON for programs, a table for people, from all kinds of hosts."""

from __future__ import annotations

import json

import pytest
from host.firmware.iort_builder import iort, its_group, madt, root_complex, smmu_v3

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
