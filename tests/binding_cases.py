"""Call sequences for guest MSI bindings, each for one rule, as in :mod:`kernel_cases`."""

from __future__ import annotations

from kernel_cases import ALL, GDB, GIOVA, INVALID, PAGE, RAM, SLOT, WINDOW

#: The stage 1 of the cases maps this to GDB.
OWN = GIOVA + PAGE
OWN_ADDRESS = hex(OWN + 0x40)
#: Another gIOVA, which it does not map, and an IPA where nothing is.
OTHER, FREE = GIOVA + 0x8000, 0xC00_0000
WINDOW_END = 0x810_0000
DIRECT, LIST, DEVICE, ONE_GRANULE = 0, 1, 2, 4

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def on_one_parent(calls, fd, allocator, devices=(0, 1)):
    """Attach devices to one nested HWPT of a nest parent; return it and the vDEVICEs."""
    number, _ioas, parent, viommu = calls.nesting(fd, devices[0])
    calls.set_msi_binding(fd, parent, allocator)
    numbers = [number, *(calls.bind(fd, device) for device in devices[1:])]
    vdevices = [calls.vdevice_alloc(fd, viommu, n, 7 + i) for i, n in enumerate(numbers)]
    nested = calls.hwpt_alloc_nested(fd, number, viommu, "translate", 0)
    for device in devices:
        calls.attach(device, nested)
    return parent, vdevices


@case
def a_direct_binding_moves_enabled_msis(calls):
    """iommufd_msi_bind, iommufd_msi_unbind; iopt_reserve_iova."""
    fd = calls.open()
    _number, ioas, _parent, _viommu, vdevice, _nested = calls.nested(fd, 0)
    calls.enable(0)
    calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.msi_address(0, expect=OWN_ADDRESS)
    calls.raise_msi(0)
    calls.msi_query(fd, vdevice, 0, expect=f"{OWN:#x} -> {GDB:#x}, shift 12, used")
    calls.msi_query(fd, vdevice, 1, expect="ENOENT")
    calls.ioas_map(fd, ioas, GDB, PAGE, 1, expect="EINVAL")
    calls.msi_unbind(fd, vdevice, OTHER, expect="ENOENT")
    calls.msi_unbind(fd, vdevice, OWN)
    calls.msi_address(0, expect=hex(SLOT))
    calls.raise_msi(0)
    calls.ioas_map(fd, ioas, GDB, PAGE, 1)


@case
def a_direct_binding_replaces_the_former_one(calls):
    """bind_direct."""
    fd = calls.open()
    _number, ioas, _parent, _viommu, vdevice, _nested = calls.nested(fd, 0)
    calls.msi_bind(fd, vdevice, OTHER, FREE, 12)
    calls.enable(0, expect=hex(OTHER + 0x40))
    calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.msi_address(0, expect=OWN_ADDRESS)
    calls.msi_query(fd, vdevice, 1, expect="ENOENT")
    calls.ioas_map(fd, ioas, FREE, PAGE, 1)
    # The same one again changes nothing, not even an address that was overwritten.
    calls.program(0, SLOT)
    calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.msi_address(0, expect=hex(SLOT))
    calls.msi_prepare(fd, vdevice)
    calls.msi_address(0, expect=OWN_ADDRESS)


@case
def addresses_are_checked(calls):
    """check_binding, get_msi_page."""
    fd = calls.open()
    _number, ioas, _parent, _viommu, vdevice, _nested = calls.nested(fd, 0)
    for iova, gpa, shift in (
        (OWN, GDB, 11),
        (OWN, GDB, 31),
        (OWN + 0x40, GDB, 12),
        (OWN, GDB + 0x40, 12),
        (OWN, GDB, 16),
        (OWN, 1 << 44, 12),
    ):
        calls.msi_bind(fd, vdevice, iova, gpa, shift, expect="EINVAL")
    calls.msi_bind(fd, vdevice, OWN, RAM, 12, expect="EADDRINUSE")
    calls.ioas_map(fd, ioas, GDB, PAGE, 1)
    calls.msi_bind(fd, vdevice, OWN, GDB, 12, expect="EADDRINUSE")
    calls.enable(0)
    calls.msi_bind(fd, vdevice, OWN, WINDOW, 12, expect="EEXIST")
    calls.msi_bind(fd, INVALID, OWN, FREE, 12, expect="ENOENT")
    calls.msi_bind(fd, vdevice, ALL & -PAGE, FREE, 12)
    calls.msi_address(0, expect=hex((ALL & -PAGE) + 0x40))


