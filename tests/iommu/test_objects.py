"""The objects of a simulated /dev/iommu: which calls are refused, and with which errno."""

from __future__ import annotations

import pytest
from depth import depth
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmm_msi.errors import BackendError, errno_name
from vmm_msi.iommu.sim.core import IommuCore
from vmm_msi.iommu.sim.iommufd import SimIommufd
from vmm_msi.iommu.sim.objects import GuestSte, Ioas, SteConfig
from vmm_msi.iommu.sim.page_table import PageTable
from vmm_msi.iommu.sim.smmu import Stage1Config
from vmm_msi.types import (
    SW_MSI_WINDOW,
    DeviceId,
    Granule,
    HostDevice,
    HostTopology,
    Ipa,
    Its,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Smmu,
    StreamId,
)

RAM = 0x4000_0000
S1 = Stage1Config(asid=1, table=PageTable(Granule.K4), root=Ipa(RAM))
TRANSLATE = GuestSte(SteConfig.TRANSLATE, S1)
ITSES = tuple(Its(i, Pa(0x2_0000_0000 + i * 0x100_0000)) for i in range(70))
HOST = HostTopology(
    "test", Granule.K4, (Smmu(0), Smmu(1), Smmu(2, nested=False)), ITSES
)  # fmt: skip


def device(bus, *, smmu=0, group=None, streams=1, reserved=(SW_MSI_WINDOW,)):
    return HostDevice(
        PciAddress(0, bus, 0, 0), smmu, StreamId(bus), (0,), DeviceId(bus), group or bus, 1,
        reserved, streams,
    )  # fmt: skip


def code(call, *arguments, **named):
    with pytest.raises(BackendError) as refusal:
        call(*arguments, **named)
    return errno_name(refusal.value.errno)


@pytest.fixture
def fd():
    return SimIommufd(HOST)


def ready(fd, *devices):
    """Bind devices; allocate an IOAS with RAM, a nest parent and a vIOMMU on SMMU 0."""
    ids = [fd.bind(host) for host in devices]
    ioas = fd.ioas_alloc()
    fd.ioas_map(ioas, RAM, 0x10_0000, 0x9_0000_0000)
    hwpt = fd.hwpt_alloc(ids[0], ioas)
    return ids, ioas, hwpt, fd.viommu_alloc(ids[0], hwpt)


def test_a_vdevice_comes_before_a_stage_1(fd):
    (a,), _ioas, _hwpt, viommu = ready(fd, device(1))
    nested = fd.hwpt_alloc_nested(a, viommu, TRANSLATE)
    assert code(fd.attach, a, nested) == "ENOENT"
    fd.vdevice_alloc(viommu, a, 0x100)
    fd.attach(a, nested)


@pytest.mark.parametrize("config", [SteConfig.BYPASS, SteConfig.ABORT])
def test_bypass_and_abort_need_no_vdevice(fd, config):
    (a,), _ioas, _hwpt, viommu = ready(fd, device(1))
    fd.attach(a, fd.hwpt_alloc_nested(a, viommu, GuestSte(config)))


def test_a_vdevice_has_one_stream(fd):
    (a,), _ioas, _hwpt, viommu = ready(fd, device(1, streams=2))
    assert code(fd.vdevice_alloc, viommu, a, 1) == "EOPNOTSUPP"
    assert code(fd.destroy, viommu + 99) == "ENOENT"
    fd.destroy(viommu)


def test_one_vdevice_per_device_and_one_device_per_stream_id(fd):
    (a, b, c), _ioas, _hwpt, viommu = ready(fd, device(1), device(2), device(3, smmu=1))
    first = fd.vdevice_alloc(viommu, a, 1)
    assert code(fd.vdevice_alloc, viommu, a, 2) == "EEXIST"
    assert code(fd.vdevice_alloc, viommu, b, 1) == "EEXIST"
    assert code(fd.vdevice_alloc, viommu, c, 3) == "EINVAL"
    assert code(fd.destroy, viommu) == "EBUSY"
    fd.destroy(first)
    fd.vdevice_alloc(viommu, b, 1)


def test_a_viommu_needs_a_nest_parent_of_its_smmu(fd):
    a, b, c = (fd.bind(d) for d in (device(1), device(2, smmu=1), device(3, smmu=2)))
    ioas = fd.ioas_alloc()
    plain = fd.hwpt_alloc(a, ioas, nest_parent=False)
    assert code(fd.viommu_alloc, a, plain) == "EINVAL"
    parent = fd.hwpt_alloc(a, ioas)
    assert code(fd.viommu_alloc, b, parent) == "EINVAL"
    assert code(fd.viommu_alloc, c, parent) == "EOPNOTSUPP"
    assert code(fd.hwpt_alloc, c, ioas) == "EOPNOTSUPP"
    assert code(fd.viommu_alloc, a, ioas) == "ENOENT"
    fd.viommu_alloc(a, parent)


