"""Lines of public logs have the explanation that a user should get; unrelated lines have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext

#: The corpus has at least as many lines.
LINES = 120


def corpus():
    """Read the lines of the corpus, each with its id."""
    text = (Path(__file__).parent / "corpus.txt").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [tuple(line.split(" | ", 1)) for line in lines]


def explained_as(line):
    report = explain(line, LogContext())
    return report.lines[0].explanation.id if report.lines else "none"


@pytest.mark.parametrize(("id_", "line"), corpus(), ids=lambda value: value[:40])
def test_a_line_has_the_expected_id(id_, line):
    assert explained_as(line) == id_


def test_hit_rate(counts):
    lines = corpus()
    known = [(id_, line) for id_, line in lines if id_ != "none"]
    hits = sum(explained_as(line) == id_ for id_, line in known)
    wrong = sum(explained_as(line) != "none" for id_, line in lines if id_ == "none")
    counts[f"of {len(known)} lines of public logs that have the right explanation"] = hits
    counts[f"of {len(lines) - len(known)} unrelated lines of public logs that have one"] = wrong
    assert len(lines) >= LINES
    assert (hits, wrong) == (len(known), 0)
