"""``vmm-msi topology show`` with sources of several kinds, alone and joined."""

from __future__ import annotations

import json

import pytest
from host.hosts import server

from vmm_msi import samples
from vmm_msi.cli import main
from vmm_msi.host.files import folder

NODE = f"test://{samples.path('test-driver.xml')}"
BOARD = str(samples.path("eight-its-server.dtb"))


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")

    def run(*arguments):
        code = main(list(map(str, arguments)))
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def show(run):
    def show(*arguments):
        code, out, err = run("topology", "show", *arguments)
        assert (code, err) == (0, "")
        return out

    return show


@pytest.fixture
def root(tmp_path):
    return server(memory=[(0xA0000000, 0x100000)]).write(tmp_path / "root")


def rows(text):
    return [line.split() for line in text.splitlines()]


def test_a_root(show, root):
    text = show("--root", root)
    assert text == show(root)
    cells = rows(text)
    assert ["0", "yes", "yes"] in cells
    assert ["0xa0000000", "0x100000", "0", "0x100-0x100", "yes"] in cells
    assert ["1", "yes", "0000:01:00.0", "0x8000000-0x80fffff", "(sw-msi)"] in cells
    assert ["5", "yes", "0001:01:00.0", "0001:02:03.0", "0x8000000-0x80fffff", "(sw-msi)"] in cells
    assert ["0000:01:00.0", "1", "0", "ice", "129", "yes", "yes", "-", "-"] in cells
    assert ["0000:01:01.0", "2", "0", "vfio-pci", "17", "yes", "no", "0000:01:00.0", "-"] in cells
    assert ["0001:02:03.0", "5", "1", "-", "1", "no", "no", "-", "0001:02:00.0"] in cells
    assert "Disagreements (1)" in text
    place = f"{root}/sys/firmware/acpi/tables"
    assert f"memory mapped 1:1 for IOMMU group 1 {place}".split() == cells[-2][:8]
    assert cells[-1] == [f"{root}/sys", "none"]
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_json(show, root):
    document = json.loads(show("--root", root, "--format", "json", "--granule", "64K"))
    assert (document["schema"], document["source"]) == (1, str(root))
    assert (document["granule"], document["granule_known"], document["missing"]) == (
        "64K",
        True,
        [],
    )
    assert document["segments"][0] == {"segment": 0, "ats": True, "canwbs": True}
    assert document["reserved_memory"] == [
        {
            "base": "0xa0000000",
            "size": "0x100000",
            "smmu": 0,
            "first_stream_id": "0x100",
            "last_stream_id": "0x100",
            "relaxable": True,
        }
    ]
    assert document["functions"][1] == {
        "address": "0000:01:00.0",
        "class": "0x020000",
        "driver": "ice",
        "numa_node": 0,
        "iommu_group": 1,
        "smmu": 0,
        "vectors": 129,
        "ats": True,
        "pasid": True,
        "physical_function": None,
        "virtual_functions": ["0000:01:01.0", "0000:01:01.1"],
        "dma_aliases": ["0000:01:00.0"],
        "msi_alias": "0000:01:00.0",
    }
    assert document["iommu_groups"][1] == {
        "group": 1,
        "members": ["0000:01:00.0"],
        "isolated_msi": True,
        "reserved": [{"base": "0x8000000", "size": "0x100000", "type": "sw-msi"}],
    }
    (difference,) = document["disagreements"]
    assert difference["subject"] == "memory mapped 1:1 for IOMMU group 1"
    assert [statement["says"] for statement in difference["statements"]] == [
        "0xa0000000-0xa00fffff (direct-relaxable)",
        "none",
    ]


def test_this_machine(show, monkeypatch, root):
    """Machines differ, so a folder replaces this one."""
    whole = show("--root", root)
    monkeypatch.setattr(folder, "this_machine", lambda: folder.FolderTree(root))
    assert rows(show())[1:] == rows(whole)[1:]


def test_libvirt(show):
    text = show(NODE)
    assert f"({NODE} reports PCI functions and IOMMU groups, not their" in text
    assert ["0000:01:00.0", "10", "-", "-", "?", "?", "?", "-", "?"] in rows(text)
    assert ["10", "?", "0000:01:00.0", "?"] in rows(text)


def test_libvirt_and_tables(show, root):
    text = show(NODE, BOARD)
    assert text.startswith(f"{NODE} + {BOARD}: stage 2 granule 4K\n\nSMMUs (4)")
    assert ["0002:01:00.0", "12", "1", "-", "?", "?", "?", "-", "?"] in rows(text)
    assert text.endswith("\nDisagreements (0)\n")
    disagree = rows(show(NODE, root))
    assert f"IOMMU group of 0000:01:00.0 {NODE} 10 (0000:01:00.0)".split() in disagree
    assert f"{root}/sys 1 (0000:01:00.0)".split() in disagree


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--root", "/no/such"], 3, "/no/such: not a folder; use one laid out like the host's /"),
        (["test:///no/such"], 6, "connecting to test:///no/such: there is no file /no/such; valid"),
    ],
)
def test_missing_hosts(run, arguments, code, message):
    status, out, err = run("topology", "show", *arguments)
    assert (status, out) == (code, "")
    assert err.startswith(f"vmm-msi topology: {message}")
    assert err.count("\n") == 1


def test_compare_requires_a_second_host_beside_libvirt(run):
    guest = samples.path("three-devices.xml")
    words = ["compare", "--strategy", "identity", "--guest", guest, "--host", NODE]
    code, out, err = run(*words)
    assert (code, out) == (3, "")
    assert f"finding 0000:01:00.0 in {NODE}: {NODE} reports PCI functions" in err
    assert "name a second HOST that does" in err
    code, out, err = run(*words, "--host", BOARD)
    assert (code, err) == (0, "")
    assert "delivered" in out


def test_attach_requires_a_second_host_beside_libvirt(run):
    words = ["attach", "-c", NODE, "guest0", "0000:01:00.0", "--dry-run", "--host", NODE]
    code, out, err = run(*words)
    assert (code, out) == (3, "")
    assert "name a second HOST that does" in err
    assert run(*words, "--host", BOARD)[0] == 0


def test_a_listing_says_how_a_capture_is_better(run, show, tmp_path):
    path = tmp_path / "posted.txt"
    path.write_text("0000:01:00.0 Ethernet controller: X\n\tIOMMU group: 14\n")
    text = show(path)
    assert "vmm-msi topology capture on that host, as root, writes all of it to one file" in text
    assert ["14", "?", "0000:01:00.0", "?"] in rows(text)
    code, out, _err = run("doctor", path, "--format", "json")
    assert code == 9
    assert "no-tables" in {finding["id"] for finding in json.loads(out)["findings"]}
    code, out, err = run("compare", "--host", path, "--device", "0000:01:00.0")
    assert (code, out) == (3, "")
    assert "vmm-msi topology capture on that host" in err
