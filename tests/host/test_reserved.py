"""The listing of reserved regions that two parts read."""

from __future__ import annotations

import pytest

from vmm_msi.errors import InputError
from vmm_msi.types.reserved import parse_reserved_regions


@pytest.mark.parametrize(
    "line", ["", "0x0 0x1", "0x0 0x1 msi msi", "zero 0x1 msi", "0x0 0x1 hardware"]
)
def test_what_is_no_region(line):
    with pytest.raises(InputError, match=r"file: .* not a first address, a last one and a type"):
        parse_reserved_regions(f"0x0 0x1 reserved\n{line}\n", "file")
