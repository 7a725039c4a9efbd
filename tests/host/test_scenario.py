"""Scenario files: keys, defaults and the line of every contradiction."""

from __future__ import annotations

import time

import pytest
from described_host import load_host

from vmm_msi.errors import ScenarioError
from vmm_msi.host.scenario import load_host_toml, load_scenario, parse_scenario
from vmm_msi.types import (
    SW_MSI_WINDOW,
    BindOrder,
    Granule,
    GuestDevice,
    HostDevice,
    Iova,
    Ipa,
    Its,
    MemoryRange,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Smmu,
    Stage1,
    Vits,
)

EXAMPLE = """\
[host]
granule = "4K"
[[host.smmu]]
id = 0
[[host.its]]
id = 0
base = 0x200000000             # doorbell page = base + 0x10000
[[host.its]]
id = 1
base = "0x300000000"
[[host.device]]
address = "0000:01:00.0"
smmu = 0
its_group = [0]                # candidates, Linux takes the first
iommu_group = 1
vectors = 4
[[host.device]]
address = "0001:02:00.1"
smmu = 0
its_group = [1, 0]
iommu_group = 2
[guest]
order = "batched"
honours_rmr = false
[[guest.vits]]
id = 0
base = 0x08080000
[[guest.vits]]
id = 1
base = 0x08100000
[[guest.stage1]]
id = "s1a"
granule = "64K"
[[guest.device]]
host = "0000:01:00.0"
stage1 = "s1a"
vits = 0
giova = 0xffff0000
[[guest.device]]
host = "0001:02:00.1"
stage1 = "s1a"
vits = 1
giova = 0xfffe0000
"""


def test_an_example():
    scenario = parse_scenario(EXAMPLE, "s.toml")
    host, guest = scenario.host, scenario.guest
    assert (host.source, host.granule) == ("s.toml", Granule.K4)
    assert host.smmus == (Smmu(0),)
    assert host.itses == (Its(0, Pa(0x200000000)), Its(1, Pa(0x300000000)))
    assert host.devices == (
        HostDevice(PciAddress(0, 1, 0, 0), 0, 0x100, (0,), 0x100, 1, 4, (SW_MSI_WINDOW,)),
        HostDevice(PciAddress(1, 2, 0, 1), 0, 0x201, (1, 0), 0x10201, 2, 1, (SW_MSI_WINDOW,)),
    )
    assert host.routes == ()
    assert (guest.name, guest.order, guest.honours_rmr) == ("guest", BindOrder.BATCHED, False)
    assert guest.vits == (Vits(0, Ipa(0x8080000)), Vits(1, Ipa(0x8100000)))
    assert guest.stage1 == (Stage1("s1a", Granule.K64),)
    assert guest.devices == (
        GuestDevice(PciAddress(0, 1, 0, 0), "s1a", 0, Iova(0xFFFF0000)),
        GuestDevice(PciAddress(1, 2, 0, 1), "s1a", 1, Iova(0xFFFE0000)),
    )
    assert guest.memory == (MemoryRange(Ipa(0x40000000), 0x40000000),)
    assert type(host.itses[0].id) is int
    assert type(guest.devices[0].giova) is Iova


def changed(old, new):
    assert EXAMPLE.count(old) >= 1, old
    return EXAMPLE.replace(old, new, 1)


def test_optional_keys():
    text = changed("id = 0\n", 'id = 0\nbase = "0x2b400000"\nnested = false\n')
    text = text.replace("vectors = 4", 'vectors = 4\nstream_id = 7\ndevice_id = "0x9"', 1)
    text = text.replace("[guest]", '[guest]\nname = "vm"', 1)
    text += "[[guest.memory]]\nbase = 0x80000000\nsize = 0x10000000\n"
    scenario = parse_scenario(text, "s.toml")
    assert scenario.host.smmus == (Smmu(0, Pa(0x2B400000), nested=False),)
    device = scenario.host.devices[0]
    assert (device.stream_id, device.device_id) == (7, 9)
    assert scenario.guest.name == "vm"
    assert scenario.guest.memory == (MemoryRange(Ipa(0x80000000), 0x10000000),)


@pytest.mark.parametrize(
    ("reserved", "kinds"),
    [
        ([("0x1000", "0x1000", "direct")], ["direct", "sw-msi"]),
        ([("0x9000000", "0x2000", "reserved")], ["sw-msi", "reserved"]),
        ([("0x1000", "0x1000", "direct-relaxable")], ["direct-relaxable", "sw-msi"]),
        ([("0x7000000", "0x1000", "hw-msi")], ["hw-msi"]),
        ([("0xa000000", "0x200000", "sw-msi")], ["sw-msi"]),
    ],
)
def test_reserved_regions(reserved, kinds):
    """A device has the default MSI window unless the file gives a software or hardware one."""
    text = ", ".join(f'{{base = {b}, size = {s}, type = "{t}"}}' for b, s, t in reserved)
    scenario = parse_scenario(changed("vectors = 4", f"reserved = [{text}]"), "s.toml")
    device = scenario.host.devices[0]
    assert [region.kind for region in device.reserved] == kinds
    base, size, kind = reserved[0]
    expected = ReservedRegion(int(base, 16), int(size, 16), ReservedKind(kind))
    assert expected in device.reserved
    if "hw-msi" not in kinds:
        window = expected if kind == "sw-msi" else SW_MSI_WINDOW
        assert device.sw_msi_window == window


