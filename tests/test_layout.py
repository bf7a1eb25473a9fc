"""The layout of the package: modules import each other without cycles."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp

KNOWN_CYCLES: list[tuple[str, str]] = [  # imports that close a cycle, (importer, imported); to be emptied
    ("alexnet.runtimes.select", "alexnet.inference.evaluate"),
]


def test_modules_import_each_other_without_cycles() -> None:
    """Lazy and type-only imports count."""
    graph = grimp.build_graph("alexnet", cache_dir=None)
    for importer, imported in KNOWN_CYCLES:
        assert graph.direct_import_exists(importer=importer, imported=imported), f"delete the entry of {importer}"
        graph.remove_import(importer=importer, imported=imported)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules
