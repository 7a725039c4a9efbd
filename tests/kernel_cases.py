"""Scenarios with what Linux answers, each for one rule: for the model, and for the kernel itself.

A case makes its calls on a :class:`Play` and says of each what comes of it. Devices are numbered
as those of the lab's emulated host of the default shape: 0 and 1 behind SMMU 0, 2 and 3 the two
functions of one device, in one IOMMU group, behind it too, 4 and 5 behind SMMU 1.
"""

from __future__ import annotations

from vmm_msi.errors import errno_name
from vmm_msi.iommu.call_sequence import OPS, Course, LandingKind, Ref, Scenario, Stage1Shape, Step
from vmm_msi.types import (
    DeviceId,
    Granule,
    HostDevice,
    HostTopology,
    Its,
    Pa,
    PciAddress,
    Smmu,
    StreamId,
)

PAGE = 0x1000
RAM = 0x4000_0000
RAM_SIZE = 0x20_0000
WINDOW = 0x800_0000
SLOT = WINDOW + 0x40
GIOVA = 0xFFFE_0000
GDB = 0xA09_0000
ALL = (1 << 64) - 1
NOBODY = 1 << 20

#: One that maps the window 1:1 and the doorbells at gIOVAs, one that maps nothing.
STAGE1 = (
    Stage1Shape(
        Granule.K4, 10, ((GIOVA, WINDOW), (WINDOW, WINDOW), (GIOVA + 0x1000, GDB), (GDB, 1 << 45))
    ),
    Stage1Shape(Granule.K4, 20),
)


def _device(bus, function, smmu, group):
    address = PciAddress(0, bus, 0, function)
    return HostDevice(
        address, smmu, StreamId(address.rid), (0,), DeviceId(address.rid), group
    )  # fmt: skip


HOST = HostTopology(
    "test",
    Granule.K4,
    (Smmu(0), Smmu(1)),
    (Its(0, Pa(0x808_0000)),),
    (
        _device(0x11, 0, 0, 3),
        _device(0x12, 0, 0, 4),
        _device(0x13, 0, 0, 5),
        _device(0x13, 1, 0, 5),
        _device(0x21, 0, 1, 8),
        _device(0x22, 0, 1, 9),
    ),
)


class Play:
    """Makes calls on a machine, checks what each gives and keeps the steps."""

    def __init__(self, machine):
        machine.prepare(STAGE1)
        self._course = Course(machine)
        self.steps = []

    def __getattr__(self, op):
        names = list(OPS[op].parameters)

        def call(*values, gives=None, **named):
            step = Step(op, dict(zip(names, values, strict=False)) | named)
            self.steps.append(step)
            result = self._course.make(step)
            found = shown(result)
            expected = gives
            if gives is None:
                expected = {"enable": hex(SLOT), "raise_msi": "its"}.get(op, found)
                assert not result.errno, f"step {len(self.steps) - 1}, {step}: {found}"
            assert found == expected, f"step {len(self.steps) - 1}, {step}: {result.reason}"
            return Ref(len(self.steps) - 1)

        return call

    def scenario(self):
        return Scenario(STAGE1, tuple(self.steps))

    def nesting(self, fd, device, *, ram=True):
        """Make an IOAS with guest RAM, a nesting parent and a vIOMMU; return the ids."""
        number = self.bind(fd, device)
        ioas = self.ioas_alloc(fd)
        if ram:
            self.ioas_map(fd, ioas, RAM, RAM_SIZE, 0)
        parent = self.hwpt_alloc(fd, number, ioas, True)
        return number, ioas, parent, self.viommu_alloc(fd, number, parent)

    def nested(self, fd, device, stage1=0, *, ram=True):
        """Attach a device to a nested HWPT; return all the ids."""
        number, ioas, parent, viommu = self.nesting(fd, device, ram=ram)
        vdevice = self.vdevice_alloc(fd, viommu, number, 7)
        nested = self.hwpt_alloc_nested(fd, number, viommu, "translate", stage1)
        self.attach(device, nested)
        return number, ioas, parent, viommu, vdevice, nested


def shown(result):
    """A result in a word or two."""
    if result.errno:
        return errno_name(result.errno)
    landing = result.landing
    if landing is None:
        return "done" if result.value is None else hex(result.value)
    if landing.kind is LandingKind.WITNESS:
        return f"witness {landing.page} {landing.offset:#x}"
    if landing.kind is LandingKind.FAULT:
        event = landing.event
        ipa = "" if event.ipa is None else f" {event.ipa}"
        who = "guest" if landing.guest else "host"
        return f"{who} {event.kind.name} {event.stage} {event.stream_id} {event.iova}{ipa}"
    return landing.kind.value


CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


@case
def a_device_is_bound_once(p):
    """vfio_df_ioctl_bind_iommufd, vfio_device_fops_unl_ioctl."""
    p.bind(NOBODY, 0, gives="EBADF")
    p.attach(0, NOBODY, gives="EBADF")
    fd = p.open()
    p.bind(fd, 0)
    p.bind(fd, 0, gives="EINVAL")
    p.bind(p.open(), 0, gives="EINVAL")
    p.detach(0)
    p.disable(0, gives="EINVAL")
    p.unbind(0)
    p.detach(0, gives="EBADF")
    p.unbind(0, gives="EBADF")


@case
def a_group_has_one_owner(p):
    """iommu_device_claim_dma_owner."""
    one, two = p.open(), p.open()
    p.bind(one, 2)
    p.bind(two, 3, gives="EPERM")
    p.attach(3, NOBODY, gives="EINVAL")
    p.enable(3, gives="EINVAL")
    p.raise_msi(3, gives="EINVAL")
    p.unbind(2)
    p.bind(two, 3)
    p.bind(one, 2, gives="EPERM")


@case
def an_ioas_is_mapped_in_bytes_until_a_table_is_filled(p):
    """iopt_calculate_iova_alignment, iopt_check_iova_alignment, iopt_table_add_domain."""
    fd = p.open()
    number, ioas = p.bind(fd, 0), p.ioas_alloc(fd)
    p.ioas_map(fd, ioas, RAM + 0x800, 0x800, 1)
    p.hwpt_alloc(fd, number, ioas, True, gives="EADDRINUSE")
    p.attach(0, ioas, gives="EADDRINUSE")
    p.ioas_unmap(fd, ioas, RAM, 0x1000, gives="0x800")
    hwpt = p.hwpt_alloc(fd, number, ioas, True)
    for iova, size in ((RAM + 0x800, 0x1000), (RAM, 0x800), (RAM, 0)):
        p.ioas_map(fd, ioas, iova, size, 1, gives="EINVAL")
    p.destroy(fd, hwpt)
    p.ioas_map(fd, ioas, RAM + 0x800, 0x800, 1)


@case
def where_an_ioas_ends(p):
    """iommufd_ioas_map, iopt_check_iova; iopt_reserve_iova past the aperture of a table."""
    fd = p.open()
    number, ioas = p.bind(fd, 0), p.ioas_alloc(fd)
    p.ioas_map(fd, ioas, ALL, PAGE, 1, gives="EOVERFLOW")
    p.ioas_map(fd, NOBODY, PAGE, ALL, 1, gives="EOVERFLOW")
    p.ioas_map(fd, NOBODY, PAGE, PAGE, 1, gives="ENOENT")
    p.ioas_map(fd, ioas, ALL + 1 - PAGE, 2 * PAGE, 1, gives="EOVERFLOW")
    p.ioas_map(fd, ioas, ALL + 1 - PAGE, PAGE, 1)
    p.hwpt_alloc(fd, number, ioas, True, gives="EADDRINUSE")
    p.ioas_unmap(fd, ioas, 0, ALL, gives="0x1000")
    p.ioas_map(fd, ioas, 1 << 44, PAGE, 1)
    p.hwpt_alloc(fd, number, ioas, True, gives="EADDRINUSE")
    hwpt = p.hwpt_alloc(fd, number, ioas, False)
    p.ioas_map(fd, ioas, 1 << 48, PAGE, 1, gives="EINVAL")
    p.destroy(fd, hwpt)
    p.ioas_map(fd, ioas, 1 << 48, PAGE, 1)


