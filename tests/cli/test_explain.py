"""``vmm-msi explain``: arguments, output and exit codes."""

from __future__ import annotations

import io
import json
import sys

import pytest
from event_lines import decoded, raw

from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.samples import path as sample
from vmm_msi.types import Iova, PciAddress, StreamId

DTB = sample("eight-its-server.dtb")
#: What puts the first device of the sample behind a vSMMU.
BUSES = """\
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-expander-bus'><target busNr='16'/></controller>
    <controller type='pci' index='2' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </controller>
    <iommu model='smmuv3'><driver pciBus='1' accel='on'/></iommu>
"""
FAULT = SmmuEvent(EventKind.F_TRANSLATION, 1, StreamId(0x100), Iova(0x800_0040))
LOG = "\n".join(["something", *raw(FAULT), *decoded(FAULT, PciAddress.parse("0000:01:00.0"))])
BUSY = "vfio 0000:01:00.0: error getting device from group 12: Device or resource busy"


class Input:
    """Replacement for standard input: a stream of bytes that is not a terminal."""

    def __init__(self, data, *, terminal=False):
        self.buffer = io.BytesIO(data)
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.fixture
def given(monkeypatch):
    """Put a text on standard input."""
    return lambda text, **more: monkeypatch.setattr(sys, "stdin", Input(text.encode(), **more))


@pytest.fixture
def guest(tmp_path):
    """Return the sample with a vSMMU for its first device."""
    text = sample("three-devices.xml").read_text(encoding="utf-8")
    root = "    <controller type='pci' index='0' model='pcie-root'/>\n"
    source = "bus='0x01' slot='0x00' function='0x0'/>\n      </source>\n"
    address = "      <address type='pci' bus='0x02' slot='0x00' function='0x0'/>\n"
    assert root in text
    path = tmp_path / "guest.xml"
    text = text.replace(root, BUSES).replace(source, source + address, 1)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_log_on_standard_input(vmm_msi, given, guest):
    given(LOG)
    code, out, err = vmm_msi("explain", "--host", DTB, "--granule", "4K", "--guest", guest)
    assert (code, err) == (0, "")
    assert (
        out
        == """\
line 2: arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:
  id       smmu-F_TRANSLATION
  means    event F_TRANSLATION at stage 1: the guest's tables have no translation (unpriv data
           write)
  device   0000:01:00.0 (SMMU 0, ITS 0, in three-devices); StreamID 0x100
  stage    1
  IOVA     0x8000040: page 0 of the SW MSI window, which the kernel maps for MSIs of 0000:01:00.0 to
           ITS 0 (hDB 0x20010040)
  missing  S1: 0x8000000 -> 0x8000000, of the window 0x8000000-0x80fffff
  why      the host's kernel programmed the device with an address of its SW MSI window, and the
           guest's stage 1 does not map the window 1:1: the guest has no RMR for it, or ignores the
           RMR
  remedy   identity: the definition has an accelerated vSMMU for the device already; the definition
           has ACPI and UEFI, so the guest's kernel has to honour RMR nodes: Linux 6.0 or newer,
           without acpi=off
  remedy   multi-its:mode=vsmmu: the definition has an accelerated vSMMU for the device already; the
           definition has ACPI and UEFI, so the guest's kernel has to honour RMR nodes: Linux 6.0 or
           newer, without acpi=off
  remedy   multi-its:mode=s2: keep devices of different physical ITSes apart: an S2, a vITS or a
           vSMMU for each; requires a VMM that owns the iommufd itself, instead of QEMU, and a
           kernel such as linux-7.2-bind (in no release; docs/kernels.md)
  remedy   window: as identity, with the host's MSI window moved to where the guest has room;
           requires a VMM that owns the iommufd itself, instead of QEMU, and a kernel such as
           linux-sw-msi-option (proposed, not merged; docs/kernels.md); the definition has ACPI and
           UEFI, so the guest's kernel has to honour RMR nodes: Linux 6.0 or newer, without acpi=off
  remedy   mapped-page:mode=s2: map an ITS's page at the guest's doorbell by a call of iommufd,
           preset the address; requires a VMM that owns the iommufd itself, instead of QEMU, and a
           kernel such as linux-map-msi-page (sketched, no patch posted; docs/kernels.md)
  see      vmm-msi doctor --explain no-acpi; also acpi-without-uefi, no-accel
  source   Arm IHI 0070, 7.3; Linux drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c arm_smmu_dump_event

1 line not recognised
"""
    )


