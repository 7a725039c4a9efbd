"""Change a scenario by key: selectors, values of TOML, and what an unknown key is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm_msi import samples
from vmm_msi.domxml.guest_domain import virt_guest
from vmm_msi.errors import UsageError
from vmm_msi.host.scenario import load_scenario, scenario_of_document
from vmm_msi.host.scenario_keys import ScenarioEditor, Setting, value_of
from vmm_msi.types import Address, BindOrder, ContainerPer, Granule, PciAddress, Scenario

B = PciAddress(0, 2, 0, 0)


@pytest.fixture
def scenario():
    return load_scenario(Path(samples.path("two-its.toml")))


def edited(scenario, *texts):
    editor = ScenarioEditor(scenario)
    changes = [str(change) for text in texts for change in editor.set(Setting.parse(text))]
    return scenario_of_document(editor.document, scenario.host.source), changes


@pytest.mark.parametrize("selector", ["B", "1", "0000:02:00.0", "02:00.0", '"0000:02:00.0"'])
@pytest.mark.parametrize("table", ["host", "guest"])
def test_a_device_by_letter_index_and_address(scenario, selector, table):
    key = "streams" if table == "host" else "vfio"
    value = "2" if table == "host" else "true"
    world, changes = edited(scenario, f"{table}.device[{selector}].{key}={value}")
    assert changes[0].startswith(f"{table}.device[0000:02:00.0].{key} = {value}, was ")
    if table == "host":
        assert [device.streams for device in world.host.devices] == [1, 2]
    else:
        assert [device.vfio for device in world.guest.devices] == [False, True]


def test_only_the_value_changes(scenario):
    world, _changes = edited(scenario, "host.device[B].its_group=[1, 0]")
    assert world.guest == scenario.guest
    assert world.host.devices[0] == scenario.host.devices[0]
    assert world.host.devices[1].its_group == (1, 0)
    assert scenario_of_document(ScenarioEditor(scenario).document, scenario.host.source) == scenario


def test_values_of_every_table(scenario):
    world, changes = edited(
        scenario,
        "host.granule=64K",
        "host.smmu[*].nested=false",
        "host.its[1].base=0x300000000",
        "host.device[A].its_group[0]=1",
        "host.device[A].reserved[0].base=0xa000000",
        "guest.order=batched",
        "guest.memory[0].size=0x80000000",
        "guest.vits[0].base=0x80a0000",
        "guest.stage1[s1b].granule=16K",
        "guest.device[B].giova=0xfffe0000",
        "vmm.containers=stage1",
    )
    host, guest = world.host, world.guest
    assert (host.granule, host.smmus[0].nested, host.itses[1].base) == (65536, False, 0x300000000)
    assert host.devices[0].its_group == (1,)
    assert host.devices[0].reserved[0].base == 0xA000000
    assert guest.order is BindOrder.BATCHED
    assert guest.memory[0].size == 0x80000000
    assert guest.vits[0].base == 0x80A0000
    assert guest.stage1[1].granule == Granule.K16
    assert guest.devices[1].giova == 0xFFFE0000
    assert guest.containers is ContainerPer.STAGE1
    assert "guest.memory[0].size = 0x80000000, was 0x40000000" in changes
    assert 'vmm.containers = "stage1", was "device"' in changes


def test_a_new_stage_1_is_as_the_one_that_the_device_had(scenario):
    world, changes = edited(
        scenario, "guest.stage1[s1b].granule=64K", "guest.device[B].giova=0xfffe0000",
        "guest.device[B].stage1=other",
    )  # fmt: skip
    assert [stage1.id for stage1 in world.guest.stage1] == ["s1a", "s1b", "other"]
    assert world.guest.stage1[2].granule == Granule.K64
    assert changes[-1].endswith('= "other", was "s1b" (a new stage 1, as s1b is)')


def test_no_value_is_the_default(scenario):
    world, changes = edited(scenario, "host.device[B].vectors=", "host.its[1].base=")
    assert world.host.devices[1].vectors == 1
    assert [its.id for its in world.host.itses] == [0]
    assert changes[0] == "host.device[0000:02:00.0].vectors = its default, was 4"


def test_defaults_follow(scenario):
    """A guest of libvirt has the gIOVAs of Linux, which depend on the granule."""
    addresses = [device.host for device in scenario.guest.devices]
    of_libvirt = Scenario(scenario.host, virt_guest("guest", addresses))
    world, _changes = edited(of_libvirt, "guest.stage1[s1-0000:02:00.0].granule=64K")
    assert [int(device.giova) for device in world.guest.devices] == [0xFFFFF000, 0xFFFF0000]
    world, _changes = edited(of_libvirt, "guest.device[B].stage1=s1-0000:01:00.0")
    assert len({device.stage1 for device in world.guest.devices}) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("0x10", 16),
        ("true", True),
        ("[1, 0]", [1, 0]),
        ('"x"', "x"),
        ("s1b", "s1b"),
        ("64K", "64K"),
        ("0000:02:00.0", "0000:02:00.0"),
        ("", None),
        ("1\nother = 2", "1\nother = 2"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_values(text, value):
    assert value_of(text) == value
    assert isinstance(value_of("0x10"), Address)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "not of the form KEY=VALUE; use a form such as guest.device[B].stage1=s1b"),
        ("=1", "not of the form KEY=VALUE"),
        ("gest.order=x", "no table 'gest'; did you mean guest? valid: guest, host, vmm"),
        ("guest.odrer=x", "guest has no key 'odrer'; did you mean order? valid: device, honours"),
        ("guest.device[A].stage=x", "guest.device[A] has no key 'stage'; did you mean stage1?"),
        ("guest.device.vfio=true", "select one of them: guest.device[0000:01:00.0], guest.dev"),
        ("guest.device[C].vfio=1", "has no [C]; valid: 0000:01:00.0, 0000:02:00.0, or A to B for"),
        ("guest.device[x.y].vfio=1", "guest.device has no [x.y]; valid: 0000:01:00.0"),
        ("host.smmu[1].nested=false", "host.smmu has no [1]; valid: 0"),
        ("guest.stage1[s1aa].granule=4K", "has no [s1aa]; did you mean s1a? valid: s1a, s1b"),
        ("guest.order[0]=x", "guest.order is not an array; use it without [0]"),
        ("guest.order.x=1", "guest.order is a value, not a table; use guest.order alone"),
        ("host..granule=1", "not a key of a scenario"),
        ("host.device[A.vectors=1", "not a key of a scenario"),
    ],
)
def test_unknown_keys(scenario, text, message):
    with pytest.raises(UsageError) as caught:
        edited(scenario, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
