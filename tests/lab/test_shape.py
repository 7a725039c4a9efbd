"""Shapes of an emulated host, and the libvirt XML for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vmm_msi import libvirt_driver
from vmm_msi.errors import UsageError
from vmm_msi.lab.machine.host_xml import NAME, HostFiles, host_xml
from vmm_msi.lab.machine.shape import GUESTS_MEMORY, PORTS_PER_SMMU, RANGES, Port, Shape
from vmm_msi.types import Granule

FILES = HostFiles(*(Path("/files", name) for name in ("kernel", "initrd", "agent", "tty", "log")))
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


@pytest.mark.parametrize("name", RANGES)
def test_number_out_of_range_is_refused_with_the_range(name):
    low, high = RANGES[name]
    for value in (low - 1, high + 1):
        with pytest.raises(UsageError, match=f"{value} {name}; valid is {low} to {high}"):
            Shape(**{name: value})


def test_16k_pages_are_refused():
    with pytest.raises(UsageError, match="granule 16K; valid: 4K, 64K"):
        Shape(granule=Granule.K16)


def test_the_debug_kernel_runs_no_guests():
    assert Shape(kernel="debug")
    with pytest.raises(UsageError, match=r"kernel debug runs no guests: .*; use --kernel bind"):
        Shape(kernel="debug", guests=True)


def test_too_many_devices_behind_one_smmu_are_refused():
    assert Shape(smmus=1, devices=PORTS_PER_SMMU - 1, pairs=1)
    with pytest.raises(UsageError, match="16 devices and pairs behind one SMMU; valid is up to 15"):
        Shape(smmus=1, devices=PORTS_PER_SMMU, pairs=1)


def test_devices_and_pairs_are_distributed_over_the_smmus():
    shape = Shape(smmus=2, devices=3, pairs=1)
    assert shape.behind(0) == (Port(0, 1), Port(0, 1), Port(0, 2))
    assert shape.behind(1) == (Port(1, 1),)


@pytest.mark.parametrize(
    ("running", "requested", "covered"),
    [
        (Shape(), Shape(), True),
        (Shape(), Shape(smmus=1, devices=2, pairs=0), True),
        (Shape(smmus=1), Shape(), False),
        (Shape(devices=4), Shape(devices=5), False),
        (Shape(pairs=0), Shape(), False),
        # More SMMUs leave fewer devices for each.
        (Shape(smmus=4), Shape(smmus=2), False),
        (Shape(smmus=4, devices=8, pairs=2), Shape(smmus=2), True),
        (Shape(granule=Granule.K64), Shape(), False),
        (Shape(memory=512), Shape(), False),
        (Shape(), Shape(vcpus=1), True),
        (Shape(nvmes=2), Shape(), True),
        (Shape(), Shape(nvmes=1), False),
        (Shape(nvmes=2), Shape(nvmes=1), True),
    ],
)
def test_running_host_covers_a_smaller_shape(running, requested, covered):
    assert running.covers(requested) is covered


def test_xml_has_the_parts_of_the_shape():
    shape = Shape(smmus=3, devices=4, pairs=2, memory=768, vcpus=3)
    domain = host_xml(shape, FILES)
    root = domain.root
    assert domain.name == NAME
    assert domain.memory == 768 << 20
    assert root.findtext("vcpu") == "3"
    assert [root.findtext(f"os/{name}") for name in ("kernel", "initrd")] == [
        "/files/kernel",
        "/files/initrd",
    ]
    expanders = [c for c in domain.controllers() if c.model == "pcie-expander-bus"]
    assert [(c.index, c.bus_nr) for c in expanders] == [(1, 16), (2, 32), (3, 48)]
    assert [iommu.pci_bus for iommu in domain.iommus()] == ["1", "2", "3"]
    ports = {c.index: c.address for c in domain.controllers() if c.model == "pcie-root-port"}
    assert len(ports) == 6
    arguments = [arg.get("value") for arg in root.find(f"{QEMU}commandline")]
    assert arguments[:2] == ["-global", "arm-smmuv3.stage=nested"]
    assert set(arguments[2::2]) == {"-device"}
    devices = [json.loads(text) for text in arguments[3::2]]
    behind = {index: [] for index in ports}
    for device in devices:
        behind[int(device["bus"].removeprefix("pci."))].append(device)
    assert sorted(len(functions) for functions in behind.values()) == [1, 1, 1, 1, 2, 2]
    for functions in behind.values():
        assert [f["addr"] for f in functions] == ["0.0", "0.1"][: len(functions)]
        assert all(f.get("multifunction", False) is (len(functions) == 2) for f in functions)
    # Two ports of the first SMMU are for single devices, the third for a pair.
    assert sorted(address.bus for address in ports.values()) == [1, 1, 1, 2, 2, 3]


def test_nvme_controllers_have_separate_ports():
    shape = Shape(smmus=2, devices=1, pairs=0, nvmes=3)
    assert [port.driver for port in shape.behind(1)] == ["nvme"]
    assert str(shape) == "2 SMMUs, 1 device, 0 pairs, 3 NVMe controllers, 4K pages"
    arguments = host_xml(shape, FILES).root.find(f"{QEMU}commandline")
    devices = [json.loads(arg.get("value")) for arg in arguments[3::2]]
    nvmes = [device for device in devices if device["driver"] == "nvme"]
    assert len({device["bus"] for device in nvmes}) == 3
    assert len({device["serial"] for device in nvmes}) == 3
    assert not any("drive" in device for device in nvmes)


def test_neighbours_have_different_itses():
    shape = Shape(smmus=2, devices=6, pairs=0, itses=2)
    assert str(shape) == "2 SMMUs, 2 ITSes, 6 devices, 0 pairs, 4K pages"
    assert "ITS" not in str(Shape())
    for smmu in range(2):
        assert [shape.its_of(smmu, slot) for slot in range(3)] == [smmu, 1 - smmu, smmu]
    assert {Shape().its_of(smmu, slot) for smmu in range(2) for slot in range(3)} == {0}


def test_host_with_another_number_of_itses_is_another_host():
    assert Shape(itses=2).covers(Shape(smmus=1, devices=2, itses=2))
    assert not Shape(itses=2).covers(Shape(itses=1))
    assert not Shape().covers(Shape(itses=2))
    # Any number will do.
    assert Shape(itses=2).covers(Shape())
    assert Shape().with_defaults().itses == 1


def test_host_with_several_itses_runs_on_the_labs_own_qemu():
    emulator = Path("/emulator/qemu")
    xml = host_xml(Shape(itses=16), replace(FILES, emulator=emulator))
    assert xml.devices.findtext("emulator") == str(emulator)
    arguments = [arg.get("value") for arg in xml.root.find(f"{QEMU}commandline")]
    assert arguments[arguments.index("x-itses=16") - 1] == "-machine"
    one = host_xml(Shape(), replace(FILES, emulator=emulator))
    assert one.devices.findtext("emulator") == "/usr/bin/qemu-system-aarch64"
    assert "x-itses" not in str(one)


def test_xml_depends_only_on_the_shape():
    assert str(host_xml(Shape(), FILES)) == str(host_xml(Shape(), FILES))


WITH_GUESTS = Shape(
    smmus=2, devices=0, pairs=0, nvmes=2, e1000es=1, igbs=1, memory=GUESTS_MEMORY, guests=True
)
GUEST_FILES = replace(
    FILES,
    folders={"root": Path("/host/root"), "boot": Path("/host/boot")},
    drives=[Path("/host/drive0"), Path("/host/drive1")],
    its_log=Path("/host/its.log"),
)


def test_xml_of_a_host_with_guests():
    """It has processors with EL2, two folders, a namespace per drive and a network per card."""
    xml = host_xml(WITH_GUESTS, GUEST_FILES)
    assert str(WITH_GUESTS) == (
        "2 SMMUs, 0 devices, 0 pairs, 2 NVMe controllers, 1 e1000e card, 1 igb card, 4K pages, "
        "with guests"
    )
    arguments = [arg.get("value") for arg in xml.root.find(f"{QEMU}commandline")]
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    options = dict(pairs)

    def values(name):
        return [json.loads(value) for key, value in pairs if key == name]

    assert options["-machine"] == "virtualization=on"
    assert options["-trace"] == "gicv3_its_translation_write"
    drives = values("-blockdev")
    assert [drive["file"]["filename"] for drive in drives] == ["/host/drive0", "/host/drive1"]
    devices = values("-device")
    assert [device["driver"] for device in devices] == ["nvme", "e1000e", "igb", "nvme"]
    assert [d["drive"] for d in devices if "drive" in d] == [d["node-name"] for d in drives]
    networks = values("-netdev")
    assert all(network["type"] == "user" and network["restrict"] for network in networks)
    assert [d["netdev"] for d in devices if "netdev" in d] == [n["id"] for n in networks]
    folders = xml.devices.findall("filesystem")
    assert [folder.find("target").get("dir") for folder in folders] == ["root", "boot"]
    assert all(folder.find("readonly") is not None for folder in folders)


def test_hosts_with_and_without_guests_do_not_cover_each_other():
    assert not WITH_GUESTS.covers(Shape(1, 1, 0, memory=512))
    assert not Shape(1, 1, 0, e1000es=1).covers(Shape(1, 0, 0, e1000es=1, guests=True))
    assert WITH_GUESTS.covers(Shape(1, 0, 0, e1000es=1, memory=512, guests=True))


def test_host_without_a_device_is_refused():
    with pytest.raises(UsageError, match=r"^lab host: no device at all; valid is one or more"):
        Shape(1, 0, 0, guests=True)
    with pytest.raises(UsageError, match=r"^lab host: 0 devices; valid is 1 to 32"):
        Shape(1, 0, 0, nvmes=1)


LARGEST = Shape(smmus=8, devices=32, pairs=16, memory=512, vcpus=8)


@pytest.mark.lab_root
@pytest.mark.parametrize(
    "shape",
    [Shape(), Shape(1, 1, 0), Shape(1, 1, 0, nvmes=2), LARGEST, WITH_GUESTS],
    ids=str,
)
def test_libvirt_keeps_every_part_of_the_xml(lab_daemon, shape):
    expected = host_xml(shape, GUEST_FILES if shape.guests else FILES)
    with libvirt_driver.connect(lab_daemon.uri) as connection:
        defined = connection.define(expected)
        try:
            libvirt_driver.verify_defined(expected, defined)
            assert [(i.model, i.driver) for i in defined.iommus()] == [
                (i.model, i.driver) for i in expected.iommus()
            ]
            assert {(c.index, c.model, c.bus_nr, c.address) for c in expected.controllers()} <= {
                (c.index, c.model, c.bus_nr, c.address) for c in defined.controllers()
            }
            old, new = (domain.root.find(f"{QEMU}commandline") for domain in (expected, defined))
            assert [arg.get("value") for arg in new] == [arg.get("value") for arg in old]
        finally:
            connection.undefine(NAME)


@pytest.mark.parametrize(
    ("has", "wanted", "fits"),
    [
        ("stock", None, True),
        ("bind", None, True),
        ("bind", "bind", True),
        ("bind", "stock", False),
        ("stock", "bind", False),
        ("/patches", "bind", False),
    ],
)
def test_host_fits_with_the_kernel_that_is_wanted(has, wanted, fits):
    assert Shape(kernel=has).covers(Shape(kernel=wanted)) is fits


def test_host_to_start_has_a_kernel():
    assert Shape().with_defaults().kernel == "stock"
    assert Shape(kernel="bind").with_defaults().kernel == "bind"
    assert str(Shape()) == str(Shape().with_defaults())
    assert str(Shape(kernel="bind")) == f"{Shape()}, kernel bind"
