"""The conformance suite: ``pytest --pyargs vmm_msi.testing --vmm-msi-strategy NAME``.

Each test is a check of :mod:`vmm_msi.testing.conformance` on one strategy and one scenario.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmm_msi.testing import conformance, suite
from vmm_msi.testing.location import located
from vmm_msi.testing.plugin import chosen
from vmm_msi.testing.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm_msi.config import Choice
    from vmm_msi.engine.compare import OpenBackend
    from vmm_msi.testing.subject import Problem
    from vmm_msi.types import Scenario


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each check on each strategy and scenario."""
    metafunc.parametrize("choice", chosen(metafunc.config), ids=str, scope="session")
    scenarios = suite.scenarios(metafunc.config.getoption("vmm_msi_backend"))
    if "of_strategy" in metafunc.fixturenames:
        scenarios = dict(list(scenarios.items())[:1])
    metafunc.parametrize("scenario", scenarios.values(), ids=scenarios.keys())


@pytest.fixture
def subject(
    choice: Choice,
    scenario: Scenario,
    vmm_msi_open_backend: OpenBackend,
    pytestconfig: pytest.Config,
) -> Subject:
    """Return the strategy on the scenario."""
    return Subject(
        suite.plugins_for(choice.strategy),
        choice,
        scenario,
        vmm_msi_open_backend,
        several=pytestconfig.getoption("vmm_msi_backend") == "sim",
    )


@pytest.fixture
def of_strategy() -> None:
    """Mark a check that does not depend on the scenario."""


def run(check: Callable[[Subject], Iterator[Problem]], subject: Subject) -> None:
    """Fail with the problems that a check reports."""
    problems = conformance.problems(check, subject)
    plugin = subject.plugins.plugin(subject.choice.strategy)
    if problems:
        pytest.fail("\n".join(located(plugin, problem) for problem in problems), pytrace=False)


# The first test: what a strategy keeps in its class shows in the first run only.
def test_repeated_runs(subject: Subject) -> None:
    """Check that the same guest has the same verdicts each time."""
    run(conformance.repeated_runs, subject)


def test_verdicts(subject: Subject) -> None:
    """Check that each device has one verdict, and that ``delivered`` means its own ITS."""
    run(conformance.verdicts, subject)


def test_needs(subject: Subject) -> None:
    """Check that the strategy uses what it declares in its needs."""
    run(conformance.needs, subject)


def test_all_or_nothing(subject: Subject) -> None:
    """Check that a guest is attached as a whole or not at all, whichever call is refused."""
    run(conformance.all_or_nothing, subject)


def test_errno(subject: Subject) -> None:
    """Check that a refusal of the kernel keeps its error number."""
    run(conformance.errno, subject)


def test_undo_in_any_order(subject: Subject) -> None:
    """Check that devices are detached in any order, and that the backend is as before."""
    run(conformance.undo_in_any_order, subject)


def test_no_leak(subject: Subject) -> None:
    """Check that no stage 2, mapping, slot or binding is left, however often it is attached."""
    run(conformance.no_leak, subject)


def test_plan_domain(subject: Subject) -> None:
    """Check that the plan has each device once, and that planning changes nothing."""
    run(conformance.plan_domain, subject)


def test_unbind_twice(subject: Subject) -> None:
    """Check that unbinding an unbound doorbell does nothing."""
    run(conformance.unbind_twice, subject)


def test_options(subject: Subject, of_strategy: None) -> None:  # noqa: ARG001
    """Check that options are written as text, and that wrong ones are refused."""
    run(conformance.options, subject)
