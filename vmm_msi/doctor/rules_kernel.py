"""Rules about the host's kernel: its configuration, release and device nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.case import KernelFacts
from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import kernel_release, named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case

#: First release with nested SMMUv3s for iommufd, and first release whose iommufd maps doorbells
#: for devices behind them.
NESTED_SMMU = (6, 13)
NESTED_MSI = (6, 15)

_BUILT = "IOMMUFD=m, ARM_SMMU_V3_IOMMUFD=y, VFIO_DEVICE_CDEV=y and VFIO_PCI=m"


def _is_off(kernel: KernelFacts, option: str) -> bool:
    """Return whether the kernel is known to be built without an option."""
    return kernel.options is not None and option not in kernel.options


def _off(kernel: KernelFacts, option: str) -> tuple[Evidence, ...]:
    return (Evidence(kernel.options_from, f"CONFIG_{option} is not set"),)


def _name(kernel: KernelFacts) -> str:
    return f"Linux {kernel.release}" if kernel.release else "the kernel"


def no_iommufd(case: Case) -> Iterator[Finding]:
    """Yield a finding if the kernel has no iommufd."""
    kernel = case.kernel
    if case.needs_iommufd and _is_off(kernel, "IOMMUFD"):
        debian = ""
        if "deb" in (kernel.release or ""):
            debian = (
                "; Debian disables it in all arm64 kernels, including "
                f"linux-image-{kernel.release}, so build one from its linux-source package"
            )
        yield Finding(
            "kernel-no-iommufd",
            Severity.ERROR,
            "host",
            _off(kernel, "IOMMUFD"),
            f"{_name(kernel)} has no /dev/iommu, so QEMU cannot start a guest with an accelerated "
            "vSMMU, which every device that vmm-msi attaches needs.",
            f"Boot Linux 6.15 or newer with {_BUILT}{debian}.",
        )


def no_nested_smmu(case: Case) -> Iterator[Finding]:
    """Yield a finding if the kernel has iommufd but cannot nest an SMMUv3."""
    kernel = case.kernel
    if (
        case.needs_nesting
        and _is_off(kernel, "ARM_SMMU_V3_IOMMUFD")
        and not _is_off(kernel, "IOMMUFD")
    ):
        yield Finding(
            "kernel-no-nested-smmu",
            Severity.ERROR,
            "host",
            _off(kernel, "ARM_SMMU_V3_IOMMUFD"),
            f"{_name(kernel)} rejects IOMMU_VIOMMU_ALLOC with EOPNOTSUPP on every SMMU, so no "
            "accelerated vSMMU can be set up.",
            f"Boot Linux 6.15 or newer with {_BUILT}.",
        )


def no_smmu_driver(case: Case) -> Iterator[Finding]:
    """Yield a finding if the kernel has no driver for the host's SMMUs."""
    kernel = case.kernel
    smmus = [smmu.id for smmu in case.host.smmus if smmu.version == 3]
    if smmus and case.needs_vfio and _is_off(kernel, "ARM_SMMU_V3"):
        yield Finding(
            "kernel-no-smmu-driver",
            Severity.ERROR,
            "host",
            (
                *_off(kernel, "ARM_SMMU_V3"),
                Evidence(case.host.source, f"SMMUv3 {named(smmus)}"),
            ),
            "The SMMUv3s have no driver, so the devices behind them have no IOMMU group and cannot "
            "be assigned.",
            f"Boot a kernel with ARM_SMMU_V3=y, and {_BUILT}.",
        )


def no_vfio_cdev(case: Case) -> Iterator[Finding]:
    """Yield a finding if VFIO devices cannot be bound to iommufd."""
    kernel = case.kernel
    if (
        case.needs_iommufd
        and _is_off(kernel, "VFIO_DEVICE_CDEV")
        and not _is_off(kernel, "IOMMUFD")
    ):
        yield Finding(
            "kernel-no-vfio-cdev",
            Severity.ERROR,
            "host",
            _off(kernel, "VFIO_DEVICE_CDEV"),
            "/dev/vfio/devices does not exist, so QEMU cannot bind a device to iommufd; a device "
            "opened through its group cannot have a nested stage 1.",
            f"Boot a kernel with {_BUILT}.",
        )


