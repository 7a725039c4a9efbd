"""Plan bindings from the kernel's file and from what the guest wrote; the lab applies the plans."""

import errno

import pytest

from vmm_msi.errors import BackendError
from vmm_msi.host.msi_bindings import (
    BindingAllocator,
    GiovaSource,
    KernelBinding,
    parse_bindings,
)
from vmm_msi.types import BindOrder, Iova, Ipa, PciAddress
from vmm_msi.watch.kernel_binder import in_order, plan_binding, withdrawal

A, B = PciAddress(0, 0x11, 0, 0), PciAddress(0, 0x12, 0, 0)
WRITTEN = (Iova(0xFFFFF040),)
DIRECT, LIST = BindingAllocator.DIRECT, BindingAllocator.LIST_ONE_GRANULE


def content(*lines, vdevice="8", allocator="direct", hwpt="3"):
    own = [f"device {A} context 1 hwpt {hwpt} vdevice {vdevice} vsid 0x0 allocator {allocator}"]
    return parse_bindings("\n".join(["version 1", *own, *lines, ""]))


def line(giova=0xFFFFF000, gdb=0x8090000, kind="binding"):
    end = "" if kind == "pending" else " hpa - unused"
    return f"{kind} {A} iova {giova:#x} gpa {gdb:#x} shift 12{end}"


def commands(have, allocator=DIRECT, written=WRITTEN):
    return [str(command) for command in plan_binding(have, A, allocator, written).commands]


BIND = f"bind {A} 0xfffff000 0x8090000 12"
OTHER = f"bind {A} 0xffffe000 0x8090000 12"


def test_where_the_giova_is_from():
    plan = plan_binding(content(vdevice="-"), A, DIRECT, None)
    assert (plan.source, plan.binding) == (
        GiovaSource.PREDICTED,
        KernelBinding(A, Iova(0xFFFFF000), Ipa(0x8090000), 12),
    )
    assert [*map(str, plan.commands)] == [BIND]
    kept = plan_binding(content(line(0xFFFFE000)), A, DIRECT, ())
    assert (kept.source, kept.binding.giova, kept.commands) == (
        GiovaSource.KERNEL,
        0xFFFFE000,
        (),
    )
    guest = plan_binding(content(line()), A, DIRECT, (Iova(0xFFFFE040), Iova(0xFFFFF040)))
    assert (guest.source, [*map(str, guest.commands)]) == (GiovaSource.GUEST, [OTHER])


@pytest.mark.parametrize("kind", ["binding", "pending"])
@pytest.mark.parametrize("allocator", [DIRECT, LIST])
def test_the_right_binding_is_left_alone(kind, allocator):
    vdevice = "-" if kind == "pending" else "8"
    have = content(line(kind=kind), vdevice=vdevice, allocator=allocator)
    assert commands(have, allocator) == []


def test_direct_replaces_what_is_bound():
    assert commands(content(line(0xFFFFE000))) == [BIND]
    assert commands(content(line(gdb=0x8091000))) == [BIND]


def test_direct_withdraws_what_is_pending():
    first = f"unbind {A} 0xfffff000"
    other = content(line(0xFFFFE000, kind="pending"), vdevice="-")
    assert commands(other) == [BIND, f"unbind {A} 0xffffe000"]
    wrong = content(line(gdb=0x8091000, kind="pending"), vdevice="-")
    assert commands(wrong) == [first, BIND]


def test_a_list_gets_the_new_entry_before_the_old_one_goes():
    have = content(line(0xFFFFE000), allocator=LIST)
    assert commands(have, LIST) == [BIND, f"unbind {A} 0xffffe000", f"prepare {A}"]
    wrong = content(line(gdb=0x8091000), allocator=LIST)
    assert commands(wrong, LIST) == [f"unbind {A} 0xfffff000", BIND, f"prepare {A}"]
    two = content(line(), line(0xFFFFE000), allocator=LIST)
    assert commands(two, LIST) == [f"unbind {A} 0xffffe000", f"prepare {A}"]


def test_the_allocator_is_set_without_bindings():
    have = content(line(), allocator="direct")
    assert commands(have, LIST) == [
        f"unbind {A} 0xfffff000",
        f"allocator {A} list-one-granule",
        BIND,
        f"prepare {A}",
    ]
    pending = content(line(kind="pending"), vdevice="-")
    assert commands(pending, LIST) == [f"allocator {A} list-one-granule", f"prepare {A}"]


def test_a_device_that_no_vmm_has_attached():
    with pytest.raises(BackendError, match="not bound to an iommufd") as refusal:
        plan_binding(content(), B, DIRECT, None)
    assert refusal.value.errno == errno.ENODEV
    unattached = content(hwpt="-", vdevice="-", allocator="-")
    assert commands(unattached) == [BIND]
    with pytest.raises(BackendError, match="not attached it to a stage 2 yet"):
        plan_binding(unattached, A, LIST, None)


def test_the_order_of_the_truth_table():
    plans = [plan_binding(content(allocator=LIST), A, LIST, WRITTEN)] * 2
    verbs = {order: [command.verb for command in in_order(plans, order)] for order in BindOrder}
    assert verbs == {
        BindOrder.INTERLEAVED: ["bind", "prepare", "bind", "prepare"],
        BindOrder.BATCHED: ["bind", "bind", "prepare", "prepare"],
    }


def test_a_withdrawal_is_of_every_binding():
    have = content(line(), line(0xFFFFE000, kind="pending"))
    assert [*map(str, withdrawal(have, A))] == [
        f"unbind {A} 0xfffff000",
        f"unbind {A} 0xffffe000",
    ]
    assert withdrawal(have, B) == []