@case
def what_is_unmapped_in_part_is_not(p):
    """iommufd_ioas_unmap, iopt_unmap_iova_range: what was in front of it is gone."""
    fd = p.open()
    ioas = p.ioas_alloc(fd)
    p.ioas_map(fd, ioas, PAGE, PAGE, 1)
    p.ioas_map(fd, ioas, 2 * PAGE, 2 * PAGE, 1)
    p.ioas_map(fd, ioas, 3 * PAGE, PAGE, 1, gives="EEXIST")
    p.ioas_unmap(fd, ioas, PAGE, 2 * PAGE, gives="ENOENT")
    p.ioas_map(fd, ioas, PAGE, PAGE, 1)
    p.ioas_unmap(fd, ioas, 3 * PAGE, PAGE, gives="ENOENT")
    p.ioas_unmap(fd, ioas, PAGE, 0, gives="EINVAL")
    p.ioas_unmap(fd, ioas, PAGE, 1 << 63, gives="0x3000")
    p.ioas_unmap(fd, ioas, 2 * PAGE, ALL - 1, gives="EOVERFLOW")
    p.ioas_unmap(fd, ioas, ALL, 1, gives="EOVERFLOW")
    p.ioas_unmap(fd, ioas, 0, ALL, gives="0x0")
    p.ioas_unmap(fd, ioas, PAGE, PAGE, gives="ENOENT")


@case
def what_a_hwpt_is_made_on(p):
    """iommufd_hwpt_alloc: ENOENT is for the device alone."""
    fd = p.open()
    number, ioas, parent, viommu = p.nesting(fd, 0)
    vdevice = p.vdevice_alloc(fd, viommu, number, ALL)
    for wrong, refusal in (
        (NOBODY, "EINVAL"),
        (number, "EINVAL"),
        (vdevice, "EINVAL"),
        (parent, "EOPNOTSUPP"),
        (viommu, "EOPNOTSUPP"),
    ):
        p.hwpt_alloc(fd, number, wrong, False, gives=refusal)
    p.hwpt_alloc(fd, ioas, ioas, False, gives="ENOENT")
    for wrong, refusal in (
        (NOBODY, "EINVAL"),
        (vdevice, "EINVAL"),
        (parent, "EOPNOTSUPP"),
        (ioas, "EOPNOTSUPP"),
    ):
        p.hwpt_alloc_nested(fd, number, wrong, "bypass", 0, gives=refusal)
    p.hwpt_alloc_nested(fd, NOBODY, viommu, "bypass", 0, gives="ENOENT")
    p.hwpt_alloc_nested(fd, number, viommu, "invalid", 0, gives="EIO")


@case
def everything_on_one_smmu(p):
    """arm_vsmmu_init, iommufd_vdevice_alloc_ioctl, arm_smmu_attach_dev, …_attach_dev_nested."""
    fd = p.open()
    number, ioas, parent, viommu = p.nesting(fd, 0)
    other = p.bind(fd, 4)
    plain = p.hwpt_alloc(fd, number, ioas, False)
    p.viommu_alloc(fd, other, parent, gives="EINVAL")
    p.viommu_alloc(fd, number, plain, gives="EINVAL")
    p.viommu_alloc(fd, number, ioas, gives="ENOENT")
    p.vdevice_alloc(fd, viommu, other, 7, gives="EINVAL")
    p.hwpt_alloc_nested(fd, other, viommu, "bypass", 0, gives="EINVAL")
    p.hwpt_alloc(fd, other, viommu, False, gives="EINVAL")
    bypass = p.hwpt_alloc_nested(fd, number, viommu, "bypass", 0)
    for wrong in (bypass, parent, plain):
        p.attach(4, wrong, gives="EINVAL")
    p.attach(4, ioas)
    p.enable(4)
    p.raise_msi(4)


@case
def a_vdevice_comes_before_a_stage_1(p):
    """arm_smmu_attach_prepare_vmaster."""
    fd = p.open()
    number, _ioas, _parent, viommu = p.nesting(fd, 0)
    translate = p.hwpt_alloc_nested(fd, number, viommu, "translate", 0)
    p.attach(0, translate, gives="ENOENT")
    p.attach(0, p.hwpt_alloc_nested(fd, number, viommu, "bypass", 0))
    p.enable(0)
    p.raise_msi(0)
    p.attach(0, p.hwpt_alloc_nested(fd, number, viommu, "abort", 0))
    p.raise_msi(0, gives="nowhere")
    p.attach(0, translate, gives="ENOENT")
    p.vdevice_alloc(fd, viommu, number, 7)
    p.vdevice_alloc(fd, viommu, number, 8, gives="EEXIST")
    p.vdevice_alloc(fd, viommu, p.bind(fd, 1), 7, gives="EEXIST")
    p.attach(0, translate)
    p.raise_msi(0)


