"""Check the documentation against the program: names, options, examples, tables, links."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import inspect
import re
import typing
from collections import Counter
from importlib.machinery import SourceFileLoader

import doc_blocks
import msgspec
import pytest
from doc_blocks import DOCS, PAGES, ROOT

from vmm_msi import config, errors, tomlfile
from vmm_msi.cli import COMMANDS, build_parser
from vmm_msi.config import Choice, ConfigTable
from vmm_msi.domxml import bound_metadata, metadata
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.engine.binders import applied_by
from vmm_msi.engine.compare import compare
from vmm_msi.engine.setup import needs_of
from vmm_msi.errors import ConfigError, ScenarioError, VmmMsiError
from vmm_msi.host.scenario import load_scenario, parse_host, parse_scenario
from vmm_msi.host.scenario_tables import ScenarioFile
from vmm_msi.iommu.backend import Capability
from vmm_msi.iommu.profiles import PROFILES
from vmm_msi.plugins import hookspecs
from vmm_msi.plugins.hookspecs import PluginKind
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.report.compare_rows import APPLIED_BY
from vmm_msi.report.scenario import host_text
from vmm_msi.samples import path as sample
from vmm_msi.types import (
    SW_MSI_WINDOW,
    BindOrder,
    ContainerPer,
    DeviceId,
    Granule,
    GuestDevice,
    GuestDomain,
    HostDevice,
    HostTopology,
    Iova,
    Ipa,
    Its,
    MemoryRange,
    Outcome,
    Pa,
    PciAddress,
    ReservedKind,
    ReservedRegion,
    Scenario,
    Smmu,
    Stage1,
    StreamId,
    Vits,
)
from vmm_msi.watch.metrics import Exposition
from vmm_msi.watch.service_log import LogEvent
from vmm_msi.watch.statistics import Statistics

ALL_BLOCKS = [block for page in PAGES for block in doc_blocks.blocks(page)]


def marked(*marks, page=None):
    """Return the blocks with one of the marks; a typing error in a mark fails."""
    blocks = [b for b in ALL_BLOCKS if b.mark.split(" ")[0] in marks and page in {None, b.page}]
    assert blocks, f"no block is marked {marks}"
    return blocks


def block_id(block):
    text = block.page.read_text()
    return f"{block.page.name}-{text.count(chr(10), 0, text.index(block.text))}"


# --- the command line --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cli_reference():
    loader = SourceFileLoader("cli_reference", str(ROOT / "scripts" / "cli-reference"))
    spec = importlib.util.spec_from_loader("cli_reference", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def parsers(parser, name="vmm-msi"):
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, subparser in action.choices.items():
                yield from parsers(subparser, f"{name} {command}")


def test_cli_reference_is_up_to_date(cli_reference):
    assert (DOCS / "cli.md").read_text() == cli_reference.render(), "run scripts/cli-reference"


@pytest.mark.parametrize("name", [name for name, _ in parsers(build_parser(tuple(COMMANDS)))])
def test_every_command_and_option_is_described(name):
    parser = dict(parsers(build_parser(tuple(COMMANDS))))[name]
    text = (DOCS / "cli.md").read_text()
    section = re.search(rf"^#+ {name}\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, f"no section {name}"
    group = any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)
    for action in parser._actions:
        for option in action.option_strings:
            assert f"`{option}`" in section[1] or (group and action.dest == "help")
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            assert action.help in section[1]


def error_classes(kind=VmmMsiError):
    yield kind
    for subclass in kind.__subclasses__():
        yield from error_classes(subclass)


@pytest.mark.parametrize("kind", list(error_classes()), ids=lambda kind: kind.__name__)
def test_every_error_is_described_with_its_exit_code(kind):
    assert f"| {kind.exit_code} | `{kind.__name__}` |" in (DOCS / "cli.md").read_text()


def test_error_tree_in_the_docstring_is_complete():
    names = set(re.findall(r"(\w+Error)\b", errors.__doc__))
    assert names >= {kind.__name__ for kind in error_classes()}


# --- keys --------------------------------------------------------------------------------------


def keys(kind, prefix=""):
    """Yield the dotted name of each key of a table and of its subtables."""
    for field in msgspec.structs.fields(kind):
        name = f"{prefix}{field.encode_name}"
        yield name
        for table in tables(field.type):
            yield from keys(table, f"{name}.")


def tables(kind):
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for argument in typing.get_args(kind):
        yield from tables(argument)


def test_configuration_keys_are_described():
    assert doc_blocks.first_column(DOCS / "config.md") == set(keys(ConfigTable))


#: Tables of a scenario of which only the keys are described.
SECTIONS = {
    "host", "host.smmu", "host.its", "host.device", "host.route", "host.function", "host.segment",
    "host.reserved_memory", "host.table_error",
    "guest", "guest.vits", "guest.stage1", "guest.device", "vmm",
}  # fmt: skip


def test_scenario_keys_are_described():
    described = doc_blocks.first_column(DOCS / "scenario.md")
    assert described == set(keys(ScenarioFile)) - SECTIONS


def test_search_path_is_described(monkeypatch, tmp_path):
    text = (DOCS / "config.md").read_text()
    monkeypatch.setenv("XDG_CONFIG_HOME", "/xdg")
    first, second, third = config.search_path()
    assert f"3. `{first}`" in text
    assert f"4. `{second.relative_to('/xdg')}` in `$XDG_CONFIG_HOME`" in text
    assert f"5. `{third}`" in text


# --- TOML blocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("block", marked("config"), ids=block_id)
def test_configuration_examples_load(block, tmp_path):
    path = tmp_path / "vmm-msi.toml"
    path.write_text(block.text)
    settings = config.load_config(path)
    plugins = PluginManager.load()
    strategies, selectors = settings.names()
    for name in strategies:
        plugins.options(name, Choice.of(name, settings.table.strategies.get(name, {})).options)
    assert selectors <= set(plugins.names(PluginKind.ITS_SELECTOR))


def test_configuration_example_selects_the_described_strategies(tmp_path):
    path = tmp_path / "vmm-msi.toml"
    path.write_text(marked("config", page=DOCS / "config.md")[0].text)
    settings = config.load_config(path)
    device, other = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:02:00.0")
    assert str(settings.choice("storage", device)) == "multi-its:mode=vsmmu"
    assert str(settings.choice("bench", device)) == "coerced:revision=v8"
    assert str(settings.choice("bench", other)) == "identity"
    named = Choice.parse("coerced:revision=v2")
    assert str(settings.choice("storage", device, named)) == "coerced:revision=v2"
    assert settings.table.plugins.disabled == ["host-cookie"]


@pytest.mark.parametrize("block", marked("scenario"), ids=block_id)
def test_scenario_examples_load(block):
    assert parse_scenario(block.text, block.page.name).guest.devices


@pytest.mark.parametrize("block", marked("config-error", "scenario-error"), ids=block_id)
def test_erroneous_examples_are_rejected(block, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(block.text)
    if block.mark.startswith("scenario"):
        with pytest.raises(ScenarioError):
            load_scenario(path)
        return
    settings = config.load_config(path)
    (name,) = settings.table.strategies
    with pytest.raises(VmmMsiError):
        PluginManager.load().options(name, settings.table.strategies[name].items())


def test_wrong_keys_in_an_example_would_be_noticed():
    with pytest.raises(ScenarioError):
        parse_scenario(marked("scenario")[0].text.replace("its_group", "its_groups"), "x")
    with pytest.raises(ConfigError):
        tomlfile.decode("strategie = 'x'", ConfigTable, "x", ConfigError)


def test_scenario_example_has_every_key():
    blocks = marked("scenario", page=DOCS / "scenario.md")
    (block,) = (block for block in blocks if block.mark.endswith("every-key.toml"))
    a, b = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:02:00.0")
    relaxable = ReservedRegion(0xF000_0000, 0x10000, ReservedKind.DIRECT_RELAXABLE)
    host = HostTopology(
        source="x",
        granule=Granule.K4,
        smmus=(Smmu(0, Pa(0x905_0000)),),
        itses=(
            Its(0, Pa(0x2_0000_0000)),
            Its(1, Pa(0x2_0004_0000)),
            Its(2, Pa(0x2_0008_0000), translate_frame=Pa(0x2_0009_0000)),
            Its(3, Pa(0x2_000C_0000), pre_its=Pa(0x5800_0000)),
            Its(4, Pa(0x2_0010_0000), gicv2m=True),
        ),
        devices=(
            HostDevice(a, 0, StreamId(0x100), (0,), DeviceId(0x100), 1),
            HostDevice(
                b, 0, StreamId(0x1200), (1, 0), DeviceId(0x200), 2, 32, (SW_MSI_WINDOW, relaxable)
            ),
        ),
    )
    guest = GuestDomain(
        name="pair",
        vits=(Vits(0, Ipa(0x0808_0000)),),
        stage1=(Stage1("s1a", Granule.K4), Stage1("s1b", Granule.K4)),
        devices=(
            GuestDevice(a, "s1a", 0, Iova(0xFFFF_F000)),
            GuestDevice(b, "s1b", 0, Iova(0xFFFF_E000)),
        ),
        order=BindOrder.BATCHED,
        memory=(MemoryRange(Ipa(0x4000_0000), 0x8000_0000),),
        containers=ContainerPer.STAGE1,
    )
    assert parse_scenario(block.text, "x") == Scenario(host, guest)
    (exported,) = (block for block in blocks if block.mark.endswith("exported.toml"))
    text = block.text + exported.text
    written = set(re.findall(r"^(\w+) =|^\[+([\w.]+)\]|[{,] (\w+) =", text, re.MULTILINE))
    written = {key or inline or table.rpartition(".")[2] for key, table, inline in written}
    assert written == {name.rpartition(".")[2] for name in keys(ScenarioFile)}


def test_exported_example_is_what_export_writes():
    """A host whose every value is other than its default: each key of the example is read."""
    blocks = marked("scenario", page=DOCS / "scenario.md")
    (block,) = (block for block in blocks if block.mark.endswith("exported.toml"))
    text, _, _guest = block.text.partition("[guest]")
    assert host_text(parse_host(text, "x")).partition("\n\n")[2] == text.rstrip("\n") + "\n"


# --- examples ----------------------------------------------------------------------------------

CONSOLE = [block for block in ALL_BLOCKS if block.kind == "console"]


@pytest.mark.parametrize("block", CONSOLE, ids=block_id)
def test_examples_print_what_the_page_shows(block, tmp_path):
    assert doc_blocks.run_example(block, tmp_path) == block.text, "run python tests/doc_blocks.py"
    for picture in (tmp_path / doc_blocks.PICTURES).iterdir():
        kept = DOCS / doc_blocks.PICTURES / picture.name
        assert kept.read_bytes() == picture.read_bytes(), "run python tests/doc_blocks.py"


def test_pictures_come_from_an_example_and_are_shown():
    folder = doc_blocks.PICTURES
    written = {
        match
        for block in CONSOLE
        for match in re.findall(rf"> {folder}/(\S+)$", block.text, re.MULTILINE)
    }
    shown = {
        match
        for page in DOCS.glob("*.md")
        for match in re.findall(rf"!\[[^\]]+\]\({folder}/(\S+)\)", page.read_text())
    }
    assert {path.name for path in (DOCS / folder).iterdir()} == written == shown


def test_wrong_output_in_an_example_would_be_noticed():
    text = "```console\n$ vmm-msi --version\nvmm-msi 9.9\n```\n"
    (block,) = doc_blocks.blocks(DOCS / "cli.md", text)
    assert doc_blocks.run_example(block) != block.text


@pytest.mark.parametrize(
    ("page", "name"), doc_blocks.REGIONS, ids=lambda value: getattr(value, "name", value)
)
def test_generated_tables_are_up_to_date(page, name):
    current = doc_blocks.REGIONS[page, name]()
    assert doc_blocks.region(page, name) == current, "run python tests/doc_blocks.py"


# --- plugins -----------------------------------------------------------------------------------


def hooks():
    return {
        name: function
        for name, function in vars(hookspecs).items()
        if hasattr(function, f"{hookspecs.PROJECT}_spec")
    }


def test_hooks_are_described_with_their_parameters():
    expected = {
        f"`{name}({', '.join(inspect.signature(function).parameters)})`"
        for name, function in hooks().items()
    }
    assert len(expected) == 16
    described = {h for h in doc_blocks.headings(DOCS / "plugins.md") if "vmm_msi_" in h}
    assert described == expected


@pytest.fixture(scope="module")
def plugin_example():
    """Return the names that the example defines, and the output of the program that uses it."""
    module, program = marked("plugin", page=DOCS / "plugins.md")
    names = {"__name__": "vmm_msi_example"}
    exec(compile(module.text, "docs/plugins.md", "exec"), names)  # noqa: S102 - the project's own text
    printed = []
    names["print"] = printed.append
    exec(compile(program.text, "docs/plugins.md", "exec"), names)  # noqa: S102
    return names, printed


def test_plugin_example_prints_what_the_page_shows(plugin_example):
    (shown,) = marked("printed", page=DOCS / "plugins.md")
    assert "".join(f"{line}\n" for line in plugin_example[1]) == shown.text


def test_plugins_of_the_example_work(plugin_example):
    plugins = PluginManager.load()
    for name in ("OneIts", "LastInGroup", "NoBaseline"):
        plugins.register(plugin_example[0][name])
    assert {"one-its"} < set(plugins.names(PluginKind.STRATEGY))
    two = load_scenario(sample("two-its.toml"))
    one = parse_scenario(sample("two-its.toml").read_text().replace("[1]", "[0]"), "x")
    last = parse_scenario(sample("two-its.toml").read_text().replace("[0]", "[0, 1]"), "x")

    def outcomes(scenario, choice, selector="first-in-group"):
        (result,) = compare(plugins, scenario, [Choice.parse(choice)], selector)
        return [verdict.outcome for verdict in result.verdicts]

    assert outcomes(two, "one-its") == [Outcome.REFUSED, Outcome.REFUSED]
    assert outcomes(one, "one-its") == [Outcome.DELIVERED, Outcome.DELIVERED]
    assert outcomes(two, "one-its:most=2") == [Outcome.DELIVERED, Outcome.REFUSED]
    choice = "multi-its:profile=series-v16"
    assert outcomes(last, choice, "last-in-group")[0] is Outcome.MISROUTED


def test_entry_points_of_the_example_are_its_plugins(plugin_example):
    import tomllib

    (project,) = [b for b in ALL_BLOCKS if b.page.name == "plugins.md" and "entry-points" in b.text]
    points = tomllib.loads(project.text)["project"]["entry-points"]["vmm_msi"]
    for name, value in points.items():
        module, _, attribute = value.partition(":")
        assert module == "vmm_msi_example"
        assert plugin_example[0][attribute]().vmm_msi_describe().name == name


# --- strategies and kernels --------------------------------------------------------------------


def test_shipped_strategies_have_a_section_with_their_options():
    text = (DOCS / "strategies.md").read_text()
    plugins = PluginManager.load()
    shipped = [r for r in plugins.records() if r.info and r.origin.startswith("vmm-msi ")]
    strategies = [r.info for r in shipped if r.info.kind is PluginKind.STRATEGY]
    assert len(strategies) == 9
    for info in strategies:
        section = re.search(rf"^## {info.name}\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
        assert section, info.name
        for field in info.options.__struct_fields__:
            assert f"`{field}`" in section[1]


def test_shipped_strategies_are_in_both_tables():
    glance = doc_blocks.first_column(DOCS / "strategies.md")
    compared = set(doc_blocks.STRATEGIES.values())
    for choice in PluginManager.load().choices():
        assert {str(choice), choice.strategy} & glance, choice
        assert str(choice) in compared, choice


def test_the_table_of_strategies_says_what_applies_each():
    text = (DOCS / "strategies.md").read_text()
    plugins = PluginManager.load()
    rows = re.findall(r"^\| `([\w:=-]+)` \|.*\| ([^|]*) \|$", text, re.MULTILINE)
    labels = {binder: label for binder, (label, _meaning) in APPLIED_BY.items()}
    table = {name: label for name, label in rows if label.partition(";")[0] in labels.values()}
    for choice in plugins.choices():
        label = table.get(str(choice)) or table[choice.strategy]
        expected = labels[applied_by(choice, needs_of(plugins, choice))]
        assert label.partition(";")[0] == expected, choice


def test_every_kernel_profile_is_described_with_its_capabilities():
    text = (DOCS / "kernels.md").read_text()
    for profile in PROFILES:
        row = re.search(rf"^\| `{profile.name}` \| .* \| (.*) \|$", text, re.MULTILINE)
        assert row, profile.name
        assert set(re.findall(r"`([^`]*)`", row[1])) == set(profile.capabilities)
    meanings = {
        name
        for cell in re.findall(r"^\| (`[^|]*`) \| [^|]*\|$", text, re.MULTILINE)
        for name in re.findall(r"`([^`]*)`", cell)
    }
    assert meanings >= set(Capability)


def test_every_outcome_is_described():
    assert doc_blocks.first_column(DOCS / "strategies.md") >= set(Outcome)


def test_every_field_of_the_record_is_described():
    text = (DOCS / "libvirt.md").read_text()
    for record in (metadata.VsmmuRecord, metadata.DeviceRecord, metadata.BindingRecord):
        for field in dataclasses.fields(record):
            if field.name not in {"options", "binding"}:
                assert f"`{field.name.replace('_', '-')}`" in text
    assert f"`{metadata.NAMESPACE}`" in text


def test_every_annotation_of_the_kubevirt_hook_is_described():
    script = (ROOT / "vmm_msi/samples/kubevirt/onDefineDomain").read_text()
    names = re.search(r"OPTIONS = \((.*)\)", script)[1].replace('"', "").split(", ")
    text = (DOCS / "render.md").read_text()
    for name in ("devices", *names):
        assert f"`vmm-msi.org/{name}`" in text


def rows(page, name):
    """Return the cells of the table between two comments, by its first column."""
    text = (DOCS / page).read_text()
    table = re.search(rf"<!-- {name} -->(.*?)<!-- end of {name} -->", text, re.DOTALL)[1]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_log_events_are_described():
    assert set(rows("watch.md", "log events")) == set(LogEvent)


def test_metrics_are_described_with_their_labels():
    described = {
        name: tuple(re.findall(r"`(\w+)`", cells[0]))
        for name, cells in rows("watch.md", "metrics").items()
    }
    statistics = Statistics()
    statistics.event("started")
    statistics.failure("guest")
    statistics.guest("a", Counter(delivered=1))
    exposed = {}
    for family in Exposition({"u": statistics.snapshot}).collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        exposed[name] = tuple(family.samples[0].labels.keys() - {"le"})
    assert {name: set(labels) for name, labels in described.items()} == {
        name: set(labels) for name, labels in exposed.items()
    }


def test_element_for_bound_devices_is_described():
    text = (DOCS / "watch.md").read_text()
    (block,) = marked("bound")
    page = f"<domain id='2'><name>g</name><metadata>{block.text}</metadata></domain>"
    bound = bound_metadata.read_bound(DomainXml.parse(page, "the page"))
    assert [str(device.outcome) for device in bound.devices] == ["delivered", "delivered"]
    for element in DomainXml.parse(page, "the page").root.iterfind("metadata//"):
        for name in element.attrib:
            assert f"| `{name}` |" in text


# --- links -------------------------------------------------------------------------------------


def anchor(heading):
    text = re.sub(r"[^\w\- ]", "", heading.lower())
    return text.replace(" ", "-")


def broken_links(page, text):
    plain = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", plain):
        if "://" in link:
            continue
        name, _, fragment = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (
            fragment and fragment not in map(anchor, doc_blocks.headings(target))
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_a_target(page):
    assert broken_links(page, page.read_text()) == []


def test_broken_links_would_be_noticed():
    text = "[a](nowhere.md) [b](cli.md#no-such-heading) [c](cli.md#exit-codes)"
    assert broken_links(DOCS / "x.md", text) == ["nowhere.md", "cli.md#no-such-heading"]


def test_index_links_every_page():
    text = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in text


def test_every_page_links_the_glossary():
    for page in DOCS.glob("*.md"):
        assert page.name == "glossary.md" or "(glossary.md)" in page.read_text(), page.name


def test_pages_that_modules_name_exist():
    for module in (ROOT / "vmm_msi").rglob("*.py"):
        for name in re.findall(r"\bdocs/[\w-]+\.md", module.read_text()):
            assert (ROOT / name).exists(), f"{module.relative_to(ROOT)} names {name}"
