"""Base classes of plugins: attributes describe the plugin, methods implement its hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from inspect import isfunction
from typing import TYPE_CHECKING, Any, ClassVar

from vmm_msi.plugins.hookspecs import HOOK_PREFIX, PROJECT, PluginInfo, PluginKind, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmm_msi.plugins.hookspecs import Event, Examined
    from vmm_msi.types import HostDevice, HostTopology
    from vmm_msi.types.finding import Finding


class Plugin(ABC):
    """A plugin; derive from a subclass of this one, which has a kind.

    Methods with the name of a hook implement that hook, without :data:`hookimpl`.

    :cvar name: the name by which users select the plugin; unique.
    :cvar summary: one line, for ``vmm-msi plugins list``.
    """

    kind: ClassVar[PluginKind]
    name: str = ""
    summary: str = ""

    def __init_subclass__(cls, **keywords: object) -> None:
        # pluggy looks for its mark on the function, and an override is another function.
        super().__init_subclass__(**keywords)
        for name, method in vars(cls).items():
            if (
                name.startswith(HOOK_PREFIX)
                and isfunction(method)
                and not hasattr(method, f"{PROJECT}_impl")
            ):
                hookimpl(method)

    @hookimpl
    def vmm_msi_describe(self) -> PluginInfo:
        """Describe the plugin by its attributes."""
        return PluginInfo(self.name, self.kind, self.summary)


class ItsSelector(Plugin):
    """An ITS selector."""

    kind = PluginKind.ITS_SELECTOR

    @abstractmethod
    def vmm_msi_select_its(self, device: HostDevice, host: HostTopology) -> int | None:
        """See :func:`~vmm_msi.plugins.hookspecs.vmm_msi_select_its`."""


class Observer(Plugin):
    """An observer, which allows everything and takes note of nothing until a hook is overridden."""

    kind = PluginKind.OBSERVER

    def vmm_msi_veto(self, event: Event) -> str | None:
        """See :func:`~vmm_msi.plugins.hookspecs.vmm_msi_veto`."""

    def vmm_msi_observe(self, event: Event) -> None:
        """See :func:`~vmm_msi.plugins.hookspecs.vmm_msi_observe`."""


class DoctorRule(Plugin):
    """A rule of the doctor; it may report several findings."""

    kind = PluginKind.DOCTOR_RULE

    @abstractmethod
    def vmm_msi_examine(self, examined: Examined) -> Iterable[Finding] | None:
        """See :func:`~vmm_msi.plugins.hookspecs.vmm_msi_examine`."""

    @abstractmethod
    def vmm_msi_finding_page(self, finding: str) -> str | None:
        """See :func:`~vmm_msi.plugins.hookspecs.vmm_msi_finding_page`."""


class HostReader(Plugin):
    """A reader of host descriptions."""

    kind = PluginKind.HOST_READER

    @abstractmethod
    def vmm_msi_read_host(self, name: str, content: bytes) -> HostTopology | None:
        """See :func:`~vmm_msi.plugins.hookspecs.vmm_msi_read_host`."""


class ReportFormat(Plugin):
    """A format of ``compare``, by the plugin's name."""

    kind = PluginKind.REPORT_FORMAT

    @abstractmethod
    def vmm_msi_format_comparison(self, document: Mapping[str, Any]) -> bytes:
        """See :func:`~vmm_msi.plugins.hookspecs.vmm_msi_format_comparison`."""
