"""Build recordings from the texts and files of a host, laid out as on a real one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from described_host import load_host

from vmm_msi.domxml.document import read_document
from vmm_msi.errors import UsageError
from vmm_msi.host.msi_bindings import parse_bindings
from vmm_msi.recording import (
    LogOrigin,
    RecordedBinding,
    RecordedVector,
    Releases,
    Slot,
    recording_json,
)
from vmm_msi.recording.recorder import MAX_EVENTS, Observations, interrupt_counts, record_guest
from vmm_msi.samples import path as sample
from vmm_msi.types import Iova, Ipa, Pa, PciAddress

GUEST = Path(__file__).parent.parent / "domxml" / "golden" / "plain.three.libvirt-12.8.xml"
FIRST, SECOND, THIRD = (PciAddress(segment, 1, 0, 0) for segment in range(3))
INTERRUPTS = """\
           CPU0       CPU1
  9:          4          5     GICv3  25 Level     vgic
 55:         10        991     ITS-MSI 8912896 Edge      vfio-msix[0](0000:01:00.0)
 56:          0          7     ITS-MSI 8912897 Edge      vfio-msix[1](0000:01:00.0)
 57:          1          0     ITS-MSI 8912898 Edge      vfio-msi[0](0001:01:00.0)
 58:          2          0     GICv3  36 Level     vfio-intx(0002:01:00.0)
