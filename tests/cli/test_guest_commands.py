"""attach, detach and status on a node file of libvirt's test driver.

Each command has a libvirt of its own there, so what one attaches the next does not see; processes
that share one are in tests/provision/test_real_daemon.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from described_host import load_host
from lxml import etree

from vmm_msi import samples
from vmm_msi.cli import build_parser
from vmm_msi.cli.domain_options import preview
from vmm_msi.config import Config
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import read_record
from vmm_msi.libvirt_driver import connect
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.provision import AttachRequest, DetachRequest, plan_attach
from vmm_msi.types import PciAddress

BOARD = samples.path("eight-its-server.dtb")
A, B = "0000:01:00.0", "0001:01:00.0"
DOCUMENT = {"schema", "domain", "done", "vsmmus", "devices", "notes"}
STATUS = {
    "schema",
    "domain",
    "state",
    "free_ports",
    "vsmmus",
    "devices",
    "other_devices",
    "other_measured",
    "notes",
}
VSMMU = {"pxb", "bus_nr", "smmu", "its", "accelerated", "spare_ports"}
DEVICE = {
    "device",
    "strategy",
    "options",
    "backend",
    "smmu",
    "its",
    "pxb",
    "root_port",
    "giova",
    "gdb",
    "predicted",
}


@pytest.fixture
def node(tmp_path):
    return shutil.copy(samples.path("test-driver.xml"), tmp_path / "node.xml")


@pytest.fixture
def run(vmm_msi, node):
    """Run a command on guest0; return its standard output."""

    def command(name, *words):
        options = ["-c", f"test://{node}", *(["--host", BOARD] if name == "attach" else [])]
        code, out, err = vmm_msi(name, *options, "guest0", *words)
        assert (code, err) == (0, "")
        return out

    return command


@pytest.fixture
def attached(run, node):
    """Attach A and B in the node file; ``spoil`` edits the guest first."""

    def put(spoil=lambda _domain: None):
        domain = DomainXml.parse(run("attach", A, B, "--print-xml"), "the command")
        spoil(domain)
        tree = etree.parse(node)
        old = tree.find("domain")
        domain.root.insert(0, old[0])  # its run state
        tree.getroot().replace(old, domain.root)
        tree.write(node)

    return put


def test_attach_as_json(run):
    document = json.loads(
        run("attach", A, B, "--strategy", "multi-its:mode=s2", "--format", "json")
    )
    assert set(document) == DOCUMENT
    assert (document["schema"], document["domain"]) == (1, "guest0")
    assert document["done"] == f"attached {A}, {B}"
    (vsmmu,) = document["vsmmus"]
    assert set(vsmmu) == VSMMU
    assert [set(device) for device in document["devices"]] == [DEVICE, DEVICE]
    assert document["devices"][1] == {
        "device": B,
        "strategy": "multi-its",
        "options": {"mode": "s2"},
        "backend": "sim",
        "smmu": 0,
        "its": 1,
        "pxb": vsmmu["pxb"],
        "root_port": document["devices"][0]["root_port"] + 1,
        "giova": "0xfffff000",
        "gdb": "0x8090000",
        "predicted": {
            "outcome": "delivered",
            "programmed_iova": "0xfffff040",
            "possible_iovas": ["0xfffff040"],
        },
    }
    simulated, forgotten = document["notes"]
    assert "the doorbell binding is simulated" in simulated
    assert "test driver" in forgotten


def test_attach_as_a_table(run):
    lines = run("attach", A).splitlines()
    assert lines[0] == f"guest0: attached {A}"
    assert lines[1].split()[:2] == ["device", "strategy"]
    assert lines[3].split()[:2] == [A, "identity"]
    assert lines[3].endswith("  delivered at 0x8000040")
    assert lines[4].startswith("note: the XML is real, the doorbell binding is simulated")


def test_faults_on_request(run):
    words = ["attach", A, "--strategy", "host-cookie", "--allow-faults", "--format", "json"]
    (device,) = json.loads(run(*words))["devices"]
    assert device["predicted"]["outcome"] == "s1-fault"


def test_previews_show_the_result_and_change_nothing(vmm_msi, run, node):
    before = node.read_bytes()
    text = run("attach", A, "--dry-run")
    assert text.startswith("guest0: nothing was changed; the result would be\n")
    assert json.loads(run("attach", A, "--dry-run", "--format", "json"))["devices"]
    xml = DomainXml.parse(run("attach", A, "--print-xml"), "the command")
    assert [str(hostdev.host) for hostdev in xml.hostdevs()] == [A]
    words = ["attach", "guest0", A, "-c", f"test://{node}", "--host", BOARD, "--print-diff"]
    code, out, err = vmm_msi(*words)
    assert code == 0
    assert err.startswith("note: the XML is real")
    lines = out.splitlines()
    assert lines[:2] == ["--- guest0 (before)", "+++ guest0 (after)"]
    assert [line for line in lines if line.startswith("+    <iommu ")]
    assert not [line for line in lines[2:] if line.startswith("-")]
    assert node.read_bytes() == before
    assert run("status") == "guest0: off, no devices attached by vmm-msi\n"


def test_only_one_preview_at_a_time(vmm_msi):
    code, out, err = vmm_msi("attach", "guest0", A, "--dry-run", "--print-xml")
    assert (code, out) == (2, "")
    assert "not allowed with argument" in err


def test_the_default_connection_comes_from_libvirts_variable(vmm_msi, node, monkeypatch):
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", f"test://{node}")
    assert vmm_msi("status", "guest1") == (
        0,
        "guest1: off, no devices attached by vmm-msi\n",
        "",
    )


def test_the_configuration_names_the_strategy(run, nowhere):
    (nowhere / "vmm-msi.toml").write_text(
        f'strategy = "coerced"\n[[domain]]\nname = "guest0"\n[[domain.device]]\naddress = "{B}"\n'
        'strategy = "direct"\n',
        encoding="utf-8",
    )
    document = json.loads(run("attach", A, B, "--format", "json"))
    assert [device["strategy"] for device in document["devices"]] == ["coerced", "direct"]


def test_status_shows_the_record(run, attached):
    attached()
    document = json.loads(run("status", "--format", "json"))
    assert set(document) == STATUS
    assert (document["domain"], document["state"]) == ("guest0", "off")
    keys = {*DEVICE, "measured", "kernel_bindings"}
    assert [set(device) for device in document["devices"]] == [keys] * 2
    assert [device["device"] for device in document["devices"]] == [A, B]
    assert run("status").count("delivered") == 2


def remove_element(path):
    def spoil(domain):
        element = domain.root.find(path)
        element.getparent().remove(element)

    return spoil


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("devices/hostdev", f"the <hostdev> of {A} is missing"),
        ("devices/iommu", "the <iommu model='smmuv3'> of the pcie-expander-bus with index 3 is"),
        ("devices/controller[@model='pcie-expander-bus']", "the pcie-expander-bus with index 3 is"),
        ("devices/controller[@index='4']", "the pcie-root-port with index 4 is missing"),
    ],
)
def test_status_names_elements_that_another_program_removed(run, attached, path, words):
    attached(remove_element(path))
    *notes, unmeasured = json.loads(run("status", "--format", "json"))["notes"]
    assert "the guest is off" in unmeasured
    assert len(notes) == 1 or path.startswith("devices/controller")
    assert any(words in note for note in notes)
    assert "another program removed it; detach the device and attach it again" in run("status")


def test_detach_previews(run, attached, node):
    attached()
    before = node.read_bytes()
    xml = DomainXml.parse(run("detach", A, "--print-xml"), "the command")
    assert [str(device.host) for device in read_record(xml).devices] == [B]
    assert "-    <hostdev " in run("detach", "all", "--print-diff")
    assert run("detach", "all", "--dry-run").endswith("guest0: no devices attached by vmm-msi\n")
    assert json.loads(run("detach", "all", "--format", "json"))["done"] == "detached everything"
    assert node.read_bytes() == before


def test_detach_of_a_partly_removed_device(run, attached):
    attached(remove_element("devices/hostdev"))
    xml = DomainXml.parse(run("detach", "all", "--print-xml"), "the command")
    assert read_record(xml) is None
    assert len(xml.controllers()) == 3
    assert xml.hostdevs() == xml.iommus() == ()


def test_defaults_are_those_of_the_library():
    """The defaults are in both modules, so that --help imports no libvirt."""
    parser = build_parser(["attach", "detach"])
    given = parser.parse_args(["attach", "g", "0000:01:00.0"])
    request = AttachRequest("g", "01:00.0")
    assert (given.spare_ports, given.spare_memory) == (request.spare_ports, request.spare_memory)
    assert (given.fdgroup, given.scope) == (request.fdgroup, request.scope)
    given = parser.parse_args(["detach", "g", "all"])
    assert (given.release_timeout, given.scope) == (
        DetachRequest("g").release_s,
        DetachRequest("g").scope,
    )


GRAPHICS = "<graphics type='vnc' port='5900' passwd='hunter2'/>"


def test_printed_xml_has_the_passwords(run, node):
    node.write_text(node.read_text().replace("</devices>", f"{GRAPHICS}</devices>", 1))
    assert "passwd='hunter2'" in run("attach", A, "--print-xml")
    assert "hunter2" not in run("attach", A, "--dry-run")


def test_passwords_that_a_read_only_connection_does_not_show(run, node, capfd):
    node.write_text(node.read_text().replace("</devices>", f"{GRAPHICS}</devices>", 1))
    args = build_parser(["attach"]).parse_args(["attach", "guest0", A, "--print-xml"])
    plugins, host = PluginManager.load(), load_host(Path(BOARD))
    with connect(f"test://{node}", readonly=True) as connection:
        request = AttachRequest("guest0", (PciAddress.parse(A),))
        change = plan_attach(connection, plugins, Config(), host, request)
        preview(args, change, connection)
    out, err = capfd.readouterr()
    assert "hunter2" not in out
    assert "/domain/devices/graphics: its password, if it has one, is missing" in err
