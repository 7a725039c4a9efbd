"""A fault is explained for the user of the device: a guest, with or without a vSMMU, or the host.

Where text and context do not show the user, the other readings follow.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from described_host import load_host
from event_lines import decoded, raw

from vmm_msi.domxml.guest_domain import guest_from_xml
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.explain.configuration import MEANINGS, PER_BUS
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.explain.users import User
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.report.explain import to_json, to_lines
from vmm_msi.samples import path as sample
from vmm_msi.types import (
    Firmware,
    Granule,
    Iova,
    Ipa,
    PciAddress,
    PciFunction,
    PciSegment,
    StreamId,
)

A = PciAddress.parse("0000:01:00.0")
HOST = load_host(sample("eight-its-server.dtb"), Granule.K4)
#: The same, with a root complex that promises ATS, and without a word about it.
PROMISING = replace(HOST, segments=(PciSegment(0, ats=True),))
SILENT = replace(HOST, segments=())
FIRST = "30000000.iommu"
ATS = (EventKind.F_BAD_ATS_TREQ, EventKind.F_TRANSL_FORBIDDEN)

GUEST = """\
<domain type='kvm'>
  <name>guest0</name>
  <memory unit='GiB'>4</memory>
  <os firmware='efi'><type arch='aarch64' machine='virt'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-expander-bus'><target busNr='8'/></controller>
    <controller type='pci' index='2' model='pcie-root-port'>
      <address type='pci' bus='0x01' slot='0x00' function='0x0'/>
    </controller>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>
      <address type='pci' bus='0x02' slot='0x00' function='0x0'/>
    </hostdev>
    VSMMU
  </devices>
