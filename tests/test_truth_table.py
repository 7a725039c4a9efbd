"""The truth tables of docs/strategies.md, cell by cell, from the command line's JSON."""

from __future__ import annotations

import errno
import json

import pytest
from scenarios import GIOVA_B, A, B, Device, Sample, pair

from vmm_msi.cli import main
from vmm_msi.errors import errno_name
from vmm_msi.iommu.revisions import revision_numbered

D, FAULT, NO, LOST = "delivered", "s1-fault", "refused", "misrouted"
ENOMEM, EEXIST, EINVAL = (f"{NO} {name}" for name in ("ENOMEM", "EEXIST", "EINVAL"))

#: On a nest parent. Row: pITSes, S1 mode, vITSes, order; then A and B for each strategy. A refusal
#: has the errno of the function that refused, and none where the strategy refuses.
STRATEGIES = {
    "host-cookie": 0,
    "coerced:revision=v2": 1,
    "coerced:revision=v4": 2,
    "coerced:revision=v8": 3,
    "coerced:revision=v15": 3,
    "direct": 4,
    "multi-its": 5,
    "identity": 6,
    "window": 6,
    "preset": 7,
    "mapped-page:mode=vits": 4,
    "mapped-page:mode=s2": 5,
}
#: Those whose kernel was only proposed.
PROPOSED = ("window", "preset", "mapped-page:mode=vits", "mapped-page:mode=s2")
F, S, E = (FAULT, FAULT), (D, D), (D, EEXIST)
TABLE = [
    (1, "shared", 1, "interleaved", (F, S, E, S, S, S, S, S)),
    (1, "own", 1, "interleaved", (F, (D, FAULT), E, (D, FAULT), S, S, S, S)),
    (1, "own", 1, "batched", (F, (FAULT, D), E, (FAULT, D), S, S, S, S)),
    (1, "own-same", 1, "interleaved", (F, S, E, S, S, S, S, S)),
    (2, "shared", 1, "interleaved", (F, (D, ENOMEM), E, (D, EINVAL), (D, NO), S, S, (D, LOST))),
    (2, "own", 1, "interleaved", (F, E, E, (D, EINVAL), (D, NO), S, S, (D, LOST))),
    (2, "own-same", 1, "interleaved", (F, (D, ENOMEM), E, (D, EINVAL), (D, NO), S, S, (D, LOST))),
    (2, "own", 1, "batched", (F, (FAULT, EEXIST), E, (D, EINVAL), (D, NO), S, S, (D, LOST))),
    (2, "own", 2, "interleaved", (F, S, S, (D, EINVAL), S, S, S, S)),
    (2, "own", 2, "batched", (F, F, S, (D, EINVAL), S, S, S, S)),
]

#: In the VFIO containers of the series: pITSes, S1 mode, vITSes, then A and B for v1 to v2, v3 to
#: v6, v7, v8 to v15, with a container for each stage 1. Before v8 a device without a doorbell has
#: an address of all ones and faults there.
SERIES_TABLE = [
    (1, "shared", 1, (S, (D, FAULT), S, S)),
    (1, "own", 1, (S, S, S, S)),
    (1, "own-same", 1, (S, S, S, S)),
    (2, "shared", 1, ((D, FAULT), (D, FAULT), S, S)),
    (2, "own", 1, (S, S, S, S)),
    (2, "own-same", 1, (S, S, S, S)),
    (2, "own", 2, (S, S, S, S)),
    (2, "own-same", 2, (S, S, S, S)),
]
COLUMN_OF = {1: 0, 2: 0, 3: 1, 4: 1, 7: 2, 8: 3, 15: 3}
IN_SERIES = [
    f"coerced:revision={revision_numbered(number).allocator},profile=series-v{number}"
    for number in COLUMN_OF
]


def run_compare(capsys, tmp_path, sample, *strategies):
    path = tmp_path / "scenario.toml"
    path.write_text(sample.toml())
    arguments = [argument for name in strategies for argument in ("--strategy", name)]
    assert main(["compare", "--scenario", str(path), "--format", "json", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 2
    return document["results"]


def by_device(result):
    by_address = {}
    for verdict in result["verdicts"]:
        by_address.setdefault(verdict["device"], set()).add(verdict["outcome"])
    assert all(len(outcomes) == 1 for outcomes in by_address.values())
    return {address: outcomes.pop() for address, outcomes in by_address.items()}


def cells(result):
    """Return the outcomes of A and B; a refusal with the errno inside the kernel."""
    first = {v["device"]: v for v in reversed(result["verdicts"])}
    numbers = {d: v["errno_inside"] or v["errno"] for d, v in first.items()}
    outcomes = by_device(result)
    return tuple(
        outcomes[d] if numbers[d] is None else f"{outcomes[d]} {errno_name(numbers[d])}"
        for d in (A, B)
    )


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:4])))
def test_row(row, capsys, tmp_path):
    pits, mode, vits, order, expected = row
    sample = pair(mode, pits=pits, vits=vits, order=order)
    results = run_compare(capsys, tmp_path, sample, *STRATEGIES)
    for (name, column), result in zip(STRATEGIES.items(), results, strict=True):
        assert cells(result) == expected[column], name
        assert result["options"]["profile"] in {
            "linux-7.2",
            "linux-7.2-bind",
            "linux-sw-msi-option",
            "linux-vfio-msi-iova",
            "linux-map-msi-page",
        }
        for verdict in result["verdicts"]:
            if verdict["errno_inside"] is not None:
                assert verdict["errno"] == errno.ENOSPC, name


