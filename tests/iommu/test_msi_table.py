"""The addresses programmed into a device's MSIs, read from files like those of sysfs."""

from __future__ import annotations

import struct

import pytest

from vmm_msi.errors import BackendError
from vmm_msi.iommu.linux.msi_table import of_capability, of_table, read_addresses

ADDRESS = "0000:11:00.0"
MSI, MSIX = 0x50, 0x60
ENABLED, MASKED = 0x8000, 0x4000


def config(msi=0, msix=0, place=0x2000, command=2, address=0x8000040):
    space = bytearray(256)
    space[4] = command
    space[0x34] = MSI
    space[MSI : MSI + 2] = bytes([0x05, MSIX])
    struct.pack_into("<HQ", space, MSI + 2, msi, address)
    space[MSIX : MSIX + 2] = bytes([0x11, 0])
    struct.pack_into("<HI", space, MSIX + 2, msix, place)
    return bytes(space)


def device(tmp_path, space, table=b"", bar=0, power="D0"):
    folder = tmp_path / ADDRESS
    folder.mkdir()
    (folder / "config").write_bytes(space)
    (folder / "power_state").write_text(f"{power}\n")
    (folder / f"resource{bar}").write_bytes(bytes(0x2000) + table)
    return folder


def entry(address, control=0):
    return struct.pack("<QII", address, 5, control)


def refusal(folder):
    with pytest.raises(BackendError) as caught:
        read_addresses(folder)
    return str(caught.value)


def test_masked_entries_of_a_table_are_left_out():
    words = struct.unpack("<12I", entry(0x8000040) + entry(0x8000040, 1) + entry(0x1_0000_0040))
    assert of_table(words) == {0: 0x8000040, 2: 0x1_0000_0040}


def test_a_table_in_a_bar(tmp_path):
    table = entry(0x8000040) + entry(0, 1) + entry(0x8001040)
    folder = device(tmp_path, config(msix=ENABLED | 2, place=0x2004), table, bar=4)
    assert read_addresses(folder) == {0: 0x8000040, 2: 0x8001040}


@pytest.mark.parametrize("control", [0, MASKED, ENABLED | MASKED])
def test_a_disabled_or_masked_table_has_no_entry(tmp_path, control):
    assert read_addresses(device(tmp_path, config(msix=control))) == {}


@pytest.mark.parametrize(
    ("control", "addresses"),
    [
        (0x0001, {0: 0x8000040}),
        (0x0021, dict.fromkeys(range(4), 0x8000040)),
        (0x0081, {0: 0x1_0800_0040}),
    ],
)
def test_an_msi_capability(control, addresses):
    address = 0x1_0800_0040
    assert of_capability(config(msi=control, address=address), MSI) == addresses


def test_a_device_with_msi(tmp_path):
    assert read_addresses(device(tmp_path, config(msi=0x81))) == {0: 0x8000040}


def test_a_device_in_a_low_power_state_is_not_read(tmp_path):
    assert refusal(device(tmp_path, config(msix=ENABLED), power="D3hot")) == (
        "EOPNOTSUPP: 0000:11:00.0: its MSI-X table is not read while it is in power state D3hot"
    )


def test_a_device_without_memory_access_is_not_read(tmp_path):
    assert refusal(device(tmp_path, config(msix=ENABLED, command=0))) == (
        "EOPNOTSUPP: 0000:11:00.0: its MSI-X table is not read while its memory access is off"
    )


def test_a_virtual_function_has_no_memory_enable_bit(tmp_path):
    folder = device(tmp_path, config(msix=ENABLED, command=0), entry(0x8000040))
    (folder / "physfn").symlink_to("../0000:01:00.0")
    assert read_addresses(folder) == {0: 0x8000040}


def test_a_table_beyond_its_bar(tmp_path):
    assert refusal(device(tmp_path, config(msix=ENABLED | 9), entry(0))) == (
        "ENXIO: 0000:11:00.0: mapping its MSI-X table: it lies beyond the end of resource0; run "
        "as root on a kernel without CONFIG_IO_STRICT_DEVMEM or with iomem=relaxed on its command "
        "line"
    )


def test_a_truncated_configuration_space_is_refused(tmp_path):
    assert refusal(device(tmp_path, config()[:64])) == (
        "EACCES: 0000:11:00.0: its configuration space can be read only in part; run as root"
    )


def test_a_missing_device_is_refused(tmp_path):
    assert refusal(tmp_path / ADDRESS) == (
        "ENOENT: 0000:11:00.0: reading its configuration space: No such file or directory; run "
        "as root"
    )