def test_only_a_host(tmp_path):
    path = tmp_path / "host.toml"
    path.write_text(EXAMPLE[: EXAMPLE.index("[guest]")])
    assert len(load_host_toml(path).devices) == 2
    assert load_host(path) == load_host_toml(path)
    with pytest.raises(ScenarioError, match=r"host.toml: has no \[guest\]"):
        load_scenario(path)
    path.write_text(EXAMPLE)
    assert load_host_toml(path) == load_scenario(path).host


DEVICE = 'address = "0001:02:00.1"\nsmmu = 0\nits_group = [1, 0]'
MSI = '{base = 0x7000000, size = 0x1000, type = "%s"}'


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ('granule = "4K"', 'granule = "8K"', 2, "not one of 4K, 16K, 64K"),
        (
            'granule = "4K"',
            "granul = 1",
            2,
            "unknown key 'granul' in [host]; did you mean granule? valid keys: device,",
        ),
        ("id = 0\n", 'id = 0\nfoo = "x"\n', 5, "in [host.smmu]; valid keys: base, id, nested"),
        ("id = 0\n", "id = 0x100000000\n", 4, "host.smmu[0].id: 0x100000000 is not from 0 to"),
        ("id = 0\n", "id = 0\nbase = 0x1000\n", 5, "host.smmu[0].base: 0x1000 is not a multiple"),
        ("[[host.its]]", "[[host.smmu]]\nid = 0\n[[host.its]]", 6, "0 is also that of smmu[0]"),
        ("id = 1\nbase", "id = 0\nbase", 9, "host.its[1].id: 0 is also that of its[0]"),
        ("0x200000000", "0x200000100", 7, "not a multiple of 0x10000, the size of a 64 KiB frame"),
        ("0x200000000", "0x10000000000000", 7, "host.its[0].base: 0x10000000000000 is not from"),
        ('"0x300000000"', "0x200000000", 10, "puts the doorbell page on that of its[0], 0x20001"),
        ("0000:01:00.0", "0000:01:00.9", 12, "not of the form 0000:01:00.0"),
        ("0001:02:00.1", "0000:01:00.0", 18, "0000:01:00.0 is already host.device[0]"),
        ("0001:02:00.1", "0001:01:00.0", 17, "StreamID 0x100 on SMMU 0, as 0000:01:00.0 has"),
        (DEVICE, DEVICE.replace("[1, 0]", "[0]\ndevice_id = 0x100"), 17, "DeviceID 0x100 on ITS 0"),
        ("smmu = 0", "smmu = 3", 13, "no [[host.smmu]] has the id 3; valid: 0"),
        ("[0] ", "[] ", 14, "host.device[0].its_group: is empty"),
        ("[1, 0]", "[1, 2]", 20, "its_group[1]: no [[host.its]] has the id 2; valid: 0, 1"),
        ("[1, 0]", "[1, 1]", 20, "its_group[1]: 1 is also that of its_group[0]"),
        ("vectors = 4", "vectors = 0", 16, "host.device[0].vectors: 0 is not from 1 to 2048"),
        ("vectors = 4", "vectors = 2049", 16, "2049 is not from 1 to 2048"),
        ("vectors = 4", 'vectors = "x"', 16, "host.device[0].vectors: expected an integer"),
        ("vectors = 4", "stream_id = 0x100000000", 16, "host.device[0].stream_id: 0x100000000"),
        ("vectors = 4", "device_id = 0x100000000", 16, "host.device[0].device_id: 0x100000000"),
        ("iommu_group = 1", "iommu_group = -1", 15, "host.device[0].iommu_group: expected an"),
        ("iommu_group = 1", "iommu_group = 0x80000000", 15, "host.device[0].iommu_group: 0x8"),
        ('address = "0000:01:00.0"\n', "", 11, "required key 'address' is missing in [host.dev"),
        ("vectors = 4", f"reserved = [{MSI % 'odd'}]", 16, "valid values: direct, direct-relax"),
        ("vectors = 4", f"reserved = [{MSI % 'hw-msi'}, {MSI % 'sw-msi'}]", 16, "not two"),
        ("vectors = 4", f"reserved = [{MSI % 'direct'}]".replace("0x1000", "0"), 16, "0x0 bytes"),
        ("vectors = 4", f"reserved = [{MSI % 'sw-msi'}]".replace("0x1000", "1"), 16, "multiple"),
        ('"batched"', '"random"', 23, "valid values: interleaved, batched"),
        ("honours_rmr = false", "honours_rmr = 0", 24, "guest.honours_rmr: expected boolean"),
        ("id = 1\nbase = 0x08100000", "id = 0\nbase = 0x08100000", 29, "0 is also that of vits[0]"),
        ("0x08100000", "0x08080000", 30, "puts the doorbell page on that of vits[0], 0x8090000"),
        ("0x08100000", "0x08100800", 30, "guest.vits[1].base: 0x8100800 is not a multiple"),
        ("0x08100000", "0x08081000", 30, "puts the doorbell page on that of vits[0], 0x8090000"),
        ("0x08100000", "0x40000000", 30, "the doorbell page 0x40010000 lies in guest RAM"),
        ('granule = "64K"', 'granule = "64k"', 33, "not one of 4K, 16K, 64K"),
        (
            "[[guest.device]]",
            '[[guest.stage1]]\nid = "s1a"\n[[guest.device]]',
            35,
            "is also that of",
        ),
        ('host = "0000:01:00.0"', 'host = "0000:03:00.0"', 35, "is not a [[host.device]] of"),
        ('host = "0001:02:00.1"', 'host = "0000:01:00.0"', 40, "is listed twice in the guest"),
        ('host = "0001:02:00.1"', 'host = "x"', 40, "guest.device[1].host: PCI address 'x'"),
        ('stage1 = "s1a"', 'stage1 = "s1b"', 36, "no [[guest.stage1]] has the id 's1b'"),
        ("vits = 0", "vits = 9", 37, "no [[guest.vits]] has the id 9; valid: 0, 1"),
        ("0xffff0000", "0xfffff000", 38, "multiple of 0x10000, the size of the granule of its st"),
        ("0xffff0000", "0x10000000000000", 38, "guest.device[0].giova: 0x10000000000000 is not"),
        ("0xfffe0000", "0xffff0000", 43, "already leads to vits 0, not to 1"),
        ("0xfffe0000", "0x1ffffffffffffffff", 43, "expected an integer from 0 to 2^64-1"),
        (
            "[guest]",
            "[gest]",
            22,
            "unknown key 'gest' at top level; did you mean guest? valid keys: guest, host",
        ),
        ('id = "s1a"', 'id = "s1a', 32, "not TOML"),
    ],
)
def test_contradictions_name_the_line(old, new, line, message):
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(changed(old, new), "s.toml")
    first, *more = caught.value.errors
    assert first.startswith(f"s.toml:{line}: "), first
    assert message in first
    assert "\n" not in first
    # A guest's device that has another address than the host's is a second error.
    assert bool(more) is (new == "0001:01:00.0")


def test_memory():
    def error(*ranges):
        text = "".join(f"[[guest.memory]]\nbase = {b}\nsize = {s}\n" for b, s in ranges)
        with pytest.raises(ScenarioError) as caught:
            parse_scenario(EXAMPLE + text, "s.toml")
        return str(caught.value)

    overlap = error(("0x80000000", "0x1000"), ("0x40000000", "0x80000000"))
    assert "guest.memory[0]: overlaps guest.memory[1]" in overlap
    assert "guest.memory[0].size: 0x800 is not a multiple" in error(("0x80000000", "0x800"))
    assert "guest.memory[0]: 0x0 bytes" in error(("0x80000000", "0"))
    assert "lies in guest RAM" in error(("0x8000000", "0x1000000"))


def test_a_guest_without_devices():
    with pytest.raises(ScenarioError, match=r"s.toml:22: guest: has no \[\[guest.device\]\]"):
        parse_scenario(EXAMPLE[: EXAMPLE.index("[[guest.device]]")], "s.toml")


def large(count):
    yield '[host]\ngranule = "4K"\n[[host.smmu]]\nid = 0\n'
    yield "[[host.its]]\nid = 0\nbase = 0x200000000\n"
    addresses = [f"{at >> 8:04x}:{at & 0xFF:02x}:00.0" for at in range(count)]
    for at, address in enumerate(addresses):
        yield f'[[host.device]]\naddress = "{address}"\nsmmu = 0\nits_group = [0]\n'
        yield f"iommu_group = {at}\nvectors = 2048\nstream_id = {at}\n"
    yield "[guest]\n[[guest.vits]]\nid = 0\nbase = 0x08080000\n"
    for at, address in enumerate(addresses):
        yield f'[[guest.stage1]]\nid = "s{at}"\n[[guest.device]]\nhost = "{address}"\n'
        yield f'stage1 = "s{at}"\nvits = 0\ngiova = 0xfffff000\n'


def test_2560_devices_are_loaded_fast(tmp_path):
    path = tmp_path / "large.toml"
    path.write_text("".join(large(2560)))
    started = time.process_time()
    scenario = load_scenario(path)
    elapsed = time.process_time() - started
    assert len(scenario.guest.devices) == 2560
    assert elapsed < 3  # well under a second on an idle machine