def test_only_a_translating_entry_has_a_stage_1(fd):
    (a,), _ioas, _hwpt, viommu = ready(fd, device(1))
    assert code(fd.hwpt_alloc_nested, a, viommu, GuestSte(SteConfig.TRANSLATE)) == "EIO"
    assert code(fd.hwpt_alloc_nested, a, viommu, GuestSte(SteConfig.BYPASS, S1)) == "EIO"
    assert code(fd.hwpt_alloc_nested, a, viommu, GuestSte(None)) == "EIO"


def test_an_attached_device_and_its_group(fd):
    ids, _ioas, _hwpt, viommu = ready(fd, device(1, group=9), device(2, group=9))
    for number, dev_id in enumerate(ids):
        fd.vdevice_alloc(viommu, dev_id, number)
    one, two = (fd.hwpt_alloc_nested(ids[0], viommu, TRANSLATE) for _ in range(2))
    fd.attach(ids[0], one)
    assert code(fd.attach, ids[0], one) == "EBUSY"
    assert code(fd.attach, ids[1], two) == "EINVAL"
    fd.attach(ids[1], one)
    assert code(fd.destroy, one) == "EBUSY"
    fd.detach(ids[0])
    assert code(fd.attach, ids[0], two) == "EINVAL"
    fd.detach(ids[1])
    fd.attach(ids[0], two)


def test_a_device_of_another_smmu_is_refused_at_attach_too(fd):
    (a, b), _ioas, _hwpt, viommu = ready(fd, device(1), device(2, smmu=1))
    fd.vdevice_alloc(viommu, a, 1)
    bypass = fd.hwpt_alloc_nested(a, viommu, GuestSte(SteConfig.BYPASS))
    assert code(fd.attach, b, bypass) == "EINVAL"


def test_ioas_map_and_unmap(fd):
    ioas = fd.ioas_alloc()
    fd.hwpt_alloc(fd.bind(device(1)), ioas)
    for iova, size, expected in [
        (RAM + 0x800, 0x1000, "EINVAL"),
        (RAM, 0x800, "EINVAL"),
        (RAM, 0, "EINVAL"),
        ((1 << 64) - 0x1000, 0x2000, "EOVERFLOW"),
    ]:
        assert code(fd.ioas_map, ioas, iova, size, 0x9_0000_0000) == expected
    fd.ioas_map(ioas, RAM, 0x2000, 0x9_0000_0000)
    assert code(fd.ioas_map, ioas, RAM + 0x1000, 0x1000, 0x9_0000_0000) == "EEXIST"
    assert code(fd.ioas_unmap, ioas, RAM + 0x1000, 0x1000) == "ENOENT"
    assert fd.ioas_unmap(ioas, RAM, 0x3000) == 0x2000
    assert code(fd.ioas_unmap, ioas, RAM, 0x2000) == "ENOENT"


def test_a_mapping_reaches_every_stage_2_of_the_ioas(fd):
    a, b = fd.bind(device(1)), fd.bind(device(2, smmu=1))
    ioas = fd.ioas_alloc()
    fd.ioas_map(ioas, RAM, 0x2000, 0x9_0000_0000)
    one, two = fd.hwpt_alloc(a, ioas), fd.hwpt_alloc(b, ioas)
    fd.ioas_map(ioas, 0x1000, 0x1000, 0xA_0000_0000)
    for hwpt in (one, two):
        assert fd.hwpt(hwpt).table.lookup(RAM + 8).output == 0x9_0000_0008
        assert fd.hwpt(hwpt).table.lookup(0x1010).output == 0xA_0000_0010
    fd.ioas_unmap(ioas, 0x1000, 0x1000)
    assert fd.hwpt(two).table.lookup(0x1010) is None
    assert code(fd.destroy, ioas) == "EBUSY"
    fd.destroy(one)
    fd.destroy(two)
    fd.destroy(ioas)


