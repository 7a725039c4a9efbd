"""Check every import against the layers, also imports for type checking."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 500

#: Layers from the bottom up: a unit imports from lower layers and from itself. A nested package
#: (``host.files``) may be a unit of its own.
LAYERS = (
    {"errors", "ownership", "quantity", "terminal"},
    {"output", "pages", "types", "tomlfile", "samples", "templates", "host.files"},
    {"host.firmware", "host.pci"},
    {"iommu", "domxml", "config"},
    {"arguments", "host"},
    {"libvirt_driver", "qemuhook"},
    {"plugins", "lab"},
    {"engine"},
    {"doctor", "explain"},
    {"provision"},
    {"recording", "testing"},
    {"report", "watch"},
    {"library"},
    {"cli"},
    {"__main__"},
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}

#: Imports that are forbidden in a part of the tree, in addition to its layer's rule.
FORBIDDEN = {
    "vmm_msi.domxml": ("libvirt", "libvirt_qemu", "vmm_msi.iommu", "vmm_msi.host"),
    "vmm_msi.host": ("libvirt", "libvirt_qemu", "vmm_msi.iommu", "vmm_msi.domxml"),
    "vmm_msi.qemuhook": (
        "vmm_msi.config",
        "vmm_msi.iommu",
        "vmm_msi.samples",
        "vmm_msi.templates",
        "vmm_msi.tomlfile",
        "vmm_msi.host.firmware",
        "vmm_msi.host.sources",
    ),
    "vmm_msi.iommu": ("libvirt", "libvirt_qemu", "lxml", "vmm_msi.domxml", "vmm_msi.host.firmware"),
}
#: The only parts of the package that the simulator may import.
SIM_MAY_IMPORT = ("vmm_msi.errors", "vmm_msi.types", "vmm_msi.iommu")
LIBVIRT = {"libvirt", "libvirt_qemu", "libvirtmod", "libvirtaio"}


def is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def unit_of(name: str) -> str:
    """Return the unit of LAYERS that contains a dotted name; empty without one."""
    parts = name.split(".")[1:3]
    nested = ".".join(parts)
    return nested if nested in LEVEL else parts[0] if parts and parts[0] in LEVEL else ""


def is_public(name: str) -> bool:
    """Return whether a name is in the plugin contract: the package itself, not a module in it."""
    room, _, rest = name.partition("vmm_msi.plugins.")
    modules = {path.stem for path in (ROOT / "vmm_msi" / "plugins").glob("*.py")}
    return not room and rest.partition(".")[0] not in {"", *modules}


def imports(source: str, module: str, *, package: bool = False) -> set[str]:
    """Return the dotted names that a module imports; ``from a import b`` gives ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + package]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "import_module"
            and node.args
        ):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                names.add(str(name.value))
            elif isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
                names.add(str(name.values[0].value).rstrip("."))
    return names


def violations(module: str, source: str, *, package: bool = False) -> list[str]:
    """Return the forbidden imports of ``module``, a line for each."""
    problems = []
    names = sorted(imports(source, module, package=package))
    if is_in(module, "vmm_msi_plugins"):
        return [
            f"{module} imports {name}"
            for name in names
            if (is_in(name, "vmm_msi") and not is_public(name)) or name.partition(".")[0] in LIBVIRT
        ]
    if module == "vmm_msi":
        return []  # it re-exports the library's names from any module
    unit = unit_of(module)
    if not unit:
        problems.append(f"{module} is missing in LAYERS")
    forbidden = [
        prefix for part, prefixes in FORBIDDEN.items() if is_in(module, part) for prefix in prefixes
    ]
    for name in names:
        top = name.partition(".")[0]
        target = unit_of(name)
        if top in LIBVIRT and not is_in(module, "vmm_msi.libvirt_driver"):
            problems.append(f"{module} imports {name}: only libvirt_driver may")
        if top == "vmm_msi_plugins":
            problems.append(f"{module} imports {name}: plugins are loaded by entry point")
        if any(is_in(name, prefix) for prefix in forbidden):
            problems.append(f"{module} imports {name}: {module.split('.')[1]} may not")
        if top != "vmm_msi":
            continue
        if (
            is_in(module, "vmm_msi.iommu.sim")
            and target
            and not any(is_in(name, prefix) for prefix in SIM_MAY_IMPORT)
        ):
            problems.append(
                f"{module} imports {name}: the simulator is independent of what it checks"
            )
        if target and target != unit and LEVEL[target] >= LEVEL.get(unit, -1):
            problems.append(f"{module} imports {name}: an upper layer")
    return problems


