"""The truth table of the design, cell by cell, from the command line's JSON."""

from __future__ import annotations

import json

import pytest
from scenarios import A, B, pair

from vmm_msi.cli import main

D, FAULT, NO = "delivered", "s1-fault", "refused"

STRATEGIES = (
    "host-cookie",
    "coerced:revision=v2",
    "coerced:revision=v8",
    "coerced:revision=v15",
    "direct",
    "multi-its",
    "identity",
)

#: Row: pITSes, S1 mode, vITSes, order, then A and B for host-cookie, coerced v2, coerced v8 and
#: v15, direct, multi-its, identity.
TABLE = [
    (1, "shared", 1, "interleaved", (FAULT, FAULT), (D, D), (D, D), (D, D), (D, D), (D, D)),
    (1, "own", 1, "interleaved", (FAULT, FAULT), (D, FAULT), (D, FAULT), (D, D), (D, D), (D, D)),
    (1, "own", 1, "batched", (FAULT, FAULT), (FAULT, D), (FAULT, D), (D, D), (D, D), (D, D)),
    (1, "own-same", 1, "interleaved", (FAULT, FAULT), (D, D), (D, D), (D, D), (D, D), (D, D)),
    (2, "shared", 1, "interleaved", (FAULT, FAULT), (D, NO), (D, NO), (D, NO), (D, D), (D, D)),
    (2, "own", 1, "interleaved", (FAULT, FAULT), (D, NO), (D, NO), (D, NO), (D, D), (D, D)),
    (2, "own-same", 1, "interleaved", (FAULT, FAULT), (D, NO), (D, NO), (D, NO), (D, D), (D, D)),
    (2, "own", 2, "interleaved", (FAULT, FAULT), (D, D), (D, NO), (D, D), (D, D), (D, D)),
    (2, "own", 2, "batched", (FAULT, FAULT), (FAULT, FAULT), (D, NO), (D, D), (D, D), (D, D)),
]


def run_compare(capsys, tmp_path, sample, *strategies):
    path = tmp_path / "scenario.toml"
    path.write_text(sample.toml())
    arguments = [argument for name in strategies for argument in ("--strategy", name)]
    assert main(["compare", "--scenario", str(path), "--format", "json", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    return document["results"]


def by_device(result):
    by_address = {}
    for verdict in result["verdicts"]:
        by_address.setdefault(verdict["device"], set()).add(verdict["outcome"])
    assert all(len(outcomes) == 1 for outcomes in by_address.values())
    return {address: outcomes.pop() for address, outcomes in by_address.items()}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:4])))
def test_row(row, capsys, tmp_path):
    pits, mode, vits, order, cookie, v2, v8, direct, multi, identity = row
    sample = pair(mode, pits=pits, vits=vits, order=order)
    results = run_compare(capsys, tmp_path, sample, *STRATEGIES)
    expected = dict(zip(STRATEGIES, (cookie, v2, v8, v8, direct, multi, identity), strict=True))
    for (name, (a, b)), result in zip(expected.items(), results, strict=True):
        assert by_device(result) == {A: a, B: b}, name


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:4])))
def test_identity_faults_everywhere_when_the_guest_ignores_the_rmr(row, capsys, tmp_path):
    pits, mode, vits, order = row[:4]
    sample = pair(mode, pits=pits, vits=vits, order=order, honours_rmr=False)
    (result,) = run_compare(capsys, tmp_path, sample, "identity")
    assert by_device(result) == {A: FAULT, B: FAULT}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:4])))
def test_placed_with_its_doorbell_at_the_first_slot(row, capsys, tmp_path):
    """A second host ITS gets another slot, where no virtual ITS fits."""
    pits, mode, vits, order = row[:4]
    bases = {0: 0x07FF_0000, 1: 0x0A08_0000}
    sample = pair(mode, pits=pits, vits=vits, order=order, vits_bases=bases)
    (result,) = run_compare(capsys, tmp_path, sample, "placed")
    assert by_device(result) == {A: D, B: D if pits == 1 else NO}


def refused(results, device=B):
    return next(v for v in results[0]["verdicts"] if v["device"] == device)


def test_reason_and_errno_of_the_refusals(capsys, tmp_path):
    def refusal(strategy, sample):
        return refused(run_compare(capsys, tmp_path, sample, strategy))

    no_free = refusal("coerced:revision=v2", pair("shared", pits=2))
    assert no_free["errno"] == 12
    assert "no free binding" in no_free["reason"]
    exists = refusal("coerced:revision=v2", pair("own", pits=2))
    assert exists["errno"] == 17
    assert "EEXIST" in exists["reason"]
    for revision in ("v8", "v15"):
        attach = refusal(f"coerced:revision={revision}", pair("own", pits=2, vits=2))
        assert attach["errno"] == 22
        assert "different physical MSI doorbells" in attach["reason"]
        assert attach["programmed_iova"] is None
    conflict = refusal("direct", pair("own", pits=2))
    assert conflict["errno"] is None
    assert A in conflict["reason"]
    assert B in conflict["reason"]
    assert "ITS 0" in conflict["reason"]
    assert "ITS 1" in conflict["reason"]


def test_identity_takes_two_slots_for_two_itses(capsys, tmp_path):
    (result,) = run_compare(capsys, tmp_path, pair("own", pits=2), "identity")
    assert result["costs"]["sw_msi_slots"] == 2
    assert {v["programmed_iova"] for v in result["verdicts"]} == {"0x8000040", "0x8001040"}


def test_the_host_cookie_faults_at_the_window(capsys, tmp_path):
    (result,) = run_compare(capsys, tmp_path, pair("shared"), "host-cookie")
    verdict = result["verdicts"][0]
    assert verdict["programmed_iova"] == "0x8000040"
    assert verdict["trace"][-1] == {
        "step": "s1",
        "stage1": "s1a",
        "iova": "0x8000040",
        "fault": "F_TRANSLATION",
    }


def test_iommufd_refuses_direct_in_the_reserved_window(capsys, tmp_path):
    (result,) = run_compare(capsys, tmp_path, pair("shared"), "direct:profile=linux-7.2")
    verdict = refused([result], A)
    assert (verdict["outcome"], verdict["errno"]) == (NO, 22)
    assert "0x8000000-0x80fffff" in verdict["reason"]


def test_costs_of_multi_its(capsys, tmp_path):
    s2, vits = run_compare(
        capsys, tmp_path, pair("own", pits=2, vits=2), "multi-its", "multi-its:mode=vits"
    )
    assert (s2["costs"]["s2_domains"], s2["costs"]["s2_mappings"]) == (2, 2)
    assert (vits["costs"]["s2_domains"], vits["costs"]["s2_mappings"]) == (1, 2)


def test_a_gdb_unaligned_to_the_host_page_is_refused(capsys, tmp_path):
    sample = pair("shared", granule="64K", vits_bases={0: 0x0808_1000})
    for strategy in ("direct", "multi-its", "coerced:revision=v15"):
        (result,) = run_compare(capsys, tmp_path, sample, strategy)
        verdict = refused([result], A)
        assert (verdict["outcome"], verdict["errno"]) == (NO, 22), strategy
        assert "not aligned to the 64K granule" in verdict["reason"]
    fine = pair("shared", granule="64K")
    (result,) = run_compare(capsys, tmp_path, fine, "direct")
    assert by_device(result) == {A: D, B: D}
