"""The modules of the iommu room import each other in one direction."""

from __future__ import annotations

from graphlib import TopologicalSorter

from test_layers import MODULES, imports, is_in


def test_no_import_cycle():
    """Imports for type checking count too; a CycleError names the modules."""
    inside = {name: path for name, path in MODULES.items() if is_in(name, "vmm_msi.iommu")}
    graph = {}
    for module, path in inside.items():
        names = imports(path.read_text(), module, package=path.name == "__init__.py")
        graph[module] = {
            target
            for target in inside
            for name in names
            if name == target or name.rpartition(".")[0] == target
        } - {module}
    assert len(graph) > 20
    assert list(TopologicalSorter(graph).static_order())
