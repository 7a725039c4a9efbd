"""``vmm-msi render``: only XML on standard output, no libvirt.

What depends on the process runs in one of its own: its streams, locale and modules, and KubeVirt's
hook. The rest runs in this process.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from vmm_msi import samples
from vmm_msi.cli import main
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import read_record
from vmm_msi.domxml.parse import MAX_BYTES
from vmm_msi.domxml.template import nested_guest

VMM_MSI = [sys.executable, "-m", "vmm_msi"]
HOST = samples.path("eight-its-server.dtb")
A, B = "0000:01:00.0", "0001:01:00.0"
HOOK = samples.path("two-its.toml").parent / "kubevirt" / "onDefineDomain"
GUEST = str(nested_guest("g", memory=1 << 30))
ASSIGNED = GUEST.replace(
    "    <serial",
    """    <hostdev mode='subsystem' type='pci' managed='no'>
      <driver name='vfio'/>
      <source>
        <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
      </source>
      <alias name='ua-nic'/>
      <address type='pci' domain='0x0000' bus='0x07' slot='0x00' function='0x0'/>
    </hostdev>
    <interface type='hostdev' managed='yes'>
      <source>
        <address type='pci' domain='0x0001' bus='0x01' slot='0x00' function='0x0'/>
      </source>
      <mac address='52:54:00:00:00:01'/>
    </interface>
    <serial""",
)


def execute(command, text, code=0, **environment):
    """Run a command; ``code`` is the expected exit code, None for any but 0."""
    done = subprocess.run(
        command,
        input=text if isinstance(text, bytes) else text.encode(),
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == code or (code is None and done.returncode), done.stderr
    return done.stdout.decode(), done.stderr.decode()


def arguments(words, host):
    """Return the command line of ``render``."""
    needs_host = "--remove" not in words and host is not None
    return ["render", *words, *(["--host", str(host)] if needs_host else [])]


def render(text, *words, code=0, host=HOST):
    """Run ``vmm-msi render`` in this process; return standard output and error."""
    data = text if isinstance(text, bytes) else text.encode()
    given, out, err = (
        io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline="", write_through=True)
        for content in (data, b"", b"")
    )
    with pytest.MonkeyPatch.context() as streams, redirect_stdout(out), redirect_stderr(err):
        streams.setattr(sys, "stdin", given)
        status = main(arguments(words, host))
    out, err = (stream.buffer.getvalue().decode() for stream in (out, err))
    assert status == code, err
    return out, err


def render_process(text, *words, code=0, **environment):
    """Run ``vmm-msi render`` in a process of its own."""
    return execute([*VMM_MSI, *arguments(words, HOST)], text, code, **environment)


def refused(text, *words, code, **options):
    """Return the error line of a run that prints nothing else."""
    out, err = render(text, *words, code=code, **options)
    assert out == ""
    assert err.startswith("vmm-msi render: ")
    assert err.count("\n") == 1
    return err.removeprefix("vmm-msi render: ").removesuffix("\n")


def test_xml_is_edited():
    out, err = render(GUEST, "--device", A, "--device", B)
    assert err == ""
    domain = DomainXml.parse(out, "out")
    assert [str(hostdev.host) for hostdev in domain.hostdevs()] == [A, B]
    assert [iommu.driver for iommu in domain.iommus()] == [{"pciBus": "1", "accel": "on"}]
    assert domain.iommufd is True
    record = read_record(domain)
    assert {device.backend for device in record.devices} == {"qemu"}
    before = GUEST.splitlines()
    kept = [line for line in out.splitlines() if line in before]
    assert kept == before


@pytest.mark.parametrize("strategy", ["identity", "multi-its:mode=vsmmu"])
def test_remove_restores_the_xml(strategy):
    out, _ = render(GUEST, "--device", A, "--device", B, "--strategy", strategy)
    one, _ = render(out, "--remove", "--device", B)
    assert [str(hostdev.host) for hostdev in DomainXml.parse(one, "one").hostdevs()] == [A]
    assert render(one, "--remove", "--device", A) == (GUEST, "")
    assert render(out, "--remove", "--device", "all") == (GUEST, "")


@pytest.mark.parametrize("gic", ["", "<gic/>"])
def test_a_guest_without_a_gic_version(gic):
    text = GUEST.replace("<gic version='3'/>", gic)
    assert text != GUEST
    out, err = render(text, "--device", A)
    assert (
        err
        == "note: the definition had no GIC version; <gic version='3'/> was added, and is removed "
        "with the last device\n"
    )
    assert "<gic version='3'/>" in out
    back, _ = render(out, "--remove", "--device", A)
    assert back == text
    changed = out.replace("<gic version='3'/>", "<gic version='host'/>")
    back, _ = render(changed, "--remove", "--device", A)
    assert "<gic version='host'/>" in back


def test_a_process_prints_the_same():
    for words in (
        ("--device", A),
        ("--device", B, "--backend", "sim"),
        ("--device", A, "--dry-run"),
    ):
        assert render_process(GUEST, *words) == render(GUEST, *words)
    out, _ = render(GUEST, "--device", A)
    assert render_process(out, "--remove", "--device", "all") == (GUEST, "")
    for text, device, code in (("<network/>", A, 3), (GUEST, "0099:01:00.0", 5), (b"\xff", A, 3)):
        assert render_process(text, "--device", device, code=code) == render(
            text, "--device", device, code=code
        )


def test_notes_are_on_standard_error():
    _, err = render(GUEST, "--device", A, "--backend", "sim")
    assert err == (
        "note: the XML is real, the doorbell binding is simulated (linux-7.2): nothing applies it "
        "when the guest runs\n"
    )


def test_print_diff_and_dry_run():
    out, _ = render(GUEST, "--device", A, "--print-diff")
    assert out.startswith("--- g (before)\n+++ g (after)\n")
    assert not [line for line in out.splitlines()[2:] if line.startswith("-")]
    out, _ = render(GUEST, "--device", A, "--dry-run")
    assert out.startswith("g: the result would be\ndevice ")
    document = json.loads(render(GUEST, "--device", A, "--dry-run", "--format", "json")[0])
    assert [device["device"] for device in document["devices"]] == [A]


def test_an_older_libvirt():
    out, _ = render(GUEST, "--device", A, "--backend", "sim", "--libvirt", "9.0.0")
    domain = DomainXml.parse(out, "out")
    assert [iommu.driver for iommu in domain.iommus()] == [{}]
    assert domain.iommufd is None
    words = refused(GUEST, "--device", A, "--libvirt", "12.8", "--qemu", "10.2", code=5)
    assert "QEMU 10.2.0 cannot write <driver accel> (a nested vSMMU): needs QEMU 11.0.0" in words
    words = refused(GUEST, "--device", A, "--libvirt", "new", code=2)
    assert words == "--libvirt 'new': not a release; valid are, for instance, 12.8, 11.0.1"


def test_an_assigned_device_is_refused():
    words = refused(ASSIGNED, "--device", A, code=5)
    assert words == (
        f"attaching {A} to g: the guest already has a <hostdev> for it; remove that first"
    )
    argument = (
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<qemu:arg value='-device'/><qemu:arg value='vfio-pci,host={A}'/></qemu:commandline>"
    )
    on_command_line = GUEST.replace("</domain>", f"{argument}</domain>")
    for options in ((), ("--take-over",)):
        words = refused(on_command_line, "--device", A, *options, code=5)
        assert words == (
            f"attaching {A} to g: it is assigned by <qemu:arg> already; remove it there first"
        )
    out, _ = render(GUEST, "--device", A)
    again, err = render(out, "--device", A, "--take-over")
    assert again == out
    assert f"{A}: attached in this way already" in err


def test_take_over():
    out, err = render(
        ASSIGNED, "--device", A, "--device", B, "--take-over", "--libvirt", "12.1", "--backend",
        "sim",
    )  # fmt: skip
    assert "the doorbell binding is simulated" in err
    domain = DomainXml.parse(out, "out")
    device, interface = domain.hostdevs()
    assert (str(device.host), device.guest.bus, device.managed) == (A, 2, False)
    assert device.iommufd is True
    assert device.element.find("driver").get("name") == "vfio"
    assert device.element.find("alias").get("name") == "ua-nic"
    assert (str(interface.host), interface.guest.bus, interface.managed) == (B, 3, True)
    assert interface.element.tag == "interface"
    assert interface.element.find("mac") is not None
    assert interface.iommufd is True
    ports = {port.index: port.address.bus for port in domain.controllers() if port.address}
    assert ports == {2: 1, 3: 1}
    assert render(out, "--remove", "--device", "all") == (GUEST, "")
    assert "ua-nic" in render(ASSIGNED, "--device", A, "--take-over", "--print-diff")[0]


def test_taking_over_a_device_behind_an_accelerated_vsmmu():
    """Moving it would leave that vSMMU empty, with which QEMU exits."""
    nested, _ = render(ASSIGNED, "--device", A, "--take-over")
    own = re.sub(r"<metadata>.*</metadata>", "", nested, flags=re.DOTALL)
    words = refused(own, "--device", A, "--take-over", code=5)
    assert re.search(r"taking .* of g over: it is behind the vSMMU of controller \d already", words)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", 3, "reading XML from standard input: line 1: "),
        ("<domain>", 3, "reading XML from standard input: line 1: "),
        ("<network/>", 3, "the root element is <network>; valid is <domain>"),
        (b"\xff", 3, "byte 0 is not UTF-8"),
        ("<a>" + "x" * MAX_BYTES, 3, "too many bytes"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>" + GUEST.partition("-->")[2], 3, "document type"),
        (GUEST.replace("aarch64", "x86_64"), 5, "guest-arch (guest g): "),
        (GUEST.replace("kvm", "qemu"), 5, "guest-kvm (guest g): "),
        (GUEST + GUEST.partition("-->")[2], 3, "it has 2 domains; use one"),
    ],
)
def test_invalid_input_is_refused(text, code, words):
    assert words in refused(text, "--device", A, code=code)


def test_bad_devices():
    assert "named twice" in refused(GUEST, "--device", A, "--device", A, code=2)
    assert "0099:01:00.0" in refused(GUEST, "--device", "0099:01:00.0", code=5)
    assert "not of the form" in refused(GUEST, "--device", "all", code=3)
    assert "attached no device to it" in refused(GUEST, "--remove", "--device", "all", code=2)
    assert "did not attach it" in refused(GUEST, "--remove", "--device", A, code=3)


def test_xml_is_utf8_in_any_locale():
    text = GUEST.replace("<name>g", "<name>gäst").replace("template", "žluť")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out, _ = render_process(text, "--device", A, **locale)
    assert "<name>gäst</name>" in out


def test_a_closed_standard_input():
    command = [*VMM_MSI, "render", "--remove", "--device", "all"]
    shell = ["/bin/sh", "-c", 'exec "$0" "$@" <&-', *command]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("vmm-msi render: standard input is closed; pass domain XML on it\n")


def test_render_does_not_import_libvirt():
    """The edit works although importing libvirt's bindings fails."""
    code = (
        "import sys\n"
        "for name in ('libvirt', 'libvirtmod', 'libvirt_qemu', 'vmm_msi.libvirt_driver'):\n"
        "    sys.modules[name] = None\n"
        "from vmm_msi.cli import main\n"
        "sys.exit(main())\n"
    )
    words = ["render", "--host", str(HOST), "--device", A]
    out, err = execute([sys.executable, "-c", code, *words], GUEST)
    assert (out, err) == render(GUEST, "--device", A)
    assert execute([sys.executable, "-c", code, "render", "--remove", "--device", A], out) == (
        GUEST,
        "",
    )


