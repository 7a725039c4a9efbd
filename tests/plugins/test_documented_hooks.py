"""The examples of docs/plugins.md for doctor rules, host readers and report formats."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vmm_msi.cli.common import FORMATS
from vmm_msi.errors import PluginError, TopologyError
from vmm_msi.plugins import HostTopology, answers
from vmm_msi.plugins.contract import FORMATS as RESERVED
from vmm_msi.plugins.hookspecs import Examined
from vmm_msi.plugins.manager import PluginManager

DOCS = Path(__file__).parents[2] / "docs" / "plugins.md"


@pytest.fixture
def plugins():
    """Every plugin of the three sections, registered."""
    manager = PluginManager()
    for heading, kind in (
        ("Doctor rules", "SiteRules"),
        ("Host readers", "Inventory"),
        ("Report formats", "Junit"),
    ):
        section = DOCS.read_text().partition(f"\n## {heading}\n")[2]
        names = {"__name__": "example"}
        code = re.search(r"```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[1]
        exec(compile(code, "docs/plugins.md", "exec"), names)  # noqa: S102 - the project's own text
        manager.register(names[kind])
    return manager


def test_the_doctor_rule(plugins):
    host = HostTopology("x", None, (), ())
    assert answers.examine(plugins, "site", Examined(host)) == []
    examined = Examined(host, read=lambda path: f"{path} iommu.passthrough=1")
    (finding,) = answers.examine(plugins, "site", examined)
    page = answers.finding_page(plugins, finding.id)
    assert page.startswith(f"# {finding.id}: ")
    assert answers.finding_page(plugins, "site-x") is None
    assert answers.finding_page(plugins, "no-its") is None


def test_the_host_reader(plugins):
    host = answers.read_host(plugins, "x", b"INVENTORY 1\n200000000\n210000000\n")
    assert [its.id for its in host.itses] == [0, 1]
    assert answers.read_host(plugins, "x", b"another\n") is None
    with pytest.raises(TopologyError, match="x: not the base of an ITS"):
        answers.read_host(plugins, "x", b"INVENTORY 1\nhere\n")


def test_the_report_format(plugins):
    results = [
        {"strategy": "identity", "verdicts": [{"outcome": "delivered"}]},
        {"strategy": "direct", "verdicts": [{"outcome": "refused"}]},
    ]
    document = answers.format_comparison(plugins, "junit", {"results": results})
    cases = ET.fromstring(document)  # noqa: S314 - the project's own text
    assert [case.find("failure") is None for case in cases] == [True, False]


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_format_of_vmm_msi_cannot_be_replaced(name, plugins):
    names = {"name": name, "vmm_msi_format_comparison": lambda self, document: b""}
    kind = type("Format", (type(plugins.plugin("junit")),), names)
    with pytest.raises(PluginError, match=f"the format '{name}' is vmm-msi's own"):
        plugins.register(kind)
    assert name in FORMATS