ERR:          0
"""
FAULT = (
    "arm-smmu-v3 arm-smmu-v3.0.auto: event: F_TRANSLATION client: {} sid: 0x100 ssid: 0x0 "
    "iova: {:#x} ipa: 0x0"
)


@pytest.fixture
def devices(tmp_path):
    """Create the folders of two devices; the first has MSI-X, the second is in D3hot."""
    space = bytearray(256)
    space[4], space[0x34], space[0x40] = 2, 0x40, 0x11
    struct.pack_into("<HI", space, 0x42, 0x8000 | 2, 0)
    for address, power in ((FIRST, "D0"), (SECOND, "D3hot")):
        folder = tmp_path / str(address)
        folder.mkdir()
        (folder / "config").write_bytes(space)
        (folder / "power_state").write_text(power)
        entries = [(0x8000040, 0), (0x8000040, 0), (0, 1)]
        table = b"".join(struct.pack("<QII", at, 1, control) for at, control in entries)
        (folder / "resource0").write_bytes(table)
    return tmp_path


def recorded(devices, guest=GUEST, **more):
    xml = read_document(str(guest))
    host = load_host(sample("eight-its-server.dtb"))
    observations = Observations(INTERRUPTS, **more)
    return record_guest(xml, host, Releases("0.1.0"), observations, devices)


def test_counts_of_vfio_interrupts():
    assert interrupt_counts(INTERRUPTS) == {FIRST: {0: 1001, 1: 7}, SECOND: {0: 1}}


def test_a_guest(devices):
    recording = recorded(devices, kernel_log=[])
    assert [device.address for device in recording.devices] == [FIRST, SECOND, THIRD]
    assert [device.strategy for device in recording.devices] == [
        "multi-its",
        "multi-its",
        "identity",
    ]
    assert recording.devices[0].options == {"mode": "s2"}
    assert recording.devices[0].vectors == (
        RecordedVector(0, Iova(0x8000040), 1001),
        RecordedVector(1, Iova(0x8000040), 7),
    )
    assert recording.devices[1].vectors == (RecordedVector(0, None, 1),)
    assert recording.devices[2].vectors == ()
    assert recording.slots == (Slot(Iova(0x8000000), 0),)
    assert recording.unread == (
        "0001:01:00.0: its MSI-X table is not read while it is in power state D3hot",
        "0002:01:00.0: reading its configuration space: No such file or directory; run as root",
    )
    assert recording.guest.honours_rmr
    assert recording.guest.name == "guest"


def test_bindings_of_the_kernel_are_kept_and_give_the_giova(devices):
    """The XML has no gIOVA: without a binding it is what Linux gives first."""
    text = "\n".join(
        [
            "version 1",
            f"binding {FIRST} iova 0xffeff000 gpa 0x8090000 shift 12 hpa 0x20010000 used",
            f"pending {SECOND} iova 0xffeff000 gpa 0x8090000 shift 12",
            f"binding {THIRD} iova 0xffeff000 gpa 0x8090000 shift 12 hpa - unused",
            f"binding {THIRD} iova 0xffdff000 gpa 0x8090000 shift 12 hpa - unused",
        ]
    )
    recording = recorded(devices, kernel_log=[], bindings=parse_bindings(text))
    first, second, third = recording.devices
    giova, gdb = Iova(0xFFEFF000), Ipa(0x8090000)
    assert first.bindings == (RecordedBinding(giova, gdb, 12, Pa(0x20010000), used=True),)
    assert second.bindings == ()
    assert [binding.giova for binding in third.bindings] == [giova, 0xFFDFF000]
    plain = recorded(devices, kernel_log=[])
    giovas = [
        [device.giova for device in guest.devices] for guest in (recording.guest, plain.guest)
    ]
    assert giovas[0] == [giova, *giovas[1][1:]]
    assert recording_json.decode(recording_json.encode(recording), "x") == recording


def test_the_host_is_reduced_to_the_used_parts(devices):
    host = recorded(devices, kernel_log=[]).host
    assert host.source == "recording"
    assert [device.address for device in host.devices] == [FIRST, SECOND, THIRD]
    assert [device.vectors for device in host.devices] == [2, 1, 1]
    assert [its.id for its in host.itses] == sorted({d.its for d in host.devices})
    assert {smmu.id for smmu in host.smmus} == {device.smmu for device in host.devices}
    assert (host.routes, host.functions, host.segments, host.reserved_memory) == ((), (), (), ())


def test_events_of_both_logs(devices):
    """In the guest, the bus of the third device is the first behind its expander bus."""
    guest_log = "\n".join(
        f"[   1.0] {FAULT.format(f'0000:{bus:02x}:00.0', 0x8000040)}" for bus in range(256)
    )
    host_log = [FAULT.format(FIRST, 0x12345000)] * 3 + [FAULT.format("0005:01:00.0", 0x1000)]
    events = recorded(devices, kernel_log=host_log, guest_log=guest_log).events
    assert [(event.device, event.log, event.event.iova) for event in events] == [
        (FIRST, LogOrigin.HOST, 0x12345000),
        (FIRST, LogOrigin.GUEST, 0x8000040),
        (SECOND, LogOrigin.GUEST, 0x8000040),
        (THIRD, LogOrigin.GUEST, 0x8000040),
    ]


ON_COMMAND_LINE = """\
<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
<name>guest0</name><memory unit="GiB">4</memory>
<os firmware="efi"><type arch="aarch64" machine="virt">hvm</type></os>
<features><acpi/><gic version="3"/></features>
<devices><controller type="pci" index="0" model="pcie-root"/></devices>
<qemu:commandline>
<qemu:arg value="-device"/><qemu:arg value="pxb-pcie,id=pcie.1,bus_nr=8,bus=pcie.0"/>
<qemu:arg value="-device"/><qemu:arg value="arm-smmuv3,primary-bus=pcie.1,id=smmu1,accel=on"/>
<qemu:arg value="-device"/><qemu:arg value="pcie-root-port,id=port1,chassis=2,bus=pcie.1"/>
<qemu:arg value="-device"/><qemu:arg value="vfio-pci,host=0000:01:00.0,bus=port1"/>
<qemu:arg value="-readconfig"/><qemu:arg value="/etc/more.cfg"/>
</qemu:commandline></domain>"""


def test_devices_on_the_command_line_are_recorded(devices, tmp_path):
    path = tmp_path / "guest.xml"
    path.write_text(ON_COMMAND_LINE)
    recording = recorded(devices, path, kernel_log=[FAULT.format(FIRST, 0x1000)])
    (device,) = recording.devices
    assert (device.address, device.strategy, device.interrupts) == (FIRST, "identity", 1008)
    assert recording.slots == (Slot(Iova(0x8000000), 0),)
    assert [event.device for event in recording.events] == [FIRST]
    assert recording.unread == ("<qemu:commandline> -readconfig: the devices in that file",)


def test_events_before_the_log_was_cleared_are_skipped(devices):
    old, new = (FAULT.format(FIRST, iova) for iova in (0x1000, 0x2000))
    events = recorded(devices, kernel_log=[old, new], recent_log=[new]).events
    assert [event.event.iova for event in events] == [0x2000]


def test_the_number_of_events_is_bounded(devices):
    log = [FAULT.format(FIRST, 0x1000 * number) for number in range(MAX_EVENTS + 9)]
    assert len(recorded(devices, kernel_log=log).events) == MAX_EVENTS


def test_a_guest_that_does_not_map_rmrs(devices):
    assert not recorded(devices, kernel_log=[], rmr=False).guest.honours_rmr


@pytest.mark.parametrize(
    ("line", "vlpis"),
    [
        ("kvm [1]: GICv4.1 support enabled", True),
        ("kvm [1]: GICv4 support enabled", True),
        ("kvm [1]: GICv4 support disabled", False),
    ],
)
def test_a_host_that_delivers_msis_directly(devices, line, vlpis):
    assert recorded(devices, kernel_log=[line]).vlpis is vlpis


def test_a_guest_without_a_nested_smmu(devices):
    with pytest.raises(UsageError) as caught:
        recorded(devices, sample("three-devices.xml"), kernel_log=[])
    assert str(caught.value) == (
        "recording three-devices: the guest has no device behind an accelerated vSMMU; assign one "
        "with vmm-msi attach"
    )
