"""``vmm-msi compare --set``, ``--vary`` and ``--against``."""

from __future__ import annotations

import json
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm_msi
from vmm_msi import samples
from vmm_msi.errors import ScenarioError, UsageError
from vmm_msi.host.scenario_keys import Setting
from vmm_msi.library.what_if import against_settings, axis_of, split_values
from vmm_msi.report.worlds import Axis, World, by_value, deciding_axes

TWO_ITS = samples.path("two-its.toml")


@pytest.fixture
def columns():
    return 80


A, B = "0000:01:00.0", "0000:02:00.0"
SAME_ITS = "host.device[B].its_group=[0]"


@pytest.fixture
def compare(vmm_msi):
    def run(*words, scenario=TWO_ITS):
        return vmm_msi("compare", "--scenario", scenario, "--strategy", "direct", *words)

    return run


def outcomes(document):
    return [v["outcome"] for result in document["results"] for v in result["verdicts"]]


def test_set_runs_another_world(compare):
    code, out, err = compare("--set", SAME_ITS, "--format", "json")
    assert code == 0
    assert outcomes(json.loads(out)) == ["delivered", "delivered"]
    assert err == "what if: host.device[0000:02:00.0].its_group = [0], was [1]\n"
    assert outcomes(json.loads(compare("--format", "json")[1])) == ["delivered", "refused"]


def test_set_works_with_every_other_option(compare, tmp_path):
    words = ("--set", SAME_ITS)
    assert "ITS 0" in compare(*words, "--trace", B)[1]
    assert compare(*words, "--fail-on", "undelivered")[0] == 0
    assert compare("--fail-on", "undelivered")[0] == 1
    expected = tmp_path / "expected.json"
    assert compare(*words, "--format", "json", "-o", expected)[0] == 0
    assert compare(*words, "--expect", expected)[0] == 0
    code, _out, err = compare("--expect", expected)
    assert code == 1
    assert "expected delivered" in err


@pytest.mark.parametrize("form", ["html", "markdown", "csv", "svg"])
def test_set_with_every_format(compare, form):
    code, out, _err = compare("--set", SAME_ITS, "--format", form)
    assert code == 0
    assert out


def test_set_on_a_device_tree(vmm_msi):
    """Two devices of it share one stage 1, with larger pages."""
    code, out, err = vmm_msi(
        "compare", "--host", samples.path("eight-its-server.dtb"), "--device", A, "--device",
        "0001:01:00.0", "--strategy", "multi-its:mode=s2", "--format", "json",
        "--set", f"guest.device[B].stage1=s1-{A}", "--set", f"guest.stage1[s1-{A}].granule=64K",
    )  # fmt: skip
    assert code == 0
    verdicts = json.loads(out)["results"][0]["verdicts"]
    assert [verdict["programmed_iova"] for verdict in verdicts] == ["0xffff0040"] * 2
    assert err.count("what if: ") == 2


def test_contradictions(compare):
    code, out, err = compare("--set", "host.device[B].its_group=[7]")
    assert (code, out) == (3, "")
    assert "--set host.device[B].its_group: host.device[1].its_group[0]: no [[host.its]]" in err
    code, out, err = compare("--set", "host.devise[B].vectors=1")
    assert (code, out) == (2, "")
    assert "did you mean device?" in err


VARY = ("--vary", "host.device[B].its_group=[0],[1]", "--vary", "guest.order=interleaved,batched")


def test_vary_shows_what_changes_the_outcome(compare):
    code, out, _err = compare(*VARY)
    assert code == 0
    assert out.splitlines() == [
        "4 worlds, 2 outcomes in each",
        "  host.device[B].its_group  changes 1 of 2 outcomes",
        "  guest.order               changes nothing",
        "",
        f"direct: {B}",
        "  host.device[B].its_group  outcome",
        "  ------------------------  ---------",
        "  [0]                       delivered",
        "  [1]                       refused",
    ]


def test_vary_of_all_strategies_fits_a_terminal(vmm_msi):
    code, out, _err = vmm_msi("compare", "--scenario", TWO_ITS, *VARY)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_vary_as_json(compare):
    _code, out, _err = compare(*VARY, "--format", "json")
    document = json.loads(out)
    assert len(document["worlds"]) == 4
    assert document["worlds"][1]["settings"] == [
        {"key": "host.device[B].its_group", "value": [0]},
        {"key": "guest.order", "value": "batched"},
    ]
    assert outcomes(document["worlds"][3]) == ["delivered", "refused"]
    assert document["keys"] == [
        {"key": "host.device[B].its_group", "outcomes": 1},
        {"key": "guest.order", "outcomes": 0},
    ]
    assert document["differences"] == [
        {
            "strategy": "direct",
            "kernel": "linux-7.2-bind",
            "device": B,
            "keys": ["host.device[B].its_group"],
            "outcomes": ["delivered", "delivered", "refused", "refused"],
        }
    ]


def test_an_impossible_world_is_shown_and_not_judged(compare):
    words = ("--vary", "host.device[B].its_group=[0],[7]")
    code, out, err = compare(*words, "--fail-on", "undelivered")
    assert (code, err) == (0, "")
    assert "impossible" in out
    assert "Impossible (1)\n  host.device[B].its_group = [7]: --vary" in out
    code, out, err = compare("--vary", "host.device[B].its_group=[8],[7]")
    assert (code, out) == (3, "")
    assert err.count("\n") == 2


def test_fail_on_and_expect_judge_each_world(compare, tmp_path):
    expected = tmp_path / "expected.json"
    compare("--format", "json", "-o", expected)
    for words in (("--fail-on", "refused"), ("--expect", expected)):
        code, _out, err = compare(*VARY, *words)
        assert code == 1
        assert err.count("\n") == 2
        world = "[1]" if words[0] == "--fail-on" else "[0]"
        start = f'vmm-msi compare: host.device[B].its_group = {world}, guest.order = "batched": '
        assert start in err