def no_vfio_pci(case: Case) -> Iterator[Finding]:
    """Yield a finding if the kernel has no vfio-pci."""
    kernel = case.kernel
    if case.needs_vfio and _is_off(kernel, "VFIO_PCI"):
        yield Finding(
            "kernel-no-vfio-pci",
            Severity.ERROR,
            "host",
            _off(kernel, "VFIO_PCI"),
            "libvirt has no vfio-pci driver to bind devices to, and does not start guests with "
            "assigned devices.",
            f"Boot a kernel with {_BUILT}.",
        )


def too_old(case: Case) -> Iterator[Finding]:
    """Yield a finding if the kernel's release is too old."""
    release = kernel_release(case.kernel.release)
    if release is None or release >= NESTED_MSI or not case.needs_nesting:
        return
    if release < NESTED_SMMU:
        consequence = (
            f"{_name(case.kernel)} cannot nest an SMMUv3 for a guest: Linux 6.13 added nesting, "
            "and 6.15 the doorbells of nested devices."
        )
    else:
        consequence = (
            f"{_name(case.kernel)} nests an SMMUv3 but maps no doorbell in the stage 2 below it: "
            "the MSIs of an assigned device fault."
        )
    yield Finding(
        "kernel-too-old",
        Severity.ERROR,
        "host",
        (Evidence("uname -r", str(case.kernel.release)),),
        consequence,
        "Boot Linux 6.15 or newer.",
    )


def no_dev_iommu(case: Case) -> Iterator[Finding]:
    """Yield a finding if /dev/iommu is missing although the kernel may have iommufd."""
    kernel = case.kernel
    if not case.needs_iommufd or kernel.dev_iommu is not False or _is_off(kernel, "IOMMUFD"):
        return
    if case.tree is not None and not case.tree.exists("/dev"):
        return  # a copy without device nodes
    yield Finding(
        "no-dev-iommu",
        Severity.ERROR,
        "host",
        (Evidence("/dev/iommu", "missing"),),
        "QEMU exits when it opens /dev/iommu: No such file or directory.",
        "Run modprobe iommufd, and add iommufd to a file in /etc/modules-load.d; if the module "
        f"does not exist, boot a kernel with {_BUILT}.",
    )


def config_unknown(case: Case) -> Iterator[Finding]:
    """Yield a finding if the kernel's configuration could not be read."""
    kernel = case.kernel
    if case.needs_vfio and case.tree is not None and kernel.options is None:
        file = f"/boot/config-{kernel.release or 'RELEASE'}"
        yield Finding(
            "kernel-config-unknown",
            Severity.UNKNOWN,
            "host",
            (Evidence(file, "no configuration"), Evidence("/proc/config.gz", "no configuration")),
            "Whether the kernel has iommufd and can nest SMMUs is unknown.",
            f"Copy the configuration of the running kernel to {file}, or check it for {_BUILT} "
            "yourself.",
        )


def not_checked(case: Case) -> Iterator[Finding]:
    """Yield a finding if no source has files of the host's kernel.

    A description of the hardware fires none of the rules about the kernel; their silence is not an
    all-clear.
    """
    if case.needs_vfio and case.tree is None and case.kernel == KernelFacts():
        yield Finding(
            "kernel-not-checked",
            Severity.UNKNOWN,
            "host",
            (Evidence(case.host.source, "describes the hardware, without files of the kernel"),),
            "Whether the host's kernel can assign devices and nest its SMMUs is unknown: neither "
            "its release and options nor the drivers of its SMMUs and devices were checked.",
            "Run vmm-msi doctor on the host itself, or capture it with vmm-msi topology capture "
            "and use the capture as HOST.",
        )
