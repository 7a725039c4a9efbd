"""Read and regenerate the parts of the documentation that a program can check.

``python tests/doc_blocks.py`` runs every example and writes its output and the generated tables
into the pages.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = (
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "tests" / "README.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((ROOT / "vmm_msi" / "doctor" / "findings").glob("*.md")),
)

#: Variables of a terminal, which change the text that commands print.
TERMINAL = {"COLUMNS", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE"}

_FENCE = re.compile(
    r"(?:<!-- (?P<mark>[\w ./-]+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``mark`` is the comment on the line before it, ``scenario two.toml``."""

    page: Path
    kind: str
    mark: str
    text: str

    @property
    def file_name(self) -> str:
        """The file name of the block in the examples of its page; empty without a mark."""
        return self.mark.partition(" ")[2]


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page."""
    source = page.read_text() if text is None else text
    return [
        Block(page, match["kind"], match["mark"] or "", match["text"])
        for match in _FENCE.finditer(source)
    ]


#: Folder beside the pages with the pictures that examples write.
PICTURES = "pictures"


def run_example(block: Block, save: Path | None = None, **variables: str) -> str:
    """Run the commands of a block, each a line that starts with ``$ ``; return the current block.

    ``< FILE`` at the end of a line is its standard input, ``> FILE`` receives its standard output.

    :param save: folder in which the pictures that the commands wrote are put, in ``PICTURES``.
    :param variables: additional environment variables.
    """
    lines = []
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"LIBVIRT_DEFAULT_URI", "VMM_MSI_CONFIG", "XDG_CONFIG_HOME", *TERMINAL}
    }
    with tempfile.TemporaryDirectory() as folder:
        cwd = Path(folder)
        for name in ("vmm_msi", "tests"):
            (cwd / name).symlink_to(ROOT / name)
        (cwd / PICTURES).mkdir()
        for other in blocks(block.page):
            if other.file_name:
                (cwd / other.file_name).write_text(other.text)
        environment |= {"XDG_CONFIG_HOME": folder, "PWD": folder, **variables}
        for line in block.text.splitlines():
            if not line.startswith("$ "):
                continue
            words = [word.replace("$PWD", folder) for word in shlex.split(line[2:])]
            standard_input, output = "", None
            if words[-2] == "<":
                standard_input = (cwd / words[-1]).read_text()
                del words[-2:]
            elif words[-2] == ">":
                output = cwd / words[-1]
                del words[-2:]
            code = "import sys; from vmm_msi.cli import main; sys.exit(main())"
            done = subprocess.run(
                [sys.executable, "-c", code, *words[1:]],
                cwd=cwd,
                env=environment,
                input=standard_input,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if output is None else subprocess.PIPE,
                text=True,
                check=False,
            )
            printed = done.stdout if output is None else done.stderr
            if output is not None:
                output.write_text(done.stdout)
            lines += [line, *([printed.rstrip("\n")] if printed else [])]
        if save is not None:
            shutil.copytree(cwd / PICTURES, save / PICTURES, dirs_exist_ok=True)
    return "\n".join(lines) + "\n"


# --- the truth table ---------------------------------------------------------------------------

STRATEGIES = {
    "host-cookie": "host-cookie",
    "coerced v2": "coerced:revision=v2",
    "coerced v4": "coerced:revision=v4",
    "coerced v8": "coerced:revision=v8",
    "coerced v15": "coerced:revision=v15",
    "direct": "direct",
    "multi-its s2": "multi-its:mode=s2",
    "multi-its vits": "multi-its:mode=vits",
    "multi-its vsmmu": "multi-its:mode=vsmmu",
    "identity": "identity",
    "placed": "placed",
    "window": "window",
    "preset": "preset",
    "mapped-page vits": "mapped-page:mode=vits",
    "mapped-page s2": "mapped-page:mode=s2",
}
#: Bases of the virtual ITSes for ``placed``: the first doorbell is in the first slot.
PLACED_BASES = {0: 0x07FF_0000, 1: 0x0A08_0000}
#: pITSes, S1 mode, vITSes, order.
ROWS = (
    (1, "shared", 1, "interleaved"),
    (1, "own", 1, "interleaved"),
    (1, "own", 1, "batched"),
    (1, "own-same", 1, "interleaved"),
    (2, "shared", 1, "interleaved"),
    (2, "own", 1, "interleaved"),
    (2, "own-same", 1, "interleaved"),
    (2, "own", 1, "batched"),
    (2, "own", 2, "interleaved"),
    (2, "own", 2, "batched"),
)
_SHORT = {"delivered": "d", "s1-fault": "s1", "s2-fault": "s2", "misrouted": "mis", "refused": "no"}


def truth_table() -> str:
    """Return the truth table as Markdown, with the outcomes that ``compare`` reports."""
    lines = [
        f"| pITS | stage 1 | vITS | order | {' | '.join(STRATEGIES)} |",
        f"|---|---|---|---|{'---|' * len(STRATEGIES)}",
    ]
    for pits, mode, vits, order in ROWS:
        cells = [_cell(pits, mode, vits, order, strategy) for strategy in STRATEGIES.values()]
        lines.append(f"| {pits} | {mode} | {vits} | {order} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


#: Revisions of the series, and what they are in the table.
SERIES = {
    "v1, v2": "coerced:revision=v2,profile=series-v2",
    "v3 to v6": "coerced:revision=v4,profile=series-v4",
    "v7": "coerced:revision=v8,profile=series-v7",
    "v8 to v14": "coerced:revision=v8,profile=series-v8",
    "v15": "coerced:revision=v15,profile=series-v15",
    "v16: identity": "identity:profile=series-v16",
}
#: pITSes, S1 mode, vITSes.
SERIES_ROWS = (
    (1, "shared", 1),
    (1, "own", 1),
    (1, "own-same", 1),
    (2, "shared", 1),
    (2, "own", 1),
    (2, "own-same", 1),
    (2, "own", 2),
)


def series_truth_table() -> str:
    """Return the truth table of the series in VFIO containers as Markdown."""
    lines = [
        f"| pITS | stage 1 | vITS | {' | '.join(SERIES)} |",
        f"|---|---|---|{'---|' * len(SERIES)}",
    ]
    for pits, mode, vits in SERIES_ROWS:
        cells = [
            _cell(pits, mode, vits, "interleaved", strategy, containers="stage1")
            for strategy in SERIES.values()
        ]
        lines.append(f"| {pits} | {mode} | {vits} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(
    pits: int, mode: str, vits: int, order: str, strategy: str, *, containers: str = ""
) -> str:
    from scenarios import pair

    from vmm_msi.cli import main

    sample = pair(mode, pits=pits, vits=vits, order=order, containers=containers)
    if strategy == "placed":
        sample = replace(sample, vits_bases=PLACED_BASES)
    with tempfile.TemporaryDirectory() as folder:
        scenario, out = Path(folder, "scenario.toml"), Path(folder, "out.json")
        scenario.write_text(sample.toml())
        arguments = ["--strategy", strategy, "--scenario", str(scenario)]
        if main(["compare", *arguments, "--format", "json", "-o", str(out)]):
            raise RuntimeError("compare failed")
        (result,) = json.loads(out.read_text())["results"]
    by_device = {verdict["device"]: _SHORT[verdict["outcome"]] for verdict in result["verdicts"]}
    outcomes = list(by_device.values())
    return " ".join(outcomes if len(set(outcomes)) > 1 else outcomes[:1])


def releases_table() -> str:
    """Return the libvirt, QEMU, guest and host that each XML requires, as Markdown."""
    from vmm_msi.domxml.support import ARCH, MACHINE, REQUIREMENTS

    lines = ["| XML | purpose | libvirt | QEMU | guest | host |", "|---|---|---|---|---|---|"]
    for needs in REQUIREMENTS.values():
        qemu = "any" if needs.qemu is None else str(needs.qemu)
        guest = [f"`{ARCH}`", f"`{MACHINE}`"] if needs.virt else []
        guest += ["not emulated"] if needs.kvm else []
        host = "any" if needs.caps is None else f"`{needs.caps}`"
        row = (
            f"`{needs.xml}`",
            needs.purpose,
            needs.libvirt,
            qemu,
            ", ".join(guest) or "any",
            host,
        )
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines) + "\n"


def support_by_release() -> str:
    """Return the XML that vmm-msi writes for each pair of releases, newest first, as Markdown."""
    from vmm_msi.domxml.support import REQUIREMENTS, Feature, Support, Version

    libvirts = {needs.libvirt for needs in REQUIREMENTS.values()}
    qemus = {needs.qemu for needs in REQUIREMENTS.values() if needs.qemu}
    oldest_pair: dict[tuple[Feature, ...], tuple[Version, Version]] = {}
    for libvirt in libvirts:
        for qemu in qemus:
            support = Support(libvirt, qemu)
            features = tuple(feature for feature in REQUIREMENTS if support.has(feature))
            pair = (libvirt, qemu)
            oldest_pair[features] = min(pair, oldest_pair.get(features, pair))
    lines = ["| libvirt from | QEMU from | can write | nested vSMMU |", "|---|---|---|---|"]
    for features, (libvirt, qemu) in sorted(oldest_pair.items(), key=lambda row: row[1])[::-1]:
        xml = ", ".join(f"`{REQUIREMENTS[feature].xml}`" for feature in features)
        nested = "yes" if Feature.ACCEL in features else "no"
        lines.append(f"| {libvirt} | {qemu} | {xml} | {nested} |")
    return "\n".join(lines) + "\n"


def support_by_strategy() -> str:
    """Return the hosts, guests and kernels on which each strategy works, as Markdown."""
    from vmm_msi.doctor.rules_kernel import NESTED_MSI
    from vmm_msi.domxml.support import REQUIREMENTS, Feature
    from vmm_msi.engine.binders import applied_by
    from vmm_msi.iommu.profiles import PROFILES, default_profile
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.types import BinderKind

    accel = REQUIREMENTS[Feature.ACCEL]
    plugins = PluginManager.load()
    profiles = " | ".join(profile.name for profile in PROFILES)
    lines = [
        f"| strategy | on a libvirt host | guest | {profiles} |",
        f"|---|---|---|{'---|' * len(PROFILES)}",
    ]
    for choice in plugins.choices():
        needs = plugins.needs(choice.strategy, plugins.options(choice.strategy, choice.options))
        kernel = ".".join(map(str, NESTED_MSI))
        host = {
            BinderKind.QEMU: f"Linux {kernel}, QEMU {accel.qemu}, libvirt {accel.libvirt}",
            BinderKind.KERNEL: "a kernel with [guest MSI bindings](kernel-interface.md)",
            BinderKind.SIM: "`--backend sim` only",
        }[applied_by(choice, needs)]
        guest = "honours the RMR" if needs.rmr else "any"
        default = default_profile({needs.interface})
        cells = [
            "default"
            if profile is default
            else "yes"
            if needs.capabilities <= profile.capabilities
            else "no"
            for profile in PROFILES
        ]
        lines.append(f"| `{choice}` | {host} | {guest} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def outcomes_table() -> str:
    """Return what each outcome means, as Markdown."""
    from vmm_msi.types.verdict import OUTCOME_MEANINGS

    rows = [f"| `{outcome}` | {meaning} |" for outcome, meaning in OUTCOME_MEANINGS.items()]
    return "\n".join(["| outcome | meaning |", "|---|---|", *rows]) + "\n"


def applied_by_table() -> str:
    """Return the strategies that each binder applies to a guest that runs, as Markdown."""
    from vmm_msi.engine.binders import applied_by
    from vmm_msi.engine.setup import needs_of
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.report.compare_rows import APPLIED_BY

    plugins = PluginManager.load()
    choices = list(plugins.choices())
    binder_of = {choice: applied_by(choice, needs_of(plugins, choice)) for choice in choices}
    lines = ["| applied by | strategies |", "|---|---|"]
    for binder, (label, _meaning) in APPLIED_BY.items():
        names = ", ".join(f"`{choice}`" for choice in choices if binder_of[choice] is binder)
        lines.append(f"| {label} | {names} |")
    return "\n".join(lines) + "\n"


def rules_table() -> str:
    """Return the rules that decide a verdict and where they are written, as Markdown."""
    from simulator_rules import all_rules

    lines = ["| rule | where |", "|---|---|"]
    lines += [f"| {rule.text} | {rule.source} |" for rule in all_rules()]
    return "\n".join(lines) + "\n"


def kernel_options() -> str:
    """Return the emulated host's kernel options, each group under its reason, as Markdown."""
    fragment = (ROOT / "vmm_msi" / "lab" / "build" / "kernel.config").read_text(encoding="utf-8")
    lines = ["| options | why |", "|---|---|"]
    for group in fragment.split("\n\n")[1:]:
        why: list[str] = []
        options: list[str] = []
        for line in group.splitlines():
            if not line.startswith("#"):
                options.append(f"`{line.removeprefix('CONFIG_').removesuffix('=y')}`")
                continue
            if options:
                lines.append(f"| {' '.join(options)} | {' '.join(why)} |")
                why, options = [], []
            why.append(line.removeprefix("# "))
        lines.append(f"| {' '.join(options)} | {' '.join(why)} |")
    return "\n".join(lines) + "\n"


