"""Sources about one host, merged: which one decides, and what the others add."""

from __future__ import annotations

from dataclasses import replace

import pytest
from described_host import load_host

from vmm_msi import samples
from vmm_msi.errors import TopologyError
from vmm_msi.host.join import host_of_functions, join
from vmm_msi.host.resolve import resolve
from vmm_msi.types import Granule, Pa, PciAddress, PciFunction, ReservedKind, ReservedRegion, Smmu
from vmm_msi.types.pci_function import VfioEvidence

BOARD = load_host(samples.path("eight-its-server.dtb"))
A, B, C = (PciAddress(segment, 1, 0, 0) for segment in range(3))


def listed(*functions, name="list", **more):
    return host_of_functions(name, functions, **more)


def test_routes_of_one_and_functions_of_the_other():
    system = listed(PciFunction(A, iommu_group=9, members=(A, B)), missing=("routes",))
    for sources in ((BOARD, system), (system, BOARD)):
        host = join(sources)
        assert (host.routes, host.itses, host.missing) == (BOARD.routes, BOARD.itses, ())
        assert host.functions == system.functions
        assert resolve(host, A).iommu_group == 9
    assert join((BOARD, system)).source == f"{BOARD.source} + list"
    assert join((BOARD, system), "both").source == "both"


def test_the_first_source_decides_and_the_second_fills_gaps():
    region = ReservedRegion(0xC6000000, 0x20000, ReservedKind.HW_MSI)
    first = PciFunction(A, iommu_group=1, vectors=0, driver="ice")
    second = PciFunction(
        A, iommu_group=2, members=(A, B), vectors=8, ats=False, dma_rids=(1, 2), reserved=(region,)
    )
    assert join((listed(first), listed(second))).functions == (
        replace(first, ats=False, dma_rids=(1, 2), reserved=(region,)),
    )
    assert join((listed(PciFunction(A)), listed(second))).functions == (second,)


def test_evidence_of_vfio_belongs_to_its_driver():
    bound = PciFunction(A, driver="migratable_net", vfio=VfioEvidence.VFIO_DEV)
    for first in (PciFunction(A), PciFunction(A, driver="migratable_net")):
        assert join((listed(first), listed(bound))).functions == (bound,)
    unbound = PciFunction(A, driver="mlx5_core")
    assert join((listed(unbound), listed(bound))).functions == (unbound,)


def test_all_functions_by_address():
    host = join((listed(PciFunction(C), PciFunction(A)), listed(PciFunction(B))))
    assert [function.address for function in host.functions] == [A, B, C]


def test_page_size_of_a_source_that_has_it():
    known = replace(BOARD, granule_known=True)
    assert join((BOARD, listed(granule=Granule.K64))).granule == Granule.K64
    assert join((known, listed(granule=Granule.K64))).granule == Granule.K4
    assert not join((BOARD, listed())).granule_known


def test_smmus_of_a_source_that_lists_them():
    system = replace(listed(PciFunction(A)), smmus=(Smmu(0, Pa(0x1000)),))
    host = join((listed(PciFunction(A), missing=("a table",)), system))
    assert host.smmus == system.smmus
    with pytest.raises(TopologyError, match=r"finding 0000:01:00.0 in list: a table"):
        resolve(host, A)
