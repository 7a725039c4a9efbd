"""Call sequences with Linux's results, each for one rule: for the simulator and for the kernel.

A case makes its calls through :class:`CheckedCalls` with the expected result of each. Devices are
numbered as in the lab's emulated host of the default shape: 0 and 1 behind SMMU 0; 2 and 3, the
two functions of one device in one IOMMU group, behind SMMU 0 too; 4 and 5 behind SMMU 1.
"""

from __future__ import annotations

from vmm_msi.errors import errno_name
from vmm_msi.iommu.call_sequence import (
    OPS,
    CallSequence,
    LandingKind,
    Ref,
    SequenceRunner,
    Stage1Shape,
    Step,
)
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
INVALID = 1 << 20

#: One maps the window 1:1 and the doorbells at gIOVAs, the other maps nothing.
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


class CheckedCalls:
    """Makes calls on a machine, checks their results and records the steps."""

    def __init__(self, machine):
        machine.prepare(STAGE1)
        self._runner = SequenceRunner(machine)
        self.steps = []

    def __getattr__(self, op):
        names = list(OPS[op].parameters)

        def call(*values, expect=None, inside="", **named):
            step = Step(op, dict(zip(names, values, strict=False)) | named)
            self.steps.append(step)
            result = self._runner.call(step)
            text = shown(result)
            expected = expect
            if expect is None:
                expected = {"enable": hex(SLOT), "raise_msi": "its"}.get(op, text)
                assert not result.errno, f"step {len(self.steps) - 1}, {step}: {text}"
            assert text == expected, f"step {len(self.steps) - 1}, {step}: {result.reason}"
            assert result.reason.startswith(inside and f"{inside} in the kernel: ")
            return Ref(len(self.steps) - 1)

        return call

    def sequence(self):
        return CallSequence(STAGE1, tuple(self.steps))

    def nesting(self, fd, device, *, ram=True):
        """Allocate an IOAS with guest RAM, a nest parent and a vIOMMU; return the ids."""
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
    """Return a result in a word or two."""
    if result.errno:
        return errno_name(result.errno)
    if result.binding is not None:
        return str(result.binding)
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
def a_device_is_bound_once(calls):
    """vfio_df_ioctl_bind_iommufd, vfio_device_fops_unl_ioctl."""
    calls.bind(INVALID, 0, expect="EBADF")
    calls.attach(0, INVALID, expect="EBADF")
    fd = calls.open()
    calls.bind(fd, 0)
    calls.bind(fd, 0, expect="EINVAL")
    calls.bind(calls.open(), 0, expect="EINVAL")
    calls.detach(0)
    calls.disable(0, expect="EINVAL")
    calls.unbind(0)
    calls.detach(0, expect="EBADF")
    calls.unbind(0, expect="EBADF")


@case
def a_group_has_one_owner(calls):
    """iommu_device_claim_dma_owner."""
    one, two = calls.open(), calls.open()
    calls.bind(one, 2)
    calls.bind(two, 3, expect="EPERM")
    calls.attach(3, INVALID, expect="EINVAL")
    calls.enable(3, expect="EINVAL")
    calls.raise_msi(3, expect="EINVAL")
    calls.unbind(2)
    calls.bind(two, 3)
    calls.bind(one, 2, expect="EPERM")


@case
def an_ioas_is_mapped_in_bytes_until_a_table_is_filled(calls):
    """iopt_calculate_iova_alignment, iopt_check_iova_alignment, iopt_table_add_domain."""
    fd = calls.open()
    number, ioas = calls.bind(fd, 0), calls.ioas_alloc(fd)
    calls.ioas_map(fd, ioas, RAM + 0x800, 0x800, 1)
    calls.hwpt_alloc(fd, number, ioas, True, expect="EADDRINUSE")
    calls.attach(0, ioas, expect="EADDRINUSE")
    calls.ioas_unmap(fd, ioas, RAM, 0x1000, expect="0x800")
    hwpt = calls.hwpt_alloc(fd, number, ioas, True)
    for iova, size in ((RAM + 0x800, 0x1000), (RAM, 0x800), (RAM, 0)):
        calls.ioas_map(fd, ioas, iova, size, 1, expect="EINVAL")
    calls.destroy(fd, hwpt)
    calls.ioas_map(fd, ioas, RAM + 0x800, 0x800, 1)


