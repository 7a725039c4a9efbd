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


def candidates(text: str) -> list[Form]:
    """Return the forms whose key is in a text, the longest key first.

    The time depends on the length of the text, not on the number of forms.
    """
    index, length = _by_start()
    starts = {text[at : at + length] for at in range(len(text) - length + 1)}
    ranked = [entry for start in starts for entry in index.get(start, ()) if entry[1].key in text]
    return [form for _rank, form in sorted(ranked, key=lambda entry: entry[0])]


@cache
def _by_start() -> tuple[dict[str, list[tuple[int, Form]]], int]:
    """Return the forms with their rank, by the start of their key, and the start's length."""
    length = min(len(form.key) for form in forms())
    index: dict[str, list[tuple[int, Form]]] = {}
    for entry in enumerate(forms()):
        index.setdefault(entry[1].key[:length], []).append(entry)
    return index, length
