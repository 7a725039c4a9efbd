"""Check the address of a frame of an ITS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.types import Pa
from vmm_msi.types.host import ITS_FRAME, PA_END

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


def its_frame(base: int, what: str, fail: Callable[[str], NoReturn]) -> Pa:
    """Return the address of a frame, which is aligned to its size.

    :param what: the owner of the frame, for messages: ``ITS``.
    :param fail: refuses the table with a message.
    """
    if base % ITS_FRAME or base >= PA_END:
        fail(f"{what} base {base:#x}: not a multiple of {ITS_FRAME:#x} below {PA_END:#x}")
    return Pa(base)