@case
def the_ends_of_an_ioas(calls):
    """iommufd_ioas_map, iopt_check_iova; iopt_reserve_iova past the aperture of a table."""
    fd = calls.open()
    number, ioas = calls.bind(fd, 0), calls.ioas_alloc(fd)
    calls.ioas_map(fd, ioas, ALL, PAGE, 1, expect="EOVERFLOW")
    calls.ioas_map(fd, INVALID, PAGE, ALL, 1, expect="EOVERFLOW")
    calls.ioas_map(fd, INVALID, PAGE, PAGE, 1, expect="ENOENT")
    calls.ioas_map(fd, ioas, ALL + 1 - PAGE, 2 * PAGE, 1, expect="EOVERFLOW")
    calls.ioas_map(fd, ioas, ALL + 1 - PAGE, PAGE, 1)
    calls.hwpt_alloc(fd, number, ioas, True, expect="EADDRINUSE")
    calls.ioas_unmap(fd, ioas, 0, ALL, expect="0x1000")
    calls.ioas_map(fd, ioas, 1 << 44, PAGE, 1)
    calls.hwpt_alloc(fd, number, ioas, True, expect="EADDRINUSE")
    hwpt = calls.hwpt_alloc(fd, number, ioas, False)
    calls.ioas_map(fd, ioas, 1 << 48, PAGE, 1, expect="EINVAL")
    calls.destroy(fd, hwpt)
    calls.ioas_map(fd, ioas, 1 << 48, PAGE, 1)


@case
def a_partial_unmap_is_refused(calls):
    """iommufd_ioas_unmap, iopt_unmap_iova_range: the areas before it are unmapped."""
    fd = calls.open()
    ioas = calls.ioas_alloc(fd)
    calls.ioas_map(fd, ioas, PAGE, PAGE, 1)
    calls.ioas_map(fd, ioas, 2 * PAGE, 2 * PAGE, 1)
    calls.ioas_map(fd, ioas, 3 * PAGE, PAGE, 1, expect="EEXIST")
    calls.ioas_unmap(fd, ioas, PAGE, 2 * PAGE, expect="ENOENT")
    calls.ioas_map(fd, ioas, PAGE, PAGE, 1)
    calls.ioas_unmap(fd, ioas, 3 * PAGE, PAGE, expect="ENOENT")
    calls.ioas_unmap(fd, ioas, PAGE, 0, expect="EINVAL")
    calls.ioas_unmap(fd, ioas, PAGE, 1 << 63, expect="0x3000")
    calls.ioas_unmap(fd, ioas, 2 * PAGE, ALL - 1, expect="EOVERFLOW")
    calls.ioas_unmap(fd, ioas, ALL, 1, expect="EOVERFLOW")
    calls.ioas_unmap(fd, ioas, 0, ALL, expect="0x0")
    calls.ioas_unmap(fd, ioas, PAGE, PAGE, expect="ENOENT")


@case
def the_parents_of_a_hwpt(calls):
    """iommufd_hwpt_alloc: ENOENT is for the device only."""
    fd = calls.open()
    number, ioas, parent, viommu = calls.nesting(fd, 0)
    vdevice = calls.vdevice_alloc(fd, viommu, number, ALL)
    for wrong, refusal in (
        (INVALID, "EINVAL"),
        (number, "EINVAL"),
        (vdevice, "EINVAL"),
        (parent, "EOPNOTSUPP"),
        (viommu, "EOPNOTSUPP"),
    ):
        calls.hwpt_alloc(fd, number, wrong, False, expect=refusal)
    calls.hwpt_alloc(fd, ioas, ioas, False, expect="ENOENT")
    for wrong, refusal in (
        (INVALID, "EINVAL"),
        (vdevice, "EINVAL"),
        (parent, "EOPNOTSUPP"),
        (ioas, "EOPNOTSUPP"),
    ):
        calls.hwpt_alloc_nested(fd, number, wrong, "bypass", 0, expect=refusal)
    calls.hwpt_alloc_nested(fd, INVALID, viommu, "bypass", 0, expect="ENOENT")
    calls.hwpt_alloc_nested(fd, number, viommu, "invalid", 0, expect="EIO")