def test_the_document(vmm_msi, given, guest):
    given(LOG)
    code, out, _err = vmm_msi("explain", "--host", DTB, "--guest", guest, "--format", "json")
    document = json.loads(out)
    (explanation,) = document.pop("explanations")
    assert code == 0
    assert document == {
        "schema": 1,
        "lines_not_recognised": 1,
        "explanations_left_out": 0,
        "events_not_logged": 0,
        "notes": [],
    }
    assert {
        key: explanation[key] for key in ("id", "line", "count", "stage", "stream_id", "iova")
    } == {
        "id": "smmu-F_TRANSLATION",
        "line": 2,
        "count": 1,
        "stage": 1,
        "stream_id": "0x100",
        "iova": "0x8000040",
    }
    assert explanation["devices"] == [
        {
            "address": "0000:01:00.0",
            "guest_address": None,
            "note": "SMMU 0, ITS 0, in three-devices",
        }
    ]
    assert [remedy["strategy"] for remedy in explanation["mends"]] == [
        "identity",
        "multi-its:mode=vsmmu",
        "multi-its:mode=s2",
        "window",
        "mapped-page:mode=s2",
    ]


def test_a_line_as_one_or_several_arguments(vmm_msi):
    for arguments in ([BUSY], BUSY.split()):
        code, out, _err = vmm_msi("explain", *arguments)
        assert code == 0
        assert "id       qemu-group-busy\n" in out
    code, out, _err = vmm_msi("explain", BUSY, "group 7 is not viable", "nothing")
    assert [line for line in out.splitlines() if line.startswith("  id")] == [
        "  id       qemu-group-busy",
        "  id       qemu-group-viable",
    ]
    assert "\n1 line not recognised\n" in out


def test_an_event_as_four_words(vmm_msi):
    words = ["0x0000110000000010", "0x0000020000000000", "0x0000000008000040", "0x0"]
    code, out, _err = vmm_msi("explain", "--in-guest", *words)
    assert code == 0
    assert "device   0000:11:00.0 in the guest; StreamID 0x1100\n" in out


def test_no_recognised_line(vmm_msi, given):
    given("one\n\ntwo\n")
    assert vmm_msi("explain", "--host", DTB) == (
        1,
        "no line was recognised\n2 lines not recognised\n",
        "",
    )
    given("")
    assert vmm_msi("explain", "--host", DTB)[:2] == (1, "no line was recognised\n")


def test_reading_from_a_terminal_prints_a_hint(vmm_msi, given):
    given(BUSY, terminal=True)
    code, _out, err = vmm_msi("explain")
    assert (code, err) == (0, "reading from the terminal; press Ctrl-D to finish\n")


def test_a_note_about_an_unknown_host(vmm_msi):
    code, out, err = vmm_msi("explain", "0x0000110000000010 0x0 0x8000040 0x0")
    assert (code, err) == (0, "")
    assert "\nnote: host unknown: this machine has neither" in out
    assert (
        "\nnote: no strategy was tried in the simulator; name a host with --host and a guest "
        "with --domain" in out
    )


def test_a_libvirt_domain(vmm_msi):
    uri = f"test://{sample('test-driver.xml')}"
    code, out, _err = vmm_msi(
        "explain", BUSY, "-c", uri, "--domain", "guest0", "--host", DTB, "--in-guest"
    )
    assert code == 0
    assert "0000:01:00.0 in the guest" in out
    code, out, err = vmm_msi("explain", BUSY, "-c", uri, "--domain", "absent", "--host", DTB)
    assert (code, out) == (6, "")
    assert err.startswith("vmm-msi explain: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--guest", "missing.xml"], 3, "missing.xml"),
        (["--host", "missing.dtb"], 3, "missing.dtb: cannot be read"),
        (["--domain", "missing.xml"], 3, "missing.xml"),
        (["--format", "svg"], 2, "svg"),
    ],
)
def test_an_error_is_one_line(vmm_msi, arguments, code, error):
    exit_code, out, err = vmm_msi("explain", BUSY, *arguments)
    assert (exit_code, out) == (code, "")
    assert error in err
    assert "Traceback" not in err


def test_too_much_text_is_refused(vmm_msi, given):
    given("x" * ((16 << 20) + 1))
    code, out, err = vmm_msi("explain")
    assert (code, out) == (3, "")
    assert "more than 16 MiB; use a part of it: tail -c 16M" in err
