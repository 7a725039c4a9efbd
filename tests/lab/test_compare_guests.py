"""A part of the truth table on real guests: two drives with a stage 1 and a gIOVA of their own.

``vmm-msi lab compare-guests`` runs all of it.
"""

from __future__ import annotations

import json

import json_schemas
import pytest

from vmm_msi.cli import main

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(1200)]

MOVED, FIRST, SLOT = "0xffeff040", "0xfffff040", "0x8000040"


def cell_of(document, strategy, order, *, rmr):
    (cell,) = (
        cell
        for cell in document["cells"]
        if (cell["strategy"], cell["order"], cell["rmr"]) == (strategy, order, rmr)
    )
    return cell["devices"]


def test_own_gives_what_the_simulator_predicts(bind_images, capsys):
    options = ["--vsmmus", "1", "--stage1", "own", "--columns", "identity,direct,v2,v4,v15"]
    status = main(["lab", "compare-guests", "--format", "json", *options])
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    json_schemas.check("lab-compare-guests", document)
    assert (status, document["disagreements"]) == (0, 0), captured.err
    assert len(document["cells"]) == 20
    # What the review of 2018 feared: B is programmed with A's gIOVA, and its own stage 1 faults.
    a, b = cell_of(document, "coerced:revision=v2", "interleaved", rmr=False)
    assert (a["outcome"], a["programmed_iovas"]) == ("delivered", [MOVED])
    assert (b["outcome"], b["programmed_iovas"]) == ("s1-fault", [MOVED])
    assert (b["landed"], b["arrived"]) == (0, 0)
    assert all(fault["log"] == "guest" for fault in b["faults"])
    assert any(
        f"F_TRANSLATION client: 0000:12:00.0 sid: 0x1200 ssid: 0x0 iova: {MOVED}" in fault["line"]
        for fault in b["faults"]
    )
    a, b = cell_of(document, "coerced:revision=v2", "batched", rmr=False)
    # A is the device that is bound first: here the other one.
    assert (a["outcome"], a["programmed_iovas"]) == ("s1-fault", [MOVED])
    assert (b["outcome"], b["programmed_iovas"]) == ("delivered", [MOVED])
    # A refused device keeps its slot, which delivers with an RMR alone.
    for rmr in (True, False):
        a, b = cell_of(document, "coerced:revision=v4", "interleaved", rmr=rmr)
        assert (a["outcome"], b["outcome"], b["errno"]) == ("delivered", "refused", "EEXIST")
        assert b["programmed_iovas"] == [SLOT]
        assert b["arrived"] == b["landed"] == (50 if rmr else 0)
    for device, giova in zip(
        cell_of(document, "direct", "interleaved", rmr=False), (MOVED, FIRST), strict=True
    ):
        assert device["programmed_iovas"] == [giova]
        assert device["done"] == device["landed"] == device["arrived"] == 50