@case
def objects_of_a_viommu_share_its_smmu(calls):
    """arm_vsmmu_init, iommufd_vdevice_alloc_ioctl, arm_smmu_attach_dev, …_attach_dev_nested."""
    fd = calls.open()
    number, ioas, parent, viommu = calls.nesting(fd, 0)
    other = calls.bind(fd, 4)
    plain = calls.hwpt_alloc(fd, number, ioas, False)
    calls.viommu_alloc(fd, other, parent, expect="EINVAL")
    calls.viommu_alloc(fd, number, plain, expect="EINVAL")
    calls.viommu_alloc(fd, number, ioas, expect="ENOENT")
    calls.vdevice_alloc(fd, viommu, other, 7, expect="EINVAL")
    calls.hwpt_alloc_nested(fd, other, viommu, "bypass", 0, expect="EINVAL")
    calls.hwpt_alloc(fd, other, viommu, False, expect="EINVAL")
    bypass = calls.hwpt_alloc_nested(fd, number, viommu, "bypass", 0)
    for wrong in (bypass, parent, plain):
        calls.attach(4, wrong, expect="EINVAL")
    calls.attach(4, ioas)
    calls.enable(4)
    calls.raise_msi(4)


@case
def a_vdevice_comes_before_a_stage_1(calls):
    """arm_smmu_attach_prepare_vmaster."""
    fd = calls.open()
    number, _ioas, _parent, viommu = calls.nesting(fd, 0)
    translate = calls.hwpt_alloc_nested(fd, number, viommu, "translate", 0)
    calls.attach(0, translate, expect="ENOENT")
    calls.attach(0, calls.hwpt_alloc_nested(fd, number, viommu, "bypass", 0))
    calls.enable(0)
    calls.raise_msi(0)
    calls.attach(0, calls.hwpt_alloc_nested(fd, number, viommu, "abort", 0))
    calls.raise_msi(0, expect="nowhere")
    calls.attach(0, translate, expect="ENOENT")
    calls.vdevice_alloc(fd, viommu, number, 7)
    calls.vdevice_alloc(fd, viommu, number, 8, expect="EEXIST")
    calls.vdevice_alloc(fd, viommu, calls.bind(fd, 1), 7, expect="EEXIST")
    calls.attach(0, translate)
    calls.raise_msi(0)


@case
def a_stage_1_translates_first(calls):
    """IHI 0070 3.12; arm_smmu_handle_event: stage 1 events are the guest's."""
    fd = calls.open()
    _number, ioas, *_rest = calls.nested(fd, 0)
    calls.ioas_map(fd, ioas, GDB, 2 * PAGE, 3)
    calls.enable(0)
    calls.raise_msi(0)
    calls.program(0, GIOVA + 0x40)
    calls.raise_msi(0)
    calls.program(0, GIOVA + 0x43)
    calls.raise_msi(0)
    calls.program(0, GIOVA + 0x44)
    calls.raise_msi(0, expect="nowhere")
    calls.program(0, GIOVA + 0x1044)
    calls.raise_msi(0, expect="witness 3 0x44")
    for address in (GIOVA + 0x2040, 1 << 50):
        calls.program(0, address)
        calls.raise_msi(0, expect=f"guest F_TRANSLATION 1 0x7 {address:#x}")
    calls.program(0, GDB + 0x40)
    calls.raise_msi(0, expect=f"guest F_ADDR_SIZE 1 0x7 {GDB + 0x40:#x}")
    calls.ioas_unmap(fd, ioas, GDB, 2 * PAGE)
    calls.program(0, GIOVA + 0x1040)
    address, ipa = GIOVA + 0x1040, GDB + 0x40
    calls.raise_msi(0, expect=f"host F_TRANSLATION 2 0x1100 {address:#x} {ipa:#x}")


