"""Rules about the host's kernel: how it was built, its release, what it offers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.doctor.finding import Evidence, Finding, Severity
from vmm_msi.doctor.rule_helpers import kernel_release, named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case, KernelFacts

#: The first release with nested SMMUv3s for iommufd, and the first whose iommufd maps doorbells
#: for a device that is behind one.
NESTED_SMMU = (6, 13)
NESTED_MSI = (6, 15)

_BUILT = "IOMMUFD=m, ARM_SMMU_V3_IOMMUFD=y, VFIO_DEVICE_CDEV=y and VFIO_PCI=m"


def _is_off(kernel: KernelFacts, option: str) -> bool:
    """Tell whether it is known that the kernel was built without an option."""
    return kernel.options is not None and option not in kernel.options


def _off(kernel: KernelFacts, option: str) -> tuple[Evidence, ...]:
    return (Evidence(kernel.options_from, f"CONFIG_{option} is not set"),)


def _this(kernel: KernelFacts) -> str:
    return f"Linux {kernel.release}" if kernel.release else "the kernel"


def no_iommufd(case: Case) -> Iterator[Finding]:
    """Yield that the kernel has no iommufd."""
    kernel = case.kernel
    if _is_off(kernel, "IOMMUFD"):
        debian = ""
        if "deb" in (kernel.release or ""):
            debian = (
                f"; Debian's linux-image-{kernel.release} has it off, as all of its arm64 kernels, "
                "so build one from its linux-source package"
            )
        yield Finding(
            "kernel-no-iommufd",
            Severity.ERROR,
            "host",
            _off(kernel, "IOMMUFD"),
            f"{_this(kernel)} has no /dev/iommu, so QEMU cannot start a guest with an accelerated "
            "vSMMU, and nothing that vmm-msi attaches there would run.",
            f"Boot a kernel of 6.15 or newer with {_BUILT}{debian}.",
        )


def no_nested_smmu(case: Case) -> Iterator[Finding]:
    """Yield that the kernel has iommufd and cannot nest an SMMUv3 with it."""
    kernel = case.kernel
    if _is_off(kernel, "ARM_SMMU_V3_IOMMUFD") and not _is_off(kernel, "IOMMUFD"):
        yield Finding(
            "kernel-no-nested-smmu",
            Severity.ERROR,
            "host",
            _off(kernel, "ARM_SMMU_V3_IOMMUFD"),
            f"{_this(kernel)} answers IOMMU_VIOMMU_ALLOC with EOPNOTSUPP on every SMMU, so no "
            "accelerated vSMMU can be set up.",
            f"Boot a kernel of 6.15 or newer with {_BUILT}.",
        )


def no_smmu_driver(case: Case) -> Iterator[Finding]:
    """Yield that the kernel has no driver for the SMMUs that the host has."""
    kernel = case.kernel
    smmus = [smmu.id for smmu in case.host.smmus if smmu.version == 3]
    if smmus and _is_off(kernel, "ARM_SMMU_V3"):
        yield Finding(
            "kernel-no-smmu-driver",
            Severity.ERROR,
            "host",
            (
                *_off(kernel, "ARM_SMMU_V3"),
                Evidence(case.host.source, f"SMMUv3 {named(smmus)}"),
            ),
            "No SMMUv3 is driven, so the devices behind them are in no IOMMU group and cannot be "
            "assigned.",
            f"Boot a kernel with ARM_SMMU_V3=y, and {_BUILT}.",
        )


def no_vfio_cdev(case: Case) -> Iterator[Finding]:
    """Yield that VFIO devices cannot be given to iommufd."""
    kernel = case.kernel
    if _is_off(kernel, "VFIO_DEVICE_CDEV") and not _is_off(kernel, "IOMMUFD"):
        yield Finding(
            "kernel-no-vfio-cdev",
            Severity.ERROR,
            "host",
            _off(kernel, "VFIO_DEVICE_CDEV"),
            "There is no /dev/vfio/devices, so that QEMU cannot bind a device to iommufd; through "
            "its group it would get no nested stage 1.",
            f"Boot a kernel with {_BUILT}.",
        )


def no_vfio_pci(case: Case) -> Iterator[Finding]:
    """Yield that there is no driver that gives PCI devices away."""
    kernel = case.kernel
    if _is_off(kernel, "VFIO_PCI"):
        yield Finding(
            "kernel-no-vfio-pci",
            Severity.ERROR,
            "host",
            _off(kernel, "VFIO_PCI"),
            "libvirt finds no driver vfio-pci to bind a device to, and starts no guest that is "
            "assigned one.",
            f"Boot a kernel with {_BUILT}.",
        )


def too_old(case: Case) -> Iterator[Finding]:
    """Yield that the kernel's release is older than what is needed."""
    release = kernel_release(case.kernel.release)
    if release is None or release >= NESTED_MSI:
        return
    if release < NESTED_SMMU:
        consequence = (
            f"{_this(case.kernel)} cannot nest an SMMUv3 for a guest: that came with Linux 6.13, "
            "and doorbells behind it with 6.15."
        )
    else:
        consequence = (
            f"{_this(case.kernel)} nests an SMMUv3 and maps no doorbell in the stage 2 below it: "
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
    """Yield that a kernel that has iommufd offers no /dev/iommu."""
    kernel = case.kernel
    if kernel.dev_iommu is not False or _is_off(kernel, "IOMMUFD"):
        return
    if case.tree is not None and not case.tree.exists("/dev"):
        return  # a copy without device nodes
    yield Finding(
        "no-dev-iommu",
        Severity.ERROR,
        "host",
        (Evidence("/dev/iommu", "is not there"),),
        "QEMU ends when it opens /dev/iommu: No such file or directory.",
        "Run modprobe iommufd, and name iommufd in a file of /etc/modules-load.d; where there is "
        f"no such module, boot a kernel with {_BUILT}.",
    )


def config_unknown(case: Case) -> Iterator[Finding]:
    """Yield that the kernel's configuration was nowhere to be read."""
    kernel = case.kernel
    if case.tree is not None and kernel.options is None:
        file = f"/boot/config-{kernel.release or 'RELEASE'}"
        yield Finding(
            "kernel-config-unknown",
            Severity.UNKNOWN,
            "host",
            (Evidence(file, "no configuration"), Evidence("/proc/config.gz", "no configuration")),
            "Whether the kernel has iommufd and nests SMMUs is not known.",
            f"Copy the configuration of the kernel that runs to {file}, or look for {_BUILT} in it "
            "yourself.",
        )
