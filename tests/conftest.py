"""Fixtures for several folders of tests: shared folders, the lab's root and its libvirtd."""

from __future__ import annotations

import os
import sys
import tomllib
from collections import Counter
from contextlib import ExitStack
from functools import cache
from importlib.metadata import distribution

import hypothesis
import pytest
from depth import depth
from other_user import shared_folder

from vmm_msi.errors import LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.build.root import ensure_root
from vmm_msi.lab.machine.daemon import LabDaemon

# Test machines are shared: examples have no deadline, tests have pytest's timeout.
hypothesis.settings.register_profile("vmm-msi", deadline=None, max_examples=depth(100))
hypothesis.settings.load_profile("vmm-msi")


def unavailable(reason):
    """Skip with ``reason``; fail in CI, which has every prerequisite."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI this must not be skipped: {reason}", pytrace=False)
    pytest.skip(reason)


#: The Debian suites whose libvirt is run, by its release.
SUITES = {"9.0": "bookworm", "11.3": "trixie", "12.8": DEFAULT_SUITE}

_DEFAULT_CACHE = caches.default_cache
_COUNTS = pytest.StashKey[Counter[str]]()


#: Folders with fixtures that take seconds and serve all tests there.
ONE_WORKER = ("tests/fuzz/", "tests/packaging/")

#: Fixtures that need the lab or a browser; the tests that use them get the marker here.
LAB_FIXTURES = {
    "bind_images",
    "browser",
    "daemon_of",
    "its_emulator",
    "lab_daemon",
    "lab_host",
    "lab_images",
    "lab_root",
}


def pytest_collection_modifyitems(items):
    for item in items:
        if not LAB_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("lab_root")


def _refuse():
    pytest.fail("it uses the lab's cache: mark it with pytest.mark.lab_root", pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Keep tests without the marker from the lab's cache, so that no marker is forgotten."""
    is_marked = item.get_closest_marker("lab_root") is not None
    caches.default_cache = _DEFAULT_CACHE if is_marked else _refuse


def pytest_configure(config):
    # argparse's messages are the original ones, and it searches no folder for translations.
    os.environ["LANGUAGE"] = "C"
    config.stash[_COUNTS] = Counter()
    check_entry_points(config.rootpath / "pyproject.toml")


def check_entry_points(path):
    """Stop if the installed plugins are not those of ``pyproject.toml``."""
    declared = tomllib.loads(path.read_text())["project"]["entry-points"]["vmm_msi"]
    installed = distribution("vmm-msi").entry_points.select(group="vmm_msi")
    if {point.name: point.value for point in installed} != declared:
        pytest.exit("the installed entry points are not those of pyproject.toml: run make setup", 4)


def pytest_sessionfinish(session):
    """Hand the counts of a worker to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = dict(session.config.stash[_COUNTS])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[_COUNTS].update(getattr(node, "workeroutput", {}).get("counts", {}))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Distribute tests one by one, but each folder of ``ONE_WORKER`` as a whole, and first.

    With ``--dist loadfile``, xdist's own scheduler distributes them file by file.

    xdist's own ``--dist loadgroup`` groups nothing under pytest 9.2: it sets the private name of a
    test, which pytest does not read any more.
    """
    if config.getvalue("dist") == "loadfile":
        return None

    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return next(filter(nodeid.startswith, ONE_WORKER), nodeid)

    return Scheduler(config, log)


def pytest_terminal_summary(terminalreporter, config):
    """Print the numbers that the tests counted, such as checks on a substitute release."""
    counts = config.stash[_COUNTS]
    if counts:
        terminalreporter.section("counted")
    for label, number in sorted(counts.items()):
        terminalreporter.write_line(f"{number:6} {label}")


@pytest.fixture(scope="session")
def counts(pytestconfig):
    """Counts that are printed at the end of the run."""
    return pytestconfig.stash[_COUNTS]


@pytest.fixture
def shared():
    """A folder that every user may write to, as /tmp is."""
    with shared_folder() as folder:
        yield folder


def root_of(suite):
    """Return the cached root of a suite; build it if the cache has none."""
    if os.geteuid() != 0:
        unavailable("the lab's root runs under chroot: not root")
    try:
        return ensure_root(suite, progress=Progress(sys.stderr, "lab root"))
    except LabError as error:
        unavailable(f"no lab root of {suite}: {error}")


@pytest.fixture(scope="session")
def lab_root():
    """The cached root with a current libvirt and QEMU, built if necessary."""
    return root_of(DEFAULT_SUITE)


@pytest.fixture(scope="session")
def lab_daemon(lab_root):
    """A libvirtd of the lab's root that runs for the whole session."""
    with LabDaemon(lab_root) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def daemon_of():
    """Return a libvirtd by its release, started once and running for the rest of the session."""
    with ExitStack() as stack:
        yield cache(lambda release: stack.enter_context(LabDaemon(root_of(SUITES[release]))))
