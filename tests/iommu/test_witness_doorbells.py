"""Witness doorbells follow the rules of the kernel's interface for guest bindings.

The stage 2 tables of the backend on Linux run on a simulated kernel without the interface, beside
the simulated kernel that has it. ``tests/lab/test_real_kernel.py`` runs them on a real one.
"""

from __future__ import annotations

import mmap
from errno import errorcode

from hypothesis import given
from hypothesis import strategies as st

from vmm_msi.errors import BackendError
from vmm_msi.iommu.backend import MsiAllocator
from vmm_msi.iommu.linux.raise_msi import Witnesses, relocated
from vmm_msi.iommu.linux.stage2 import Stage2Tables
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.iommu.sim.backend import SimBackend
from vmm_msi.iommu.sim.core import IommuCore
from vmm_msi.iommu.sim.iommufd import SimIommufd
from vmm_msi.iommu.sim.objects import GuestSte, SteConfig
from vmm_msi.iommu.vmm import Vmm, VmmDevice
from vmm_msi.types import (
    SW_MSI_WINDOW,
    DeviceId,
    Granule,
    GuestDevice,
    GuestDomain,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    Pa,
    PciAddress,
    Smmu,
    Stage1,
    StreamId,
    Vits,
)

PAGE = mmap.PAGESIZE
PROFILE = profile_named("linux-7.2-bind")
#: The first pages of the MSI window, which slots get, and a page that no slot gets.
GDBS = [*(SW_MSI_WINDOW.base + number * PAGE for number in range(2)), 0x0A09_0000]
GIOVAS = [0xFFFF_F000, 0xFFFF_E000]
DEVICES, SMMUS = range(4), range(2)


def host_device(number):
    """Return a device: SMMUs alternate, so do ITSes in each half."""
    address = PciAddress(0, number + 1, 0, 0)
    return HostDevice(
        address=address,
        smmu=number % 2,
        stream_id=StreamId(address.rid),
        its_group=(number // 2,),
        device_id=DeviceId(number),
        iommu_group=number,
        vectors=1,
        reserved=(SW_MSI_WINDOW,),
    )


HOST = HostTopology(
    source="test",
    granule=Granule.K4,
    smmus=tuple(Smmu(number) for number in SMMUS),
    itses=tuple(Its(number, Pa(0x2_0000_0000 + number * 0x100_0000)) for number in range(2)),
    devices=tuple(map(host_device, DEVICES)),
)
GUEST = GuestDomain(
    name="test",
    vits=(Vits(0, Ipa(0x0A08_0000)),),
    stage1=(Stage1("shared", Granule.K4),),
    devices=tuple(
        GuestDevice(device.address, "shared", 0, Iova(GIOVAS[0])) for device in HOST.devices
    ),
)


class VfioCalls:
    """A bound device on a simulated file descriptor."""

    def __init__(self, fd, dev_id):
        self.fd, self.dev_id = fd, dev_id

    def attach(self, pt_id):
        self.fd.attach(self.dev_id, pt_id)

    def detach(self):
        self.fd.detach(self.dev_id)


class Witness:
    """The stage 2 tables of the backend on Linux, used as ``IommufdBackend`` uses them."""

    def __init__(self):
        fd = SimIommufd(HOST, IommuCore(HOST))
        bound = {device: fd.bind(device) for device in HOST.devices}
        self.vmm = Vmm(
            fd,
            [VmmDevice(device, number, VfioCalls(fd, number)) for device, number in bound.items()],
        )
        self.pages = Witnesses(len(HOST.itses), PAGE)
        self.tables = Stage2Tables(
            self.vmm, HOST, GUEST, PROFILE, list, self.pages, relocated, retake=self.retake
        )
        self.programmed = {}

    def alloc_s2(self, smmu, allocator):
        return self.tables.alloc(smmu, allocator)

    def attach(self, device, s2):
        s2 = self.tables.join(HOST.device_by_address[device], s2, "shared")
        self.vmm.attach(device, s2, "shared", GuestSte(SteConfig.BYPASS))

    def detach(self, device):
        self.programmed.pop(device, None)
        self.vmm.detach(device)
        self.tables.leave(HOST.device_by_address[device])

    def bind_guest_msi(self, device, giova, gdb, size):
        self.tables.bind(HOST.device_by_address[device], giova, gdb, size)

    def unbind_guest_msi(self, device, giova):
        self.programmed.pop(device, None)
        self.tables.unbind(HOST.device_by_address[device], giova)

    def retake(self, device):
        if device in self.programmed:
            self.prepare_msi(device)

    def prepare_msi(self, device):
        host_device = HOST.device_by_address[device]
        doorbell = HOST.its_by_id[host_device.its].doorbell
        self.programmed[device] = self.tables.pick(host_device, doorbell)
        return self.programmed[device]


class Both:
    """The simulated kernel and the witness doorbells: each call has one result."""

    def __init__(self, allocator):
        self.simulator, self.witness = SimBackend(HOST, GUEST, PROFILE), Witness()
        self.backends = (self.simulator, self.witness)
        self.s2s = [
            [backend.alloc_s2(smmu, allocator=allocator) for backend in self.backends]
            for smmu in SMMUS
        ]

    def attach(self, device):
        self.call("attach", device, lambda number: (self.s2s[device.smmu][number],))

    def call(self, name, device, arguments):
        results = [
            result(getattr(backend, name), device.address, *arguments(number))
            for number, backend in enumerate(self.backends)
        ]
        assert results[0] == results[1], (name, device.address, results)
        assert self.simulator._programmed == self.witness.programmed

    def run(self, op, device, giova, gdb):
        attached = self.simulator.is_attached(device.address)
        match op:
            case "attach":
                if not attached:
                    self.attach(device)
            case _ if not attached:
                pass
            case "detach":
                self.call("detach", device, lambda _number: ())
            case "bind":
                self.call("bind_guest_msi", device, lambda _number: (Iova(giova), Ipa(gdb), PAGE))
            case "unbind":
                self.call("unbind_guest_msi", device, lambda _number: (Iova(giova),))
            case "prepare":
                self.call("prepare_msi", device, lambda _number: ())

    def close(self):
        self.witness.pages.close()


def result(call, *arguments):
    try:
        value = call(*arguments)
    except BackendError as error:
        return errorcode[error.errno]
    return value if isinstance(value, Iova) else None


STEPS = st.tuples(
    st.sampled_from(["attach", "bind", "bind", "prepare", "prepare", "unbind", "detach"]),
    st.sampled_from(HOST.devices),
    st.sampled_from(GIOVAS),
    st.sampled_from(GDBS),
)


@given(st.sampled_from(list(MsiAllocator)), st.lists(STEPS, min_size=10, max_size=30))
def test_addresses_and_errors_are_those_of_the_kernel(allocator, steps):
    both = Both(allocator)
    try:
        for device in HOST.devices:
            both.attach(device)
        for step in steps:
            both.run(*step)
    finally:
        both.close()