</domain>
"""
ACCELERATED = "<iommu model='smmuv3'><driver pciBus='1' accel='on'/></iommu>"
ON_PCIE0 = "<iommu model='smmuv3'><driver pciBus='0'/></iommu>"
MACHINE_WIDE = "<iommu model='smmuv3'/>"


def context(vsmmu=None, *, host=HOST, in_guest=False, driver=""):
    """Return the context of a log.

    :param vsmmu: the guest's ``<iommu>``; None for no guest.
    :param driver: the driver that the host's sysfs shows; empty for a host without sysfs.
    """
    if driver:
        host = replace(host, functions=(PciFunction(A, driver=driver),))
    if vsmmu is None:
        return LogContext(host, in_guest=in_guest)
    xml = DomainXml.parse(GUEST.replace("VSMMU", vsmmu), "guest0.xml")
    return LogContext(host, guest_from_xml(xml), xml, in_guest)


def only(event, known, client=A):
    text = raw(event, FIRST) + decoded(event, client, FIRST)
    (line,) = explain("\n".join(text), known).lines
    return line.explanation


def fault(address, known, stage=1, kind=EventKind.F_TRANSLATION, client=A, ipa=None):
    ipa = ipa or (Ipa(address) if stage == 2 else None)
    return only(SmmuEvent(kind, stage, StreamId(0x100), Iova(address), ipa), known, client)


def configuration(kind, known, stream=0x100, client=A):
    return only(SmmuEvent(kind, 0, StreamId(stream), Iova(0)), known, client)


def others(explanation):
    return [reading.when for reading in explanation.otherwise]


def test_an_unknown_user_has_every_reading():
    explanation = fault(0xFFFF_E040, LogContext())
    assert explanation.why.startswith("it looks like an MSI to a gIOVA")
    assert others(explanation) == [User.HOST, User.PLAIN]
    host, plain = explanation.otherwise
    assert host.why.startswith(
        "stage 1 is the host's; 0xffffe000, just below 4 GiB, is where its DMA API puts an ITS page"
    )
    assert host.remedies == ("update the host's kernel, or report it there: no strategy helps",)
    assert plain.why.startswith("stage 1 is the host's, and the IOVA is a physical address of the")
    report = explain(
        "\n".join(raw(SmmuEvent(EventKind.F_UUT, 0, StreamId(1), Iova(0)))), LogContext()
    )
    assert report.lines[0].explanation.otherwise == ()


def test_the_readings_are_printed_and_in_json():
    event = SmmuEvent(EventKind.F_TRANSL_FORBIDDEN, 0, StreamId(0x100), Iova(0))
    report = explain("\n".join(raw(event)), LogContext())
    text = " ".join(" ".join(to_lines(report)).split())
    assert (
        "or if a driver of the host uses the device, or if a guest has the device without a vSMMU: "
        "its root complex promises ATS in the firmware's tables"
    ) in text
    assert "; boot the host with pci=noats; update the host's firmware source" in text
    (document,) = to_json(report)["explanations"]
    assert document["otherwise"] == [
        {
            "if": f"{User.HOST}, or {User.PLAIN}",
            "why": report.lines[0].explanation.otherwise[0].why,
            "remedies": ["boot the host with pci=noats", "update the host's firmware"],
        }
    ]


# --- known users --------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["nvme", "mlx5_core"])
def test_a_driver_of_the_host(driver):
    known = context(driver=driver)
    explanation = fault(0xFFFF_E040, known)
    assert explanation.what.startswith("event F_TRANSLATION at stage 1: the host's own tables")
    assert explanation.missing == "S1: 0xffffe000, of the host's tables"
    assert not others(explanation)
    assert all(not remedy.strategy for remedy in explanation.remedies)
    assert fault(0x7654_3000, known).why.startswith("stage 1 is the host's: its driver did not map")
    assert "still has the address that it got for a guest" in fault(0x800_0040, known).why
    assert "before the SMMU translated" in fault(0x2001_0040, known).why
    assert fault(0x1234_5040, known).why.startswith("stage 1 is the host's; by its offset")
    assert fault(0x1000, known, stage=2).why.startswith("stage 2 is the only one")
    for kind in (EventKind.F_PERMISSION, EventKind.F_ADDR_SIZE, EventKind.F_ACCESS):
        explanation = fault(0x1000, known, kind=kind)
        assert "guest" not in explanation.why
        assert not others(explanation)


@pytest.mark.parametrize("driver", ["vfio-pci", "nvgrace-gpu-vfio-pci"])
def test_a_device_of_an_unknown_guest(driver):
    explanation = fault(0xFFFF_E040, context(driver=driver))
    assert explanation.why.startswith("it looks like an MSI to a gIOVA")
    assert others(explanation) == [User.PLAIN]


def test_an_address_that_stage_1_changed_shows_that_it_is_the_guests():
    """Whatever the definition says: another VMM may have a vSMMU that libvirt does not know."""
    for known in (context(""), context(driver="nvme"), LogContext()):
        explanation = fault(0xFFFF_F040, known, stage=2, ipa=Ipa(0x809_0040))
        assert explanation.why.startswith("the guest's stage 1 maps to its doorbell, and stage 2")
        assert not others(explanation)


def test_a_device_of_a_guest_with_a_vsmmu():
    explanation = fault(0x800_0040, context(ACCELERATED, driver="nvme"))
    assert explanation.what.startswith("event F_TRANSLATION at stage 1: the guest's tables")
    assert not others(explanation)


@pytest.mark.parametrize("vsmmu", ["", ON_PCIE0, "<iommu model='virtio'/>"])
def test_a_device_of_a_guest_without_a_vsmmu(vsmmu):
    known = context(vsmmu, host=PROMISING)
    explanation = fault(0x800_0040, known)
    assert explanation.what.startswith("event F_TRANSLATION at stage 1: the host's own tables")
    assert explanation.why.startswith("stage 1 is the host's, which maps the page when the MSI is")
    assert not others(explanation)
    assert "its RAM is not mapped" in fault(0x4000_0100, known).why
    assert "vmm-msi explain < /var/log/libvirt/qemu/guest0.log" in (
        fault(0x4000_0100, known).remedies[0].what
    )
    assert "peer-to-peer" in fault(0x76_5432_1000, known).why
    for kind in ATS:
        assert [remedy.what for remedy in configuration(kind, known).remedies] == [
            "boot the host with pci=noats",
            "update the host's firmware",
        ]


def test_a_device_that_the_guest_does_not_have():
    other = PciAddress.parse("0000:01:01.0")
    explanation = fault(0x7654_3000, context(ACCELERATED), client=other)
    assert explanation.why.startswith("the device is not in guest0: stage 1 is the host's")
    assert others(explanation) == [User.NESTED]


@pytest.mark.parametrize("kind", list(MEANINGS), ids=lambda kind: kind.name)
def test_events_without_an_address(kind):
    nested = configuration(kind, context(ACCELERATED))
    host = configuration(kind, context(driver="nvme", host=SILENT))
    unknown = configuration(kind, LogContext())
    assert not others(nested)
    assert not others(host)
    assert nested.why == unknown.why
    assert [reading.why for reading in unknown.otherwise] == (
        [host.why] if host.why != nested.why else []
    )
    assert all("attach" not in remedy.what for remedy in host.remedies)


# --- in the guest -------------------------------------------------------------------------------

#: Words for what cannot be changed from within the guest.
OUTSIDE = ("host", "firmware", "topology", "kernel such as")


@pytest.mark.parametrize("vsmmu", [None, ACCELERATED, ON_PCIE0, MACHINE_WIDE])
@pytest.mark.parametrize("kind", list(EventKind), ids=lambda kind: kind.name)
def test_remedies_in_the_guest_are_of_the_guest(kind, vsmmu):
    known = context(vsmmu, in_guest=True, host=None)
    client = PciAddress.parse("0000:09:00.0")
    if kind in MEANINGS:
        explanations = [configuration(kind, known, 0x900, client)]
    else:
        addresses = [0x800_0040, 0x809_0040, 0xFFFF_F040, 0x4000_0000, 0x7654_3210]
        explanations = [fault(address, known, kind=kind, client=client) for address in addresses]
    for explanation in explanations:
        remedies = [remedy.what for remedy in explanation.remedies]
        remedies += [text for reading in explanation.otherwise for text in reading.remedies]
        assert remedies or explanation.findings or explanation.missing
        assert not [text for text in remedies if any(word in text for word in OUTSIDE)]
        assert set(others(explanation)) <= {User.EMULATED}


@pytest.mark.parametrize(("vsmmu", "other"), [(ON_PCIE0, "pcie.0"), (MACHINE_WIDE, "the machine")])
def test_a_bus_without_a_vsmmu(vsmmu, other):
    explanation = configuration(
        EventKind.C_BAD_STREAMID, context(vsmmu, in_guest=True), 0x900, "(unassigned sid)"
    )
    (subject,) = explanation.devices
    assert (str(subject.guest_address), subject.address) == ("0000:09:00.0", A)
    assert explanation.why.startswith(
        "0000:09:00.0 is behind the expander bus with busNr 8 (controller 1), which has no vSMMU, "
        f"while {other} has one"
    )
    assert [remedy.what for remedy in explanation.remedies] == [
        "give controller 1 a vSMMU: <iommu model='smmuv3'> with pciBus='1' accel='on'",
        PER_BUS,
    ]


def test_a_bus_with_a_vsmmu_or_an_unknown_definition():
    for vsmmu in (None, ACCELERATED):
        known = context(vsmmu, in_guest=True)
        explanation = configuration(EventKind.C_BAD_STREAMID, known, 0x900, "(unassigned sid)")
        assert explanation.why.startswith("the guest's IORT does not lead from the device's bus")


def test_an_emulated_vsmmu():
    client = PciAddress.parse("0000:01:00.0")
    for vsmmu, certain in ((ON_PCIE0, True), (None, False)):
        explanation = fault(0x7654_3000, context(vsmmu, in_guest=True), client=client)
        whys = [explanation.why, *(reading.why for reading in explanation.otherwise)]
        assert explanation.what.startswith("event F_TRANSLATION at stage 1: the guest's tables")
        assert [why.startswith("QEMU walks the guest's tables") for why in whys] == (
            [True] if certain else [False, True]
        )


# --- messages in the guest ----------------------------------------------------------------------

DIRECT = (
    "vfio-pci 0000:09:00.0: Firmware has requested this device have a 1:1 IOMMU mapping, rejecting "
    "configuring the device without a 1:1 mapping. Contact your platform vendor."
)
BIND = "vfio 0000:09:00.0: error bind device fd=3 to iommufd=4: Invalid argument"


@pytest.mark.parametrize("line", [DIRECT, BIND])
def test_vfio_inside_a_guest_is_refused_because_of_qemus_rmr(line):
    (guest,) = explain(line, context(ACCELERATED, in_guest=True)).lines
    explanation = guest.explanation
    assert explanation.what.startswith("Linux in the guest refuses VFIO for this device (EINVAL)")
    assert "build_iort_rmr_nodes" in explanation.why
    assert explanation.findings == ("rmr-direct",)
    assert explanation.devices[0].address == A
    assert not [r for r in explanation.remedies if "firmware" in r.what]
    (host,) = explain(line, LogContext()).lines
    assert "rmr-direct" not in host.explanation.findings
    (reading,) = host.explanation.otherwise
    assert reading.when == "if this is the log of a guest"
    assert reading.why == explanation.what


def test_another_errno_has_another_cause_in_the_guest_too():
    line = BIND.replace("Invalid argument", "Operation not permitted")
    (known,) = explain(line, context(ACCELERATED, in_guest=True)).lines
    assert known.explanation.why.startswith("its MSIs are not isolated")


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        (
            (
                'No interrupt remapping support.  Use the module param "allow_unsafe_interrupts" '
                "to enable VFIO IOMMU support on this platform"
            ),
            "guest-gic",
        ),
        ("arm-smmu-v3 arm-smmu-v3.0.auto: device has entered Service Failure Mode!", None),
    ],
)
def test_messages_in_a_guest_have_no_remedies_of_the_host(line, finding):
    (known,) = explain(line, context(ACCELERATED, in_guest=True)).lines
    remedies = [remedy.what for remedy in known.explanation.remedies]
    assert remedies
    assert not [text for text in remedies if any(word in text for word in OUTSIDE)]
    assert finding is None or finding in known.explanation.findings
    (host,) = explain(line, LogContext()).lines
    for reading in host.explanation.otherwise:
        assert reading.when == "if this is the log of a guest"
        assert not [text for text in (reading.why, *reading.remedies) if "{" in text]


def test_firmware_tables_of_a_guest_are_qemus():
    line = "IORT: requested ITS ID index [1] overruns ITS entries [1]"
    (known,) = explain(line, context(in_guest=True)).lines
    assert known.explanation.remedies[-1].what == (
        "the table is QEMU's: change the guest's definition, or use another QEMU"
    )


@pytest.mark.parametrize(
    ("firmware", "ats", "why", "remedy"),
    [
        (Firmware.ACPI, True, "promises ATS (ATS attribute in the IORT: 1), and the SMMU", "boot"),
        (Firmware.ACPI, False, "does not promise ATS (ATS attribute in the IORT: 0), so", "reset"),
        (
            Firmware.DEVICE_TREE,
            True,
            "promises ATS (ats-supported in the device tree: yes), and the SMMU",
            "boot",
        ),
        (
            Firmware.DEVICE_TREE,
            False,
            "does not promise ATS (ats-supported in the device tree: no), so",
            "reset",
        ),
        (Firmware.ACPI, None, "promises ATS in the firmware's tables, or", "boot"),
    ],
)
@pytest.mark.parametrize("kind", [EventKind.F_TRANSL_FORBIDDEN, EventKind.F_BAD_ATS_TREQ])
def test_ats_of_the_root_complex(kind, firmware, ats, why, remedy):
    """The tables of the host decide between the two causes; the SMMU alone does not show it."""
    host = replace(HOST, firmware=firmware, segments=(PciSegment(A.segment, ats=ats),))
    explanation = configuration(kind, context(host=host, driver="nvme"))
    assert f"its root complex {why}" in explanation.why
    assert explanation.remedies[0].what.startswith(remedy)
