"""Who may import whom, held against every import there is, those for type checking too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 500

#: Layers from the bottom up: a unit imports from lower ones and from itself.
LAYERS = (
    {"errors"},
    {"model", "tomlfile", "samples", "templates", "findings", "hosttree"},
    {"iommu", "domxml", "topology", "config"},
    {"hookspecs", "libvirt_driver", "qemuhook"},
    {"strategy", "host", "lab"},
    {"api", "run"},
    {"compare", "provision"},
    {"doctor", "explain"},
    {"recording"},
    {"report", "watch"},
    {"cli"},
    {"__main__"},
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}

#: What a part of the tree may not import, over and above its layer.
FORBIDDEN = {
    "vmm_msi.domxml": ("libvirt", "libvirt_qemu", "vmm_msi.iommu", "vmm_msi.topology"),
    "vmm_msi.topology": ("libvirt", "libvirt_qemu", "vmm_msi.iommu", "vmm_msi.domxml"),
    "vmm_msi.qemuhook": (
        "vmm_msi.config",
        "vmm_msi.iommu",
        "vmm_msi.samples",
        "vmm_msi.templates",
        "vmm_msi.tomlfile",
        "vmm_msi.topology",
    ),
    "vmm_msi.iommu": ("libvirt", "libvirt_qemu", "lxml", "vmm_msi.domxml", "vmm_msi.topology"),
}
#: All of the package that the model of kernel and hardware may import.
SIM_MAY_IMPORT = ("vmm_msi.errors", "vmm_msi.model", "vmm_msi.iommu")
LIBVIRT = {"libvirt", "libvirt_qemu", "libvirtmod", "libvirtaio"}


def is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def imports(source: str, module: str, *, package: bool = False) -> set[str]:
    """Return the dotted names that a module imports; ``from a import b`` gives ``a.b``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + package]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "import_module"
            and node.args
        ):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                found.add(str(name.value))
            elif isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
                found.add(str(name.values[0].value).rstrip("."))
    return found


def violations(module: str, source: str, *, package: bool = False) -> list[str]:
    """Return what is wrong with the imports of ``module``, a line for each."""
    found = []
    names = sorted(imports(source, module, package=package))
    if is_in(module, "vmm_msi_plugins"):
        return [
            f"{module} imports {name}"
            for name in names
            if (is_in(name, "vmm_msi") and not is_in(name, "vmm_msi.api"))
            or name.partition(".")[0] in LIBVIRT
        ]
    if module == "vmm_msi":
        return []  # the library's names, from wherever they are
    unit = module.split(".")[1] if "." in module else ""
    if unit and unit not in LEVEL:
        found.append(f"{module} has no place in LAYERS")
    forbidden = [bad for part, list_ in FORBIDDEN.items() if is_in(module, part) for bad in list_]
    for name in names:
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top in LIBVIRT and not is_in(module, "vmm_msi.libvirt_driver"):
            found.append(f"{module} imports {name}: libvirt_driver alone may")
        if top == "vmm_msi_plugins":
            found.append(f"{module} imports {name}: plugins are found, not imported")
        if any(is_in(name, bad) for bad in forbidden):
            found.append(f"{module} imports {name}: {module.split('.')[1]} may not")
        if top != "vmm_msi":
            continue
        if (
            is_in(module, "vmm_msi.iommu.sim")
            and target in LEVEL
            and not any(is_in(name, good) for good in SIM_MAY_IMPORT)
        ):
            found.append(f"{module} imports {name}: the model judges, it shares nothing")
        if target in LEVEL and target != unit and LEVEL[target] >= LEVEL.get(unit, -1):
            found.append(f"{module} imports {name}: against the direction")
    return found


def modules() -> dict[str, Path]:
    found = {}
    for folder, package in (
        (ROOT / "vmm_msi", "vmm_msi"),
        (ROOT / "plugins" / "vmm_msi_plugins", "vmm_msi_plugins"),
        (ROOT / "docs" / "findings", "vmm_msi.findings"),
        (ROOT / "xml-templates", "vmm_msi.templates"),
    ):
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_follow_the_direction(module):
    path = MODULES[module]
    assert violations(module, path.read_text(), package=path.name == "__init__.py") == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_are_not_too_long(module):
    lines = MODULES[module].read_text().count("\n")
    assert lines <= MAX_LINES, f"{module} has {lines} lines; make a package of it"


def test_every_unit_in_the_layers_exists():
    units = {name.split(".")[1] for name in MODULES if "." in name and is_in(name, "vmm_msi")}
    assert units == set(LEVEL)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmm_msi.errors", "from vmm_msi.model import Iova"),
        ("vmm_msi.model", "import vmm_msi.host"),
        ("vmm_msi.host", "if TYPE_CHECKING:\n    from vmm_msi.run import GuestRun"),
        ("vmm_msi.iommu.sim.kernel", "from lxml import etree"),
        ("vmm_msi.iommu.sim.kernel", "import libvirt"),
        ("vmm_msi.iommu.sim.kernel", "import vmm_msi_plugins.direct"),
        ("vmm_msi.iommu.sim.kernel", "from vmm_msi.strategy import S2Pool"),
        ("vmm_msi.iommu.sim.kernel", "from vmm_msi import strategy"),
        ("vmm_msi.iommu.sim.kernel", "from vmm_msi.config import Choice"),
        ("vmm_msi.provision", "def f():\n    import libvirt_qemu"),
        ("vmm_msi.domxml.editor", "from vmm_msi.host import PluginHost"),
        ("vmm_msi.domxml.editor", "from vmm_msi import run"),
        ("vmm_msi.domxml.editor", "from ..provision import Change"),
        ("vmm_msi.domxml.editor", "import libvirt"),
        ("vmm_msi.qemuhook.entry", "from vmm_msi import config"),
        ("vmm_msi.qemuhook.entry", "import libvirt"),
        ("vmm_msi_plugins.direct", "from vmm_msi.strategy import S2Pool"),
        ("vmm_msi_plugins.direct", "from vmm_msi import run"),
        ("vmm_msi.report.table", "from vmm_msi.cli import main"),
        ("vmm_msi.report.table", "importlib.import_module('vmm_msi.cli')"),
        ("vmm_msi.novelty", "import os"),
    ],
)
def test_what_is_forbidden_is_seen(module, source):
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmm_msi.libvirt_driver", "import libvirt"),
        ("vmm_msi.cli", "importlib.import_module(f'vmm_msi.cli.{name}')"),
        ("vmm_msi_plugins.multi_its", "from vmm_msi_plugins.identity import check_window"),
        ("vmm_msi_plugins.direct", "from vmm_msi.api import S2Pool"),
        ("vmm_msi.iommu.sim.kernel", "from vmm_msi.iommu.backend import S2Handle"),
        ("vmm_msi.domxml.editor", "from . import edit"),
        ("vmm_msi.cli", "from vmm_msi import __version__"),
    ],
)
def test_what_is_allowed_is_not(module, source):
    assert violations(module, source) == []
