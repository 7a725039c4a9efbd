"""Run the patched kernel with 64K pages: ``make lab-64k``, a minute once the kernel is built.

With 4K pages the cases and random call sequences are part of ``make test`` (``test_conform.py``).
"""

from __future__ import annotations

import pytest
from binding_cases import LARGE_CASES
from conftest import unavailable
from lab.test_conform import both_sides, check_cases, quiet, text_of

from vmm_msi.lab.build.images import find_images
from vmm_msi.lab.build.kernel_flavour import BIND
from vmm_msi.lab.conformance import conform
from vmm_msi.lab.conformance.random_sequences import draw_sequences
from vmm_msi.lab.machine.emulated_host import LabHost
from vmm_msi.lab.machine.shape import Shape
from vmm_msi.types import Granule

pytestmark = [pytest.mark.lab_root, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def sides(lab_root):
    """A simulator of an emulated host with 64K pages, and its kernel as the other side."""
    if find_images(granule=Granule.K64, kernel=BIND) is None:
        unavailable(
            "no kernel bind with 64K pages: run vmm-msi lab build --kernel bind --granule 64K"
        )
    with (
        LabHost(Shape(kernel=BIND, granule=Granule.K64)) as host,
        both_sides(host) as (simulator, side),
    ):
        assert host.hello["page_size"] == 1 << 16
        assert simulator.host.granule is Granule.K64
        assert simulator.bindings
        yield simulator, side


def test_linux_follows_the_rules_of_64k_pages(sides):
    check_cases(*sides, LARGE_CASES.values())


def test_linux_is_as_the_simulator_says(sides):
    simulator, side = sides
    report = conform.compare(simulator, side, draw_sequences(simulator, 60, 1), quiet)
    assert not report.mismatches, text_of(report)
