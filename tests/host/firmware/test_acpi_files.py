"""ACPI tables in the forms in which people have them: file names, dumps, listings."""

from __future__ import annotations

import pytest
from described_host import load_host
from host.firmware.acpi_builder import iort, its_group, madt, root_complex, smmu_v3, table
from host.firmware.acpi_texts import acpidump, hexdump, listing, od, xxd

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.acpi_table import MAX_SIZE
from vmm_msi.host.firmware.hex_dump import dumped_tables
from vmm_msi.host.sources import MAX_TEXT

#: The last line of its dump has 12 bytes.
IORT = iort(
    its_group(0),
    smmu_v3((0, 0xFFFF, 0x10000, 0, 0), base=0x4F000000),
    root_complex((0, 0xFFFF, 0, 1, 0)),
)
APIC = madt((0, 0x48040000))
DSDT = table(b"DSDT", b"A" * 40)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def check(host, *, itses=1):
    assert [str(smmu.base) for smmu in host.smmus] == ["0x4f000000"]
    assert len(host.itses) == itses
    assert [(route.stream_base, route.its_group) for route in host.routes] == [(0, (0,))]
    assert host.table_errors == ()


@pytest.mark.parametrize(
    ("iort_name", "apic_name"),
    [
        ("iort.dat", "apic.dat"),
        ("IORT.aml", "APIC.aml"),
        ("IORT.BIN", "Madt.bin"),
        ("Iort", "apic"),
        ("IORT0003.bin", "APIC0001.bin"),
        ("IORT", "apic.dat"),
    ],
)
def test_names_in_a_folder(write, tmp_path, iort_name, apic_name):
    write(iort_name, IORT)
    write(apic_name, APIC)
    write("dsdt.dat", DSDT)
    write("iort.dsl", listing(IORT, raw=False))
    check(load_host(tmp_path))


def test_the_name_of_sysfs_wins(write, tmp_path):
    write("iort.dat", iort(its_group(7)))
    write("IORT", IORT)
    write("APIC", APIC)
    check(load_host(tmp_path))


def test_listings_in_a_folder(write, tmp_path):
    write("iort.dsl", listing(IORT))
    write("apic.dsl", listing(APIC))
    check(load_host(tmp_path))


def test_two_different_tables_in_a_folder(write, tmp_path):
    first, second = write("iort.aml", iort(its_group(7))), write("iort.dat", IORT)
    with pytest.raises(TopologyError) as caught:
        load_host(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: several different tables IORT: {first}, {second}; keep one"
    )
    first.write_bytes(IORT)
    check(load_host(tmp_path), itses=0)


@pytest.mark.parametrize("name", ["IORT", "iort.dat", "host-a", "IORT.orig"])
def test_one_table_alone(write, name):
    check(load_host(write(name, IORT)), itses=0)


def test_the_other_table_beside_it(write):
    path, apic = write("iort.dat", IORT), write("apic.dat", APIC)
    check(load_host(path))
    check(load_host(apic))
    # The association of other names is unknown.
    check(load_host(write("host-a.dat", IORT)), itses=0)


def test_apic_alone(write):
    with pytest.raises(TopologyError, match=r"apic\.dat: IORT is missing; copy /sys/firmware/"):
        load_host(write("apic.dat", APIC))


def test_another_table(write):
    with pytest.raises(TopologyError, match="the ACPI table DSDT; a host is described by IORT"):
        load_host(write("dsdt.dat", DSDT))


