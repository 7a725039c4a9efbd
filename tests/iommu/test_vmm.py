"""The VMM's procedure on /dev/iommu: its calls, and no object is left after any refused call."""

from __future__ import annotations

import errno

import pytest
from kernel_cases import HOST

from vmm_msi.errors import BackendError
from vmm_msi.iommu.sim.core import IommuCore
from vmm_msi.iommu.sim.iommufd import SimIommufd
from vmm_msi.iommu.sim.objects import GuestSte, SteConfig
from vmm_msi.iommu.sim.page_table import PageTable
from vmm_msi.iommu.sim.smmu import Stage1Config
from vmm_msi.iommu.vmm import RamMapping, Vmm, VmmDevice
from vmm_msi.types import Granule, Ipa

RAM = RamMapping(0x4000_0000, 0x20_0000, 0x4000_0000_0000)
STE = GuestSte(SteConfig.TRANSLATE, Stage1Config(1, PageTable(Granule.K4), Ipa(RAM.ipa)))
#: Of the devices of HOST: two behind SMMU 0, the two of an IOMMU group, one behind SMMU 1.
A, B, C, D, E = (HOST.devices[number].address for number in (0, 1, 2, 3, 4))


CALLS = {
    "ioas_alloc",
    "ioas_map",
    "hwpt_alloc",
    "viommu_alloc",
    "vdevice_alloc",
    "hwpt_alloc_nested",
    "attach",
}


class FailingIommufd:
    """Refuses the call ``fail_at`` of CALLS, counted from 1; 0 for none."""

    def __init__(self):
        self._fd = SimIommufd(HOST, IommuCore(HOST))
        self.restart()

    def restart(self, fail_at=0):
        self.calls, self.fail_at = (), fail_at

    def __getattr__(self, name):
        method = getattr(self._fd, name)

        def call(*arguments, **named):
            if name in CALLS:
                self.calls = (*self.calls, name)
                if len(self.calls) == self.fail_at:
                    raise BackendError(errno.ENOMEM, name)
            return method(*arguments, **named)

        return call

    def state(self):
        return {number: (type(o), o.users) for number, o in self._fd._objects.items()}


class SimVfio:
    def __init__(self, fd, dev_id):
        self.fd, self.dev_id = fd, dev_id

    def attach(self, pt_id):
        self.fd.attach(self.dev_id, pt_id)

    def detach(self):
        self.fd.detach(self.dev_id)


@pytest.fixture
def fd():
    return FailingIommufd()


@pytest.fixture
def vmm(fd):
    bound = []
    for host in HOST.devices[:5]:
        dev_id = fd.bind(host)
        bound.append(VmmDevice(host, dev_id, SimVfio(fd, dev_id)))
    return Vmm(fd, bound)


def code(call, *arguments):
    with pytest.raises(BackendError) as refusal:
        call(*arguments)
    return refusal.value.errno


def test_the_calls_of_a_first_attach_in_their_order(fd, vmm):
    s2 = vmm.alloc_s2(0, [RAM]).handle
    assert fd.calls == ("ioas_alloc", "ioas_map", "hwpt_alloc")
    fd.restart()
    vmm.attach(C, s2, "s1", STE)
    vdevices = ["vdevice_alloc"] * 2
    assert fd.calls == ("viommu_alloc", *vdevices, "hwpt_alloc_nested", "attach")
    fd.restart()
    vmm.attach(D, s2, "s1", STE)
    assert fd.calls == ("attach",)


def test_a_refused_allocation_leaves_nothing(fd, vmm):
    before = fd.state()
    for fail_at in (1, 2, 3):
        fd.restart(fail_at)
        assert code(vmm.alloc_s2, 0, [RAM]) == errno.ENOMEM
        assert len(fd.calls) == fail_at
        assert fd.state() == before
        assert vmm.stage2 == {}


@pytest.mark.parametrize("first", [None, A])
def test_a_refused_attach_leaves_nothing(first, fd, vmm):
    s2 = vmm.alloc_s2(0, [RAM])
    if first is not None:
        vmm.attach(first, s2.handle, "other", STE)
    before = fd.state()
    fd.restart()
    vmm.attach(C, s2.handle, "s1", STE)
    calls = len(fd.calls)
    assert calls >= 4
    vmm.detach(C)
    if first is None:
        # The vIOMMU stays with its stage 2.
        fd.destroy(s2.viommu)
        s2.viommu = None
    assert {number: users for number, (_kind, users) in fd.state().items()} == {
        number: users for number, (_kind, users) in before.items()
    }
    for fail_at in range(1, calls + 1):
        fd.restart(fail_at)
        assert code(vmm.attach, C, s2.handle, "s1", STE) == errno.ENOMEM
        assert fd.state() == before
        assert not vmm.is_attached(C)
        assert C not in s2.devices


def test_an_attached_device_is_not_moved(fd, vmm):
    s2, other = vmm.alloc_s2(0, [RAM]).handle, vmm.alloc_s2(0, [RAM]).handle
    vmm.attach(A, s2, "s1", STE)
    before = fd.state()
    for handle in (s2, other):
        assert code(vmm.attach, A, handle, "s1", STE) == errno.EBUSY
        assert fd.state() == before
    assert vmm.s2_of(A).handle == s2


def test_objects_in_use_are_kept(fd, vmm):
    s2 = vmm.alloc_s2(0, [RAM]).handle
    empty = fd.state()
    assert code(vmm.detach, A) == errno.EINVAL
    for device in (A, B):
        vmm.attach(device, s2, "shared", STE)
    assert code(vmm.free_s2, s2) == errno.EBUSY
    vmm.detach(A)
    assert list(vmm.stage2[s2].nested) == ["shared"]
    vmm.detach(B)
    assert vmm.stage2[s2].nested == {}
    vmm.free_s2(s2)
    assert fd.state().keys() < empty.keys()
    assert code(vmm.alloc_s2, 7, [RAM]) == errno.ENOENT


def test_a_group_keeps_its_vdevices_until_its_last_detach(fd, vmm):
    s2 = vmm.alloc_s2(0, [RAM]).handle
    for device in (C, D):
        vmm.attach(device, s2, "s1", STE)
    attached = fd.state()
    vmm.detach(C)
    assert fd.state().keys() == attached.keys()
    vmm.attach(C, s2, "s1", STE)
    assert fd.state() == attached
    for device in (C, D):
        vmm.detach(device)
    assert len(fd.state()) == len(attached) - 3
    vmm.attach(E, vmm.alloc_s2(1, [RAM]).handle, "s1", STE)
