"""Every known message is recognised in any context and has a complete explanation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from doc_blocks import DOCS

from vmm_msi.explain import printf, related_findings
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.explanation import Program
from vmm_msi.explain.known_texts import forms, texts
from vmm_msi.explain.log_context import LogContext

VALUES = {
    "d": "7",
    "i": "7",
    "u": "7",
    "x": "1f",
    "X": "1F",
    "c": "c",
    "s": "some thing",
    "p": "0x8080000",
    "pR": "[mem 0x10000000-0x1fffffff 64bit pref]",
    "%": "%",
    "m": "Invalid argument",
}
BEFORE = [
    "",
    "[   12.345678] ",
    "[Wed Nov 25 00:29:56 2026] arm-smmu-v3 arm-smmu-v3.0.auto: ",
    "Nov 25 00:29:56 host kernel: [   12.345678] vfio-pci 0000:01:00.0: ",
    "2026-11-25T00:29:56.123456Z qemu-system-aarch64: -device {…}: vfio 0000:01:00.0: ",
    "error: internal error: process exited while connecting to monitor: ",
    "2026-11-25 00:29:56.123+0000: 1234: error : virHostdevPreparePCIDevices:716 : ",
]
#: Prefixes of lines that a program wrote, not the kernel.
BEFORE_PROGRAMS = [
    "Nov 25 00:29:56 host virtqemud[812]: internal error: ",
    "Nov 25 00:29:56 host virt-launcher: ",
    '{"component":"virt-launcher","level":"error","msg":"',
]


def printed(form):
    return printf._CONVERSION.sub(
        lambda match: VALUES["pR" if match["extension"] in ("R", "r") else match["kind"]], form
    )


def only(text, context=None):
    report = explain(text, context or LogContext())
    assert report.unrecognised == 0
    (line,) = report.lines
    return line.explanation


@pytest.mark.parametrize("form", forms(), ids=lambda form: f"{form.text.id}-{form.key[:20]}")
def test_every_form_is_recognised_in_any_context(form):
    line = printed(form.format)
    lines = [before + line for before in BEFORE]
    if form.text.program is not Program.KERNEL:
        *plain, record = BEFORE_PROGRAMS
        lines += [before + line for before in plain]
        lines.append(record + json.dumps(line)[1:-1] + '"}')
    for whole in lines:
        explanation = only(whole)
        assert explanation.id == form.text.id
        assert explanation.program is form.text.program
        sentences = [
            explanation.what,
            explanation.why,
            explanation.missing,
            *(remedy.what for remedy in explanation.remedies),
        ]
        assert not re.search(r"[{}]|%[sdux]", "".join(sentences).replace("{…}", ""))
        assert explanation.remedies or form.text.strategies


def test_ids_are_unique_and_texts_complete():
    ids = [text.id for text in texts()]
    assert len(ids) == len(set(ids))
    for text in texts():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", text.id)
        assert text.source
        cases = [
            sentence
            for case in (*text.cases.values(), *text.in_guest.values())
            for sentence in (case.why, *case.remedies)
        ]
        for sentence in (text.what, text.why, text.missing, *text.remedies, *cases):
            assert not sentence.endswith(".")


def test_related_findings_have_a_text_and_a_page():
    assert related_findings.OF_TEXT.keys() <= {text.id for text in texts()}
    named = {id_ for ids in related_findings.OF_TEXT.values() for id_ in ids}
    cases = [case for text in texts() for case in (*text.cases.values(), *text.in_guest.values())]
    named |= {id_ for case in cases for id_ in case.findings or ()}
    named |= {*related_findings.WINDOW, *related_findings.BEYOND, *related_findings.NO_WINDOW}
    pages = {page.stem for page in (DOCS.parent / "vmm_msi/doctor/findings").glob("*.md")}
    assert named <= pages
    assert only("vfio: IOMMU_VDEVICE_ALLOC failed").findings == (
        "vsmmu-spans-smmus",
        "many-streams",
    )


def test_no_form_is_hidden_by_another():
    """The longest match of a line wins, regardless of the order of the tables."""
    line = "Unable to alloc vIOMMU: hiodi devid 0x1: IOMMU_VIOMMU_ALLOC failed: Invalid argument"
    assert only(line).id == "qemu-viommu"
    line = "failed to setup container for group 7: Failed to set iommu for container"
    assert only(line).id == "qemu-container"


REALIZE = "qemu-system-aarch64: -device vfio-pci,host=0000:01:00.0: vfio 0000:01:00.0: "
CONTAINER = f"{REALIZE}failed to setup container for group 1: memory listener initialization failed"


@pytest.mark.parametrize(
    ("line", "id_"),
    [
        (f"{CONTAINER}: Region ram: vfio_dma_map(0x1, 0x0, 0x1000, 0x2) = -22", "qemu-map-failed"),
        (
            (
                f"{CONTAINER}: Region smmuv3-iommu-memory-region-16-0: device 00.02.0 requires "
                "iommu MAP notifier which is not currently supported"
            ),
            "qemu-map-notifier",
        ),
        (f"{CONTAINER}: Region x: a reason that is not known", "qemu-container"),
        (
            (
                f"error: QEMU unexpectedly closed the monitor (vm='a'): {REALIZE}failed "
                "to setup container for group 1: Failed to set iommu for container: Operation not "
                "permitted"
            ),
            "qemu-container",
        ),
        (f"{REALIZE}group 1 used in multiple address spaces", "qemu-address-spaces"),
        (
            f"{REALIZE}Unable to alloc vIOMMU: hiodi devid 0x1: IOMMU_VIOMMU_ALLOC failed",
            "qemu-viommu",
        ),
    ],
)
def test_the_innermost_text_of_a_chain_decides(line, id_):
    explanation = only(line)
    assert explanation.id == id_
    assert [str(subject.address) for subject in explanation.devices] == ["0000:01:00.0"]


@pytest.mark.parametrize(
    ("option", "device"),
    [
        ("host=01:00.0", "0000:01:00.0"),
        ("host=0001:01:00.0", "0001:01:00.0"),
        ('"host":"0001:01:00.0"', "0001:01:00.0"),
        ("hostname=01:00.0", None),
    ],
)
def test_the_device_of_an_option_may_have_no_segment(option, device):
    explanation = only(f"qemu-system-aarch64: -device vfio-pci,{option}: VFIO_MAP_DMA: -22")
    assert [str(subject.address) for subject in explanation.devices] == ([device] if device else [])


@pytest.mark.parametrize(
    "errno",
    ["Cannot allocate memory", "cannot allocate memory (os error 12)", "-12", "(-12)", "errno=12"],
)
def test_the_errno_is_known_by_its_words_and_by_its_number(errno):
    explanation = only(f"vfio: failed to set iommu for container: {errno}")
    assert explanation.findings == ("memlock",)


def test_a_device_behind_an_emulated_smmu_in_the_words_of_three_releases():
    lines = [
        (
            f"{CONTAINER}: Region smmuv3-iommu-memory-region-16-0: device 00.02.0 requires "
            "iommu MAP notifier which is not currently supported"
        ),
        (
            "qemu-system-aarch64: -device vfio-pci,host=0000:01:00.0,iommufd=i0: device 02.00.0 "
            "requires iommu MAP notifier which is not currently supported"
        ),
        (
            "qemu-system-aarch64: -device vfio-pci,host=0000:01:00.0: warning: SMMUv3 does not "
            "support notification on MAP: device vfio-pci will not function properly"
        ),
    ]
    report = explain("\n".join(lines), LogContext())
    (line,) = report.lines
    assert (line.explanation.id, line.count, report.unrecognised) == ("qemu-map-notifier", 3, 0)
    assert line.explanation.findings == ("no-accel",)
    assert "accel='on'" in line.explanation.remedies[0].what


def lines():
    """Read lines as an operator has them, each with its explanation."""
    text = (Path(__file__).parent / "lines.txt").read_text(encoding="utf-8")
    for block in text.strip().split("\n\n"):
        head, *rest = block.splitlines()
        parts = dict(line.split(":", 1) for line in rest)
        yield pytest.param(
            *(parts[name].strip() for name in ("text", "what", "why", "device")),
            head.removeprefix("# "),
            id=head.removeprefix("# "),
        )


@pytest.mark.parametrize(("text", "what", "why", "device", "id_"), [*lines()])
def test_lines_as_an_operator_has_them(text, what, why, device, id_):
    explanation = only(text)
    assert (explanation.id, explanation.what, explanation.why) == (id_, what, why)
    assert [str(subject.address) for subject in explanation.devices] == ([device] if device else [])


def test_a_fault_of_an_smmuv2_has_its_address_and_stream():
    explanation = only(
        "arm-smmu 2b400000.iommu: Unhandled context fault: fsr=0x402, iova=0x08000040, "
        "fsynr=0x10, cbfrsynra=0x1100, cb=2"
    )
    assert (explanation.id, explanation.stage, explanation.iova, explanation.stream) == (
        "smmuv2-context-fault", 1, 0x800_0040, 0x1100,
    )  # fmt: skip
    assert explanation.iova_is == "page 0 of the SW MSI window (in 4K pages)"


def test_values_fill_placeholders_of_remedies():
    explanation = only("qemu-system-aarch64: Host SMMUv3 SSIDSIZE not compatible (host=0, QEMU=20)")
    assert explanation.what == "the vSMMU has 20 SubstreamID bits, but the pSMMU has 0"
    assert [remedy.what for remedy in explanation.remedies] == [
        "vmm-msi attach GUEST DEVICE --vsmmu ssidsize=0"
    ]
