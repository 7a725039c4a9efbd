"""Lines of listings of a host."""

from __future__ import annotations

import pytest
from described_host import load_host

from vmm_msi import samples
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext

BOARD = load_host(samples.path("eight-its-server.dtb"))


def explained(text, host=None):
    """Return the explanations by id, and the number of other lines."""
    report = explain(text, LogContext(host, None, None, False))
    return {line.explanation.id: line for line in report.lines}, report.unrecognised


LSPCI = """\
0001:01:00.0 Ethernet controller: Vendor Device
\tIOMMU group: 14
\tCapabilities: [50] MSI: Enable+ Count=1/1 Maskable- 64bit+
\t\tAddress: {}  Data: 0000
"""


@pytest.mark.parametrize("prefix", ["", "> "])
def test_the_address_of_an_msi(prefix):
    text = "".join(f"{prefix}{line}\n" for line in LSPCI.format("0000000008001040").splitlines())
    lines, _others = explained(text)
    explanation = lines["lspci-msi-address"].explanation
    assert [str(subject.address) for subject in explanation.devices] == ["0001:01:00.0"]
    assert explanation.iova == 0x8001040
    assert explanation.iova_is == "page 1 of the SW MSI window (in 4K pages)"
    assert lines["host-listing"].count == 2


def test_other_addresses_of_an_msi():
    line = explained(LSPCI.format("20010040"), BOARD)[0]["lspci-msi-address"]
    assert line.explanation.iova_is == "hDB, the doorbell of the host's ITS 0"
    assert "lspci-msi-address" not in explained(LSPCI.format("00000000"))[0]
    lines, _others = explained("\t\tAddress: 00000000fffff040  Data: 0001\n")
    assert lines["lspci-msi-address"].explanation.devices == ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0x0000000008000000 0x00000000080fffff msi", "(sw-msi): the SW MSI window"),
        ("0x00000000fee00000 0x00000000feefffff msi", "(hw-msi): a HW MSI region"),
        ("0x00000000a0000000 0x00000000a00fffff direct", "required mapped 1:1"),
        ("0x00000000a0000000 0x00000000a00fffff direct-relaxable", "until a guest takes"),
        ("0x00000000a0000000 0x00000000a00fffff reserved", "(reserved): addresses that are not"),
        ("/sys/kernel/iommu_groups/3/reserved_regions:0x8000000 0x80fffff msi", "SW MSI window"),
    ],
)
def test_reserved_regions(line, words):
    lines, others = explained(line)
    assert others == 0
    assert words in lines["reserved-region"].explanation.what.replace("requires", "required")


@pytest.mark.parametrize(
    "text",
    [
        "/sys/kernel/iommu_groups/20/devices/000f:01:00.0",
        "./7/devices/0004:01:00.0",
        "/sys/kernel/iommu_groups/1/devices:",
        "IOMMU Group 12:",
        "IOMMU Group 12 00:1f.0 ISA bridge [0601]: Vendor Device [8086:a305]",
        "00:1f.0 ISA bridge [0601]: Vendor Device [8086:a305]",
        "01:00.0 0200: 8086:1521 (rev 01)",
    ],
)
def test_other_listings_name_the_commands_that_read_them(text):
    lines, others = explained(text)
    assert (list(lines), others) == (["host-listing"], 0)
    remedies = [remedy.what for remedy in lines["host-listing"].explanation.remedies]
    assert "vmm-msi topology show FILE" in remedies[0]
    assert "vmm-msi topology capture" in remedies[1]


@pytest.mark.parametrize(
    "text",
    [
        "pci 0000:01:00.0: Adding to iommu group 12",
        "nvme 0000:01:00.0: enabling device (0000 -> 0002)",
        "0x8000000 0x80fffff other",
        "0x80fffff 0x8000000",
        "the group 3 has no devices",
        "Address: 12  Data: 0000",
    ],
)
def test_other_lines_are_not_of_a_listing(text):
    assert explained(text) == ({}, 1)