@case
def a_stage_1_translates_first(p):
    """IHI 0070 3.12; arm_smmu_handle_event: stage 1 events are the guest's."""
    fd = p.open()
    _number, ioas, *_rest = p.nested(fd, 0)
    p.ioas_map(fd, ioas, GDB, 2 * PAGE, 3)
    p.enable(0)
    p.raise_msi(0)
    p.program(0, GIOVA + 0x40)
    p.raise_msi(0)
    p.program(0, GIOVA + 0x43)
    p.raise_msi(0)
    p.program(0, GIOVA + 0x44)
    p.raise_msi(0, gives="nowhere")
    p.program(0, GIOVA + 0x1044)
    p.raise_msi(0, gives="witness 3 0x44")
    for address in (GIOVA + 0x2040, 1 << 50):
        p.program(0, address)
        p.raise_msi(0, gives=f"guest F_TRANSLATION 1 0x7 {address:#x}")
    p.program(0, GDB + 0x40)
    p.raise_msi(0, gives=f"guest F_ADDR_SIZE 1 0x7 {GDB + 0x40:#x}")
    p.ioas_unmap(fd, ioas, GDB, 2 * PAGE)
    p.program(0, GIOVA + 0x1040)
    address, ipa = GIOVA + 0x1040, GDB + 0x40
    p.raise_msi(0, gives=f"host F_TRANSLATION 2 0x1100 {address:#x} {ipa:#x}")


@case
def where_a_stage_1_lies_is_translated_too(p):
    """IHI 0070 7.3: the class of a fault on a context descriptor, and on a table."""
    fd = p.open()
    _number, ioas, _parent, _viommu, _vdevice, nested = p.nested(fd, 0, ram=False)
    p.enable(0)
    p.raise_msi(0, gives=f"host F_TRANSLATION 2 0x1100 {SLOT:#x} {RAM:#x}")
    p.ioas_map(fd, ioas, RAM, RAM_SIZE, 0)
    p.raise_msi(0)
    p.ioas_unmap(fd, ioas, RAM, RAM_SIZE)
    p.raise_msi(0, gives=f"guest F_TRANSLATION 1 0x7 {SLOT:#x}")
    p.detach(0)
    p.attach(0, nested)
    p.raise_msi(0, gives=f"host F_TRANSLATION 2 0x1100 {SLOT:#x} {RAM:#x}")
    p.ioas_map(fd, ioas, RAM, PAGE, 0)
    p.raise_msi(0, gives=f"host F_TRANSLATION 2 0x1100 {SLOT:#x} {RAM + 0x10000:#x}")


@case
def the_same_entry_again_is_no_change(p):
    """arm_smmu_write_entry: no CMD_CFGI_STE where no bit of the entry changes."""
    fd = p.open()
    number, ioas, _parent, viommu, _vdevice, _nested = p.nested(fd, 0)
    p.enable(0)
    p.raise_msi(0)
    p.ioas_unmap(fd, ioas, RAM, RAM_SIZE)
    p.attach(0, p.hwpt_alloc_nested(fd, number, viommu, "translate", 0))
    p.raise_msi(0, gives=f"guest F_TRANSLATION 1 0x7 {SLOT:#x}")
    p.attach(0, p.hwpt_alloc_nested(fd, number, viommu, "translate", 1))
    p.raise_msi(0, gives=f"host F_TRANSLATION 2 0x1100 {SLOT:#x} {RAM:#x}")


@case
def the_kernels_own_tables_report_to_the_host(p):
    """arm_smmu_domain_alloc_paging_flags: a stage 1 where no parent is asked for."""
    fd = p.open()
    number, ioas = p.bind(fd, 0), p.ioas_alloc(fd)
    p.ioas_map(fd, ioas, GDB, PAGE, 2)
    p.attach(0, p.hwpt_alloc(fd, number, ioas, False))
    p.enable(0)
    p.raise_msi(0)
    p.program(0, GDB + 0x40)
    p.raise_msi(0, gives="witness 2 0x40")
    p.program(0, GIOVA)
    p.raise_msi(0, gives=f"host F_TRANSLATION 1 0x1100 {GIOVA:#x}")
    p.attach(0, p.hwpt_alloc(fd, number, ioas, True))
    p.raise_msi(0, gives=f"host F_TRANSLATION 2 0x1100 {GIOVA:#x} {GIOVA:#x}")
    p.program(0, (1 << 44) + 0x40)
    p.raise_msi(0, gives="nowhere")