@case
def the_address_of_a_stage_1_is_translated(calls):
    """IHI 0070 7.3: the class of a fault on a context descriptor, and on a table."""
    fd = calls.open()
    _number, ioas, _parent, _viommu, _vdevice, nested = calls.nested(fd, 0, ram=False)
    calls.enable(0)
    calls.raise_msi(0, expect=f"host F_TRANSLATION 2 0x1100 {SLOT:#x} {RAM:#x}")
    calls.ioas_map(fd, ioas, RAM, RAM_SIZE, 0)
    calls.raise_msi(0)
    calls.ioas_unmap(fd, ioas, RAM, RAM_SIZE)
    calls.raise_msi(0, expect=f"guest F_TRANSLATION 1 0x7 {SLOT:#x}")
    calls.detach(0)
    calls.attach(0, nested)
    calls.raise_msi(0, expect=f"host F_TRANSLATION 2 0x1100 {SLOT:#x} {RAM:#x}")
    calls.ioas_map(fd, ioas, RAM, PAGE, 0)
    calls.raise_msi(0, expect=f"host F_TRANSLATION 2 0x1100 {SLOT:#x} {RAM + 0x10000:#x}")


@case
def writing_the_same_entry_changes_nothing(calls):
    """arm_smmu_write_entry: no CMD_CFGI_STE where no bit of the entry changes."""
    fd = calls.open()
    number, ioas, _parent, viommu, _vdevice, _nested = calls.nested(fd, 0)
    calls.enable(0)
    calls.raise_msi(0)
    calls.ioas_unmap(fd, ioas, RAM, RAM_SIZE)
    calls.attach(0, calls.hwpt_alloc_nested(fd, number, viommu, "translate", 0))
    calls.raise_msi(0, expect=f"guest F_TRANSLATION 1 0x7 {SLOT:#x}")
    calls.attach(0, calls.hwpt_alloc_nested(fd, number, viommu, "translate", 1))
    calls.raise_msi(0, expect=f"host F_TRANSLATION 2 0x1100 {SLOT:#x} {RAM:#x}")


@case
def the_kernels_own_tables_report_to_the_host(calls):
    """arm_smmu_domain_alloc_paging_flags: a stage 1 without IOMMU_HWPT_ALLOC_NEST_PARENT."""
    fd = calls.open()
    number, ioas = calls.bind(fd, 0), calls.ioas_alloc(fd)
    calls.ioas_map(fd, ioas, GDB, PAGE, 2)
    calls.attach(0, calls.hwpt_alloc(fd, number, ioas, False))
    calls.enable(0)
    calls.raise_msi(0)
    calls.program(0, GDB + 0x40)
    calls.raise_msi(0, expect="witness 2 0x40")
    calls.program(0, GIOVA)
    calls.raise_msi(0, expect=f"host F_TRANSLATION 1 0x1100 {GIOVA:#x}")
    calls.attach(0, calls.hwpt_alloc(fd, number, ioas, True))
    calls.raise_msi(0, expect=f"host F_TRANSLATION 2 0x1100 {GIOVA:#x} {GIOVA:#x}")
    calls.program(0, (1 << 44) + 0x40)
    calls.raise_msi(0, expect="nowhere")


@case
def the_window_is_reserved_while_a_device_is_attached(calls):
    """iopt_table_enforce_dev_resv_regions, iommufd_device_attach_reserved_iova."""
    fd = calls.open()
    number, ioas = calls.bind(fd, 0), calls.ioas_alloc(fd)
    hwpt = calls.hwpt_alloc(fd, number, ioas, True)
    calls.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1)
    calls.attach(0, hwpt, expect="EADDRINUSE")
    calls.ioas_unmap(fd, ioas, WINDOW + PAGE, PAGE)
    calls.attach(0, hwpt)
    calls.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1, expect="EINVAL")
    calls.ioas_map(fd, ioas, WINDOW - PAGE, 2 * PAGE, 1, expect="EINVAL")
    calls.ioas_map(fd, ioas, WINDOW - PAGE, PAGE, 1)
    calls.detach(0)
    calls.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1)


@case
def a_device_of_an_attached_group_has_its_address(calls):
    """iommu_dma_prepare_msi: the IOMMU group's domain counts, not the device's own attach."""
    fd = calls.open()
    calls.bind(fd, 2)
    calls.bind(fd, 3)
    calls.attach(2, calls.ioas_alloc(fd))
    calls.enable(3)
    calls.raise_msi(3)