@pytest.mark.parametrize(
    "text",
    [
        acpidump(IORT, APIC),
        acpidump(DSDT, APIC, IORT, DSDT),
        acpidump(IORT, APIC, upper=False),
        acpidump(IORT, IORT, APIC),
        "Hello,\n\nhere are the tables:\n" + acpidump(IORT, APIC) + "\n-- \nme\n",
        "".join(f"> {line}\n" for line in acpidump(IORT, APIC).splitlines()),
        "".join(f"> > {line}\n" for line in acpidump(IORT, APIC).splitlines()),
        acpidump(IORT, APIC).replace("\n", "\r\n"),
        # Mail wraps the characters to a line of their own.
        acpidump(IORT, APIC).replace("  I", "\nI").replace("  .", "\n."),
        listing(IORT) + listing(APIC),
        xxd(IORT, APIC),
        hexdump(IORT) + hexdump(APIC),
        od(IORT) + od(APIC),
    ],
)
def test_dumps_of_both(write, text):
    check(load_host(write("posted.txt", text)))


def test_a_dump_in_utf_16(write):
    check(load_host(write("posted.txt", acpidump(IORT, APIC).encode("utf-16"))))


def test_a_repeated_row(write):
    """hexdump and od leave out rows that repeat."""
    padded = iort(its_group(0), root_complex((0, 0xFFFF, 0, 0, 0)), gap=64)
    text = hexdump(padded)
    assert "\n*\n" in text
    assert dumped_tables(text.encode().splitlines(), [b"IORT"], "x") == {b"IORT": padded}


def test_characters_beside_a_short_row_that_look_like_bytes():
    data = table(b"IORT", b"12 34 AB CD EF 0")
    text = acpidump(data).replace("   ", " ")
    assert dumped_tables(text.encode().splitlines(), [b"IORT"], "x")[b"IORT"] == data


def test_a_dump_of_one_table(write):
    check(load_host(write("posted.txt", acpidump(IORT))), itses=0)
    write("apic.dat", APIC)
    check(load_host(write("iort.txt", acpidump(IORT))))


def test_a_truncated_dump(write):
    text = "".join(acpidump(IORT).splitlines(keepends=True)[:-3])
    with pytest.raises(TopologyError, match=r"posted\.txt: IORT: offset 0x4: length \d+, but the"):
        load_host(write("posted.txt", text))


def test_dumps_of_two_hosts(write):
    path = write("posted.txt", acpidump(IORT, APIC, iort(its_group(0, 1))))
    with pytest.raises(TopologyError) as caught:
        load_host(path)
    assert str(caught.value) == (
        f"{path}: two tables IORT that differ; use a file with the tables of one host"
    )


def test_a_listing_without_the_bytes(write):
    path = write("iort.dsl", listing(IORT, raw=False))
    with pytest.raises(TopologyError) as caught:
        load_host(path)
    assert str(caught.value) == (
        f"{path}: a listing of iasl without its raw table data: run iasl on it and use the .aml "
        "file that this writes"
    )


def test_a_wrong_checksum(write):
    wrong = IORT[:9] + bytes([IORT[9] ^ 1]) + IORT[10:]
    path = write("posted.txt", acpidump(wrong, APIC))
    (error,) = load_host(path).table_errors
    assert str(error).startswith(f"{path}: IORT: offset 0x9: wrong checksum")


def test_limits(write):
    path = write("large.txt", b"")
    with path.open("ab") as file:
        file.truncate(MAX_TEXT + 1)
    with pytest.raises(TopologyError, match=f"larger than {MAX_TEXT} bytes, the limit of a text"):
        load_host(path)
    head = acpidump(IORT).splitlines()[1]
    lines = [head.encode(), b"*", f"{MAX_SIZE - MAX_SIZE % 16:08X}: {'00 ' * 16}".encode()]
    with pytest.raises(TopologyError, match=f"a table of more than {MAX_SIZE} bytes"):
        dumped_tables(lines, [b"IORT"], "x")
    lines[2] = f"{MAX_SIZE // 2:08X}: {'00 ' * 16}".encode()
    with pytest.raises(TopologyError, match=f"repeated rows of more than {MAX_SIZE} bytes"):
        dumped_tables(lines * 3, [b"IORT"], "x")
    # An offset beyond the limit is not filled up to.
    lines[2] = f"{'F' * 16}: {'00 ' * 16}".encode()
    assert dumped_tables(lines, [b"IORT"], "x") == {}
