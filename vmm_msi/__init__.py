"""Strategies for the MSI doorbells of assigned PCI devices behind a nested Arm SMMU.

What is in ``__all__`` is the library: the operations of the command line for a program that has a
libvirt connection of its own. docs/api.md has examples. Everything is passed in, nothing is global:
several connections, hosts and threads do not know of each other. Names are imported when they are
first used. Plugins import :mod:`vmm_msi.plugins`.
"""

from __future__ import annotations

# Type checkers take this name for true. This module imports nothing, since the program loads it
# before it can handle Ctrl-C.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm_msi.config import Choice, Config, load_config
    from vmm_msi.domxml.metadata import DomainRecord
    from vmm_msi.errors import VmmMsiError
    from vmm_msi.library.bindings import GuestBindings, bind, unbind
    from vmm_msi.library.changes import Change, attach, detach, plan_attach, plan_detach
    from vmm_msi.library.comparison import Comparison, compare
    from vmm_msi.library.examination import Examination, examine
    from vmm_msi.library.explanation import LogExplanation, explain_log
    from vmm_msi.library.guest_status import Status, StatusList, status, statuses
    from vmm_msi.library.hosts import Host, load_host, load_live, topology
    from vmm_msi.libvirt_driver import Connection, connect
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision import (
        AttachRequest,
        DetachRequest,
        Scope,
        apply_change,
        open_iommufd,
        pass_iommufd,
    )
    from vmm_msi.types import BinderKind, HostTopology, PciAddress, Verdict

__version__ = "0.1.0"

__all__ = [
    "AttachRequest",
    "BinderKind",
    "Change",
    "Choice",
    "Comparison",
    "Config",
    "Connection",
    "DetachRequest",
    "DomainRecord",
    "Examination",
    "GuestBindings",
    "Host",
    "HostTopology",
    "LogExplanation",
    "PciAddress",
    "PluginManager",
    "Scope",
    "Status",
    "StatusList",
    "Verdict",
    "VmmMsiError",
    "__version__",
    "apply_change",
    "attach",
    "bind",
    "compare",
    "connect",
    "detach",
    "examine",
    "explain_log",
    "load_config",
    "load_host",
    "load_live",
    "open_iommufd",
    "pass_iommufd",
    "plan_attach",
    "plan_detach",
    "status",
    "statuses",
    "topology",
    "unbind",
]

# Where each name is, for the first use of it.
_MODULES = {
    "config": ("Choice", "Config", "load_config"),
    "domxml.metadata": ("DomainRecord",),
    "errors": ("VmmMsiError",),
    "library.bindings": ("GuestBindings", "bind", "unbind"),
    "library.changes": ("Change", "attach", "detach", "plan_attach", "plan_detach"),
    "library.comparison": ("Comparison", "compare"),
    "library.examination": ("Examination", "examine"),
    "library.explanation": ("LogExplanation", "explain_log"),
    "library.guest_status": ("Status", "StatusList", "status", "statuses"),
    "library.hosts": ("Host", "load_host", "load_live", "topology"),
    "libvirt_driver": ("Connection", "connect"),
    "plugins.manager": ("PluginManager",),
    "provision": (
        "AttachRequest",
        "DetachRequest",
        "Scope",
        "apply_change",
        "pass_iommufd",
        "open_iommufd",
    ),
    "types": ("BinderKind", "HostTopology", "PciAddress", "Verdict"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"vmm_msi.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
