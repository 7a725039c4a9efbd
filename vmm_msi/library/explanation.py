"""Explain logs, as ``vmm-msi explain`` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_msi.arguments import switch, text_value
from vmm_msi.errors import UsageError
from vmm_msi.explain import log_lines
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.explain.remedies import StrategyRemedies
from vmm_msi.library.guests import guest_name, read_guest
from vmm_msi.library.hosts import any_host
from vmm_msi.library.settings import configuration, plugin_manager
from vmm_msi.report import explain as report
from vmm_msi.terminal import WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_msi.config import Config
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.explain.explanation import ExplainedText
    from vmm_msi.library.guests import GuestName
    from vmm_msi.library.hosts import AnyHost
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.report.documents import ExplainDocument
    from vmm_msi.types import HostTopology


@dataclass(frozen=True)
class LogExplanation:
    """The explanations of a text.

    :param explained: each explanation once, with its first line and its count, and counts of the
        other lines.
    """

    explained: ExplainedText

    @property
    def is_recognised(self) -> bool:
        """Whether a line of the text was recognised."""
        return bool(self.explained.lines or self.explained.suppressed)

    def to_json(self) -> ExplainDocument:
        """Return the document that ``vmm-msi explain --format json`` prints."""
        return report.to_json(self.explained)

    def to_lines(self, width: int = WIDTH) -> Iterator[str]:
        """Yield the explanations as lines for people."""
        return report.to_lines(self.explained, width)


def explain_log(
    text: str | bytes,
    host: AnyHost | None = None,
    domain: GuestName | None = None,
    *,
    uri: str | None = None,
    in_guest: bool = False,
    plugins: PluginManager | None = None,
    settings: Config | None = None,
) -> LogExplanation:
    """Explain the lines of a log: SMMU events, and messages of the kernel, QEMU and libvirt.

    :param text: lines of a log, as text or as bytes in an encoding that is recognised.
    :param host: the host that the text comes from; None if it is unknown.
    :param domain: the affected guest: its name in libvirt, or a file with its XML.
    :param uri: the libvirt that knows ``domain``.
    :param in_guest: the text comes from the guest's own log.
    :param plugins: None for the installed ones.
    :param settings: None for the defaults.
    :raise UsageError: for a value of another type.
    :raise InputError: if the text is too long, or host or guest cannot be read.
    :raise HypervisorError: if libvirt cannot be queried or has no such domain.
    """
    if not isinstance(text, str | bytes):
        raise UsageError(f"text {text!r}: not a log; use a str or bytes")
    data = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    config = configuration(settings)
    name = guest_name(domain)
    connect_to = None if uri is None else text_value("libvirt URI", uri)
    return explain_lines(
        log_lines.decode(data, "the text"),
        None if host is None else any_host(host).topology,
        None if name is None else read_guest(name, connect_to, running=True),
        in_guest=switch("in_guest", in_guest),
        plugins=plugin_manager(plugins, config),
        settings=config,
    )


def explain_lines(
    text: str,
    host: HostTopology | None,
    xml: DomainXml | None,
    *,
    in_guest: bool,
    plugins: PluginManager,
    settings: Config,
    notes: Sequence[str] = (),
) -> LogExplanation:
    """Explain a decoded text.

    :param notes: notes of the caller, which come first.
    """
    from vmm_msi.domxml.guest_domain import guest_from_xml

    guest = None if xml is None else guest_from_xml(xml)
    context = LogContext(host, guest, xml, in_guest)
    selector = settings.its_selector(context.guest_name)
    strategies = StrategyRemedies(plugins, context, selector)
    return LogExplanation(explain(text, context, strategies, notes))
