"""Call the hooks of doctor rules, host readers and report formats, one plugin at a time.

A plugin that raises, or answers with another type, is a :class:`PluginError` that names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_msi.errors import PluginError, VmmMsiError
from vmm_msi.plugins.hookspecs import PluginKind
from vmm_msi.types import HostTopology
from vmm_msi.types.finding import Evidence, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm_msi.plugins.hookspecs import Examined
    from vmm_msi.plugins.manager import PluginManager


def examine(plugins: PluginManager, name: str, examined: Examined) -> list[Finding]:
    """Return the findings of a doctor rule.

    :raise PluginError: when the rule fails, or a finding is not one of its own.
    """
    what = f"doctor rule {name}: examining {examined.host.source}"
    answer = _call(plugins, name, "vmm_msi_examine", what, {"examined": examined}, listed=True)
    for finding in answer:
        _check_finding(name, what, finding)
    return list(answer)


def _check_finding(name: str, what: str, finding: object) -> None:
    if not isinstance(finding, Finding):
        raise PluginError(f"{what}: it reported {finding!r}; valid: a Finding")
    texts: tuple[object, ...] = (
        finding.id,
        finding.subject,
        finding.consequence,
        finding.remedy,
    )
    severity: object = finding.severity
    evidence: object = finding.evidence
    if not (
        all(isinstance(text, str) for text in texts)
        and isinstance(severity, Severity)
        and isinstance(evidence, tuple)
        and all(isinstance(item, Evidence) for item in evidence)
    ):
        raise PluginError(
            f"{what}: finding {finding.id!r} has a field of another type; valid: texts, a Severity "
            "and a tuple of Evidence"
        )
    if not finding.id.startswith(f"{name}-"):
        raise PluginError(f"{what}: finding {finding.id!r}; valid: an id that starts with {name}-")


def finding_page(plugins: PluginManager, finding: str) -> str | None:
    """Return the page about a finding of a doctor rule; None if no rule has it.

    :raise PluginError: when the rule fails.
    """
    for name in plugins.names(PluginKind.DOCTOR_RULE):
        if finding.startswith(f"{name}-"):
            what = f"doctor rule {name}: explaining {finding}"
            values = {"finding": finding}
            page = _call(plugins, name, "vmm_msi_finding_page", what, values)
            if page is not None and not isinstance(page, str):
                raise PluginError(f"{what}: it returned {type(page).__name__}; valid: a str")
            if page is not None:
                return page
    return None


def read_host(plugins: PluginManager, path: str, content: bytes) -> HostTopology | None:
    """Return the host that the first reader recognises; None if none does.

    :raise TopologyError: when a reader recognises the file, and it is malformed.
    :raise PluginError: when a reader fails, and no other one recognises the file.
    """
    failure: PluginError | None = None
    for name in plugins.names(PluginKind.HOST_READER):
        what = f"host reader {name}: reading {path}"
        values = {"name": path, "content": content}
        try:
            host = _call(plugins, name, "vmm_msi_read_host", what, values)
            if host is not None and not isinstance(host, HostTopology):
                raise PluginError(  # noqa: TRY301
                    f"{what}: it returned {type(host).__name__}; valid: a HostTopology, or None"
                )
        except PluginError as error:
            failure = failure or error
            continue
        if host is not None:
            return host
    if failure is not None:
        raise failure
    return None


def format_comparison(plugins: PluginManager, name: str, document: Mapping[str, Any]) -> bytes:
    """Return a comparison in the format of a plugin.

    :raise UsageError: when no report format has the name.
    :raise PluginError: when it fails.
    """
    plugins.info(name, PluginKind.REPORT_FORMAT)
    what = f"report format {name}: writing the comparison"
    text = _call(plugins, name, "vmm_msi_format_comparison", what, {"document": document})
    if not isinstance(text, bytes):
        raise PluginError(f"{what}: it returned {type(text).__name__}; valid: bytes")
    return text


def _call(
    plugins: PluginManager,
    name: str,
    hook: str,
    what: str,
    values: Mapping[str, object],
    *,
    listed: bool = False,
) -> Any:  # noqa: ANN401
    """Call a hook of a plugin.

    :param what: the kind and name of the plugin, and what it does, for messages.
    :param listed: the hook may be a generator; the answer is a list.
    """
    try:
        answer = plugins.caller(name, hook)(**values)
        return list(answer or ()) if listed else answer
    except VmmMsiError:
        raise
    except Exception as error:
        raise PluginError(f"{what} failed with {type(error).__name__}: {error}") from error
