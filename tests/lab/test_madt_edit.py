"""Adding ITSes to a MADT leaves its other structures as they were."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from conftest import unavailable
from host.firmware.acpi_builder import madt
from host.shared import shared_data

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.madt import parse_madt
from vmm_msi.lab.machine.madt_edit import with_itses
from vmm_msi.types import Its, Pa

MORE = [Its(number, Pa(0xB00_0000 + 0x2_0000 * number)) for number in range(1, 16)]
REAL = "qemu-11.1-two-smmuv3-pxb"


def test_itses_are_added_at_the_end():
    old = madt((0, 0x808_0000))
    new = with_itses(old, MORE, "built")
    assert parse_madt(new, "new") == (*parse_madt(old, "old"), *MORE)
    assert new[44 : len(old)] == old[44:]
    assert sum(new) & 0xFF == 0


def test_taken_id_is_refused():
    with pytest.raises(TopologyError, match=r"built, changed: .*ITS 1 is listed twice"):
        with_itses(madt((1, 0x808_0000)), MORE, "built")


def test_iasl_reads_them_in_a_real_table(tmp_path):
    if shutil.which("iasl") is None:
        unavailable("no iasl: apt-get install acpica-tools")
    path = tmp_path / "APIC.aml"
    old = (shared_data("acpi") / REAL / "APIC").read_bytes()
    path.write_bytes(with_itses(old, MORE, "built"))
    done = subprocess.run(["iasl", "-d", path], capture_output=True, text=True, check=True)
    assert "Error" not in done.stderr
    listing = path.with_suffix(".dsl").read_text(encoding="utf-8")
    fields = listing[listing.index("*/") : listing.index("Raw Table Data")]
    assert "Incorrect checksum" not in fields
    assert fields.count("Generic Interrupt Translator") == 16
