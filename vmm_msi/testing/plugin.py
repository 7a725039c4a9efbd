"""The pytest plugin: fixtures for tests of plugins, and the options of the conformance suite.

pytest loads it by the entry-point group ``pytest11`` wherever vmm-msi is installed, so it imports
nothing of vmm-msi until a fixture or an option is used.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Protocol

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}; vmm_msi.testing needs it: pip install 'vmm-msi[testing]'", name=error.name
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from vmm_msi.config import Choice
    from vmm_msi.engine.compare import OpenBackend
    from vmm_msi.engine.session import GuestSession
    from vmm_msi.iommu.backend import Backend
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import Scenario

    class OpenSession(Protocol):
        """Opens a session of a scenario's guest on the simulator; see ``vmm_msi_session``."""

        def __call__(
            self, strategy: str, scenario: Scenario, profile: str | None = None
        ) -> GuestSession:
            """Open it."""
            ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of ``pytest --pyargs vmm_msi.testing``."""
    group = parser.getgroup("vmm-msi", "vmm-msi: conformance of strategies (vmm_msi.testing)")
    group.addoption(
        "--vmm-msi-strategy",
        action="append",
        default=[],
        metavar="NAME[:key=value,...]",
        help="an installed strategy to test; may be repeated; default: all, in every form",
    )
    group.addoption(
        "--vmm-msi-backend",
        choices=("sim", "lab"),
        default="sim",
        help="where strategies are tested: in the simulator (default), or on the kernel of an "
        "emulated Arm host, which starts once",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check what the options name, before any test runs.

    :raise pytest.UsageError: for a strategy that is unknown or that the backend cannot run.
    """
    if not config.getoption("vmm_msi_strategy"):
        return
    from vmm_msi.errors import VmmMsiError
    from vmm_msi.testing import suite

    try:
        suite.check(chosen(config), config.getoption("vmm_msi_backend"))
    except VmmMsiError as error:
        raise pytest.UsageError(str(error)) from error


def chosen(config: pytest.Config) -> list[Choice]:
    """Return the strategies to test."""
    from vmm_msi.testing import suite

    return suite.choices(config.getoption("vmm_msi_strategy"))


@pytest.fixture
def vmm_msi_plugins() -> PluginManager:
    """Return the installed plugins, in a manager of the test's own: register more."""
    from vmm_msi.plugins.manager import PluginManager

    return PluginManager.load()


@pytest.fixture(scope="session")
def vmm_msi_scenarios() -> Mapping[str, Scenario]:
    """Return the sample scenarios by name: hosts with a guest each, in many shapes."""
    from vmm_msi.testing.scenarios import sample_scenarios

    return sample_scenarios()


@pytest.fixture(scope="session")
def vmm_msi_pair() -> Callable[..., Scenario]:
    """Return :func:`vmm_msi.testing.scenarios.pair`: two devices behind one SMMU."""
    from vmm_msi.testing.scenarios import pair

    return pair


@pytest.fixture(scope="session")
def vmm_msi_sample() -> Callable[[str], Path]:
    """Return a function from the name of a sample file, ``eight-its-server.dtb``, to its path."""
    from vmm_msi.samples import path

    return path


@pytest.fixture
def vmm_msi_simulator() -> Iterator[Callable[[Scenario, str], Backend]]:
    """Yield a function from a scenario and the name of a kernel to a simulator of both."""
    from vmm_msi.engine.compare import open_simulator
    from vmm_msi.iommu.profiles import profile_named

    with ExitStack() as stack:
        yield lambda scenario, profile: stack.enter_context(
            closing(open_simulator(scenario, profile_named(profile)))
        )


@pytest.fixture
def vmm_msi_session(vmm_msi_plugins: PluginManager) -> Iterator[OpenSession]:
    """Yield a function that opens a session: strategy, scenario and, if not the newest, kernel.

    At the end of the test every device is detached; what is left fails the test.
    """
    from vmm_msi.testing.suite import open_session

    with ExitStack() as stack:
        yield lambda strategy, scenario, profile=None: stack.enter_context(
            open_session(vmm_msi_plugins, strategy, scenario, profile)
        )


@pytest.fixture(scope="session")
def vmm_msi_open_backend(pytestconfig: pytest.Config) -> Iterator[OpenBackend]:
    """Yield a function that opens the conformance suite's backend; the lab boots once."""
    from vmm_msi.testing import suite

    with suite.backends(chosen(pytestconfig), pytestconfig.getoption("vmm_msi_backend")) as opened:
        yield opened
