"""The layout of the package: modules import each other without cycles."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp


def test_modules_import_each_other_without_cycles() -> None:
    """Lazy and type-only imports count."""
    graph = grimp.build_graph("alexnet", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert imports["alexnet.models.architectures"]
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules
