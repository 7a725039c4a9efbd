"""Scenario files: what a file may leave out, that nothing else changes, and all errors at once."""

from __future__ import annotations

import pprint
import time
import tomllib
from pathlib import Path

import doc_blocks
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi import samples
from vmm_msi.errors import ScenarioError
from vmm_msi.host.scenario import parse_host, parse_scenario, scenario_of_document
from vmm_msi.tomlfile import copied
from vmm_msi.types import (
    Granule,
    GuestDevice,
    GuestDomain,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    Pa,
    PciAddress,
    Scenario,
    Smmu,
    Stage1,
    Stage1Mode,
    Vits,
)

A, B = PciAddress(0, 1, 0, 0), PciAddress(0, 2, 0, 0)
SMALL = """\
[[host.its]]
base = 0x200000000
[[host.its]]
base = 0x200040000
[[host.device]]
address = "0000:01:00.0"
its_group = [0]
[[host.device]]
address = "0000:02:00.0"
its_group = [1]
[guest]
"""
HOST = """\
[[host.its]]
base = 0x200000000
[[host.device]]
address = "0000:01:00.0"
[[host.device]]
address = "0000:02:00.0"
"""


def test_the_smallest_useful_scenario():
    host = HostTopology(
        "s.toml",
        Granule.K4,
        (Smmu(0),),
        (Its(0, Pa(0x200000000)), Its(1, Pa(0x200040000))),
        (
            HostDevice(A, 0, 0x100, (0,), 0x100, 1),
            HostDevice(B, 0, 0x200, (1,), 0x200, 2),
        ),
        granule_known=False,
    )
    guest = GuestDomain(
        "guest",
        (Vits(0, Ipa(0x8080000)),),
        (Stage1("s1-0000:01:00.0"), Stage1("s1-0000:02:00.0")),
        (
            GuestDevice(A, "s1-0000:01:00.0", 0, Iova(0xFFFFF000)),
            GuestDevice(B, "s1-0000:02:00.0", 0, Iova(0xFFFFF000)),
        ),
    )
    assert len(SMALL.splitlines()) <= 12
    assert parse_scenario(SMALL, "s.toml") == Scenario(host, guest)


def guest_of(text):
    return parse_scenario(HOST + text, "s").guest


def giovas(text):
    return [int(device.giova) for device in guest_of(text).devices]


DEVICES = '[[guest.device]]\nhost = "0000:01:00.0"\n{}\n[[guest.device]]\nhost = "0000:02:00.0"\n{}'
TWO_VITS = "[[guest.vits]]\nbase = 0x8080000\n[[guest.vits]]\nbase = 0x80a0000\n"


def test_a_stage_1_that_only_devices_name():
    guest = guest_of(DEVICES.format('stage1 = "x"', 'stage1 = "y"'))
    assert guest.stage1 == (Stage1("x"), Stage1("y"))


def test_the_only_stage_1_is_shared():
    guest = guest_of('[[guest.stage1]]\nid = "x"\ngranule = "64K"\n[guest]\n')
    assert [device.stage1 for device in guest.devices] == ["x", "x"]
    assert [int(device.giova) for device in guest.devices] == [0xFFFF0000] * 2


def test_doorbells_of_one_stage_1_have_an_address_each():
    """Linux maps a doorbell once per IOMMU domain, and takes addresses downwards."""
    shared = 'stage1 = "x"\nvits = {}'
    text = TWO_VITS + DEVICES.format(shared.format(0), shared.format(1))
    assert giovas(text) == [0xFFFFF000, 0xFFFFE000]
    same = TWO_VITS + DEVICES.format(shared.format(1), shared.format(1))
    assert giovas(same) == [0xFFFFF000, 0xFFFFF000]


def test_a_given_address_goes_before_a_default():
    shared = 'stage1 = "x"\nvits = {}'
    given = shared.format(1) + "\ngiova = 0xfffff000"
    assert giovas(TWO_VITS + DEVICES.format(shared.format(0), given)) == [0xFFFFE000, 0xFFFFF000]
    given = shared.format(0) + "\ngiova = 0xabcd000"
    assert giovas(TWO_VITS + DEVICES.format(shared.format(0), given)) == [0xABCD000, 0xABCD000]


def test_a_bypass_takes_the_doorbell_itself():
    guest = guest_of('[[guest.stage1]]\nid = "x"\nconfig = "bypass"\n[guest]\n')
    assert guest.stage1[0].config is Stage1Mode.BYPASS
    assert [int(device.giova) for device in guest.devices] == [0x8090000] * 2