def explained_texts() -> str:
    """Return every message that ``explain`` recognises, as Markdown."""
    from vmm_msi.explain.known_texts import texts

    lines = ["| id | program | text | meaning |", "|---|---|---|---|"]
    for text in texts():
        first = text.formats[0].strip().replace("|", "\\|")
        more = len(text.forms) - 1
        shown = f"`{first}`" + (f" and {more} more" if more else "")
        lines.append(f"| `{text.id}` | {text.program} | {shown} | {text.what} |")
    return "\n".join(lines) + "\n"


def explained_events() -> str:
    """Return the explanations of events without an address, as Markdown."""
    from vmm_msi.explain.configuration import MEANINGS

    lines = [
        "| event | meaning | behind an accelerated vSMMU | otherwise |",
        "|---|---|---|---|",
    ]
    for kind, meaning in MEANINGS.items():
        other = "the same" if meaning.host is None else meaning.host.why
        lines.append(f"| `{kind.name}` | {meaning.what} | {meaning.nested.why} | {other} |")
    return "\n".join(lines) + "\n"


def layers() -> str:
    """Return the layers of imports, highest first, as a picture and a table of the rooms."""
    import test_layers

    lines = ["```text"]
    lines += ["  ".join(sorted(units)) for units in reversed(test_layers.LAYERS)]
    lines += ["```", "", "| room | purpose |", "|---|---|"]
    for units in reversed(test_layers.LAYERS):
        for name in sorted(test_layers.MODULES):
            path = test_layers.MODULES[name]
            room = name.removeprefix("vmm_msi.")
            is_room = path.name == "__init__.py" or room in units
            if is_room and test_layers.unit_of(name) in units:
                summary = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
                lines.append(f"| `{room}` | {summary.replace('``', '`').removesuffix('.')} |")
    return "\n".join(lines) + "\n"


