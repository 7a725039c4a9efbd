"""The software that binds the doorbells of a guest."""

from __future__ import annotations

from enum import StrEnum


class BinderKind(StrEnum):
    """Software that binds the doorbells of a running guest."""

    #: QEMU and the kernel, by identity.
    QEMU = "qemu"
    #: The kernel's interface for guest MSI bindings, by ``vmm-msi watch`` or ``vmm-msi bind``.
    KERNEL = "kernel"
    #: The simulator: the XML is real, the binding is not.
    SIM = "sim"