# KubeVirt's hook.


@pytest.fixture
def on_define_domain(tmp_path):
    """Run the hook as the sidecar-shim does, with ``vmm-msi`` in $PATH as in its image."""
    command = tmp_path / "vmm-msi"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vmm_msi "$@"\n')
    command.chmod(0o755)

    def run(annotations, domain, code=0):
        vmi = json.dumps({"metadata": {"name": "g", "annotations": annotations}})
        environment = {"VMM_MSI_HOST": str(HOST), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        words = [str(HOOK), "--vmi", vmi, "--domain", domain]
        return execute(words, "", code, **environment)

    return run


# As KubeVirt prints it: tabs, no white space at the end, its own metadata.
KUBEVIRT = GUEST.partition("-->\n")[2].strip().replace("  ", "\t").replace(
    "\t<memory", '\t<metadata>\n\t\t<kubevirt xmlns="http://kubevirt.io">\n\t\t\t<uid>1</uid>\n'
    "\t\t</kubevirt>\n\t</metadata>\n\t<memory",
)  # fmt: skip


@pytest.mark.parametrize("annotations", [None, {}, {"a": "b"}, {"vmm-msi.org/devices": " , "}])
def test_a_vmi_without_devices_is_unchanged(on_define_domain, annotations):
    assert on_define_domain(annotations, KUBEVIRT) == (KUBEVIRT, "")


# As KubeVirt lists devices below hostDevices and networks with SR-IOV.
KUBEVIRT_ASSIGNED = KUBEVIRT.replace(
    "\t\t<serial",
    ASSIGNED[ASSIGNED.index("    <hostdev") : ASSIGNED.index("    <serial")].replace("  ", "\t")
    + "\t\t<serial",
)


def test_a_vmi_with_devices(on_define_domain):
    annotations = {
        "vmm-msi.org/devices": f"{A}, pci_0001_01_00_0",
        "vmm-msi.org/strategy": "multi-its:mode=vsmmu",
    }
    out, err = on_define_domain(annotations, KUBEVIRT_ASSIGNED)
    assert err == ""
    new = DomainXml.parse(out, "out")
    assert [(str(hostdev.host), hostdev.managed) for hostdev in new.hostdevs()] == [
        (A, False),
        (B, True),
    ]
    assert [device.strategy for device in read_record(new).devices] == ["multi-its"] * 2
    assert len(new.iommus()) == 2
    assert '<kubevirt xmlns="http://kubevirt.io">\n\t\t\t<uid>1</uid>' in out
    # A second call, as for new credentials.
    assert on_define_domain(annotations, out) == (out, "")


@pytest.mark.parametrize(
    "devices",
    ["0000:01:00.1", f"{A},0002:01:00.0", "--remove", "nonsense", "all", f"{A} {B}", "../x"],
)
def test_a_vmi_gets_only_devices_that_its_xml_assigns(on_define_domain, devices):
    """Every user who may create a VMI may write annotations."""
    out, err = on_define_domain({"vmm-msi.org/devices": devices}, KUBEVIRT_ASSIGNED, code=1)
    assert out == ""
    assert err.startswith("onDefineDomain: vmm-msi.org/devices names ")
    assert err.endswith(", which the VMI's XML does not assign; list it below hostDevices\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "device",
    [
        "",
        "<hostdev type='usb'><source><address bus='1' device='2'/></source></hostdev>",
        "<interface type='hostdev'><source><address type='usb' bus='1'/></source></interface>",
        "<interface type='bridge'><source><address bus='1'/></source></interface>",
        "<disk><source><address type='pci' bus='1'/></source></disk>",
        "<!-- <hostdev type='pci'><source><address bus='1'/></source></hostdev> -->",
    ],
)
def test_a_device_that_is_no_assigned_pci_device(on_define_domain, device):
    domain = KUBEVIRT.replace("\t\t<serial", f"{device}\t\t<serial")
    out, err = on_define_domain({"vmm-msi.org/devices": A}, domain, code=1)
    assert out == ""
    assert f"names '{A}', which the VMI's XML does not assign" in err


@pytest.mark.parametrize(
    "annotations",
    [
        {"vmm-msi.org/devices": A, "vmm-msi.org/strategy": "nonsense"},
        {"vmm-msi.org/devices": A, "vmm-msi.org/libvirt": "--dry-run"},
    ],
)
def test_an_invalid_vmi(on_define_domain, annotations):
    out, err = on_define_domain(annotations, KUBEVIRT_ASSIGNED, code=None)
    assert out == ""
    assert err.startswith("vmm-msi render: ")


def test_unedited_parts_are_printed_as_they_were_read():
    """Double quotes, entities, CDATA and unusual white space of another tool's XML are kept."""
    text = GUEST.replace("'", '"').replace(
        "  <memory",
        "  <description ><![CDATA[a < b]]> &apos;c&apos;&#233;</description >\n  <memory",
    )
    out, _err = render(text, "--device", A, "--device", B)
    kept = out.splitlines()
    assert [line for line in text.splitlines() if line not in kept] == []
    undone, _err = render(out, "--remove", "--device", A, "--device", B)
    assert undone == text