# --- findings ----------------------------------------------------------------------------------


def rule_modules(*names: str) -> dict[str, ast.Module]:
    """Return the parsed modules of rules by name.

    :param names: only these modules, without ``rules_``; all by default.
    """
    folder = ROOT / "vmm_msi" / "doctor"
    return {
        f"vmm_msi.doctor.{path.stem}": ast.parse(path.read_text())
        for path in sorted(folder.glob("rules_*.py"))
        if not names or path.stem.removeprefix("rules_") in names
    }


def rule_names() -> list[str]:
    """Return the names of all rules, the public functions of their modules."""
    return [
        f"{module}.{node.name}"
        for module, tree in rule_modules().items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


#: Classes whose first arguments are id and severity of a finding: itself, and rows of tables.
_FINDINGS = {"Finding", "_MissingPart"}


def finding_ids(*modules: str) -> dict[str, list[str]]:
    """Return the severities that each finding can have, by its id, from the rules' source.

    :param modules: only these modules, without ``rules_``; all by default.
    """
    by_id: dict[str, set[str]] = {}
    for tree in rule_modules(*modules).values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in _FINDINGS:
                name, severity = node.args[:2]
                if isinstance(name, ast.Attribute) and name.attr == "id":
                    continue  # of a row of a table, which has it written out
                if not isinstance(name, ast.Constant):
                    raise TypeError(f"line {node.lineno}: the id of a Finding must be a literal")
                by_id.setdefault(name.value, set()).update(
                    part.attr.lower()
                    for part in ast.walk(severity)
                    if isinstance(part, ast.Attribute)
                    and getattr(part.value, "id", "") == "Severity"
                )
    order = ["error", "warning", "note", "unknown"]
    return {name: sorted(by_id[name], key=order.index) for name in sorted(by_id)}


def findings_table() -> str:
    """Return id, severity and title of every finding, as Markdown."""
    from vmm_msi.doctor import pages

    lines = ["| id | severity | title |", "|---|---|---|"]
    for name, severities in finding_ids().items():
        severity = ", ".join(f"`{word}`" for word in severities)
        lines.append(
            f"| [{name}](../vmm_msi/doctor/findings/{name}.md) | {severity} | {pages.title(name)} |"
        )
    return "\n".join(lines) + "\n"


REGIONS = {
    (DOCS / "architecture.md", "layers"): layers,
    (DOCS / "explain.md", "texts"): explained_texts,
    (DOCS / "explain.md", "events"): explained_events,
    (DOCS / "doctor.md", "findings"): findings_table,
    (DOCS / "kernels.md", "rules"): rules_table,
    (DOCS / "lab-internals.md", "kernel options"): kernel_options,
    (DOCS / "strategies.md", "outcomes"): outcomes_table,
    (DOCS / "strategies.md", "applied by"): applied_by_table,
    (DOCS / "strategies.md", "truth table"): truth_table,
    (DOCS / "strategies.md", "series truth table"): series_truth_table,
    (DOCS / "libvirt.md", "releases"): releases_table,
    (DOCS / "support.md", "releases"): support_by_release,
    (DOCS / "support.md", "strategies"): support_by_strategy,
}


def region(page: Path, name: str) -> str:
    """Return the text between ``<!-- name -->`` and ``<!-- end of name -->``."""
    match = _region(name).search(page.read_text())
    if match is None:
        raise LookupError(f"{page}: no region {name!r}")
    return match[2].strip("\n") + "\n"


def _region(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- end of {name} -->)", re.DOTALL)


def headings(page: Path) -> list[str]:
    """Return the headings of a page, without those in fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ +(.*)$", text, re.MULTILINE)


def first_column(page: Path) -> set[str]:
    """Return the text in backticks in the first column of the page's tables."""
    return set(re.findall(r"^\| `([^`]*)` \|", page.read_text(), re.MULTILINE))


def rewrite() -> None:
    """Write the output of every example and the generated tables into the pages."""
    for page in PAGES:
        text = page.read_text()
        for block in blocks(page):
            if block.kind == "console":
                text = text.replace(block.text, run_example(block, DOCS))
        page.write_text(text)
    for (page, name), make in REGIONS.items():
        body = f"\n{make()}\n"
        text = page.read_text()
        text = _region(name).sub(lambda match, body=body: match[1] + body + match[3], text)
        page.write_text(text)


if __name__ == "__main__":
    rewrite()