@pytest.mark.parametrize("order", ["interleaved", "batched"])
@pytest.mark.parametrize("row", SERIES_TABLE, ids=lambda row: "-".join(map(str, row[:3])))
def test_row_of_the_series(row, order, capsys, tmp_path):
    pits, mode, vits, expected = row
    for containers in ("stage1", "device"):
        if containers == "device" and mode == "shared":
            # An IOMMU domain for each device cannot share a stage 1.
            continue
        sample = pair(mode, pits=pits, vits=vits, order=order, containers=containers)
        results = run_compare(capsys, tmp_path, sample, *IN_SERIES)
        for (number, column), result in zip(COLUMN_OF.items(), results, strict=True):
            assert cells(result) == expected[column], (number, containers)


#: With one container for the guest: before v8 the stage 1 of B replaces that of A, from v8 on it is
#: refused. Rows and columns as above.
ONE_CONTAINER = [
    (1, "shared", 1, (S, (D, FAULT), S, S)),
    (1, "own", 1, (F, F, F, (D, EINVAL))),
    (1, "own-same", 1, (S, (D, FAULT), S, (D, EINVAL))),
    (2, "shared", 1, ((D, FAULT), (D, FAULT), S, S)),
    (2, "own", 1, (F, F, (FAULT, D), (D, EINVAL))),
    (2, "own-same", 1, ((D, FAULT), (D, FAULT), S, (D, EINVAL))),
    (2, "own", 2, ((FAULT, D), (FAULT, D), (FAULT, D), (D, EINVAL))),
]


@pytest.mark.parametrize("row", ONE_CONTAINER, ids=lambda row: "-".join(map(str, row[:3])))
def test_row_of_the_series_with_one_container(row, capsys, tmp_path):
    pits, mode, vits, expected = row
    sample = pair(mode, pits=pits, vits=vits, containers="guest")
    results = run_compare(capsys, tmp_path, sample, *IN_SERIES)
    for (number, column), result in zip(COLUMN_OF.items(), results, strict=True):
        assert cells(result) == expected[column], number


@pytest.mark.parametrize("order", ["interleaved", "batched"])
def test_shared_stage_1_with_two_virtual_itses(order, capsys, tmp_path):
    """The device handle takes the newest free binding, whether or not its doorbell is mapped."""
    sample = pair("shared", pits=2, vits=2, order=order, containers="stage1", giova_b=GIOVA_B)
    results = run_compare(capsys, tmp_path, sample, *IN_SERIES)
    for number, result in zip(COLUMN_OF, results, strict=True):
        handle = number in {3, 4} and order == "batched"
        assert cells(result) == ((D, FAULT) if handle else S), number


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
    assert (no_free["errno"], no_free["errno_inside"]) == (errno.ENOSPC, errno.ENOMEM)
    assert "no free binding" in no_free["reason"]
    exists = refusal("coerced:revision=v2", pair("own", pits=2))
    assert (exists["errno"], exists["errno_inside"]) == (errno.ENOSPC, errno.EEXIST)
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
        "decided_by": {
            "rule": "an address that stage 1 does not map faults",
            "source": "Arm SMMUv3 specification (IHI 0070), 7.3 F_TRANSLATION of stage 1",
        },
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


@pytest.mark.parametrize(("smmus", "stage2"), [((0, 0), 1), ((0, 1), 2)])
def test_vsmmus_on_one_smmu_share_a_stage_2_with_a_slot_for_each_its(
    capsys, tmp_path, smmus, stage2
):
    """QEMU has one nest parent per physical SMMU, and slots belong to the file descriptor."""
    devices = tuple(
        Device(address, its=its, smmu=smmu, stage1=stage1)
        for address, its, smmu, stage1 in zip((A, B), (0, 1), smmus, ("s1a", "s1b"), strict=True)
    )
    (result,) = run_compare(capsys, tmp_path, Sample(devices), "multi-its:mode=vsmmu")
    costs = result["costs"]
    assert [costs[k] for k in ("s2_domains", "s2_mappings", "sw_msi_slots")] == [stage2, 2, 2]
    addresses = {(v["device"], v["programmed_iova"]) for v in result["verdicts"]}
    assert addresses == {(A, "0x8000040"), (B, "0x8001040")}
    assert {verdict["outcome"] for verdict in result["verdicts"]} == {"delivered"}


def test_a_gdb_unaligned_to_the_host_page_is_refused(capsys, tmp_path):
    sample = pair("shared", granule="64K", vits_bases={0: 0x0808_1000})
    for strategy in ("direct", "multi-its", "coerced:revision=v15"):
        (result,) = run_compare(capsys, tmp_path, sample, strategy)
        verdict = refused([result], A)
        assert (verdict["outcome"], verdict["errno_inside"] or verdict["errno"]) == (NO, 22)
        assert "differ within a page of 64K bytes" in verdict["reason"]
    fine = pair("shared", granule="64K")
    (result,) = run_compare(capsys, tmp_path, fine, "direct")
    assert by_device(result) == {A: D, B: D}
