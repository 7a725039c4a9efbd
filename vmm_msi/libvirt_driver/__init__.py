"""Call libvirt through a few typed methods: the only package that imports it.

``connection`` has the methods, ``change`` replaces a definition or restores the old one,
``event_loop`` passes on events of guests, ``libvirt_errors`` translates libvirt's errors.

:raise UsageError: on import of this package, when libvirt-python is not installed.
"""

from vmm_msi.errors import UsageError

try:
    import libvirt as _libvirt  # noqa: F401
except ImportError as error:
    raise UsageError(
        f"importing libvirt-python: {error}; install it with pip install 'vmm-msi[libvirt]' or "
        "apt install python3-libvirt"
    ) from error

from vmm_msi.libvirt_driver.change import redefine, undo_error, verify_defined
from vmm_msi.libvirt_driver.connection import Connection, connect

__all__ = ["Connection", "connect", "redefine", "undo_error", "verify_defined"]
