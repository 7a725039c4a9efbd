"""The listing of a group's reserved regions in sysfs."""

from __future__ import annotations

import pytest

from vmm_msi.errors import InputError
from vmm_msi.host.pci.reserved_regions import parse_reserved_regions


@pytest.mark.parametrize(
    "line", ["", "0x0 0x1", "0x0 0x1 msi msi", "zero 0x1 msi", "0x0 0x1 hardware"]
)
def test_malformed_lines_are_refused(line):
    with pytest.raises(InputError, match=r"file: .* not a first address, a last address and a ty"):
        parse_reserved_regions(f"0x0 0x1 reserved\n{line}\n", "file")
