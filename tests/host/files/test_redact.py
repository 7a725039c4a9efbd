"""The parts of files that may leave the host, and no others."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import libfdt
import pytest
from host.files.arm_host import ALIASES, CONFIG, LIMITS, PRIVATE, config_space
from host.firmware.dt_builder import dtb
from host.shared import shared_data

from vmm_msi import samples
from vmm_msi.host.files import redact
from vmm_msi.host.firmware.device_tree import parse_devicetree


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("root=/dev/sda1 iommu.passthrough=1 quiet", "iommu.passthrough=1"),
        ("vfio-pci.ids=8086:1521 vfio_iommu_type1.allow_unsafe_interrupts=1", None),
        ("hugepagesz=1G hugepages=8 default_hugepagesz=1G", None),
        ("arm-smmu.disable_bypass=0 arm_smmu_v3.disable_msipolling=1 kvm-arm.mode=nvhe", None),
        ("pcie_acs_override=downstream pci=noaer acpi=force irqchip.gicv3_nolpi=1", None),
        ("password=x luks.uuid=1 ip=dhcp hostname=me efivar=1", ""),
        ('a="b pci=no" pci=yes', "pci=yes"),
        ('pci="a b" iommu=off', None),
        ('x="open pci=no', ""),
        ("pci=yes -- pci=no", "pci=yes"),
        ("vfio_pci.disable_idle_d3 iommu.strict=0 kvm_arm.mode=protected", None),
        ("pci_owner=me iommu.owner=me vfio-token=t kvm.key=k acpi_osi=me efi.key=k", ""),
        ("arm-smmu-owner=me hugepages.key=1 pciback.hide=(01:00.0) irqchip=me", ""),
    ],
)
def test_known_kernel_arguments_are_kept(line, kept):
    assert (
        redact.command_line(f"{line}\n".encode()) == f"{line if kept is None else kept}\n".encode()
    )


def test_strings_of_a_kernel_configuration_are_dropped():
    kept = (
        b"CONFIG_IOMMUFD=m\nCONFIG_ARM_SMMU_V3=y\nCONFIG_NR_CPUS=512\n"
        b"CONFIG_PHYSICAL_START=0x1000000\n"
    )
    assert redact.kernel_options(CONFIG.encode()) == kept
    assert gzip.decompress(redact.packed_kernel_options(gzip.compress(CONFIG.encode()))) == kept


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no gzip", "cannot be decompressed: "),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], "damaged or larger than 4194304 bytes"),
        (gzip.compress(bytes(redact.MAX_CONFIG + 1), mtime=0), "damaged or larger than 4194304"),
    ],
)
def test_a_malformed_kernel_configuration_is_refused(data, reason):
    with pytest.raises(ValueError, match=f"^{reason}"):
        redact.gunzip(data)


def test_aliases_for_vfio_are_kept():
    assert redact.vfio_aliases(ALIASES.encode()) == b"alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"


def test_lines_about_limits_and_memory_are_kept():
    assert redact.locked_memory(LIMITS.encode()).decode().splitlines() == [
        LIMITS.splitlines()[0],
        LIMITS.splitlines()[2],
    ]
    assert redact.memory(b"MemTotal: 1 kB\nMemFree: 2 kB\nHugePages_Free: 3\nHugetlb: 0 kB\n") == (
        b"MemTotal: 1 kB\nHugePages_Free: 3\nHugetlb: 0 kB\n"
    )


# --- configuration space -----------------------------------------------------------------------


def reader(space):
    def read(offset, size):
        parts.append((offset, size))
        return space[offset : offset + size]

    parts: list[tuple[int, int]] = []
    return read, parts


def test_known_capabilities_are_kept():
    space = config_space()
    read, parts = reader(space)
    kept = redact.config_space(read)
    assert len(kept) == 4096
    expected = bytearray(4096)
    for at, size in (
        (0, 0x40),  # header
        (0x40, 24),  # MSI with 64 bits and masks
        (0x50, 2),  # VPD: its first bytes
        (0x60, 60),  # PCI Express
        (0xA0, 12),  # MSI-X
        (0xB0, 2),
        (0x100, 4),
        (0x140, 4),  # serial number: its first bytes
        (0x150, 8),  # ATS
        (0x160, 8),  # ACS
    ):
        expected[at : at + size] = space[at : at + size]
    assert kept == bytes(expected)
    assert PRIVATE.encode() not in kept
    assert (0, 4096) not in parts


@pytest.mark.parametrize(("size", "kept"), [(0, 0), (63, 63), (64, 64), (100, 64), (256, 256)])
def test_a_short_configuration_space(size, kept):
    read, _parts = reader(config_space()[:size])
    assert len(redact.config_space(read)) == kept


def test_a_function_without_capabilities():
    space = bytearray(config_space())
    space[6] = 0
    assert redact.config_space(reader(bytes(space))[0]) == bytes(space[:64])


def test_any_configuration_space_can_be_read():
    rolls = random.Random(1)  # noqa: S311
    for _ in range(500):
        space = bytearray(config_space())
        space[6] |= 0x10
        for _ in range(40):
            space[rolls.choice([0x34, *range(0x40, 0xC0), *range(0x100, 0x170)])] = rolls.choice(
                [0, 1, 0x40, 0x41, 0xFC, 0xFF, 0x10, 0x05]
            )
        read, parts = reader(bytes(space))
        assert len(redact.config_space(read)) in {64, 256, 4096}
        assert len(parts) < 4096


# --- device tree -------------------------------------------------------------------------------

TREE = f"""/dts-v1/;
/memreserve/ 0x80000000 0x1000;
/ {{
    #address-cells = <2>; #size-cells = <2>; compatible = "acme,board"; model = "Board";
    serial-number = "{PRIVATE}";
    chosen {{ bootargs = "password={PRIVATE}"; kaslr-seed = <1 2>; stdout-path = "/serial"; }};
    its: its@20000000 {{ compatible = "arm,gic-v3-its"; msi-controller; #msi-cells = <1>;
        reg = <0 0x20000000 0 0x20000>; acme,key = "{PRIVATE}"; }};
    ethernet {{ local-mac-address = [02 00 53 33 63 72]; }};
    pcie@40000000 {{ compatible = "pci-host-ecam-generic"; device_type = "pci";
        reg = <0 0x40000000 0 0x10000000>; msi-map = <0 &its 0 0x10000>; }};
}};
"""


def properties(blob):
    tree = libfdt.FdtRo(blob)
    values = {}

    def walk(node, path):
        at = tree.first_property_offset(node, libfdt.QUIET_NOTFOUND)
        while at >= 0:
            prop = tree.get_property_by_offset(at)
            values[path, prop.name] = bytes(prop)
            at = tree.next_property_offset(at, libfdt.QUIET_NOTFOUND)
        below = tree.first_subnode(node, libfdt.QUIET_NOTFOUND)
        while below >= 0:
            walk(below, f"{path}/{tree.get_name(below)}")
            below = tree.next_subnode(below, libfdt.QUIET_NOTFOUND)

    walk(0, "")
    return values


def test_known_properties_keep_their_values():
    blob = dtb(TREE)
    redacted = redact.device_tree(blob + b"more")
    before, after = properties(blob), properties(redacted)
    assert list(before) == list(after)
    blanked = {key for key, value in before.items() if after[key] != value}
    assert blanked == {
        ("", "serial-number"),
        ("/chosen", "bootargs"),
        ("/chosen", "kaslr-seed"),
        ("/chosen", "stdout-path"),
        ("/its@20000000", "acme,key"),
        ("/ethernet", "local-mac-address"),
    }
    assert all(not any(after[key]) and len(after[key]) == len(before[key]) for key in blanked)
    assert PRIVATE.encode() not in redacted
    assert len(redacted) == len(blob)


@pytest.mark.parametrize("name", ["eight-its-server.dtb", "dt/hip07-d05.dtb"])
def test_a_redacted_device_tree_describes_the_same_host(name):
    path = shared_data(name) if "/" in name else Path(samples.path(name))
    blob = path.read_bytes()
    host = parse_devicetree(blob, "x")
    assert parse_devicetree(redact.device_tree(blob), "x") == host
    assert host.smmus


def test_a_damaged_device_tree_is_refused_or_redacted():
    blob = dtb(TREE)
    for data, reason in (
        (b"", "not a device tree"),
        (bytes(64), "not a device tree"),
        (blob[:-1], "not a device tree"),
    ):
        with pytest.raises(ValueError, match=reason):
            redact.device_tree(data)
    rolls = random.Random(2)  # noqa: S311
    for _ in range(2000):
        broken = bytearray(blob)
        for _ in range(rolls.randint(1, 4)):
            broken[rolls.randrange(8, len(broken))] = rolls.choice([0, 1, 2, 3, 9, 0xFF])
        try:
            assert len(redact.device_tree(bytes(broken))) <= len(blob)
        except ValueError as error:
            assert str(error) in {  # noqa: PT017 - either is right
                "not a device tree",
                "the device tree is truncated",
            } or str(error).startswith("the device tree has an unknown token")
