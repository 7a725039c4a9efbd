"""The pytest plugin as a third party uses it: fixtures, options, the suite of a strategy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vmm_msi.testing import conformance, plugin
from vmm_msi.testing import test_conformance as suite_tests

TEST = """
from vmm_msi.plugins import Capability, Needs, Strategy
from vmm_msi.types import Outcome


class Mine(Strategy):
    name = "mine"
    summary = "the defaults"

    def needs(self, options):
        return Needs(Capability.SW_MSI, frozenset({Capability.SW_MSI}))


def test_session(vmm_msi_plugins, vmm_msi_session, vmm_msi_pair):
    vmm_msi_plugins.register(Mine)
    session = vmm_msi_session("mine", vmm_msi_pair("own", itses=2))
    assert [v.outcome for v in session.attach_and_deliver()] == [Outcome.S1_FAULT] * 2
    assert session.backend.costs().s2_domains == 1


def test_kernel(vmm_msi_session, vmm_msi_scenarios):
    session = vmm_msi_session(
        "multi-its:mode=s2", vmm_msi_scenarios["one-device"], profile="series-v8"
    )
    assert session.backend.info.profile == "series-v8"


def test_simulator(vmm_msi_simulator, vmm_msi_pair):
    backend = vmm_msi_simulator(vmm_msi_pair(), "linux-7.2")
    backend.alloc_s2(0)
    assert backend.costs().s2_domains == 1


def test_sample(vmm_msi_sample):
    assert vmm_msi_sample("eight-its-server.dtb").is_file()
"""

LEAKS = """
from vmm_msi.plugins import Capability, Needs, Strategy


class Leaks(Strategy):
    name = "leaks"

    def needs(self, options):
        return Needs(Capability.SW_MSI, frozenset({Capability.SW_MSI}))

    def vmm_msi_attach_domain(self, session):
        session.backend.alloc_s2(0)


def test_undo(vmm_msi_plugins, vmm_msi_session, vmm_msi_pair):
    vmm_msi_plugins.register(Leaks)
    session = vmm_msi_session("leaks", vmm_msi_pair())
    session.attach_all()
"""

IMPORTED = """
import json, sys

def test_imports():
    names = sorted(name for name in sys.modules if name.partition(".")[0] in {"vmm_msi", "msgspec"})
    print("imported:" + json.dumps(names))
"""


DOCS = Path(__file__).parents[2] / "docs" / "plugins.md"


@pytest.fixture
def run_pytest(tmp_path):
    """Return a function that runs pytest in a folder of its own, apart from this project."""

    def run(*arguments, files=()):
        for name, text in dict(files).items():
            (tmp_path / name).write_text(text)
        command = [sys.executable, "-m", "pytest", "-p", "vmm_msi.testing.plugin"]
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_fixtures(run_pytest):
    code, output = run_pytest("-q", files={"test_mine.py": TEST})
    assert code == 0, output
    assert "4 passed" in output


def test_a_session_that_leaves_something_fails_the_test(run_pytest):
    code, output = run_pytest("-q", files={"test_leaks.py": LEAKS})
    assert code == 1
    assert "strategy leaks: 1 stage 2 table left after all devices were detached" in output


def test_the_suite_of_a_strategy(run_pytest):
    suite = ["--pyargs", "vmm_msi.testing", "--vmm-msi-strategy", "multi-its:mode=vits"]
    code, output = run_pytest("-q", *suite, "-k", "two-smmus or options")
    assert code == 0, output
    assert "10 passed" in output
    code, output = run_pytest("--collect-only", "-q", *suite)
    assert "::test_all_or_nothing[multi-its:mode=vits-2-its-own-2-vits-batched]" in output


def test_every_strategy_without_an_option(run_pytest):
    code, output = run_pytest("--collect-only", "-q", "--pyargs", "vmm_msi.testing")
    assert code == 0, output
    for name in ("identity", "coerced:revision=v4", "mapped-page:mode=s2"):
        assert f"::test_no_leak[{name}-one-device]" in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["drect"],
            "ERROR: strategy 'drect': no such plugin; did you mean direct? installed: coerced, ",
        ),
        (["direct:page=1"], "ERROR: strategy direct: unknown option 'page'; "),
        (["coerced:revision=v9"], "ERROR: strategy coerced: invalid value revision='v9'; valid: "),
        (
            ["window", "--vmm-msi-backend", "lab"],
            "ERROR: strategy window: needs sw-msi-move, which no kernel of the lab has; use ",
        ),
        (["first-in-group"], "ERROR: strategy 'first-in-group': no such plugin; "),
    ],
)
def test_what_cannot_be_tested_is_an_error_before_any_test(run_pytest, arguments, text):
    code, output = run_pytest("--pyargs", "vmm_msi.testing", "--vmm-msi-strategy", *arguments)
    assert code == 4
    assert text in output
    assert "Traceback" not in output


def test_a_run_that_uses_none_of_it_imports_none_of_it(run_pytest):
    code, output = run_pytest("-q", "-s", files={"test_imports.py": IMPORTED})
    assert code == 0, output
    (line,) = [line for line in output.splitlines() if "imported:" in line]
    names = json.loads(line.partition("imported:")[2].rstrip("."))
    assert names == ["vmm_msi", "vmm_msi.testing", "vmm_msi.testing.plugin"]


def test_without_pytest_the_error_says_what_to_install():
    script = "import sys; sys.modules['pytest'] = None; import vmm_msi.testing.plugin"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert last.endswith("vmm_msi.testing needs it: pip install 'vmm-msi[testing]'")


def test_fixtures_and_checks_are_described():
    def described(pattern):
        return set(re.findall(rf"^\| `({pattern})` \|", DOCS.read_text(), re.MULTILINE))

    fixtures = re.findall(r"^def (vmm_msi_\w+)", Path(plugin.__file__).read_text(), re.MULTILINE)
    assert described(r"vmm_msi_\w+") == set(fixtures)
    assert described(r"test_\w+") == {
        name for name in vars(suite_tests) if name.startswith("test_")
    }
    checks = (*conformance.SCENARIO_CHECKS, *conformance.STRATEGY_CHECKS)
    assert described(r"test_\w+") == {f"test_{check.__name__}" for check in checks}


def test_the_example_of_the_documentation(run_pytest):
    code, output = run_pytest(
        "-q",
        files={
            "vmm_msi_example.py": example_of("A complete distribution"),
            "test_example.py": example_of("Fixtures"),
        },
    )
    assert code == 0, output
    assert "1 passed" in output


def example_of(heading):
    """Return the first Python block of a section of the documentation."""
    section = re.search(rf"^##+ {heading}$.*?(?=^##)", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    return re.search(r"```python\n(.*?)^```", section[0], re.MULTILINE | re.DOTALL)[1]


@pytest.mark.lab_root
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["identity", "coerced:revision=v8"])
def test_the_suite_on_the_kernel_of_the_emulated_host(run_pytest, strategy, lab_root):
    code, output = run_pytest(
        "-q", "--pyargs", "vmm_msi.testing", "--vmm-msi-strategy", strategy,
        "--vmm-msi-backend", "lab", "-k", "2-its-own-1-vits or two-smmus or one-group or options",
    )  # fmt: skip
    assert code == 0, output
    assert "37 passed" in output