@case
def a_slot_of_another_nest_parent_is_kept(calls):
    """is_slot: a device that is attached here later may need it."""
    fd = calls.open()
    calls.nested(fd, 0)
    calls.enable(0)
    *_ids, vdevice, _nested = calls.nested(fd, 1)
    calls.msi_bind(fd, vdevice, OWN, WINDOW, 12, expect="EEXIST")
    calls.enable(1)


@case
def unused_fields_are_zero(calls):
    """has_unknown_fields comes before the vDEVICE."""
    fd = calls.open()
    for op, field in ((1, "gpa"), (2, "iova"), (3, "iova"), (0, "index"), (0, "flags"), (4, "")):
        fields = {"page_shift": 0, "index": 0, "flags": 0, "reserved": 0, "iova": 0, "gpa": 0}
        if field:
            fields[field] = PAGE
        calls.vdevice_msi(fd, INVALID, op, **fields, expect="EOPNOTSUPP")
    calls.msi_prepare(fd, INVALID, expect="ENOENT")


@case
def the_allocator_belongs_to_a_nest_parent(calls):
    """iommufd_option_msi_binding."""
    fd = calls.open()
    number, ioas, parent, viommu = calls.nesting(fd, 0)
    table = calls.hwpt_alloc(fd, number, ioas, False)
    calls.set_msi_binding(fd, INVALID, 1, expect="ENOENT")
    calls.set_msi_binding(fd, viommu, 1, expect="ENOENT")
    calls.set_msi_binding(fd, table, 1, expect="EINVAL")
    calls.set_msi_binding(fd, parent, 5, expect="EOPNOTSUPP")
    calls.msi_binding(fd, parent, expect="0x0")
    calls.set_msi_binding(fd, parent, LIST)
    vdevice = calls.vdevice_alloc(fd, viommu, number, 7)
    calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.set_msi_binding(fd, parent, DIRECT, expect="EBUSY")
    calls.set_msi_binding(fd, parent, LIST)
    calls.msi_unbind(fd, vdevice, OWN)
    calls.set_msi_binding(fd, parent, DIRECT)


@case
def a_new_slot_passes_over_a_gdb(calls):
    """iommufd_sw_msi_get_map."""
    fd = calls.open()
    _parent, (one, _other) = on_one_parent(calls, fd, DIRECT)
    calls.msi_bind(fd, one, OWN, WINDOW, 12)
    calls.enable(1, expect=hex(SLOT + PAGE))


@case
def a_list_gives_one_devices_binding_to_another(calls):
    """iommufd_msi_choose: a binding with the doorbell, and then the newest."""
    fd = calls.open()
    _parent, (one, other) = on_one_parent(calls, fd, LIST)
    calls.msi_bind(fd, one, OWN, GDB, 12)
    calls.enable(0, expect=OWN_ADDRESS)
    calls.msi_bind(fd, other, OTHER, FREE, 12)
    calls.enable(1, expect=OWN_ADDRESS)
    calls.msi_query(fd, other, 0, expect=f"{OTHER:#x} -> {FREE:#x}, shift 12, unused")
    # Both leave a binding that is withdrawn.
    calls.msi_unbind(fd, one, OWN)
    for device in (0, 1):
        calls.msi_address(device, expect=hex(OTHER + 0x40))
    calls.msi_unbind(fd, other, OTHER)
    for device in (0, 1):
        calls.msi_address(device, expect=hex(SLOT))


