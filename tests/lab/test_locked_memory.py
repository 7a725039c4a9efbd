"""The limit of locked memory on a real kernel, without CAP_IPC_LOCK, and what the doctor expects.

A script takes QEMU's place: libvirt's iommufd object counts for the process, further ones for its
user (``drivers/iommu/iommufd/pages.c`` update_mm_locked_vm, incr_user_locked_vm).
"""

from __future__ import annotations

import ast
import mmap
from collections import Counter

import pytest
from host_shell import run_script

from vmm_msi.domxml import iommufd_objects
from vmm_msi.domxml.guest_memory import locking
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.lab.rpc.link import AgentLink

RAM, PAGE = 16 << 20, mmap.PAGESIZE
GUEST = f"<domain type='kvm'><name>guest</name><memory unit='b'>{RAM}</memory></domain>"
#: Device of the emulated host: edu.
EDU = (0x1234, 0x11E8)

#: Maps RAM in each of several iommufd objects with a nest parent on it, and prints the result: the
#: error and the call, or "ok" with the memory that is pinned. CAP_IPC_LOCK is bit 14; 90 and 91 are
#: capget and capset on arm64.
SCRIPT = """
import ctypes, errno, mmap, resource
from contextlib import ExitStack
from vmm_msi.errors import BackendError
from vmm_msi.iommu.linux import uapi
from vmm_msi.iommu.linux.iommufd import LinuxIommufd, ioctl
from vmm_msi.iommu.linux.vfio import VfioDevice
from vmm_msi.types import PciAddress
libc = ctypes.CDLL(None, use_errno=True)
ram = mmap.mmap(-1, {ram})
address = ctypes.addressof(ctypes.c_char.from_buffer(ram))
devices = [VfioDevice(PciAddress.parse(text)) for text in {devices}]
def drop_ipc_lock():
    head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.syscall(90, head, sets) == 0
    sets[0] &= ~(1 << 14)
    assert libc.syscall(91, head, sets) == 0
def pinned():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmPin"))
    return int(line.split()[1]) << 10
def run(objects, limit, map_first=False):
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, resource.RLIM_INFINITY))
    fd = ioas = None
    with ExitStack() as opened:
        try:
            for device, kind in zip(devices, objects):
                if kind != "same":
                    fd = opened.enter_context(LinuxIommufd())
                if kind == "process":
                    option = uapi.Option(ctypes.sizeof(uapi.Option), 0, 0, val64=1)
                    ioctl(fd.fd, uapi.IOMMU_OPTION, "IOMMU_OPTION_RLIMIT_MODE", option)
                device.open()
                opened.callback(device.close)
                dev_id = device.bind(fd)
                if kind == "same":
                    fd.hwpt_alloc(dev_id, ioas)
                    continue
                ioas = fd.ioas_alloc()
                if not map_first:
                    fd.hwpt_alloc(dev_id, ioas)
                fd.ioas_map(ioas, 0x40000000, {ram}, address)
                if map_first:
                    fd.hwpt_alloc(dev_id, ioas)
        except BackendError as error:
            return errno.errorcode[error.errno], error.reason.split()[0]
        return "ok", pinned()
results = [run(["process", "user"], 0)]
drop_ipc_lock()
results += [run(*case) for case in {cases}]
for device in devices:
    device.release()
print("results", results)
"""


@pytest.fixture(scope="module")
def run(lab_host):
    """Return a function that runs cases: the kinds of the iommufd objects, limit, order."""
    with AgentLink(lab_host.agent_socket) as link:
        addresses = [
            device["address"]
            for device in link.call("devices")
            if (device["vendor"], device["device"]) == EDU
        ]
    slots = Counter(address.rpartition(".")[0] for address in addresses)
    # Devices with two functions share a group.
    devices = [address for address in addresses if slots[address.rpartition(".")[0]] == 1][:3]

    def run_cases(*cases):
        script = SCRIPT.format(ram=RAM, devices=devices, cases=cases)
        output = run_script(lab_host, script, "results [")
        (line,) = (line for line in output.splitlines() if line.startswith("results "))
        return ast.literal_eval(line.removeprefix("results "))

    return run_cases


def expected(further):
    """Return the bytes that the doctor expects the limit to allow."""
    domain = DomainXml.parse(GUEST, "test")
    for number in range(further):
        iommufd_objects.add(domain, f"further{number}")
    return locking(domain, further + 1).needed


REFUSED = ("ENOMEM", "IOMMU_IOAS_MAP")


def test_the_kernel_limits_what_the_doctor_expects(run):
    """Libvirt's object, and none to two further ones, at the limit and a page below."""
    one, two, three = (["process", *["user"] * further] for further in range(3))
    cases = [
        (objects, expected(len(objects) - 1) - below)
        for objects in (one, two, three)
        for below in (0, PAGE)
    ]
    privileged, *results = run(*cases)
    # With CAP_IPC_LOCK nothing is limited, and pinned all the same.
    assert privileged == ("ok", 2 * RAM)
    assert results[::2] == [("ok", len(objects) * RAM) for objects in (one, two, three)]
    assert results[1::2] == [REFUSED] * 3


def test_stage_2s_of_one_object_pin_once(run):
    _privileged, *results = run((["process", "same", "same"], RAM), (["user", "same"], RAM))
    assert results == [("ok", RAM)] * 2


def test_ram_that_is_mapped_first_is_refused_with_the_stage_2(run):
    """Nothing is pinned until there is a stage 2."""
    _privileged, *results = run((["process"], RAM - PAGE, True), (["process"], RAM, True))
    assert results == [("ENOMEM", "IOMMU_HWPT_ALLOC"), ("ok", RAM)]
