"""The rule that decided, in the JSON of ``vmm-msi compare``."""

from __future__ import annotations

import json

import pytest

from vmm_msi import samples
from vmm_msi.iommu import rules

RULES_OF = {
    # strategy, device -> the rules of programmed, s1, s2 and of the verdict, by name
    ("identity", "0000:02:00.0"): ("SLOT", "GUEST_RMR", "SLOT_MAPPED", "SLOT"),
    ("coerced:revision=v2", "0000:01:00.0"): (
        "CHOOSE_BINDING",
        "GUEST_DOORBELL",
        "BINDING_MAPPED",
        "CHOOSE_BINDING",
    ),
    ("direct:profile=series-v8", "0000:01:00.0"): (
        "WRITTEN",
        "GUEST_DOORBELL",
        "CALLER_MAPPED",
        "WRITTEN",
    ),
    ("direct:profile=linux-7.2", "0000:01:00.0"): (None, None, None, "IOVA_RESERVED"),
    ("host-cookie:profile=pre-series", "0000:01:00.0"): ("COOKIE", None, None, None),
    ("preset", "0000:02:00.0"): ("PRESET", "GUEST_DOORBELL", "SLOT_MAPPED", "UNKNOWN_DEVICE"),
}


@pytest.mark.parametrize(("strategy", "device"), RULES_OF)
def test_the_rule_of_each_step(vmm_msi, strategy, device):
    scenario = samples.path("two-its.toml")
    code, out, err = vmm_msi(
        "compare", "--scenario", scenario, "--strategy", strategy, "--format", "json"
    )
    assert (code, err) == (0, "")
    [result] = json.loads(out)["results"]
    [verdict] = [v for v in result["verdicts"] if v["device"] == device]
    steps = {step["step"]: step["decided_by"] for step in verdict["trace"]}
    *stages, decided = RULES_OF[strategy, device]
    for step, name in zip(("programmed", "s1", "s2"), stages, strict=True):
        if name is not None:
            assert steps[step] == in_json(getattr(rules, name)), step
    expected = rules.smmu_event("F_TRANSLATION", 1) if decided is None else getattr(rules, decided)
    assert verdict["decided_by"] == in_json(expected)


def in_json(rule):
    return {"rule": rule.text, "source": rule.source}


def test_schema_1_has_no_rules(vmm_msi):
    words = ("--scenario", samples.path("two-its.toml"), "--format", "json", "--schema", "1")
    code, out, err = vmm_msi("compare", *words)
    assert (code, err) == (0, "")
    assert "decided_by" not in out