@case
def a_slot_stays_in_the_table(calls):
    """iommufd_sw_msi_install: the MSI page is not an area of the IOAS, and outlives the attach."""
    fd = calls.open()
    number, ioas = calls.bind(fd, 0), calls.ioas_alloc(fd)
    hwpt = calls.hwpt_alloc(fd, number, ioas, True)
    calls.attach(0, hwpt)
    calls.enable(0)
    calls.detach(0)
    calls.ioas_map(fd, ioas, WINDOW, PAGE, 1, expect="EEXIST")
    calls.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1)
    calls.destroy(fd, hwpt)
    calls.ioas_map(fd, ioas, WINDOW, PAGE, 1)


@case
def slots_follow_the_group(calls):
    """iommufd_group_setup_msi: attaching maps the slots that the group has used."""
    fd = calls.open()
    number, one = calls.bind(fd, 0), calls.ioas_alloc(fd)
    two = calls.ioas_alloc(fd)
    calls.attach(0, one)
    calls.enable(0)
    calls.raise_msi(0)
    calls.attach(0, two)
    calls.raise_msi(0)
    calls.attach(0, calls.hwpt_alloc(fd, number, one, True))
    calls.raise_msi(0)
    calls.detach(0)
    calls.raise_msi(0, expect="nowhere")
    calls.attach(0, two)
    calls.raise_msi(0)


@case
def a_refused_move_within_an_ioas_loses_its_reservations(calls):
    """iommufd_device_do_replace: err_unresv releases the attached device's reservations."""
    fd = calls.open()
    number, other, ioas = calls.bind(fd, 0), calls.bind(fd, 4), calls.ioas_alloc(fd)
    mine = calls.hwpt_alloc(fd, number, ioas, True)
    theirs = calls.hwpt_alloc(fd, other, ioas, True)
    calls.attach(0, mine)
    calls.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1, expect="EINVAL")
    calls.attach(0, theirs, expect="EINVAL")
    calls.ioas_map(fd, ioas, WINDOW + PAGE, PAGE, 1)
    calls.detach(0)
    calls.attach(0, mine, expect="EADDRINUSE")


@case
def enabling_again_restores_the_kernels_address(calls):
    """vfio_msi_set_vector_signal, msi_domain_activate: enabling again writes the address."""
    fd = calls.open()
    ioas = calls.ioas_alloc(fd)
    calls.bind(fd, 0)
    calls.attach(0, ioas)
    calls.ioas_map(fd, ioas, GDB, PAGE, 1)
    calls.enable(0)
    calls.program(0, GDB + 0x40)
    calls.raise_msi(0, expect="witness 1 0x40")
    calls.enable(0)
    calls.raise_msi(0)
    calls.program(0, GDB + 0x40)
    calls.disable(0)
    calls.raise_msi(0, expect="nowhere")
    calls.enable(0)
    calls.raise_msi(0)
    calls.detach(0)
    calls.enable(0)
    calls.raise_msi(0, expect="nowhere")


@case
def a_group_is_attached_as_one(calls):
    """iommufd_hw_pagetable_attach, iommufd_hw_pagetable_detach."""
    fd = calls.open()
    number, ioas = calls.bind(fd, 2), calls.ioas_alloc(fd)
    calls.bind(fd, 3)
    one = calls.hwpt_alloc(fd, number, ioas, True)
    two = calls.hwpt_alloc(fd, number, ioas, True)
    calls.attach(2, one)
    calls.enable(3)
    calls.raise_msi(3)
    calls.attach(3, two, expect="EINVAL")
    calls.attach(3, ioas, expect="EINVAL")
    calls.attach(3, one)
    calls.attach(2, two)
    calls.detach(2)
    calls.raise_msi(3)
    calls.destroy(fd, one)
    calls.destroy(fd, two, expect="EBUSY")
    calls.detach(3)
    calls.raise_msi(3, expect="nowhere")
    calls.destroy(fd, two)