@case
def a_binding_of_the_list_stays_with_its_last_registrant(calls):
    """iommufd_msi_bind: the same gIOVA is one binding."""
    fd = calls.open()
    _parent, (one, other) = on_one_parent(calls, fd, LIST)
    calls.msi_bind(fd, one, OWN, GDB, 12)
    calls.msi_bind(fd, other, OWN, FREE, 12)
    calls.msi_query(fd, other, 0, expect=f"{OWN:#x} -> {GDB:#x}, shift 12, unused")
    calls.enable(0, expect=OWN_ADDRESS)
    calls.msi_unbind(fd, one, OWN)
    calls.msi_address(0, expect=OWN_ADDRESS)
    calls.msi_unbind(fd, other, OWN)
    calls.msi_address(0, expect=hex(SLOT))


@case
def a_device_handle_maps_a_gdb_once(calls):
    """iommufd_msi_map."""
    fd = calls.open()
    _parent, (one, other) = on_one_parent(calls, fd, DEVICE)
    calls.enable(1)
    for vdevice in (one, other):
        calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.enable(0, expect=OWN_ADDRESS)
    calls.msi_prepare(fd, other, expect="EEXIST")
    calls.msi_address(1, expect=hex(SLOT))
    calls.msi_unbind(fd, one, OWN)
    calls.msi_prepare(fd, other)
    calls.msi_address(1, expect=OWN_ADDRESS)


@case
def one_granule_compares_the_pages(calls):
    """check_binding."""
    fd = calls.open()
    _parent, (one, _other) = on_one_parent(calls, fd, ONE_GRANULE)
    calls.msi_bind(fd, one, 1 << 32, FREE, 16, expect="EINVAL")
    calls.msi_bind(fd, one, 1 << 32, FREE, 12)


@case
def bindings_end_with_the_vdevice(calls):
    """iommufd_msi_destroy_vdevice."""
    fd = calls.open()
    _number, ioas, _parent, _viommu, vdevice, _nested = calls.nested(fd, 0)
    calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.enable(0, expect=OWN_ADDRESS)
    calls.destroy(fd, vdevice)
    calls.msi_address(0, expect=hex(SLOT))
    calls.ioas_map(fd, ioas, GDB, PAGE, 1)


@case
def a_moved_device_goes_to_its_slot(calls):
    """iommufd_group_suspend_msi, iommufd_group_resume_msi."""
    fd = calls.open()
    number, ioas, _parent, _viommu, vdevice, nested = calls.nested(fd, 0)
    calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.enable(0, expect=OWN_ADDRESS)
    calls.attach(0, calls.hwpt_alloc(fd, number, ioas, True))
    calls.msi_address(0, expect=hex(SLOT))
    calls.msi_prepare(fd, vdevice)
    calls.msi_address(0, expect=hex(SLOT))
    calls.attach(0, nested)
    calls.msi_address(0, expect=OWN_ADDRESS)
    calls.raise_msi(0)


@case
def a_detached_device_keeps_its_address(calls):
    """update_device, iommufd_msi_resume."""
    fd = calls.open()
    _number, _ioas, _parent, _viommu, vdevice, nested = calls.nested(fd, 0)
    calls.enable(0)
    calls.detach(0)
    calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.msi_address(0, expect=hex(SLOT))
    calls.attach(0, nested)
    calls.msi_address(0, expect=OWN_ADDRESS)
    calls.detach(0)
    calls.msi_unbind(fd, vdevice, OWN)
    calls.msi_address(0, expect=OWN_ADDRESS)
    calls.attach(0, nested)
    calls.msi_address(0, expect=hex(SLOT))


def fill_the_window(calls, fd, pages, size=PAGE):
    """Bind the first pages of the window, so that the next slot comes after them."""
    number, _ioas, parent, viommu = calls.nesting(fd, 0)
    calls.set_msi_binding(fd, parent, LIST)
    vdevice = calls.vdevice_alloc(fd, viommu, number, 7)
    for offset in range(0, pages * size, size):
        calls.msi_bind(fd, vdevice, (1 << 32) + offset, WINDOW + offset, size.bit_length() - 1)