@case
def the_window_is_reserved_while_a_device_is_attached(p):
    """iopt_table_enforce_dev_resv_regions, iommufd_device_attach_reserved_iova."""
    fd = p.open()
    number, ioas = p.bind(fd, 0), p.ioas_alloc(fd)
    hwpt = p.hwpt_alloc(fd, number, ioas, True)
    p.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1)
    p.attach(0, hwpt, gives="EADDRINUSE")
    p.ioas_unmap(fd, ioas, WINDOW + PAGE, PAGE)
    p.attach(0, hwpt)
    p.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1, gives="EINVAL")
    p.ioas_map(fd, ioas, WINDOW - PAGE, 2 * PAGE, 1, gives="EINVAL")
    p.ioas_map(fd, ioas, WINDOW - PAGE, PAGE, 1)
    p.detach(0)
    p.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1)


@case
def a_slot_stays_in_the_table(p):
    """iommufd_sw_msi_install: the MSI page is no area of the IOAS, and stays when it is free."""
    fd = p.open()
    number, ioas = p.bind(fd, 0), p.ioas_alloc(fd)
    hwpt = p.hwpt_alloc(fd, number, ioas, True)
    p.attach(0, hwpt)
    p.enable(0)
    p.detach(0)
    p.ioas_map(fd, ioas, WINDOW, PAGE, 1, gives="EEXIST")
    p.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1)
    p.destroy(fd, hwpt)
    p.ioas_map(fd, ioas, WINDOW, PAGE, 1)


@case
def slots_follow_the_group(p):
    """iommufd_group_setup_msi: a table that is attached to has what the group has used."""
    fd = p.open()
    number, one = p.bind(fd, 0), p.ioas_alloc(fd)
    two = p.ioas_alloc(fd)
    p.attach(0, one)
    p.enable(0)
    p.raise_msi(0)
    p.attach(0, two)
    p.raise_msi(0)
    p.attach(0, p.hwpt_alloc(fd, number, one, True))
    p.raise_msi(0)
    p.detach(0)
    p.raise_msi(0, gives="nowhere")
    p.attach(0, two)
    p.raise_msi(0)


@case
def a_refused_move_within_an_ioas_loses_its_reservations(p):
    """iommufd_device_do_replace: err_unresv releases what the attached device still needs."""
    fd = p.open()
    number, other, ioas = p.bind(fd, 0), p.bind(fd, 4), p.ioas_alloc(fd)
    mine = p.hwpt_alloc(fd, number, ioas, True)
    theirs = p.hwpt_alloc(fd, other, ioas, True)
    p.attach(0, mine)
    p.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1, gives="EINVAL")
    p.attach(0, theirs, gives="EINVAL")
    p.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1)
    p.detach(0)
    p.attach(0, mine, gives="EADDRINUSE")


@case
def an_address_is_the_kernels_again(p):
    """vfio_msi_set_vector_signal, msi_domain_activate: enabling again writes the address."""
    fd = p.open()
    ioas = p.ioas_alloc(fd)
    p.bind(fd, 0)
    p.attach(0, ioas)
    p.ioas_map(fd, ioas, GDB, PAGE, 1)
    p.enable(0)
    p.program(0, GDB + 0x40)
    p.raise_msi(0, gives="witness 1 0x40")
    p.enable(0)
    p.raise_msi(0)
    p.program(0, GDB + 0x40)
    p.disable(0)
    p.raise_msi(0, gives="nowhere")
    p.enable(0)
    p.raise_msi(0)
    p.detach(0)
    p.enable(0)
    p.raise_msi(0, gives="nowhere")


@case
def a_group_is_attached_as_one(p):
    """iommufd_hw_pagetable_attach, iommufd_hw_pagetable_detach."""
    fd = p.open()
    number, ioas = p.bind(fd, 2), p.ioas_alloc(fd)
    p.bind(fd, 3)
    one = p.hwpt_alloc(fd, number, ioas, True)
    two = p.hwpt_alloc(fd, number, ioas, True)
    p.attach(2, one)
    p.enable(3)
    p.raise_msi(3)
    p.attach(3, two, gives="EINVAL")
    p.attach(3, ioas, gives="EINVAL")
    p.attach(3, one)
    p.attach(2, two)
    p.detach(2)
    p.raise_msi(3)
    p.destroy(fd, one)
    p.destroy(fd, two, gives="EBUSY")
    p.detach(3)
    p.raise_msi(3, gives="nowhere")
    p.destroy(fd, two)


