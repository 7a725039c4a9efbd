"""The samples load, and the device tree blob matches its source."""

from __future__ import annotations

import pytest
from described_host import load_host
from host.firmware.dt_builder import dtb

from vmm_msi import samples
from vmm_msi.errors import UsageError
from vmm_msi.host.resolve import resolve
from vmm_msi.host.scenario import load_scenario
from vmm_msi.types import PciAddress


def test_board_source_compiles_to_the_blob():
    source = samples.path("eight-its-server.dts").read_text()
    assert dtb(source) == samples.path("eight-its-server.dtb").read_bytes()


def test_board_has_four_smmus_and_eight_itses():
    host = load_host(samples.path("eight-its-server.dtb"))
    assert [its.base >> 41 for its in host.itses] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [smmu.base for smmu in host.smmus] == [(n << 41) + 0x30000000 for n in range(4)]
    for segment in range(8):
        device = resolve(host, PciAddress(segment, 1, 0, 0))
        assert device.smmu == segment // 2
        assert device.its_group == (segment,)
        assert device.stream_id == (segment % 2 << 16) + 0x100
        assert device.device_id == (segment << 16) + 0x100


def test_board_scenario_matches_the_device_tree():
    board = load_host(samples.path("eight-its-server.dtb"))
    scenario = load_scenario(samples.path("eight-its.toml"))
    assert scenario.host.itses == board.itses
    assert scenario.host.smmus == board.smmus
    for device in scenario.host.devices:
        resolved = resolve(board, device.address, device.iommu_group, device.vectors)
        assert resolved == device


def test_two_its_scenario_shares_a_vits_between_two_itses():
    scenario = load_scenario(samples.path("two-its.toml"))
    assert [device.its for device in scenario.host.devices] == [0, 1]
    assert {device.vits for device in scenario.guest.devices} == {0}
    assert len({device.stage1 for device in scenario.guest.devices}) == 2


def test_unknown_sample_is_refused_with_the_names():
    assert {"two-its.toml", "eight-its.toml", "eight-its-server.dtb"} <= set(samples.names())
    with pytest.raises(UsageError, match=r"^no sample 'x'; valid: .*two-its\.toml"):
        samples.path("x")