def test_groups_are_numbers_that_no_other_device_has():
    text = HOST + 'iommu_group = 1\n[[host.device]]\naddress = "0000:03:00.0"\n'
    host = parse_host(text, "s")
    assert [device.iommu_group for device in host.devices] == [2, 1, 3]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (HOST.replace("[[host.its]]\nbase = 0x200000000\n", ""), 1, "the file has no [[host.its]]"),
        (SMALL.replace("its_group = [0]\n", ""), 5, "has no its_group, and the file has 2 [["),
        (
            "[[host.smmu]]\n[[host.smmu]]\n" + HOST,
            5,
            "has no smmu, and the file has 2 [[host.smmu",
        ),
        (HOST + TWO_VITS + "[guest]", 7, "has no [[guest.device]] with vits, and the file has 2"),
        (
            HOST + '[[guest.stage1]]\nid = "x"\n[[guest.stage1]]\nid = "y"\n[guest]\n',
            7,
            "has no stage1, and the file has 2 [[guest.stage1]] tables; add stage1; valid: x, y",
        ),
        ("[host]\n[guest]\n", 2, "has no [[guest.device]], so there is no MSI to follow"),
        (HOST + "[[guest.memory]]\nbase = 0\nsize = 0x10000000\n[guest]", 7, "lies in guest RAM"),
    ],
)
def test_no_default_where_several_answers_are_possible(text, line, message):
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "s.toml")
    assert caught.value.errors[0].startswith(f"s.toml:{line}: ")
    assert message in caught.value.errors[0]


BEFORE = sorted(Path(__file__).with_name("scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", BEFORE, ids=lambda path: path.stem)
def test_files_from_before_the_defaults_keep_their_meaning(path):
    """The values are those that vmm-msi read when every one of these keys was required."""
    page = doc_blocks.DOCS / "scenario.md"
    texts = {block.file_name: block.text for block in doc_blocks.blocks(page)}
    name = f"{path.stem}.toml"
    text = texts[name] if name in texts else Path(samples.path(name)).read_text()
    scenario = parse_scenario(text, path.stem)
    assert f"{pprint.pformat(scenario, width=100)}\n" == path.read_text()


WRONG = """\
[host]
granule = "8K"
colour = 1
[[host.smmu]]
id = "x"
[[host.smmu]]
base = 0x1000
[[host.its]]
id = 5
base = "0x200000000"
[[host.its]]
id = 5
base = 0x200000000
[[host.device]]
smmu = 0
[[host.device]]
address = "0000:02:00.9"
[[host.device]]
address = "0000:03:00.0"
its_group = [5, 9]
smmu = 1
vectors = 0
[[host.device.reserved]]
base = 1
type = "direct"
[guest]
order = "sideways"
[[guest.device]]
host = "0000:01:00.0"
[[guest.device]]
host = "0000:03:00.0"
vits = 3
giova = "far"
"""


def test_all_errors_of_a_file():
    """Each is reported once, in the order of the file, and none that only follows from another."""
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(WRONG, "s.toml")
    places = [error.split(": ")[0:2] for error in caught.value.errors]
    assert places == [
        ["s.toml:2", "host.granule"],
        ["s.toml:3", "unknown key 'colour' in [host]; valid keys"],
        ["s.toml:5", "host.smmu[0].id"],
        ["s.toml:7", "host.smmu[1].base"],
        ["s.toml:12", "host.its[1].id"],
        ["s.toml:13", "host.its[1].base"],
        ["s.toml:14", "required key 'address' is missing in [host.device]"],
        ["s.toml:16", "host.device[1]"],
        ["s.toml:17", "host.device[1].address"],
        ["s.toml:22", "host.device[2].vectors"],
        ["s.toml:23", "required key 'size' is missing in [host.device.reserved]"],
        ["s.toml:27", "guest.order"],
        ["s.toml:32", "guest.device[1].vits"],
        ["s.toml:33", "guest.device[1].giova"],
    ]
    assert str(caught.value) == "\n".join(caught.value.errors)


def test_many_errors_are_found_fast_and_counted():
    text = "".join(f'[[host.device]]\naddress = "{n}"\n' for n in range(20_000))
    started = time.process_time()
    with pytest.raises(ScenarioError) as caught:
        parse_host(text, "s.toml")
    assert time.process_time() - started < 10  # about two seconds on an idle machine
    assert len(caught.value.errors) == 51
    assert caught.value.errors[-1] == "s.toml: and 39950 more errors; fix those above first"


def test_nothing_is_left_of_a_file_without_a_host():
    with pytest.raises(ScenarioError, match="required key 'host' is missing at top level"):
        parse_scenario("[guest]\n", "s.toml")


VALUES = (0, 1, -1, 1 << 70, True, "x", "0x10", "0000:01:00.0", [], [1], {}, {"x": 1}, [{}], [[1]],
          3.5, [{"base": 1}], "4K")  # fmt: skip


def places(value, path=()):
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for step, inner in entries:
        yield (*path, step)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, step))


@given(st.data())
def test_any_document_is_read_or_refused(data):
    """Errors that follow from a value that is left out do not stop the reader."""
    page = doc_blocks.DOCS / "scenario.md"
    texts = [b.text for b in doc_blocks.blocks(page) if b.mark.startswith("scenario ")]
    document = tomllib.loads(data.draw(st.sampled_from(texts)))
    for _change in range(data.draw(st.integers(1, 5))):
        if not document:
            break
        path = data.draw(st.sampled_from(list(places(document))))
        parent = document
        for step in path[:-1]:
            parent = parent[step]
        value = data.draw(st.sampled_from((None, *VALUES)))
        if value is None:
            del parent[path[-1]]
        else:
            parent[path[-1]] = copied(value)
    errors = ()
    try:
        scenario_of_document(document, "s.toml")
    except ScenarioError as error:
        errors = error.errors
    assert all(text.startswith("s.toml: ") for text in errors)
    assert len(set(errors)) == len(errors)
