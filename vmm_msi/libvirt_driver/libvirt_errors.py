"""Translate libvirt's errors, by code, into one line that names the connection or the guest.

https://libvirt.org/html/libvirt-virterror.html
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import libvirt

from vmm_msi.errors import HypervisorError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The remedy, by error code; libvirt's own message suffices for other codes.
_ADVICE = {
    libvirt.VIR_ERR_NO_CONNECT: "valid is a libvirt URI such as qemu:///system or test:///default",
    libvirt.VIR_ERR_SYSTEM_ERROR: "is the libvirt daemon of that URI running?",
    libvirt.VIR_ERR_RPC: "is the libvirt daemon of that URI running?",
    libvirt.VIR_ERR_AUTH_FAILED: "log in as a user that libvirt accepts",
    libvirt.VIR_ERR_AUTH_CANCELLED: "log in as a user that libvirt accepts",
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: "log in as a user that libvirt accepts",
    libvirt.VIR_ERR_ACCESS_DENIED: "ask for the right to do that in libvirt's polkit rules",
    libvirt.VIR_ERR_OPERATION_DENIED: "connect for reading and writing",
    libvirt.VIR_ERR_NO_SUPPORT: "this driver of libvirt cannot do that",
    libvirt.VIR_ERR_XML_INVALID_SCHEMA: "valid is what this libvirt's schemas allow",
}


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Translate libvirt's errors in the ``with`` block.

    :param action: the action and its object, for the message.
    :raise HypervisorError: when libvirt raises an error.
    """
    try:
        yield
    except libvirt.libvirtError as error:
        raise translate(action, error) from error
    except (SystemError, UnicodeError) as error:
        # The binding decodes libvirt's message, which may quote a file that is not text.
        raise HypervisorError(
            f"{action}: libvirt's answer is not UTF-8; use input that is text"
        ) from error


def translate(action: str, error: libvirt.libvirtError) -> HypervisorError:
    """Return the error of this package for one of libvirt's."""
    what = " ".join(str(error.get_error_message() or error).split())
    advice = _ADVICE.get(error.get_error_code())
    return HypervisorError(f"{action}: {what}" + (f"; {advice}" if advice else ""))


def ignore(_context: object, _error: object) -> None:
    """Drop an error that libvirt would print; the exception contains it."""