def test_against_a_setting(compare):
    code, out, _err = compare("--against", f"--set {SAME_ITS}")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"  A  {TWO_ITS}"
    head = lines.index("Outcomes that differ (1 of 2)")
    assert lines[head + 3].split() == ["direct", B, "refused", "delivered"]
    same = lines.index("Outcomes in both (1)")
    assert same > head
    assert lines[same + 3].split() == ["direct", A, "delivered"]
    assert "A, direct: 0000:02:00.0: binding doorbell 0x8090000" in out
    assert max(map(len, lines[2:])) <= 80


def test_against_keeps_the_commands_own_setting_apart(compare):
    words = ("--set", SAME_ITS, "--against", "--set guest.order=batched")
    _code, out, _err = compare(*words, "--format", "json")
    first, second = json.loads(out)["worlds"]
    assert [setting["key"] for setting in first["settings"]] == ["host.device[B].its_group"]
    assert [setting["key"] for setting in second["settings"]] == ["guest.order"]
    assert (outcomes(first)[1], outcomes(second)[1]) == ("delivered", "refused")


def test_against_a_file(compare, tmp_path):
    """The other world may have other devices."""
    path = tmp_path / "other.toml"
    path.write_text('[[host.its]]\nbase = 0x8080000\n[[host.device]]\naddress = "01:00.0"\n[guest]')
    code, out, _err = compare("--against", path)
    assert code == 0
    assert f"{B}  refused  not assigned" in out
    _code, out, _err = compare("--against", TWO_ITS)
    assert "Outcomes that differ (0 of 2)\nnone\n" in out


@pytest.mark.parametrize("form", ["html", "markdown", "csv"])
def test_worlds_with_every_format(compare, form):
    for words in (VARY, ("--against", f"--set {SAME_ITS}")):
        code, out, _err = compare(*words, "--format", form)
        assert code == 0
        assert B in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trace", A], "--trace shows one world; use --set in place of --vary"),
        (["--format", "svg"], "--format svg shows one world"),
        (["--format", "json", "--schema", "1"], "--vary has a document of its own"),
        (["--against", "x.toml"], "not allowed with argument --vary"),
        (["--vary", "host.granule=4K"], "one value; give several with commas, or use --set"),
        (
            ["--vary", f"host.device[A].vectors={','.join(map(str, range(1, 100)))}"],
            "2 x 2 x 99 = 396 worlds, and at most 256 are compared; give fewer values",
        ),
    ],
)
def test_what_several_worlds_do_not_have(compare, words, message):
    code, out, err = compare(*VARY, *words)
    assert (code, out) == (2, "")
    assert message in err


def test_against_needs_a_form():
    assert [s.key for s in against_settings("--set a=1 --set=b=2")] == ["a", "b"]
    for text in ("--sett a=1", "--set", "--set 'a=1", "--set a=1 b=2"):
        with pytest.raises(UsageError, match="--against"):
            against_settings(text)


def test_a_file_that_cannot_be_read(compare):
    code, _out, err = compare("--against", "/nonexistent.toml")
    assert code == ScenarioError.exit_code
    assert "/nonexistent.toml: cannot be read" in err


def test_values_are_separated_by_commas_outside_brackets():
    assert list(split_values('[0],[1, 0],"a,b",{x = [1,2]},c')) == [
        "[0]", "[1, 0]", '"a,b"', "{x = [1,2]}", "c",
    ]  # fmt: skip
    assert axis_of("a.b[x=,y]=1,0x2") == Axis("a.b[x=,y]", (1, 2))


@given(st.data())
def test_deciding_axes(data):
    """The outcome is a function of the axes that decide it, and of no smaller set of axes."""
    sizes = data.draw(st.lists(st.integers(2, 3), min_size=1, max_size=3))
    axes = [Axis(str(at), tuple(range(size))) for at, size in enumerate(sizes)]
    combinations = list(product(*(axis.values for axis in axes)))
    worlds = [
        World("", tuple(Setting(str(at), value) for at, value in enumerate(values)), (), None)
        for values in combinations
    ]
    outcomes = [data.draw(st.sampled_from("ab")) for _ in worlds]
    deciding = deciding_axes(worlds, axes, outcomes)
    table = by_value(worlds, deciding, outcomes)
    for values, outcome in zip(combinations, outcomes, strict=True):
        assert table[tuple(str(values[at]) for at in deciding)] == outcome
    for left_out in deciding:
        rest = [at for at in range(len(axes)) if at != left_out]
        seen = {}
        for values, outcome in zip(combinations, outcomes, strict=True):
            seen.setdefault(tuple(values[at] for at in rest), set()).add(outcome)
        assert any(len(found) > 1 for found in seen.values())


def test_a_program_changes_values():
    both = vmm_msi.compare(scenario=TWO_ITS, strategies="direct", changes=[SAME_ITS])
    assert [str(v.outcome) for v in both.results[0].verdicts] == ["delivered", "delivered"]
    assert both.scenario.host.devices[1].its_group == (0,)
    with pytest.raises(UsageError, match="did you mean device"):
        vmm_msi.compare(scenario=TWO_ITS, changes="host.devise[B].vectors=1")
    with pytest.raises(UsageError, match="not of the form KEY=VALUE"):
        vmm_msi.compare(scenario=TWO_ITS, changes=["x"])
    with pytest.raises(UsageError, match="changes 5: not a text"):
        vmm_msi.compare(scenario=TWO_ITS, changes=5)
