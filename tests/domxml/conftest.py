from pathlib import Path

import pytest

from vmm_msi.domxml.editor import Assignment
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import BindingRecord
from vmm_msi.domxml.support import Support, Version
from vmm_msi.types import GuestPlan, Iova, Ipa, Outcome, PciAddress, VsmmuPlan

GOLDEN = Path(__file__).parent / "golden"

A, B, C, D = (PciAddress.parse(f"000{segment}:01:00.0") for segment in range(4))

LEVELS = {
    "libvirt-9.0": Support(Version(9, 0)),
    "libvirt-11.3": Support(Version(11, 3), Version(10, 0)),
    "libvirt-11.10": Support(Version(11, 10), Version(10, 2)),
    "libvirt-12.1": Support(Version(12, 1), Version(11, 0)),
    "libvirt-12.2": Support(Version(12, 2), Version(11, 0)),
    "libvirt-12.8": Support(Version(12, 8), Version(11, 1)),
}

PLANS = {
    "one": GuestPlan((VsmmuPlan(0, (A,)),)),
    "three": GuestPlan((VsmmuPlan(0, (A,), its=0), VsmmuPlan(1, (B, C), its=1))),
}


def pytest_addoption(parser):
    parser.addoption(
        "--write-golden",
        action="store_true",
        help="write the golden XML outputs of tests/domxml instead of comparing with them",
    )


@pytest.fixture
def golden(request):
    """Compare a text with a golden file, or write it; a missing file fails."""

    def compare(name, text):
        path = GOLDEN / name
        if request.config.getoption("--write-golden", default=False):
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{name} is missing; run pytest tests/domxml --write-golden"
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture
def read():
    """Read a golden input."""

    def read(name):
        path = GOLDEN / f"{name}.in.xml"
        return DomainXml.parse(path.read_bytes(), path.name)

    return read


@pytest.fixture
def assignments():
    binding = BindingRecord(
        Iova(0xFFFFF000), Ipa(0x8090000), (Iova(0xFFFFF040),), Outcome.DELIVERED
    )
    return {
        A: Assignment("multi-its", "sim", its=0, options={"mode": "s2"}, binding=binding),
        B: Assignment("multi-its", "sim", its=1),
        C: Assignment("identity", "qemu", its=1),
        D: Assignment("identity", "qemu"),
    }


@pytest.fixture(params=LEVELS)
def level(request):
    return request.param


@pytest.fixture
def layout(level):
    return LEVELS[level].layout()


@pytest.fixture(params=PLANS)
def plan_name(request):
    return request.param


@pytest.fixture
def plan(plan_name):
    return PLANS[plan_name]