@case
def every_device_of_a_group_needs_a_vdevice(calls):
    """__iommu_group_set_domain_internal, arm_smmu_attach_prepare_vmaster."""
    fd = calls.open()
    number, _ioas, _parent, viommu = calls.nesting(fd, 2)
    calls.vdevice_alloc(fd, viommu, number, 1)
    nested = calls.hwpt_alloc_nested(fd, number, viommu, "translate", 0)
    calls.attach(2, nested, expect="ENOENT")
    vdevice = calls.vdevice_alloc(fd, viommu, calls.bind(fd, 3), 2)
    calls.attach(2, nested)
    calls.enable(3)
    calls.raise_msi(3)
    calls.program(3, RAM)
    calls.raise_msi(3, expect=f"guest F_TRANSLATION 1 0x2 {RAM:#x}")
    calls.destroy(fd, vdevice)
    calls.raise_msi(3, expect=f"guest F_TRANSLATION 1 0x2 {RAM:#x}")
    calls.unbind(3)
    calls.bind(fd, 3)
    calls.enable(3)
    calls.program(3, RAM)
    calls.raise_msi(3, expect=f"guest F_TRANSLATION 1 0x2 {RAM:#x}")


@case
def a_device_that_cannot_go_back_is_blocked(calls):
    """__iommu_group_set_domain_internal: err_revert with IOMMU_SET_DOMAIN_MUST_SUCCEED."""
    fd = calls.open()
    number, _ioas, parent, one = calls.nesting(fd, 2)
    mate = calls.bind(fd, 3)
    two = calls.viommu_alloc(fd, number, parent)
    vdevice = calls.vdevice_alloc(fd, one, number, 1)
    calls.vdevice_alloc(fd, one, mate, 2)
    calls.attach(2, calls.hwpt_alloc_nested(fd, number, one, "translate", 0))
    calls.enable(2)
    calls.enable(3)
    calls.destroy(fd, vdevice)
    calls.vdevice_alloc(fd, two, number, 3)
    calls.attach(2, calls.hwpt_alloc_nested(fd, number, two, "translate", 0), expect="ENOENT")
    calls.raise_msi(3)
    calls.raise_msi(2, expect="nowhere")


@case
def an_object_in_use_is_not_destroyed(calls):
    """iommufd_object_remove, iommufd_device_remove_vdev: the id of a vDEVICE stays allocated."""
    fd = calls.open()
    number, ioas, parent, viommu, vdevice, nested = calls.nested(fd, 0)
    for used in (number, ioas, parent, viommu, nested):
        calls.destroy(fd, used, expect="EBUSY")
    calls.unbind(0)
    calls.destroy(fd, number, expect="ENOENT")
    calls.destroy(fd, vdevice, expect="ENOENT")
    calls.destroy(fd, viommu, expect="EBUSY")
    for unused in (nested, viommu, parent, ioas):
        calls.destroy(fd, unused)
    calls.destroy(fd, 0, expect="ENOENT")


@case
def an_automatic_hwpt_is_destroyed_with_its_last_device(calls):
    """iommufd_device_auto_get_domain, iommufd_hw_pagetable_put."""
    fd = calls.open()
    ioas = calls.ioas_alloc(fd)
    for device in (0, 1, 4):
        calls.bind(fd, device)
        calls.attach(device, ioas)
        calls.enable(device)
        calls.raise_msi(device)
    for device in (0, 1, 4):
        calls.destroy(fd, ioas, expect="EBUSY")
        calls.detach(device)
    calls.destroy(fd, ioas)


@case
def a_device_attaches_to_an_ioas_or_a_hwpt_only(calls):
    """iommufd_device_change_pt."""
    fd = calls.open()
    number, _ioas, _parent, viommu, vdevice, _nested = calls.nested(fd, 0)
    for wrong, refusal in (
        (number, "EINVAL"),
        (viommu, "EINVAL"),
        (vdevice, "EINVAL"),
        (INVALID, "ENOENT"),
    ):
        calls.attach(0, wrong, expect=refusal)
        calls.bind(fd, 1) if refusal == "ENOENT" else None
    calls.attach(1, viommu, expect="EINVAL")


@case
def a_closed_file_lives_while_a_device_is_bound(calls):
    """iommufd_ctx_get in iommufd_device_bind."""
    fd = calls.open()
    calls.bind(fd, 0)
    ioas = calls.ioas_alloc(fd)
    calls.close(fd)
    calls.close(fd, expect="EBADF")
    calls.ioas_alloc(fd, expect="EBADF")
    calls.attach(0, ioas)
    calls.enable(0)
    calls.raise_msi(0)
    other = calls.open()
    calls.bind(other, 0, expect="EINVAL")
    calls.unbind(0)
    calls.bind(other, 0)
    calls.attach(0, ioas, expect="ENOENT")
