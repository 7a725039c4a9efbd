"""Name the lab's kernels: the patches and the options that each is built with.

``stock`` is Debian's source, ``bind`` has the patches of ``vmm_msi/lab/kernel`` on top, and
``debug`` is ``bind`` with the kernel's own checks. A kernel may also be named by a folder: it is
the stock kernel with that folder's patches.
"""

from __future__ import annotations

import importlib.resources
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm_msi.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

STOCK, BIND, DEBUG = "stock", "bind", "debug"
#: The kernels that have a name.
NAMES = (STOCK, BIND, DEBUG)
#: The kernels that are built unless one is named.
DEFAULTS = (STOCK, BIND)


class Patch(NamedTuple):
    """One file of a patch series.

    :ivar name: its file name.
    :ivar content: a unified diff, for ``patch -p1``.
    """

    name: str
    content: bytes


@dataclass(frozen=True)
class Flavour:
    """What distinguishes one of the lab's kernels from the others.

    :ivar name: one of :data:`NAMES`, or the absolute path of a folder with patches.
    :ivar word: one word for it, part of the kernel's release and of its name in the cache; empty
        for the stock kernel.
    :ivar patches: its patch series, in order.
    :ivar options: what it adds to the options of the stock kernel: a fragment, or empty.
    """

    name: str
    word: str
    patches: tuple[Patch, ...]
    options: str = ""


def kernel_name(text: str) -> str:
    """Return the name of the kernel that ``text`` means: a name, or a folder's absolute path.

    :raise UsageError: when it is neither.
    """
    if text in NAMES:
        return text
    if os.sep not in text and not Path(text).is_dir():
        near = did_you_mean(text, NAMES)
        raise UsageError(
            f"lab kernel: {text!r} is not a kernel of the lab; {near}use {', '.join(NAMES)}, or a "
            "folder with patches such as ./patches"
        )
    return str(Path(text).absolute())


def flavour(name: str) -> Flavour:
    """Return the kernel ``name``, with the patches that it has now.

    :param name: as :func:`kernel_name` returns it.
    :raise UsageError: when its folder has no patch.
    """
    if name == STOCK:
        return Flavour(name, "", ())
    if name == BIND:
        return Flavour(name, name, read_patches(bind_folder()))
    if name == DEBUG:
        file = importlib.resources.files("vmm_msi.lab.build").joinpath("kernel-debug.config")
        return Flavour(name, name, read_patches(bind_folder()), file.read_text("utf-8"))
    return Flavour(name, "patched", read_patches(Path(name)))


def bind_folder() -> Traversable:
    """Return the folder with the patches of the kernel ``bind``."""
    return importlib.resources.files("vmm_msi.lab").joinpath("kernel")


def read_patches(folder: Traversable) -> tuple[Patch, ...]:
    """Return the patches in ``folder``, in order of name.

    :raise UsageError: when it has none.
    """
    try:
        files = sorted(
            (file for file in folder.iterdir() if file.name.endswith(".patch")),
            key=lambda file: file.name,
        )
        patches = tuple(Patch(file.name, file.read_bytes()) for file in files)
    except OSError as error:
        raise UsageError(f"lab kernel: patches in {folder}: {error.strerror}") from error
    if not patches:
        raise UsageError(f"lab kernel: patches in {folder}: there is no file *.patch")
    return patches