def modules() -> dict[str, Path]:
    paths = {}
    for folder, package in (
        (ROOT / "vmm_msi", "vmm_msi"),
        (ROOT / "plugins" / "vmm_msi_plugins", "vmm_msi_plugins"),
        (ROOT / "xml-templates", "vmm_msi.templates"),
    ):
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            paths[".".join(parts).removesuffix(".__init__")] = path
    return paths


MODULES = modules()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_to_lower_layers(module):
    path = MODULES[module]
    assert violations(module, path.read_text(), package=path.name == "__init__.py") == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_have_at_most_500_lines(module):
    lines = MODULES[module].read_text().count("\n")
    assert lines <= MAX_LINES, f"{module} has {lines} lines; split it"


def test_every_unit_in_the_layers_exists():
    units = {unit_of(name) for name in MODULES if "." in name and is_in(name, "vmm_msi")}
    assert units == set(LEVEL)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmm_msi.errors", "from vmm_msi.types import Iova"),
        ("vmm_msi.types", "import vmm_msi.plugins.manager"),
        (
            "vmm_msi.plugins.manager",
            "if TYPE_CHECKING:\n    from vmm_msi.engine.session import GuestSession",
        ),
        ("vmm_msi.iommu.sim.kernel", "from lxml import etree"),
        ("vmm_msi.iommu.sim.kernel", "import libvirt"),
        ("vmm_msi.iommu.sim.kernel", "import vmm_msi_plugins.direct"),
        ("vmm_msi.iommu.sim.kernel", "from vmm_msi.plugins.strategy import S2Pool"),
        ("vmm_msi.iommu.sim.kernel", "from vmm_msi.plugins import strategy"),
        ("vmm_msi.iommu.sim.kernel", "from vmm_msi.config import Choice"),
        ("vmm_msi.provision", "def f():\n    import libvirt_qemu"),
        ("vmm_msi.domxml.editor", "from vmm_msi.plugins.manager import PluginManager"),
        ("vmm_msi.domxml.editor", "from vmm_msi.engine import session"),
        ("vmm_msi.domxml.editor", "from ..provision import Change"),
        ("vmm_msi.domxml.editor", "import libvirt"),
        ("vmm_msi.qemuhook.entry", "from vmm_msi import config"),
        ("vmm_msi.qemuhook.entry", "import libvirt"),
        ("vmm_msi_plugins.direct", "from vmm_msi.plugins.strategy import S2Pool"),
        ("vmm_msi_plugins.direct", "from vmm_msi.engine import session"),
        ("vmm_msi.report.compare", "from vmm_msi.cli import main"),
        ("vmm_msi.report.compare", "importlib.import_module('vmm_msi.cli')"),
        ("vmm_msi.host.files.archive", "from vmm_msi.host.pci import sysfs"),
        ("vmm_msi.host.firmware.iort", "from vmm_msi.host.join import join"),
        ("vmm_msi.novelty", "import os"),
    ],
)
def test_forbidden_imports_are_reported(module, source):
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmm_msi.libvirt_driver", "import libvirt"),
        ("vmm_msi.cli", "importlib.import_module(f'vmm_msi.cli.{name}')"),
        ("vmm_msi_plugins.multi_its", "from vmm_msi_plugins.identity import check_window"),
        ("vmm_msi_plugins.direct", "from vmm_msi.plugins import S2Pool"),
        ("vmm_msi.iommu.sim.kernel", "from vmm_msi.iommu.backend import S2Handle"),
        ("vmm_msi.domxml.editor", "from . import elements"),
        ("vmm_msi.cli", "from vmm_msi import __version__"),
    ],
)
def test_allowed_imports_are_not_reported(module, source):
    assert violations(module, source) == []
