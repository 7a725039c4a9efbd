"""256 devices with 2,048 vectors on 8 ITSes: each of half a million MSIs has a verdict."""

from __future__ import annotations

import msgspec
import pytest
from scenarios import Device, Sample

from vmm_msi.cli import main

DEVICES, VECTORS, ITSES = 256, 2048, 8


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    devices = tuple(
        Device(
            f"0000:{number:02x}:00.0",
            its=number % ITSES,
            smmu=number % ITSES // 2,
            stage1=f"s1-{number}",
            vectors=VECTORS,
        )
        for number in range(DEVICES)
    )
    path = tmp_path_factory.mktemp("scale") / "scenario.toml"
    path.write_text(Sample(devices).toml())
    return path


@pytest.mark.parametrize(("strategy", "expected"), [("multi-its", DEVICES), ("direct", 128)])
def test_every_msi_has_a_verdict(strategy, expected, scenario, tmp_path):
    out = tmp_path / "out.json"
    command = ["compare", "--scenario", str(scenario), "--strategy", strategy]
    assert main([*command, "--format", "json", "-o", str(out)]) == 0
    (result,) = msgspec.json.decode(out.read_bytes())["results"]
    verdicts = result["verdicts"]
    assert len(verdicts) == DEVICES * VECTORS
    assert len({(v["device"], v["vector"]) for v in verdicts}) == DEVICES * VECTORS
    delivered = [v for v in verdicts if v["outcome"] == "delivered"]
    assert len(delivered) == expected * VECTORS
    assert len({v["trace"][-1]["lpi"] for v in delivered}) == len(delivered)
    assert all(v["its"] == v["expected_its"] for v in delivered)
    assert all(v["trace"][-1]["event_id"] == v["vector"] for v in delivered)
