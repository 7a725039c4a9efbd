"""Run the doctor rules of plugins, beside those of the doctor itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vmm_msi.doctor import pages
from vmm_msi.errors import DomainXmlError, PluginError, VmmMsiError
from vmm_msi.host.files import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.doctor.case import Case
    from vmm_msi.doctor.finding import Finding
    from vmm_msi.plugins.hookspecs import Examined
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import PciAddress

log = logging.getLogger(__name__)


def plugin_findings(case: Case, *, skip_broken: bool) -> Iterator[Finding]:
    """Yield the findings of the loaded doctor rules.

    :param skip_broken: skip a rule that fails, with a warning.
    :raise PluginError: for a rule that fails.
    """
    plugins = case.rules or case.plugins
    if plugins is None:
        return
    from vmm_msi.plugins import answers
    from vmm_msi.plugins.hookspecs import PluginKind

    names = plugins.names(PluginKind.DOCTOR_RULE)
    if not names:
        return
    examined = _examined(case)
    for name in names:
        try:
            findings = answers.examine(plugins, name, examined)
            _check_ids(name, findings)
        except VmmMsiError as error:
            if not skip_broken:
                raise
            log.warning("%s; it is skipped", error)
        else:
            yield from findings


def plugin_page(plugins: PluginManager, finding: str) -> str | None:
    """Return the page about a finding of a doctor rule; None if no rule has it.

    :raise PluginError: when the rule fails.
    """
    from vmm_msi.plugins import answers

    return answers.finding_page(plugins, finding)


def _check_ids(name: str, findings: list[Finding]) -> None:
    taken = sorted({finding.id for finding in findings} & set(pages.ids()))
    if taken:
        raise PluginError(
            f"doctor rule {name}: finding {taken[0]!r} is one of vmm-msi; use another id"
        )


def _examined(case: Case) -> Examined:
    from vmm_msi.plugins.hookspecs import Examined

    kernel, software, tree = case.kernel, case.software, case.tree
    xml = None if case.guest is None else case.guest.xml
    return Examined(
        host=case.host,
        devices=case.devices,
        strategies=_strategies(case),
        kernel=kernel.release,
        kernel_options=kernel.options,
        kernel_parameters=kernel.parameters,
        kernel_log=kernel.log,
        libvirt=software.libvirt,
        qemu=software.qemu,
        domain=None if xml is None else xml.name,
        domain_xml=None if xml is None else str(xml),
        read=lambda path: None if tree is None else text(tree, path),
    )


def _strategies(case: Case) -> dict[PciAddress, str]:
    """Return the strategy of each device; none if there are none, or the record is unreadable."""
    if case.plugins is None:
        return {}
    try:
        return {device: str(choice) for device, choice in case.choices.items()}
    except DomainXmlError:
        return {}
