"""Every golden output is defined on a real libvirt, which must keep all of it.

No Debian release has libvirt 11.10, 12.1 or 12.2. The outputs for these are defined on the next
later tested libvirt, which must keep it; these are counted and printed at the end of the run.
"""

from __future__ import annotations

import pytest
from conftest import SUITES
from domxml.conftest import GOLDEN, LEVELS, PLANS

from vmm_msi.domxml import editor
from vmm_msi.domxml.index_gaps import close_gaps
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.support import Version
from vmm_msi.libvirt_driver import connect, redefine

pytestmark = pytest.mark.lab_root

REAL = {release: Version(*map(int, release.split("."))) for release in SUITES}


def release_for(level):
    """Return the first tested release that is not older than that of ``level``."""
    oldest = LEVELS[level].libvirt
    return next(release for release, version in REAL.items() if version >= oldest)


@pytest.fixture(params=["test", "qemu"])
def driver(request):
    return request.param


@pytest.fixture
def connection(level, driver, daemon_of):
    daemon = daemon_of(release_for(level))
    with connect(daemon.uri if driver == "qemu" else daemon.test_uri) as opened:
        yield opened


def count(counts, level, driver):
    """Count a golden output by the release that it was defined on."""
    release = release_for(level)
    own = LEVELS[level].libvirt[:2] == REAL[release][:2]
    where = "that release" if own else f"libvirt {release}, for want of that release"
    counts[f"golden outputs for {level} defined by the {driver} driver of {where}"] += 1


def adapted_to(domain, driver):
    """Return ``domain`` as a guest of the driver; QEMU emulates, there is no KVM for aarch64."""
    guest = domain.copy()
    guest.root.set("type", driver)
    guest.root.find("os/type").set("machine", "virt")
    return guest


def settled(connection, domain):
    """Define a guest twice: libvirt 9.0 sorts its own additions when it reads them again."""
    return connection.define(connection.define(domain))


@pytest.mark.parametrize("name", ["plain", "busy"])
def test_golden_is_defined(name, level, driver, plan_name, connection, read, counts):
    path = GOLDEN / f"{name}.{plan_name}.{level}.xml"
    old = settled(connection, adapted_to(read(name), driver))
    try:
        written = DomainXml.parse(path.read_bytes(), path.name)
        redefine(connection, name, old, adapted_to(written, driver))
        redefine(connection, name, old, old)
        assert str(connection.domain_xml(name)) == str(old)
    finally:
        connection.undefine(name)
    count(counts, level, driver)


@pytest.mark.parametrize("name", ["plain", "busy"])
def test_attach_is_undone_after_define(
    name, level, driver, plan_name, connection, read, layout, assignments
):
    old = settled(connection, adapted_to(read(name), driver))
    try:
        new = editor.apply(old, PLANS[plan_name], layout, assignments)
        redefine(connection, name, old, new)
        for vsmmu in PLANS[plan_name].vsmmus:
            for host in vsmmu.devices:
                now = connection.domain_xml(name)
                redefine(connection, name, now, close_gaps(editor.remove(now, host)))
        assert str(connection.domain_xml(name)) == str(old)
    finally:
        connection.undefine(name)