def a_slot_past_the_window(calls, size):
    """Move a device's MSIs to a slot past the window, where something may be mapped."""
    fd = calls.open()
    fill_the_window(calls, fd, (WINDOW_END - WINDOW) // size, size)
    _number, ioas, _parent, _viommu, vdevice, _nested = calls.nested(fd, 1)
    calls.ioas_map(fd, ioas, WINDOW_END, size, 1)
    calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.enable(1, expect=OWN_ADDRESS)
    calls.msi_unbind(fd, vdevice, OWN, expect="EEXIST")
    calls.msi_address(1, expect=OWN_ADDRESS)
    calls.ioas_unmap(fd, ioas, WINDOW_END, size)
    calls.msi_unbind(fd, vdevice, OWN)
    calls.msi_address(1, expect=hex(WINDOW_END + 0x40))
    calls.ioas_map(fd, ioas, WINDOW_END, size, 1, expect="EEXIST")


@case
def a_slot_past_256_pages_of_4k(calls):
    """iommufd_sw_msi_install: nothing reserves an address past the window."""
    a_slot_past_the_window(calls, PAGE)


def no_slot_for_an_msi(calls):
    """msi_handle_pci_fail: ENOSPC for the caller. The device loses its event in the ITS."""
    fd = calls.open()
    fill_the_window(calls, fd, (WINDOW_END - WINDOW) // PAGE)
    _number, ioas, *_ids = calls.nested(fd, 1)
    calls.ioas_map(fd, ioas, WINDOW_END, PAGE, 1)
    calls.enable(1, expect="ENOSPC", inside="EEXIST")


#: Cases for a host with 64K pages, where QEMU's gDB is the page of slot 9.
LARGE_CASES = {}
LARGE, QEMU_GDB = 0x1_0000, 0x809_0000


def large_case(function):
    LARGE_CASES[function.__name__] = function
    return function


@large_case
def a_slot_past_16_pages_of_64k(calls):
    """iommufd_sw_msi_install."""
    a_slot_past_the_window(calls, LARGE)


@large_case
def the_tenth_slot_passes_over_qemus_gdb(calls):
    """iommufd_sw_msi_get_map."""
    fd = calls.open()
    fill_the_window(calls, fd, 9, LARGE)
    *_ids, vdevice, _nested = calls.nested(fd, 1)
    calls.msi_bind(fd, vdevice, OWN, QEMU_GDB, 12)
    calls.enable(1, expect=OWN_ADDRESS)
    calls.nested(fd, 4)
    calls.enable(4, expect=hex(WINDOW + 10 * LARGE + 0x40))


@large_case
def qemus_gdb_is_not_bound_where_the_tenth_slot_is(calls):
    """is_slot; the device stays on its slot."""
    fd = calls.open()
    fill_the_window(calls, fd, 9, LARGE)
    *_ids, vdevice, _nested = calls.nested(fd, 1)
    calls.enable(1, expect=hex(QEMU_GDB + 0x40))
    calls.msi_bind(fd, vdevice, OWN, QEMU_GDB, 12, expect="EEXIST")
    calls.msi_address(1, expect=hex(QEMU_GDB + 0x40))
    calls.msi_bind(fd, vdevice, OWN, GDB, 12)
    calls.msi_address(1, expect=OWN_ADDRESS)


@large_case
def a_page_of_4k_is_the_part_with_the_doorbell(calls):
    """iommufd_msi_map: GITS_TRANSLATER is in the first 4 KiB of its 64 KiB page."""
    fd = calls.open()
    _parent, (one, other) = on_one_parent(calls, fd, DIRECT)
    calls.enable(0)
    calls.msi_bind(fd, one, OWN, GDB + PAGE, 12, expect="EINVAL")
    calls.msi_address(0, expect=hex(SLOT))
    calls.msi_bind(fd, one, OWN, GDB, 12)
    calls.msi_address(0, expect=OWN_ADDRESS)
    calls.raise_msi(0)
    # A page of 64 KiB leads to the same page of stage 2.
    calls.msi_bind(fd, other, 1 << 32, GDB, 16)
    calls.enable(1, expect=hex((1 << 32) + 0x40))
