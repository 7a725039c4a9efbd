"""Hundreds of devices with many vectors on 8 ITSes: each MSI has a verdict.

Linux has 57,344 LPIs with a GICv3, so 28 devices with tables of 2,048 use them up.
"""

from __future__ import annotations

import errno

import msgspec
import pytest
from scenarios import Device, Sample

from vmm_msi.cli import main

ITSES, LPIS = 8, 57344


@pytest.fixture(scope="module", params=[(256, 2048), (224, 256)], ids="{0[0]}x{0[1]}".format)
def scenario(request, tmp_path_factory):
    count, vectors = request.param
    devices = tuple(
        Device(
            f"0000:{number:02x}:00.0",
            its=number % ITSES,
            smmu=number % ITSES // 2,
            stage1=f"s1-{number}",
            vectors=vectors,
        )
        for number in range(count)
    )
    path = tmp_path_factory.mktemp("scale") / "scenario.toml"
    path.write_text(Sample(devices).toml())
    return path, count, vectors


@pytest.mark.parametrize(("strategy", "share"), [("multi-its", 1), ("direct", 2)])
def test_every_msi_has_a_verdict(strategy, share, scenario, tmp_path):
    """The second of two ITSes behind one SMMU is refused by direct before it takes LPIs."""
    path, count, vectors = scenario
    out = tmp_path / "out.json"
    command = ["compare", "--scenario", str(path), "--strategy", strategy]
    assert main([*command, "--format", "json", "--schema", "1", "-o", str(out)]) == 0
    (result,) = msgspec.json.decode(out.read_bytes())["results"]
    verdicts = result["verdicts"]
    assert len(verdicts) == count * vectors
    assert len({(v["device"], v["vector"]) for v in verdicts}) == count * vectors
    delivered = [v for v in verdicts if v["outcome"] == "delivered"]
    assert len(delivered) == min(count // share * vectors, LPIS)
    assert len({v["trace"][-1]["lpi"] for v in delivered}) == len(delivered)
    assert all(v["its"] == v["expected_its"] for v in delivered)
    assert all(v["trace"][-1]["event_id"] == v["vector"] for v in delivered)
    refused = [v for v in verdicts if v["errno"] is not None]
    assert {(v["errno"], v["errno_inside"]) for v in refused} <= {(errno.ENODEV, errno.ENOMEM)}
    assert len(refused) == max(count // share * vectors - LPIS, 0)
