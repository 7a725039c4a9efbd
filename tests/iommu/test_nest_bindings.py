"""The rules of guest MSI bindings, in the simulator of the patched kernel and of the stock one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from binding_cases import CASES, LARGE_CASES, no_slot_for_an_msi
from kernel_cases import GDB, GIOVA, HOST, PAGE, CheckedCalls

from vmm_msi.iommu.sim.call_machine import SimMachine
from vmm_msi.types import Granule, Its, Pa

OWN = GIOVA + PAGE


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    machine = SimMachine(HOST, output_bits=44, bindings=True)
    CASES[name](CheckedCalls(machine))
    assert not machine.lost_events


@pytest.mark.parametrize("name", LARGE_CASES)
def test_rule_with_64k_pages(name):
    host = replace(HOST, granule=Granule.K64)
    LARGE_CASES[name](CheckedCalls(SimMachine(host, output_bits=44, bindings=True)))


def test_the_address_of_a_slot_is_mapped():
    """The error is the one inside the kernel: it reaches the caller as ENOSPC."""
    machine = SimMachine(HOST, output_bits=44, bindings=True)
    no_slot_for_an_msi(CheckedCalls(machine))
    assert machine.lost_events == {HOST.devices[1].address: 1}


def test_a_kernel_without_the_interface():
    calls = CheckedCalls(SimMachine(HOST, output_bits=44))
    fd = calls.open()
    _number, _ioas, parent, _viommu, vdevice, _nested = calls.nested(fd, 0)
    calls.set_msi_binding(fd, parent, 1, expect="EOPNOTSUPP")
    calls.msi_binding(fd, parent, expect="EOPNOTSUPP")
    calls.msi_bind(fd, vdevice, OWN, GDB, 12, expect="ENOTTY")
    calls.msi_query(fd, vdevice, 0, expect="ENOTTY")


def two_itses():
    """Return a machine on which device 1 has another ITS than device 0."""
    devices = list(HOST.devices)
    devices[1] = replace(devices[1], its_group=(1,))
    itses = (*HOST.itses, Its(1, Pa(0xB00_0000)))
    host = replace(HOST, devices=tuple(devices), itses=itses)
    return SimMachine(host, output_bits=44, bindings=True)


def below_one_parent(calls, allocator):
    fd = calls.open()
    number, _ioas, parent, viommu = calls.nesting(fd, 0)
    calls.set_msi_binding(fd, parent, allocator)
    other = calls.bind(fd, 1)
    vdevices = [calls.vdevice_alloc(fd, viommu, n, i) for i, n in enumerate((number, other))]
    return fd, calls.hwpt_alloc_nested(fd, number, viommu, "translate", 0), vdevices


def test_direct_refuses_a_gdb_of_another_its():
    calls = CheckedCalls(two_itses())
    fd, nested, (one, other) = below_one_parent(calls, 0)
    for device in (0, 1):
        calls.attach(device, nested)
    calls.msi_bind(fd, one, OWN, GDB, 12)
    calls.msi_bind(fd, other, OWN, GDB, 12, expect="EEXIST")
    calls.msi_bind(fd, other, OWN, GDB + PAGE, 12)


def test_a_list_has_no_binding_for_another_its():
    calls = CheckedCalls(two_itses())
    fd, nested, (one, other) = below_one_parent(calls, 1)
    for device in (0, 1):
        calls.attach(device, nested)
        calls.enable(device, expect=hex(0x800_0040 + device * PAGE))
    for vdevice in (one, other):
        calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.msi_prepare(fd, one)
    calls.msi_prepare(fd, other, expect="ENOMEM")
    calls.msi_address(1, expect=hex(0x800_0040 + PAGE))


@pytest.mark.parametrize("allocator", [3, 4])
def test_one_msi_domain_is_checked_at_attach_and_bind(allocator):
    calls = CheckedCalls(two_itses())
    fd, nested, (one, other) = below_one_parent(calls, allocator)
    calls.attach(0, nested)
    calls.attach(1, nested, expect="EINVAL")
    calls.msi_bind(fd, one, OWN, GDB, 12)
    calls.msi_bind(fd, other, OWN, GDB, 12, expect="EINVAL")