@case
def every_device_of_a_group_needs_a_vdevice(p):
    """__iommu_group_set_domain_internal, arm_smmu_attach_prepare_vmaster."""
    fd = p.open()
    number, _ioas, _parent, viommu = p.nesting(fd, 2)
    p.vdevice_alloc(fd, viommu, number, 1)
    nested = p.hwpt_alloc_nested(fd, number, viommu, "translate", 0)
    p.attach(2, nested, gives="ENOENT")
    vdevice = p.vdevice_alloc(fd, viommu, p.bind(fd, 3), 2)
    p.attach(2, nested)
    p.enable(3)
    p.raise_msi(3)
    p.program(3, RAM)
    p.raise_msi(3, gives=f"guest F_TRANSLATION 1 0x2 {RAM:#x}")
    p.destroy(fd, vdevice)
    p.raise_msi(3, gives=f"guest F_TRANSLATION 1 0x2 {RAM:#x}")
    p.unbind(3)
    p.bind(fd, 3)
    p.enable(3)
    p.program(3, RAM)
    p.raise_msi(3, gives=f"guest F_TRANSLATION 1 0x2 {RAM:#x}")


@case
def a_device_that_cannot_go_back_is_blocked(p):
    """__iommu_group_set_domain_internal: err_revert with IOMMU_SET_DOMAIN_MUST_SUCCEED."""
    fd = p.open()
    number, _ioas, parent, one = p.nesting(fd, 2)
    mate = p.bind(fd, 3)
    two = p.viommu_alloc(fd, number, parent)
    vdevice = p.vdevice_alloc(fd, one, number, 1)
    p.vdevice_alloc(fd, one, mate, 2)
    p.attach(2, p.hwpt_alloc_nested(fd, number, one, "translate", 0))
    p.enable(2)
    p.enable(3)
    p.destroy(fd, vdevice)
    p.vdevice_alloc(fd, two, number, 3)
    p.attach(2, p.hwpt_alloc_nested(fd, number, two, "translate", 0), gives="ENOENT")
    p.raise_msi(3)
    p.raise_msi(2, gives="nowhere")


@case
def what_is_referred_to_stays(p):
    """iommufd_object_remove, iommufd_device_remove_vdev: the id of a vDEVICE stays taken."""
    fd = p.open()
    number, ioas, parent, viommu, vdevice, nested = p.nested(fd, 0)
    for each in (number, ioas, parent, viommu, nested):
        p.destroy(fd, each, gives="EBUSY")
    p.unbind(0)
    p.destroy(fd, number, gives="ENOENT")
    p.destroy(fd, vdevice, gives="ENOENT")
    p.destroy(fd, viommu, gives="EBUSY")
    for each in (nested, viommu, parent, ioas):
        p.destroy(fd, each)
    p.destroy(fd, 0, gives="ENOENT")


@case
def what_attaching_makes_goes_with_the_last_device(p):
    """iommufd_device_auto_get_domain, iommufd_hw_pagetable_put."""
    fd = p.open()
    ioas = p.ioas_alloc(fd)
    for device in (0, 1, 4):
        p.bind(fd, device)
        p.attach(device, ioas)
        p.enable(device)
        p.raise_msi(device)
    for device in (0, 1, 4):
        p.destroy(fd, ioas, gives="EBUSY")
        p.detach(device)
    p.destroy(fd, ioas)


@case
def nothing_else_is_attached_to(p):
    """iommufd_device_change_pt."""
    fd = p.open()
    number, _ioas, _parent, viommu, vdevice, _nested = p.nested(fd, 0)
    for wrong, refusal in (
        (number, "EINVAL"),
        (viommu, "EINVAL"),
        (vdevice, "EINVAL"),
        (NOBODY, "ENOENT"),
    ):
        p.attach(0, wrong, gives=refusal)
        p.bind(fd, 1) if refusal == "ENOENT" else None
    p.attach(1, viommu, gives="EINVAL")


@case
def a_closed_file_lives_while_a_device_is_bound(p):
    """iommufd_ctx_get in iommufd_device_bind."""
    fd = p.open()
    p.bind(fd, 0)
    ioas = p.ioas_alloc(fd)
    p.close(fd)
    p.close(fd, gives="EBADF")
    p.ioas_alloc(fd, gives="EBADF")
    p.attach(0, ioas)
    p.enable(0)
    p.raise_msi(0)
    other = p.open()
    p.bind(other, 0, gives="EINVAL")
    p.unbind(0)
    p.bind(other, 0)
    p.attach(0, ioas, gives="ENOENT")
