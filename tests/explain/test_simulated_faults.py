"""Faults of the simulator, logged as the kernel logs them: explanations match the verdicts."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from event_lines import decoded, event_of, raw, words
from hypothesis import given, settings
from random_scenarios import scenarios
from scenarios import pair
from test_truth_table import TABLE

from vmm_msi.config import Choice
from vmm_msi.engine.compare import compare
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.explain.remedies import StrategyRemedies
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent, decode
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.types import Iova, Ipa, Outcome, Scenario, StreamId

FAULTS = {Outcome.S1_FAULT: 1, Outcome.S2_FAULT: 2}
SELECTOR = "first-in-group"


@pytest.fixture(scope="module")
def plugins():
    return PluginManager.load()


def run(plugins, scenario, choice):
    (result,) = compare(plugins, scenario, [choice], SELECTOR)
    return result.verdicts


def explained(plugins, scenario, lines):
    context = LogContext(scenario.host, scenario.guest)
    report = explain("\n".join(lines), context, StrategyRemedies(plugins, context, SELECTOR))
    assert report.unrecognised == 0
    (line,) = report.lines
    return line.explanation


def check(plugins, scenario, counts):
    """Explain every fault of every strategy and return their number."""
    number = 0
    for choice in plugins.choices():
        for verdict in run(plugins, scenario, choice):
            if verdict.outcome not in FAULTS:
                continue
            number += 1
            event = event_of(scenario.host, verdict)
            assert decode(words(event)) == replace(
                event, ipa=None if event.stage == 1 else event.ipa or Ipa(0)
            )
            lines = raw(event)
            explanation = explained(plugins, scenario, lines)
            assert [subject.address for subject in explanation.devices] == [verdict.device]
            assert explanation.stage == FAULTS[verdict.outcome]
            assert explanation.iova == verdict.programmed
            if "ipa" in verdict.trace[-1].values:
                assert str(explanation.ipa) == verdict.trace[-1].values["ipa"]
            assert explanation.id == f"smmu-{verdict.trace[-1].values['fault']}"
            assert explanation.missing
            both = explained(plugins, scenario, lines + decoded(event, verdict.device))
            assert replace(both, what="") == replace(explanation, what="")
            check_remedies(plugins, scenario, explanation, counts)
    return number


def check_remedies(plugins, scenario, explanation, counts):
    """Check that each suggested strategy delivers, with the change in its remedy."""
    named = [remedy for remedy in explanation.remedies if remedy.strategy]
    for remedy in named:
        guest = replace(scenario.guest, honours_rmr=bool(remedy.change)) if remedy.change else None
        again = Scenario(scenario.host, guest or scenario.guest)
        verdicts = run(plugins, again, Choice.parse(remedy.strategy))
        assert {verdict.outcome for verdict in verdicts} == {Outcome.DELIVERED}, remedy
        counts["suggested remedies that delivered in the simulator"] += 1


@pytest.mark.parametrize("honours_rmr", [True, False])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:4])))
def test_the_truth_table(row, honours_rmr, plugins, counts):
    pits, mode, vits, order = row[:4]
    sample = pair(mode, pits=pits, vits=vits, order=order, honours_rmr=honours_rmr)
    scenario = parse_scenario(sample.toml(), "x")
    number = check(plugins, scenario, counts)
    assert number >= 2
    counts["faults of the truth table that were explained"] += number


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:4])))
def test_refusals_of_the_series(row, plugins, counts):
    pits, mode, vits, order = row[:4]
    sample = pair(mode, pits=pits, vits=vits, order=order)
    scenario = parse_scenario(sample.toml(), "x")
    context = LogContext(scenario.host, scenario.guest)
    strategies = StrategyRemedies(plugins, context, SELECTOR)
    for revision in ("v2", "v4", "v8", "v15"):
        for verdict in run(plugins, scenario, Choice.parse(f"coerced:revision={revision}")):
            report = explain(f"vfio-pci {verdict.device}: {verdict.reason}", context, strategies)
            if verdict.outcome is Outcome.REFUSED and verdict.errno_inside != errno.EEXIST:
                explanation = report.lines[0].explanation
                assert explanation.id in {"no-guest-binding", "doorbells-of-two-itses"}
                assert [subject.address for subject in explanation.devices] == [verdict.device]
                assert f"coerced:revision={revision}" not in [
                    m.strategy for m in explanation.remedies
                ]
                check_remedies(plugins, scenario, explanation, counts)
                counts["refusals of the series that were explained"] += 1


@settings(max_examples=30)
@given(scenario=scenarios(max_devices=3))
def test_any_scenario(scenario, plugins, counts):
    counts["faults of random scenarios that were explained"] += check(plugins, scenario, counts)


def test_remedies_for_the_baseline(plugins):
    """One pITS: all deliver but host-cookie, and placed, whose vITS is elsewhere."""
    scenario = parse_scenario(pair("shared").toml(), "x")
    event = SmmuEvent(EventKind.F_TRANSLATION, 1, StreamId(0x100), Iova(0x800_0040))
    explanation = explained(plugins, scenario, raw(event))
    assert [remedy.strategy for remedy in explanation.remedies] == [
        "identity",
        "multi-its:mode=vsmmu",
        "coerced:revision=v15",
        "direct",
        "multi-its:mode=s2",
        "window",
        "preset",
        "mapped-page:mode=vits",
    ]
    with_change = {remedy.strategy for remedy in explanation.remedies if remedy.change}
    assert with_change == {"identity", "multi-its:mode=vsmmu", "window"}


def test_remedies_for_an_unmapped_guest_doorbell(plugins):
    scenario = parse_scenario(pair("own", pits=2).toml(), "x")
    event = SmmuEvent(
        EventKind.F_TRANSLATION, 2, StreamId(0x200), Iova(0xFFFF_E040), Ipa(0x809_0040)
    )
    explanation = explained(plugins, scenario, raw(event))
    assert explanation.missing == "S2: 0x8090000 (gDB) -> 0x201010040 (hDB, ITS 1)"
    assert [remedy.strategy for remedy in explanation.remedies] == [
        "identity",
        "multi-its:mode=vsmmu",
        "multi-its:mode=s2",
        "window",
        "mapped-page:mode=s2",
    ]


def test_the_binding_of_another_device(plugins):
    scenario = parse_scenario(pair("own").toml(), "x")
    verdicts = run(plugins, scenario, Choice.parse("coerced:revision=v2"))
    explanation = explained(plugins, scenario, raw(event_of(scenario.host, verdicts[1])))
    assert explanation.iova_is == "the gIOVA of 0000:01:00.0"
    assert explanation.missing == "S1 of the device: 0xfffff000 -> gDB"