def test_reserved_regions_belong_to_the_ioas_not_to_the_stage_2(fd):
    (a, b), ioas, _hwpt, viommu = ready(fd, device(1), device(2, smmu=1))
    fd.vdevice_alloc(viommu, a, 1)
    fd.attach(a, fd.hwpt_alloc_nested(a, viommu, TRANSLATE))
    fd.hwpt_alloc(b, ioas)
    assert code(fd.ioas_map, ioas, SW_MSI_WINDOW.base, 0x1000, 0) == "EINVAL"
    fd.detach(a)
    fd.ioas_map(ioas, SW_MSI_WINDOW.base, 0x1000, 0)


def test_a_relaxable_region_reserves_nothing(fd):
    relaxable = ReservedRegion(RAM, 0x1000, ReservedKind.DIRECT_RELAXABLE)
    (a,), _ioas, _hwpt, viommu = ready(fd, device(1, reserved=(SW_MSI_WINDOW, relaxable)))
    fd.vdevice_alloc(viommu, a, 1)
    fd.attach(a, fd.hwpt_alloc_nested(a, viommu, TRANSLATE))


class Objects(RuleBasedStateMachine):
    """Calls in any order, on any ids: a refused call changes nothing, counts stay correct."""

    def __init__(self):
        super().__init__()
        self.fd = SimIommufd(HOST)
        shapes = [device(1), device(2, group=1), device(3, smmu=1), device(4, streams=2)]
        self.devices = [self.fd.bind(shape) for shape in shapes]

    def call(self, name, *arguments, **named):
        before = self.state()
        try:
            getattr(self.fd, name)(*arguments, **named)
        except BackendError:
            assert self.state() == before

    def state(self):
        objects = self.fd._objects
        return {
            number: (
                type(existing),
                existing.users,
                dict(existing.iopt.areas) if isinstance(existing, Ioas) else {},
            )
            for number, existing in objects.items()
        }

    number = st.integers(1, 24)

    @rule()
    def ioas(self):
        self.call("ioas_alloc")

    @rule(ioas=number, page=st.integers(0, 0x10), size=st.integers(1, 4))
    def map(self, ioas, page, size):
        self.call("ioas_map", ioas, 0x7FF_8000 + page * 0x1000, size * 0x1000, 0x9_0000_0000)

    @rule(ioas=number, page=st.integers(0, 0x10))
    def unmap(self, ioas, page):
        self.call("ioas_unmap", ioas, 0x7FF_8000 + page * 0x1000, 0x1000)

    @rule(which=number, ioas=number, parent=st.booleans())
    def hwpt(self, which, ioas, parent):
        self.call("hwpt_alloc", which, ioas, nest_parent=parent)

    @rule(which=number, hwpt=number)
    def viommu(self, which, hwpt):
        self.call("viommu_alloc", which, hwpt)

    @rule(viommu=number, which=number, virt_id=st.integers(0, 3))
    def vdevice(self, viommu, which, virt_id):
        self.call("vdevice_alloc", viommu, which, virt_id)

    @rule(which=number, viommu=number, config=st.sampled_from(SteConfig), with_s1=st.booleans())
    def nested(self, which, viommu, config, with_s1):
        self.call("hwpt_alloc_nested", which, viommu, GuestSte(config, S1 if with_s1 else None))

    @rule(which=number, hwpt=number)
    def attach(self, which, hwpt):
        self.call("attach", which, hwpt)

    @rule(which=st.integers(1, 4))
    def detach(self, which):
        self.call("detach", which)

    @rule(number=st.integers(5, 24))
    def destroy(self, number):
        self.call("destroy", number)

    @invariant()
    def users_are_the_references(self):
        objects = list(self.fd._objects.values())
        for target in objects:
            references = sum(
                getattr(other, name, None) is target
                for other in objects
                for name in ("ioas", "hwpt", "viommu")
            )
            attached = sum(
                len(group.attached) for group in self.fd._groups.values() if group.hwpt is target
            )
            assert target.users == references + attached


def test_calls_in_any_order():
    case = Objects.TestCase()
    case.settings = settings(max_examples=depth(150), stateful_step_count=40)
    case.runTest()


def test_the_65th_doorbell_has_no_slot():
    core = IommuCore(HOST)
    fd, shape = SimIommufd(HOST, core), device(1)
    (a,), _ioas, _hwpt, viommu = ready(fd, shape)
    fd.vdevice_alloc(viommu, a, 1)
    fd.attach(a, fd.hwpt_alloc_nested(a, viommu, TRANSLATE))
    pages = [core.prepare_msi(shape, its.doorbell) for its in ITSES[:64]]
    assert pages == [SW_MSI_WINDOW.base + number * 0x1000 + 0x40 for number in range(64)]
    assert code(core.prepare_msi, shape, ITSES[64].doorbell) == "EOVERFLOW"
