"""All known texts."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from vmm_msi.explain import (
    texts_kernel,
    texts_kernel_pci,
    texts_kernel_smmu,
    texts_libvirt,
    texts_qemu,
    texts_qemu_device,
    texts_qemu_vfio,
    texts_vmm,
)

if TYPE_CHECKING:
    from vmm_msi.explain.known_text import Form, Text


@cache
def texts() -> tuple[Text, ...]:
    """Return the texts of all programs."""
    return (
        *texts_kernel_smmu.TEXTS,
        *texts_kernel.TEXTS,
        *texts_kernel_pci.TEXTS,
        *texts_qemu.TEXTS,
        *texts_qemu_vfio.TEXTS,
        *texts_qemu_device.TEXTS,
        *texts_libvirt.TEXTS,
        *texts_vmm.TEXTS,
    )


@cache
def forms() -> tuple[Form, ...]:
    """Return all forms, the longest key first: it is the most specific of those that match."""
    every = [form for text in texts() for form in text.forms]
    return tuple(sorted(every, key=lambda form: -len(form.key)))
